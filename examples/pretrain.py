"""
Pre-trains GLIPv2 with its four losses on a mixture of detection, grounding and caption data.

    python examples/make_nano.py --output outputs/nano-init
    python examples/pretrain.py --model outputs/nano-init --data data.yaml --output outputs/nano --num_steps 20000

`data.yaml` lists the data sets with weights, image sizes and augmentations, and what is evaluated on; see
`transformers_glipv2/training/data_file.py`. The same command with `--resume latest` goes on after an interruption: at
SIGTERM the step is finished and saved. On several processes the batch stays the same:

    accelerate launch --config_file examples/configs/ddp.yaml examples/pretrain.py ...

`--vqa_captioning` also learns the answers of examples of kind `vqa` and the captions of examples of kind `caption`,
with heads of their own over the same weights. Their gradients can be several times those of the boxes, and the whole
is clipped: compare `grad_norm` of the log with that of a run without, and give them less weight if it is much larger
(`--loss_weights answer=0.1 caption=0.1`).

The output folder gets the best weights by AP (the averaged ones) with the processor, the settings, and a line of JSON
for every few steps in training_log.jsonl; at the end, metrics.json holds the state of the run.
"""

import argparse
from dataclasses import asdict, replace

from transformers_glipv2 import GLIPv2ForPreTraining, GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_data_file,
    add_model,
    add_training,
    check_paths,
    fraction_below_one,
    non_negative_float,
    non_negative_int,
    number_after,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.training import finish_training, fit, start_training, step_loaders
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining
from transformers_glipv2.modeling_glipv2_vqa import answer_config
from transformers_glipv2.training import (
    FROZEN_WAYS,
    SCHEDULES,
    JointCollator,
    TrainingState,
    WeightAverage,
    answers_are_new,
    answers_of_sources,
    keep_known_answers,
    make_collator,
    make_evaluator,
    make_mixture,
    make_optimizer,
    parameter_groups,
    prepare_tuning,
    read_data_file,
    require_learnable,
)

HEAD_LOSSES = ("answer", "caption")
LOSSES = ("box", "centerness", "intra", "inter", "mlm", *HEAD_LOSSES)


def loss_weight(text: str) -> tuple[str, float]:
    """`inter=0.5` as the config's field and its value."""
    name, _, weight = text.partition("=")
    if name not in LOSSES:
        raise argparse.ArgumentTypeError(f"{text!r} names none of the losses {', '.join(LOSSES)}; write inter=0.5")
    return f"{name}_loss_weight", number_after(text, weight, non_negative_float)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from, such as make_nano.py writes")
    add_data_file(parser)
    help = "parts that a process cuts its images of a step into (default: 1)"
    add("--gradient_accumulation_steps", type=positive_int, default=1, help=help)
    help = "of all but the text encoder and text layers, which get a tenth (default: 1e-4)"
    add("--learning_rate", type=positive_float, default=1e-4, help=help)
    help = "the backbone's rate over the others'; below 1 a pretrained one keeps more of what it knows (default: 1)"
    add("--backbone_rate", type=positive_float, default=1.0, metavar="FACTOR", help=help)
    add("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate after warm-up (default: cosine)")
    help = "steps over which the learning rate rises (default: 500)"
    add("--warmup_steps", type=non_negative_int, default=500, help=help)
    help = "of the average of weights that is kept; 0: none (default: 0.999)"
    add("--ema_decay", type=fraction_below_one, default=0.999, help=help)
    add(
        "--loss_weights",
        nargs="*",
        type=loss_weight,
        default=[],
        metavar="LOSS=WEIGHT",
        help=f"of {', '.join(LOSSES)} (the last two with --vqa_captioning); 0 leaves one out, and with mlm=0 no token "
        "is masked (default: the model's)",
    )
    help = "learn answers and captions too; the output has heads for them (default: detection and grounding alone)"
    add("--vqa_captioning", action="store_true", help=help)
    add("--gradient_checkpointing", action="store_true", help="compute activations twice to save memory")
    trackers = ("tensorboard", "trackio")
    add("--trackers", nargs="*", choices=trackers, default=[], help="also log to these (default: none)")
    add_training(parser, 16, "images of a step, over all processes", 500, FROZEN_WAYS, 20000)
    args = parser.parse_args(arguments)
    for field, weight in args.loss_weights:
        name = field.removesuffix("_loss_weight")
        if name in HEAD_LOSSES and not args.vqa_captioning:
            parser.error(f"--loss_weights: {name}={weight:g} weighs a loss that only --vqa_captioning has; add it.")
    return args


def main(arguments: list[str] | None = None) -> TrainingState:
    args = check_paths(parse_args(arguments))
    accelerator = start_training(args)

    # Data: a step's number alone decides its examples and everything that is random about them.
    data = read_data_file(args.data, args.allow_custom_loaders)
    weights = dict(args.loss_weights)
    if weights.get("mlm_loss_weight") == 0:
        data = replace(data, mlm_probability=0.0)
    processor = GLIPv2Processor.from_pretrained(args.model)
    mixture = make_mixture(data, args.num_steps, args.batch_size, args.seed)
    collator = make_collator(data, processor, mixture, args.batch_size, args.seed)
    require_learnable(mixture.sources, ("boxes", "tokens") if data.mlm_probability else ("boxes",))
    if args.vqa_captioning:
        answers = answers_of_sources(mixture.sources)
        collator = JointCollator(collator, answers)

    # Model and optimizer.
    if args.vqa_captioning:
        model, loaded = GLIPv2ForJointTraining.from_pretrained(
            args.model,
            **weights,
            **answer_config(answers),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if "answer_head.classifier.weight" in loaded["missing_keys"] or answers_are_new(args.model, answers):
            model.start_from_words(processor.tokenizer, model.contrastive_head)
            keep_known_answers(args.model, model)
        model.set_special_tokens(processor.tokenizer)
    else:
        model = GLIPv2ForPreTraining.from_pretrained(args.model, **weights)
    prepare_tuning(model, args.train)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = make_optimizer(
        parameter_groups(model, args.learning_rate, backbone_learning_rate_factor=args.backbone_rate)
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    average = WeightAverage(accelerator.unwrap_model(model), args.ema_decay) if args.ema_decay else None

    # The averaged weights are scored by AP on the folder that the data file names.
    state = fit(
        args,
        accelerator,
        processor,
        model,
        optimizer,
        step_loaders(args, accelerator, processor, mixture, collator),
        args.warmup_steps,
        evaluate=make_evaluator(data, accelerator, processor),
        average=average,
        schedule=args.schedule,
        accumulation_steps=args.gradient_accumulation_steps,
        keep_checkpoints=2,
    )
    finish_training(args, accelerator, state, asdict(state))
    return state


if __name__ == "__main__":
    run(main)
