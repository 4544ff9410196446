"""
Fine-tunes a GLIPv2 checkpoint on a COCO-format folder: all of it or a part, with all images or a few.

    python examples/finetune_detection.py --model MODEL --data raccoon --output outputs/raccoon
    python examples/finetune_detection.py --model MODEL --data raccoon --output outputs/few --shots 5 --tune prompt

A folder holds `train.json` beside `train/`, or `train/_annotations.coco.json` (Roboflow, ODinW). `--tune` chooses
what learns: everything, all but the lower half of the backbone, the detection head, offsets on the words of the prompt
(a few kilobytes), or low-rank adapters. The weights that are best on the evaluation split are kept; `metrics.json`
holds their scores there and, with `--test_split`, on images that chose nothing. `--keep_vocabulary` mixes in a
quarter of rows of other data, so that the model does not forget its other words.

Goes on after an interruption with `--resume_from_checkpoint latest`; runs on many processes with `accelerate launch`.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.data.augment import Compose, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.few_shot import few_shot
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.image_processing_glipv2 import set_shortest_edge
from transformers_glipv2.prompts import clean_labels, label_prompt
from transformers_glipv2.training import (
    TUNING_WAYS,
    DetectionEvaluator,
    SamplerBySource,
    StepBatches,
    TrainingPlan,
    export_model,
    load_sources,
    load_tuned,
    make_evaluator,
    parameter_groups,
    prepare_tuning,
    push_folder,
    read_data_file,
    require_learnable,
    step_loader,
    train,
)

LEARNING_RATES = {"full": 1e-4, "frozen-backbone": 1e-4, "linear-probe": 1e-3, "prompt": 5e-2, "lora": 5e-4}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id to start from")
    add("--data", required=True, type=Path, help="COCO-format folder")
    add("--output", required=True, type=Path, help="folder for weights, checkpoints and logs")
    add("--tune", choices=TUNING_WAYS, default="full", help="what learns (default: full)")
    add("--shots", type=int, help="images of each class, as ODinW draws them (default: all images)")
    add("--shot_seed", type=int, default=3, help="of the draw: 3, 30 or 300 in ODinW (default: 3)")
    add("--empty_images", type=int, default=0, help="with --shots: images without objects to add (default: 0)")
    add(
        "--max_samples",
        type=int,
        help="of each split, the first so many; with --eval_split train one can overfit them",
    )
    add("--keep_vocabulary", type=Path, help="data file (YAML) whose rows are rehearsed against forgetting")
    add("--rehearsal_share", type=float, default=0.25, help="of such rows; 0 only measures forgetting (default: 0.25)")
    add("--eval_split", default="val", help="split that chooses the best weights; none: keep the last (default: val)")
    add("--test_split", help="split that the best weights are scored on at the end (default: none)")
    add("--num_steps", type=int, default=300, help="optimizer steps (default: 300)")
    add("--batch_size", type=int, default=4, help="images of a step, over all processes (default: 4)")
    add("--learning_rate", type=float, help=f"default: {', '.join(f'{w} {r:g}' for w, r in LEARNING_RATES.items())}")
    add(
        "--sizes",
        type=int,
        nargs="*",
        help="shortest edges in px to train at; used at the largest (default: processor's)",
    )
    add("--eval_steps", type=int, default=50, help="steps between evaluations and checkpoints (default: 50)")
    add("--patience", type=int, default=0, help="end after so many evaluations without a gain; 0: never (default: 0)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    add("--seed", type=int, default=0, help="of data order, augmentation and dropout (default: 0)")
    add("--resume_from_checkpoint", help="a checkpoint folder, or `latest`, which also starts where there is none")
    add("--push_to_hub", metavar="REPO", help="upload the result to this Hub repository")
    args = parser.parse_args(arguments)
    if not 0 <= args.rehearsal_share < 1:
        parser.error(f"--rehearsal_share must be in [0, 1), got {args.rehearsal_share}")
    return args


def main(arguments: list[str] | None = None) -> dict:
    args = parse_args(arguments)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(str(args.output)),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)

    # Data. Every image is asked for all classes in the file's order, as it will be in use.
    processor = GLIPv2Processor.from_pretrained(args.model)
    if args.sizes:
        set_shortest_edge(processor, max(args.sizes))
    dataset = load_coco(args.data, split="train")
    if args.max_samples is not None:
        dataset = dataset.select(range(min(args.max_samples, len(dataset))))
    if args.shots is not None:
        dataset = few_shot(dataset, args.shots, args.shot_seed, empty_images=args.empty_images)
    require_learnable([dataset], ["boxes"])
    rehearsal = read_data_file(args.keep_vocabulary) if args.keep_vocabulary else None
    sources, weights = [dataset], [1.0]
    if rehearsal is not None and args.rehearsal_share:
        others, shares = load_sources(rehearsal)
        sources += others
        weights = [1 - args.rehearsal_share, *(args.rehearsal_share * share / sum(shares) for share in shares)]
    mixture = MixtureDataset(sources, weights, seed=args.seed, length=args.num_steps * args.batch_size)
    collator = GroundingCollator(
        processor,
        sampler=SamplerBySource(processor, len(dataset.class_names)),
        augment=Compose([HorizontalFlip(), PhotometricDistortion()]),
        sizes=args.sizes,
        size_period=args.batch_size,
        max_text_length=processor.max_tokens,
        seed=args.seed,
    )

    def make_loader(start_step: int):
        place = (accelerator.process_index, accelerator.num_processes)
        return step_loader(mixture, StepBatches(args.batch_size, args.num_steps, start_step, 1, *place), collator)

    # Model and optimizer.
    model = GLIPv2ForObjectDetection.from_pretrained(args.model)
    prompt = label_prompt(clean_labels(dataset.class_names)).text
    model = prepare_tuning(model, args.tune, processor, prompt)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rate = args.learning_rate or LEARNING_RATES[args.tune]
    # A pretrained text encoder learns slowly; offsets and adapters start at nothing.
    text_factor = 0.1 if args.tune in ("full", "frozen-backbone") else 1.0
    optimizer = torch.optim.AdamW(parameter_groups(model, rate, text_learning_rate_factor=text_factor))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by AP are kept, or the last.
    def make_score(split: str | None) -> DetectionEvaluator | None:
        return DetectionEvaluator(accelerator, processor, args.data, split, args.max_samples) if split else None

    score = make_score(None if args.eval_split == "none" else args.eval_split)
    test = make_score(args.test_split)
    kept = make_evaluator(rehearsal, accelerator, processor) if rehearsal is not None else None
    metrics = {"tune": args.tune, "shots": args.shots, "shot_seed": args.shot_seed, "trainable_parameters": trainable}
    if kept is not None:
        metrics["kept_vocabulary_before"] = kept(model.eval())
    plan = TrainingPlan(
        args.output,
        args.num_steps,
        warmup_steps=min(20, args.num_steps // 10),
        save_steps=args.eval_steps,
        patience=args.patience,
        keep_checkpoints=1,
        seed=args.seed,
    )
    state = train(
        accelerator,
        model,
        optimizer,
        make_loader,
        plan,
        export=partial(export_model, accelerator, processor),
        evaluate=score,
        resume_from=args.resume_from_checkpoint,
        settings=vars(args),
    )
    if state.stopped == "signal":
        return metrics

    # The kept weights, read back from the output folder.
    best = load_tuned(GLIPv2ForObjectDetection, args.model, args.output)
    best = accelerator.prepare_model(best, evaluation_mode=True).eval()
    metrics |= {"steps": state.step, "seconds": state.seconds}
    if score is not None:
        metrics |= {"best_step": state.best_step, args.eval_split: state.best_metrics}
    if test is not None:
        metrics[args.test_split] = test(best)
    if kept is not None:
        metrics["kept_vocabulary_after"] = kept(best)
    if accelerator.is_main_process:
        write_json(args.output / "metrics.json", metrics)
        print(json.dumps(metrics, indent=2))
        if args.push_to_hub:
            print(push_folder(args.output, args.push_to_hub))
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
