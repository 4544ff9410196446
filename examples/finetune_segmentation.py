"""
Trains the mask head of a GLIPv2 checkpoint, with the detector frozen as in the paper or together with it.

    python examples/finetune_segmentation.py --model MODEL --data coco-mini --output outputs/masks
    python examples/finetune_segmentation.py --model outputs/masks --data nuts --output outputs/nuts --train full

`--data` is a COCO-format folder with masks (`train.json` beside `train/`, or `train/_annotations.coco.json`), or a
data file (YAML) that mixes several sources and names what is evaluated on; see
`transformers_glipv2/training/data_file.py`. The best weights by mask AP are kept, or the last ones where there is
nothing to evaluate on. With `--train head` the checkpoint's other heads are kept beside the mask head, so that one
folder goes on serving every task.

Goes on after an interruption with `--resume latest`; runs on many processes with `accelerate launch`.
"""

import argparse
from pathlib import Path

import torch

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    InputPath,
    ScriptParser,
    add_data_file,
    add_image_size,
    add_model,
    add_outside_paths,
    add_training,
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
from transformers_glipv2.data.formats.coco import find_annotation_file
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.training import (
    FROZEN_WAYS,
    DataFile,
    DetectionEvaluator,
    make_collator,
    make_evaluator,
    make_mixture,
    parameter_groups,
    read_data_file,
    require_learnable,
)

HEAD_RATE, FULL_RATE = 1e-3, 1e-4


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from; without a mask head it gets a new one")
    add_data_file(parser, InputPath, "COCO-format folder with masks, or data file (YAML)")
    add("--eval_split", help="split of a folder that chooses the best weights (default: val, if there is one)")
    add("--test_split", help="split of a folder that the best weights are scored on at the end (default: none)")
    add("--learning_rate", type=positive_float, help=f"(default: head {HEAD_RATE:g}, else {FULL_RATE:g})")
    add_image_size(parser, "of training; the largest is used for evaluation and saved")
    add_outside_paths(parser)
    add_training(parser, 4, "images of a step, over all processes", 200, ("head", *FROZEN_WAYS), 1000)
    return parser.parse_args(arguments)


def coco_folder(path: Path, eval_split: str | None, allow_outside_paths: bool = False) -> DataFile:
    """A folder as a data file would name it: masks of its training split, mirrored and recoloured half of the time."""
    outside = {"allow_outside_paths": True} if allow_outside_paths else {}
    try:
        find_annotation_file(path, eval_split or "val")
    except FileNotFoundError:
        if eval_split is not None:
            raise
        evaluation = None
    else:
        evaluation = {"path": path.name, "split": eval_split or "val", **outside}
    return DataFile(
        folder=path.parent,
        sources=[{"kind": "coco", "path": path.name, "split": "train", "with_masks": True, **outside}],
        augment={"flip": 0.5, "photometric": 0.5},
        evaluation=evaluation,
    )


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    accelerator = start_training(args)

    # Data: examples come with the masks of their objects; objects without a mask count as boxes only.
    data = (
        read_data_file(args.data, args.allow_custom_loaders)
        if args.data.is_file()
        else coco_folder(args.data, args.eval_split, args.allow_outside_paths)
    )
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
    optimizer = torch.optim.AdamW(parameter_groups(model, rate))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by mask AP are kept.
    evaluate = make_evaluator(data, accelerator, processor, masks=True)
    make_loader = step_loaders(args, accelerator, mixture, collator)
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
        )
        metrics[args.test_split] = test(best)
    return finish_training(args, accelerator, state, metrics)


if __name__ == "__main__":
    run(main)
