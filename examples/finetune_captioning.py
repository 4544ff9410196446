"""
Fine-tunes a GLIPv2 checkpoint to describe images, all of it or a new head over frozen weights.

    python examples/finetune_captioning.py --model MODEL --data captions.yaml --output outputs/captions
    python examples/finetune_captioning.py --model MODEL --data scenes.yaml --output outputs/captions \\
        --freeze_detector --naming --num_steps 5000 --learning_rate 5e-4

The data file (YAML, see `transformers_glipv2/training/data_file.py`) lists captions, and under `evaluation` a source
of captions that chooses the best weights:

    sources: [{kind: karpathy_captions, path: dataset_coco.json, image_folder: coco, split: train}]
    evaluation: {kind: karpathy_captions, path: dataset_coco.json, image_folder: coco, split: val, per_image: true,
                 max_samples: 500}

or composite scenes, `{kind: scenes, path: assets, kinds: {caption: 1.0}}`, with `split: test` to evaluate on. Defaults
are the paper's: ten epochs, learning rate 5e-5, 10 % warm-up, decay 0.01; there images have 576 px (`--size 576`).

The best weights by CIDEr of greedy captions are kept; `metrics.json` has the scores of `--num_beams` beams on the same
images and `captions.json` the captions. Where objects have phrases, it also says how many phrases of the captions
are true and how many of their boxes are right. With `--freeze_detector` only the head learns, and the output keeps the
checkpoint's other heads; such a head has to look at the image itself (`--naming`). `--blind` blanks the images:
what words alone can tell. Goes on after an interruption with `--resume_from_checkpoint latest`; runs on many
processes with `accelerate launch`.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.evaluation.grounded_captions import grounded_caption_scores
from transformers_glipv2.image_processing_glipv2 import set_shortest_edge
from transformers_glipv2.inference.language import caption_and_ground
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.training import (
    CaptionCollator,
    CaptionEvaluator,
    StepBatches,
    TrainingPlan,
    contrastive_head_of,
    evaluation_examples,
    export_model,
    head_groups,
    load_other_heads,
    load_sources,
    make_collator,
    push_folder,
    read_data_file,
    require_learnable,
    step_loader,
    steps_of_epochs,
    train,
)

EPOCHS = 10


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id to start from; without a caption head it gets a new one")
    add("--data", required=True, type=Path, help="data file (YAML)")
    add("--output", required=True, type=Path, help="folder for weights, checkpoints and logs")
    add("--freeze_detector", action="store_true", help="train the head alone and keep the checkpoint's other heads")
    add("--naming", action="store_true", help="a head that looks at the image itself and names what it sees")
    add("--blind", action="store_true", help="blank all images, for a baseline of words alone")
    add("--num_steps", type=int, help=f"optimizer steps (default: {EPOCHS} epochs; endless data needs it)")
    add("--batch_size", type=int, default=16, help="captions of a step, over all processes (default: 16)")
    add("--learning_rate", type=float, default=5e-5, help="(default: 5e-5)")
    add("--size", type=int, help="short side of images in px, also in use later (default: as the model's processor)")
    add("--prefix", default="", help="how captions begin in evaluation (default: nothing)")
    add("--num_beams", type=int, default=5, help="of the final captions (default: 5)")
    add("--eval_steps", type=int, default=500, help="steps between evaluations and checkpoints (default: 500)")
    add("--patience", type=int, default=0, help="end after so many evaluations without a gain; 0: never (default: 0)")
    add("--num_workers", type=int, default=0, help="processes that prepare batches (default: 0)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    add("--seed", type=int, default=0, help="of data order, augmentation and dropout (default: 0)")
    add("--resume_from_checkpoint", help="a checkpoint folder, or `latest`, which also starts where there is none")
    add("--push_to_hub", metavar="REPO", help="upload the result to this Hub repository")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = parse_args(arguments)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(str(args.output)),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)

    # Data.
    data = read_data_file(args.data)
    data.mlm_probability = 0.0
    processor = GLIPv2Processor.from_pretrained(args.model)
    if args.size:
        data.sizes = None
        set_shortest_edge(processor, args.size)
    sources, weights = load_sources(data)
    require_learnable(sources, ["captions"])
    num_steps = args.num_steps or steps_of_epochs(sources, EPOCHS, args.batch_size)
    mixture = MixtureDataset(sources, weights, seed=args.seed, length=num_steps * args.batch_size)
    collate = make_collator(data, processor, mixture, args.batch_size, args.seed)
    collator = CaptionCollator(collate, with_images=not args.blind)

    def make_loader(start_step: int):
        place = (accelerator.process_index, accelerator.num_processes)
        batches = StepBatches(args.batch_size, num_steps, start_step, 1, *place)
        return step_loader(mixture, batches, collator, args.num_workers)

    # Model and optimizer. Captions begin and end as the tokenizer's texts do; a new head that names things starts from
    # what pre-training learnt of regions and words.
    head = {"caption_region_attention": True} if args.naming else {}
    model, loaded = GLIPv2ForConditionalGeneration.from_pretrained(args.model, **head, output_loading_info=True)
    model.set_special_tokens(processor.tokenizer)
    other_heads = load_other_heads(args.model, model)
    contrastive_head = contrastive_head_of(model.config, other_heads)
    if (
        contrastive_head is not None
        and "caption_head.region_attention.label_embeddings.weight" in loaded["missing_keys"]
    ):
        model.start_from_contrast(contrastive_head, processor.tokenizer)
    if args.freeze_detector:
        model.freeze_detector()
    else:
        # They would no longer fit what they read.
        other_heads = {}
    optimizer = torch.optim.AdamW(head_groups(model, args.learning_rate, "caption_head.", 1.0))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by CIDEr are kept.
    examples = evaluation_examples(data, "caption")
    evaluate = None
    if examples is not None:
        evaluate = CaptionEvaluator(accelerator, processor, examples, args.prefix, with_images=not args.blind)
    plan = TrainingPlan(
        args.output,
        num_steps,
        warmup_steps=num_steps // 10,
        save_steps=args.eval_steps,
        metric="CIDEr",
        patience=args.patience,
        keep_checkpoints=1,
        seed=args.seed,
    )
    export = partial(export_model, accelerator, processor, other_heads=other_heads)
    state = train(
        accelerator,
        model,
        optimizer,
        make_loader,
        plan,
        export=export,
        evaluate=evaluate,
        resume_from=args.resume_from_checkpoint,
        settings=vars(args),
    )
    metrics = {"blind": args.blind, "best_step": state.best_step, "seconds": state.seconds}
    if state.stopped == "signal":
        return metrics

    # The kept weights, read back from the output folder, with beams and boxes.
    if examples is not None:
        best = GLIPv2ForConditionalGeneration.from_pretrained(args.output).to(accelerator.device).eval()
        beams = CaptionEvaluator(
            accelerator, processor, examples, args.prefix, args.num_beams, with_images=not args.blind
        )
        metrics |= {"greedy": state.best_metrics, f"{args.num_beams} beams": beams(best)}
        captions = [
            {"image_id": example["image_id"], "caption": text}
            for example, text in zip(examples, beams.captions, strict=True)
        ]
        grounded = [example for example in examples if (example.get("objects") or {}).get("phrase")]
        if accelerator.is_main_process:
            write_json(args.output / "captions.json", captions)
            if grounded and not args.blind:
                images = [example["image"] for example in grounded]
                results = caption_and_ground(best, processor, images, args.prefix, beams.generation)
                metrics["grounded"] = grounded_caption_scores(grounded, results)
    if accelerator.is_main_process:
        write_json(args.output / "metrics.json", metrics)
        print(json.dumps(metrics, indent=2))
        if args.push_to_hub:
            print(push_folder(args.output, args.push_to_hub))
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
