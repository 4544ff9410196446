"""
Fine-tunes a GLIPv2 checkpoint to answer questions, all of it or a new head over frozen weights.

    python examples/finetune_vqa.py --model MODEL --data vqa.yaml --output outputs/vqa
    python examples/finetune_vqa.py --model MODEL --data scenes.yaml --output outputs/answers --train head \\
        --num_steps 5000 --learning_rate 1e-3 --head_factor 1

The data file (YAML, see `transformers_glipv2/training/data_file.py`) lists questions, and under `evaluation` a source
of questions that chooses the best weights:

    sources: [{kind: vqa, path: questions.json, annotations_file: annotations.json, image_folder: coco}]
    evaluation: {kind: vqa, path: val_questions.json, annotations_file: val_annotations.json, image_folder: coco,
                 max_samples: 500}

or composite scenes, `{kind: scenes, path: assets, kinds: {vqa: 1.0}}`, with `split: test` to evaluate on. Examples of
other kinds may be mixed in: their boxes are learnt beside the answers. Defaults are the paper's: ten epochs, learning
rate 2e-5 and fifty times that for the head, 10 % warm-up, decay 0.01; there images have 576 px (`--image_size 576`).

With `--train head` the head alone learns, and the output keeps the checkpoint's other heads. `--ablate_images` blanks
the images: how well the questions alone are answered. `metrics.json` also holds what the best constant answer scores.
Goes on after an interruption with `--resume latest`; runs on many processes with `accelerate launch`.
"""

import argparse

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    InputFile,
    ScriptParser,
    add_data_file,
    add_image_size,
    add_model,
    add_training,
    check_paths,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.training import (
    finish_training,
    fit,
    language_data,
    prepare_head,
    start_training,
    step_loaders,
)
from transformers_glipv2.data.answers import load_answer_vocabulary
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config
from transformers_glipv2.training import (
    FROZEN_WAYS,
    AnswerCollator,
    AnswerEvaluator,
    StepBatches,
    answers_are_new,
    answers_of_sources,
    best_constant_answers,
    contrastive_head_of,
    evaluation_examples,
    frozen_batches,
    head_groups,
    keep_known_answers,
    load_other_heads,
    make_optimizer,
    repeated,
    require_learnable,
    step_loader,
)

EPOCHS = 10


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from; without an answer head it gets a new one")
    add_data_file(parser)
    help = "JSON list of answers (default: those of the data; VQA v2: majority of 9 or more)"
    add("--answers", type=InputFile, help=help)
    add(
        "--cached_questions",
        type=positive_int,
        help="with --train head: so many questions pass the frozen detector once, and the head goes over them again "
        "and again, which makes a step many times faster (default: new questions each step)",
    )
    add("--ablate_images", action="store_true", help="blank all images, for a baseline of questions alone")
    add("--learning_rate", type=positive_float, default=2e-5, help="of all but the head (default: 2e-5)")
    add("--head_factor", type=positive_float, default=50.0, help="the head's learning rate over that (default: 50)")
    add_image_size(parser, "of training; the largest is used for evaluation and saved")
    steps = f"optimizer steps (default: {EPOCHS} epochs; endless data needs it)"
    add_training(
        parser, 16, "questions of a step, over all processes", 500, (*FROZEN_WAYS, "head"), num_steps_help=steps
    )
    args = parser.parse_args(arguments)
    if args.cached_questions is not None and args.train != "head":
        parser.error("--cached_questions needs --train head: what moves cannot be computed once")
    if args.cached_questions is not None and args.cached_questions < args.batch_size:
        parser.error(f"--cached_questions {args.cached_questions} do not fill a batch of {args.batch_size}")
    return args


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    accelerator = start_training(args)
    with_images = not args.ablate_images

    # Data, and the answers that the head can give.
    processor = GLIPv2Processor.from_pretrained(args.model)
    data, mixture, collate = language_data(args, processor, EPOCHS, args.cached_questions)
    answers = load_answer_vocabulary(args.answers) if args.answers else answers_of_sources(mixture.sources)
    require_learnable(mixture.sources, ["answers"], answers)
    collator = AnswerCollator(collate, answers, with_images=with_images)

    # Model and optimizer. Answers that the checkpoint does not know start from their tokens.
    model, loaded = GLIPv2ForVisualQuestionAnswering.from_pretrained(
        args.model, **answer_config(answers), ignore_mismatched_sizes=True, output_loading_info=True
    )
    if "answer_head.classifier.weight" in loaded["missing_keys"] or answers_are_new(args.model, answers):
        contrastive_head = contrastive_head_of(model.config, load_other_heads(args.model, model))
        model.start_from_words(processor.tokenizer, contrastive_head)
        keep_known_answers(args.model, model)
    other_heads = prepare_head(model, args.train, args.model)
    optimizer = make_optimizer(head_groups(model, args.learning_rate, "answer_head.", args.head_factor))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Batches: new ones each step, or what the frozen detector makes of some, again and again.
    make_loader = step_loaders(args, accelerator, processor, mixture, collator)
    if args.cached_questions:
        own = (accelerator.process_index, accelerator.num_processes)
        batches = StepBatches(args.batch_size, args.cached_questions // args.batch_size, 0, 1, *own)
        loader = step_loader(mixture, batches, collator, args.num_workers)
        kept = frozen_batches(accelerator.unwrap_model(model), loader, accelerator.device, accelerator.is_main_process)

        def make_loader(start_step: int):
            return repeated(kept, start_step, args.num_steps, args.seed)

    # Training; the best weights by accuracy are kept.
    examples = evaluation_examples(data, "vqa")
    evaluate = AnswerEvaluator(accelerator, processor, examples, with_images=with_images) if examples else None
    options = {"warmup_steps": args.num_steps // 10, "other_heads": other_heads, "metric": "accuracy"}
    state = fit(args, accelerator, processor, model, optimizer, make_loader, evaluate=evaluate, **options)
    metrics = {"image_ablated": args.ablate_images, "answers": len(answers)}
    metrics |= {"best_step": state.best_step, "seconds": state.seconds}
    if examples is not None:
        metrics |= {"evaluation": state.best_metrics, "best_constant_answers": best_constant_answers(examples)}
    return finish_training(args, accelerator, state, metrics)


if __name__ == "__main__":
    run(main)
