"""
Trains the mask head of a GLIPv2 checkpoint, with the detector frozen as in the paper or together with it.

    python examples/finetune_segmentation.py --model MODEL --data coco-mini --output outputs/masks
    python examples/finetune_segmentation.py --model outputs/masks --data nuts --output outputs/nuts --train full

`--data` is a data set with masks, as `open_dataset` takes it (COCO, or polygons of YOLO), or a data file (YAML) that
mixes several sources and names what is evaluated on; see `transformers_glipv2/training/data_file.py`. The best weights
by mask AP are kept, or the last ones with `--eval_split none`. With `--train head` the checkpoint's other heads are
kept beside the mask head, so that one folder goes on serving every task.

Goes on after an interruption with `--resume latest`; runs on many processes with `accelerate launch`.
"""

import argparse
from pathlib import Path
from typing import Any

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    DataSource,
    InputFolder,
    ScriptParser,
    add_data_file,
    add_image_size,
    add_model,
    add_outside_paths,
    add_training,
    add_val_fraction,
    check_paths,
    positive_float,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.training import (
    finish_training,
    fit,
    prepare_head,
    start_training,
    step_loaders,
    use_image_size,
)
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.training import (
    FROZEN_WAYS,
    DataFile,
    DetectionEvaluator,
    is_data_file,
    make_collator,
    make_evaluator,
    make_mixture,
    make_optimizer,
    parameter_groups,
    read_data_file,
    require_learnable,
)

HEAD_RATE, FULL_RATE = 1e-3, 1e-4


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from; without a mask head it gets a new one")
    add_data_file(parser, DataSource, "data set with masks (COCO, YOLO), or data file (YAML)")
    add("--images", type=InputFolder, help="folder of images, where the data set does not say it")
    add("--eval_split", default="val", help="split that chooses the best weights; none: keep the last (default: val)")
    add("--test_split", help="split that the best weights are scored on at the end (default: none)")
    add_val_fraction(parser)
    add("--learning_rate", type=positive_float, help=f"(default: head {HEAD_RATE:g}, else {FULL_RATE:g})")
    add_image_size(parser, "of training; the largest is used for evaluation and saved")
    add_outside_paths(parser)
    add_training(parser, 4, "images of a step, over all processes", 200, ("head", *FROZEN_WAYS), 1000)
    return parser.parse_args(arguments)


def own_data(args: argparse.Namespace) -> DataFile:
    """A data set as a data file would name it: its training split, mirrored and recoloured half of the time."""
    evaluates = args.eval_split != "none"
    options: dict[str, Any] = {"path": str(Path(args.data).absolute()) if Path(args.data).exists() else args.data}
    options |= {} if args.images is None else {"image_folder": str(args.images.absolute())}
    options |= {"allow_outside_paths": True} if args.allow_outside_paths else {}
    options |= {"val_fraction": args.val_fraction} if evaluates and args.val_fraction else {}
    return DataFile(
        folder=Path.cwd(),
        sources=[{"kind": "detection", **options, "split": "train", "with_masks": True}],
        augment={"flip": 0.5, "photometric": 0.5},
        evaluation={**options, "split": args.eval_split} if evaluates else None,
    )


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    accelerator = start_training(args)

    # Data: examples come with the masks of their objects; objects without a mask count as boxes only.
    data = read_data_file(args.data, args.allow_custom_loaders) if is_data_file(args.data) else own_data(args)
    data.mlm_probability = 0.0
    processor = GLIPv2Processor.from_pretrained(args.model)
    use_image_size(args, data, processor)
    mixture = make_mixture(data, args.num_steps, args.batch_size, args.seed)
    require_learnable(mixture.sources, ["masks"])
    collator = make_collator(data, processor, mixture, args.batch_size, args.seed)
    collator.with_masks = True

    # Model and optimizer. A frozen detector stays in evaluation mode and costs no gradients.
    model = GLIPv2ForInstanceSegmentation.from_pretrained(args.model)
    other_heads = prepare_head(model, args.train, args.model)
    rate = args.learning_rate or (HEAD_RATE if args.train == "head" else FULL_RATE)
    optimizer = make_optimizer(parameter_groups(model, rate))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by mask AP are kept.
    evaluate = make_evaluator(data, accelerator, processor, masks=True)
    make_loader = step_loaders(args, accelerator, processor, mixture, collator)
    warmup_steps = min(50, args.num_steps // 10)
    state = fit(args, accelerator, processor, model, optimizer, make_loader, warmup_steps, evaluate, other_heads)
    metrics = {"train": args.train, "best_step": state.best_step, "seconds": state.seconds}
    if state.stopped == "signal":
        return metrics

    # The kept weights, read back from the output folder.
    if state.best_metrics is not None:
        metrics["evaluation"] = state.best_metrics
    if args.test_split:
        best = GLIPv2ForInstanceSegmentation.from_pretrained(args.output)
        best = accelerator.prepare_model(best, evaluation_mode=True).eval()
        test = DetectionEvaluator(
            accelerator,
            processor,
            args.data,
            args.test_split,
            masks=True,
            allow_outside_paths=args.allow_outside_paths,
            image_folder=args.images,
            val_fraction=args.val_fraction,
        )
        metrics[args.test_split] = test(best)
    return finish_training(args, accelerator, state, metrics)


if __name__ == "__main__":
    run(main)
