"""
Fine-tunes a GLIPv2 checkpoint to answer questions, all of it or a new head over frozen weights.

    python examples/finetune_vqa.py --model MODEL --data vqa.yaml --output outputs/vqa
    python examples/finetune_vqa.py --model MODEL --data scenes.yaml --output outputs/answers --freeze_detector \\
        --num_steps 5000 --learning_rate 1e-3 --head_factor 1

The data file (YAML, see `transformers_glipv2/training/data_file.py`) lists questions, and under `evaluation` a source
of questions that chooses the best weights:

    sources: [{kind: vqa, path: questions.json, annotations_file: annotations.json, image_folder: coco}]
    evaluation: {kind: vqa, path: val_questions.json, annotations_file: val_annotations.json, image_folder: coco,
                 max_samples: 500}

or composite scenes, `{kind: scenes, path: assets, kinds: {vqa: 1.0}}`, with `split: test` to evaluate on. Rows of
other kinds may be mixed in: their boxes are learnt beside the answers. Defaults are the paper's: ten epochs, learning
rate 2e-5 and fifty times that for the head, 10 % warm-up, decay 0.01; there images have 576 px (`--size 576`).

With `--freeze_detector` the head alone learns, and the output keeps the checkpoint's other heads. `--blind` blanks the
images: how well the questions alone are answered. `metrics.json` also holds what the best constant answer scores.
Goes on after an interruption with `--resume_from_checkpoint latest`; runs on many processes with `accelerate launch`.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.answers import load_answer_vocabulary
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.image_processing_glipv2 import set_shortest_edge
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config
from transformers_glipv2.training import (
    AnswerCollator,
    AnswerEvaluator,
    StepBatches,
    TrainingPlan,
    answers_are_new,
    answers_of_sources,
    best_constant_answers,
    contrastive_head_of,
    evaluation_examples,
    export_model,
    frozen_batches,
    head_groups,
    load_other_heads,
    load_sources,
    make_collator,
    push_folder,
    read_data_file,
    repeated,
    require_learnable,
    step_loader,
    steps_of_epochs,
    train,
)

EPOCHS = 10


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id to start from; without an answer head it gets a new one")
    add("--data", required=True, type=Path, help="data file (YAML)")
    add("--output", required=True, type=Path, help="folder for weights, checkpoints and logs")
    add(
        "--answers", type=Path, help="json list of answers (default: those of the data; VQA v2: majority of 9 or more)"
    )
    add("--freeze_detector", action="store_true", help="train the head alone and keep the checkpoint's other heads")
    add(
        "--cached_questions",
        type=int,
        help="with --freeze_detector: so many questions pass the frozen part once, and the head goes over them again "
        "and again, which makes a step many times faster (default: new questions each step)",
    )
    add("--blind", action="store_true", help="blank all images, for a baseline of questions alone")
    add("--num_steps", type=int, help=f"optimizer steps (default: {EPOCHS} epochs; endless data needs it)")
    add("--batch_size", type=int, default=16, help="questions of a step, over all processes (default: 16)")
    add("--learning_rate", type=float, default=2e-5, help="of all but the head (default: 2e-5)")
    add("--head_factor", type=float, default=50.0, help="the head's learning rate over that (default: 50)")
    add("--size", type=int, help="short side of images in px, also in use later (default: as the model's processor)")
    add("--eval_steps", type=int, default=500, help="steps between evaluations and checkpoints (default: 500)")
    add("--patience", type=int, default=0, help="end after so many evaluations without a gain; 0: never (default: 0)")
    add("--num_workers", type=int, default=0, help="processes that prepare batches (default: 0)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    add("--seed", type=int, default=0, help="of data order, augmentation and dropout (default: 0)")
    add("--resume_from_checkpoint", help="a checkpoint folder, or `latest`, which also starts where there is none")
    add("--push_to_hub", metavar="REPO", help="upload the result to this Hub repository")
    args = parser.parse_args(arguments)
    if args.cached_questions is not None and not args.freeze_detector:
        parser.error("--cached_questions needs --freeze_detector: what moves cannot be computed once.")
    if args.cached_questions is not None and args.cached_questions < args.batch_size:
        parser.error(f"--cached_questions {args.cached_questions} do not fill a batch of {args.batch_size}.")
    return args


def main(arguments: list[str] | None = None) -> dict:
    args = parse_args(arguments)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(str(args.output)),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)

    # Data, and the answers that the head can give.
    data = read_data_file(args.data)
    data.mlm_probability = 0.0
    processor = GLIPv2Processor.from_pretrained(args.model)
    if args.size:
        data.sizes = None
        set_shortest_edge(processor, args.size)
    sources, weights = load_sources(data)
    answers = load_answer_vocabulary(args.answers) if args.answers else answers_of_sources(sources)
    require_learnable(sources, ["answers"], answers)
    num_steps = args.num_steps or steps_of_epochs(sources, EPOCHS, args.batch_size)
    questions = args.cached_questions or num_steps * args.batch_size
    mixture = MixtureDataset(sources, weights, seed=args.seed, length=questions)
    collate = make_collator(data, processor, mixture, args.batch_size, args.seed)
    collator = AnswerCollator(collate, answers, with_images=not args.blind)

    place = (accelerator.process_index, accelerator.num_processes)

    def make_loader(start_step: int):
        if kept is not None:
            return repeated(kept, start_step, num_steps, args.seed)
        batches = StepBatches(args.batch_size, num_steps, start_step, 1, *place)
        return step_loader(mixture, batches, collator, args.num_workers)

    # Model and optimizer. A head for other answers than the checkpoint's is a new one, which starts from their words.
    model, loaded = GLIPv2ForVisualQuestionAnswering.from_pretrained(
        args.model, **answer_config(answers), ignore_mismatched_sizes=True, output_loading_info=True
    )
    other_heads = load_other_heads(args.model, model)
    if "answer_head.classifier.weight" in loaded["missing_keys"] or answers_are_new(args.model, answers):
        model.start_from_words(processor.tokenizer, contrastive_head_of(model.config, other_heads))
    if args.freeze_detector:
        model.freeze_detector()
    else:
        # They would no longer fit what they read.
        other_heads = {}
    optimizer = torch.optim.AdamW(head_groups(model, args.learning_rate, "answer_head.", args.head_factor))
    model, optimizer = accelerator.prepare(model, optimizer)
    kept = None
    if args.cached_questions:
        batches = StepBatches(args.batch_size, args.cached_questions // args.batch_size, 0, 1, *place)
        loader = step_loader(mixture, batches, collator, args.num_workers)
        kept = frozen_batches(accelerator.unwrap_model(model), loader, accelerator.device, accelerator.is_main_process)

    # Training; the best weights by accuracy are kept.
    examples = evaluation_examples(data, "vqa")
    evaluate = None
    if examples is not None:
        evaluate = AnswerEvaluator(accelerator, processor, examples, with_images=not args.blind)
    plan = TrainingPlan(
        args.output,
        num_steps,
        warmup_steps=num_steps // 10,
        save_steps=args.eval_steps,
        metric="accuracy",
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
    metrics = {"blind": args.blind, "answers": len(answers), "best_step": state.best_step, "seconds": state.seconds}
    if examples is not None:
        metrics |= {"evaluation": state.best_metrics, "best_constant_answers": best_constant_answers(examples)}
    if accelerator.is_main_process and state.stopped != "signal":
        write_json(args.output / "metrics.json", metrics)
        print(json.dumps(metrics, indent=2))
        if args.push_to_hub:
            print(push_folder(args.output, args.push_to_hub))
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
