"""
Pre-trains GLIPv2 with its four losses on a mixture of detection, grounding and caption data.

    python examples/make_nano.py --output outputs/nano-init
    python examples/pretrain.py --model outputs/nano-init --data data.yaml --output outputs/nano --num_steps 20000

`data.yaml` lists the data sets with weights, image sizes and augmentations, and what is evaluated on; see
`transformers_glipv2/training/data_file.py`. The same command with `--resume_from_checkpoint latest` goes on after an
interruption: at SIGTERM the step is finished and saved. On several processes the batch stays the same:

    accelerate launch --config_file examples/configs/ddp.yaml examples/pretrain.py ...

`--understanding` also learns the answers of rows of kind `vqa` and the captions of rows of kind `caption`, with heads
of their own over the same weights.

The output folder gets the best weights by AP (the averaged ones) with the processor, the settings, and a line of JSON
for every few steps in training_log.jsonl; once it is through, metrics.json says how it went.
"""

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed

from transformers_glipv2 import GLIPv2ForPreTraining, GLIPv2Processor
from transformers_glipv2.data.files import write_json
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining
from transformers_glipv2.modeling_glipv2_vqa import answer_config
from transformers_glipv2.training import (
    FREEZABLE,
    SCHEDULES,
    JointCollator,
    StepBatches,
    TrainingPlan,
    TrainingState,
    WeightAverage,
    answers_are_new,
    answers_of_sources,
    export_model,
    freeze,
    make_collator,
    make_evaluator,
    make_mixture,
    parameter_groups,
    push_folder,
    read_data_file,
    require_learnable,
    step_loader,
    train,
)

LOSSES = ("box", "centerness", "intra", "inter", "mlm")


def loss_weight(text: str) -> tuple[str, float]:
    """`inter=0.5` as the config's field and its value."""
    name, _, weight = text.partition("=")
    if name not in LOSSES:
        raise argparse.ArgumentTypeError(f"{text!r} names none of the losses {', '.join(LOSSES)}; write inter=0.5")
    return f"{name}_loss_weight", float(weight)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id to start from, such as make_nano.py writes")
    add("--data", required=True, type=Path, help="data file (YAML)")
    add("--output", required=True, type=Path, help="folder for weights, checkpoints and logs")
    add("--num_steps", type=int, default=20000, help="optimizer steps (default: 20000)")
    add("--batch_size", type=int, default=16, help="images of a step, over all processes (default: 16)")
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="parts that a process cuts its share into (default: 1)",
    )
    add(
        "--learning_rate",
        type=float,
        default=1e-4,
        help="of all but the text encoder and text layers, which get a tenth (default: 1e-4)",
    )
    add("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate after warm-up (default: cosine)")
    add("--warmup_steps", type=int, default=500, help="steps over which the learning rate rises (default: 500)")
    add(
        "--ema_decay",
        type=float,
        default=0.999,
        help="of the average of weights that is kept; 0: none (default: 0.999)",
    )
    add("--freeze", nargs="*", choices=FREEZABLE, default=[], help="parts that are not trained (default: none)")
    add(
        "--loss_weights",
        nargs="*",
        type=loss_weight,
        default=[],
        metavar="LOSS=WEIGHT",
        help=f"of {', '.join(LOSSES)}; 0 leaves one out, and with mlm=0 no word is hidden (default: the model's)",
    )
    add(
        "--understanding",
        action="store_true",
        help="learn answers and captions too; the output has heads for them (default: boxes and words alone)",
    )
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    add("--gradient_checkpointing", action="store_true", help="compute activations twice to save memory")
    add(
        "--save_steps", type=int, default=500, help="steps between checkpoints, each with an evaluation (default: 500)"
    )
    add("--patience", type=int, default=0, help="end after so many evaluations without a gain; 0: never (default: 0)")
    add("--num_workers", type=int, default=0, help="processes that prepare batches (default: 0)")
    add("--seed", type=int, default=0, help="of data order, augmentation and dropout (default: 0)")
    add(
        "--trackers",
        nargs="*",
        choices=("tensorboard", "trackio"),
        default=[],
        help="also log to these (default: none)",
    )
    add("--resume_from_checkpoint", help="a checkpoint folder, or `latest`, which also starts where there is none")
    add("--push_to_hub", metavar="REPO", help="upload the result to this Hub repository")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> TrainingState:
    args = parse_args(arguments)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.trackers or None,
        project_config=ProjectConfiguration(str(args.output), str(args.output / "tracking")),
        # A batch without captions or without boxes leaves a head without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)
    if args.trackers:
        accelerator.init_trackers("glipv2-pretrain", {name: str(value) for name, value in vars(args).items()})

    # Data: a step's number alone decides its rows and everything that is drawn for them.
    data = read_data_file(args.data)
    weights = dict(args.loss_weights)
    if weights.get("mlm_loss_weight") == 0:
        data = replace(data, mlm_probability=0.0)
    processor = GLIPv2Processor.from_pretrained(args.model)
    mixture = make_mixture(data, args.num_steps * args.batch_size, args.seed)
    require_learnable(mixture.sources, ("boxes", "tokens") if data.mlm_probability else ("boxes",))
    collator = make_collator(data, processor, mixture, args.batch_size, args.seed)
    if args.understanding:
        answers = answers_of_sources(mixture.sources)
        collator = JointCollator(collator, answers)

    def make_loader(start_step: int):
        batches = StepBatches(
            args.batch_size,
            args.num_steps,
            start_step,
            args.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return step_loader(mixture, batches, collator, args.num_workers)

    # Model and optimizer.
    if args.understanding:
        model, loaded = GLIPv2ForJointTraining.from_pretrained(
            args.model,
            **weights,
            **answer_config(answers),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if "answer_head.classifier.weight" in loaded["missing_keys"] or answers_are_new(args.model, answers):
            model.start_from_words(processor.tokenizer, model.contrastive_head)
        model.set_special_tokens(processor.tokenizer)
    else:
        model = GLIPv2ForPreTraining.from_pretrained(args.model, **weights)
    freeze(model, args.freeze)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate))
    model, optimizer = accelerator.prepare(model, optimizer)
    average = WeightAverage(accelerator.unwrap_model(model), args.ema_decay) if args.ema_decay else None

    # The averaged weights are scored by AP on the folder that the data file names.
    evaluator = make_evaluator(data, accelerator, processor)
    plan = TrainingPlan(
        args.output,
        args.num_steps,
        schedule=args.schedule,
        warmup_steps=args.warmup_steps,
        accumulation_steps=args.gradient_accumulation_steps,
        save_steps=args.save_steps,
        patience=args.patience,
        seed=args.seed,
    )
    export = partial(export_model, accelerator, processor)
    state = train(
        accelerator,
        model,
        optimizer,
        make_loader,
        plan,
        export,
        average,
        evaluator,
        resume_from=args.resume_from_checkpoint,
        settings=vars(args),
    )
    if accelerator.is_main_process and state.stopped != "signal":
        write_json(args.output / "metrics.json", asdict(state))
        print(f"{args.output}: {state.step} steps in {state.seconds / 3600:.2f} hours, best {state.best_metrics}")
        if args.push_to_hub:
            print(push_folder(args.output, args.push_to_hub))
    accelerator.end_training()
    return state


if __name__ == "__main__":
    main()
