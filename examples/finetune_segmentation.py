"""
Trains the mask head of a GLIPv2 checkpoint, with the detector frozen as in the paper or together with it.

    python examples/finetune_segmentation.py --model MODEL --data coco-mini --output outputs/masks
    python examples/finetune_segmentation.py --model outputs/masks --data nuts --output outputs/nuts --train all

`--data` is a COCO-format folder with masks (`train.json` beside `train/`, or `train/_annotations.coco.json`), or a
data file (YAML) that mixes several sources and names what is evaluated on; see
`transformers_glipv2/training/data_file.py`. The best weights by mask AP are kept, or the last ones where there is
nothing to evaluate on. While the detector is frozen, the checkpoint's other heads are kept beside them, so that one
folder goes on serving every task.

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
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.formats.coco import find_annotation_file
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.training import (
    DataFile,
    DetectionEvaluator,
    StepBatches,
    TrainingPlan,
    export_model,
    load_other_heads,
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

LEARNING_RATES = {"mask-head": 1e-3, "all": 1e-4}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id to start from; without a mask head it gets a new one")
    add("--data", required=True, type=Path, help="COCO-format folder with masks, or data file (.yaml)")
    add("--output", required=True, type=Path, help="folder for weights, checkpoints and logs")
    add("--train", choices=tuple(LEARNING_RATES), default="mask-head", help="what learns (default: mask-head)")
    add("--eval_split", help="split of a folder that chooses the best weights (default: val, if there is one)")
    add("--test_split", help="split of a folder that the best weights are scored on at the end (default: none)")
    add("--num_steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    add("--batch_size", type=int, default=4, help="images of a step, over all processes (default: 4)")
    add("--learning_rate", type=float, help=f"default: {', '.join(f'{w} {r:g}' for w, r in LEARNING_RATES.items())}")
    add(
        "--sizes",
        type=int,
        nargs="*",
        help="shortest edges in px to train at (default: the data's or processor's)",
    )
    add("--eval_steps", type=int, default=200, help="steps between evaluations and checkpoints (default: 200)")
    add("--patience", type=int, default=0, help="end after so many evaluations without a gain; 0: never (default: 0)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    add("--seed", type=int, default=0, help="of data order, augmentation and dropout (default: 0)")
    add("--resume_from_checkpoint", help="a checkpoint folder, or `latest`, which also starts where there is none")
    add("--push_to_hub", metavar="REPO", help="upload the result to this Hub repository")
    return parser.parse_args(arguments)


def coco_folder(path: Path, eval_split: str | None) -> DataFile:
    """A folder as a data file would name it: masks of its training split, mirrored and recoloured half of the time."""
    try:
        find_annotation_file(path, eval_split or "val")
    except FileNotFoundError:
        if eval_split is not None:
            raise
        evaluation = None
    else:
        evaluation = {"path": path.name, "split": eval_split or "val"}
    return DataFile(
        folder=path.parent,
        sources=[{"kind": "coco", "path": path.name, "split": "train", "with_masks": True}],
        augment={"flip": 0.5, "photometric": 0.5},
        evaluation=evaluation,
    )


def main(arguments: list[str] | None = None) -> dict:
    args = parse_args(arguments)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(str(args.output)),
        # A batch without masks, or a detector that is frozen, leaves parameters without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)

    # Data: rows come with the masks of their objects; those without a mask count as boxes only.
    is_file = args.data.suffix in (".yaml", ".yml")
    data = read_data_file(args.data) if is_file else coco_folder(args.data, args.eval_split)
    data.mlm_probability = 0.0
    data.sizes = args.sizes or data.sizes
    processor = GLIPv2Processor.from_pretrained(args.model)
    mixture = make_mixture(data, args.num_steps * args.batch_size, args.seed)
    require_learnable(mixture.sources, ["masks"])
    collator = make_collator(data, processor, mixture, args.batch_size, args.seed)
    collator.with_masks = True

    def make_loader(start_step: int):
        place = (accelerator.process_index, accelerator.num_processes)
        return step_loader(mixture, StepBatches(args.batch_size, args.num_steps, start_step, 1, *place), collator)

    # Model and optimizer. A frozen detector stays in evaluation mode and costs no gradients.
    model = GLIPv2ForInstanceSegmentation.from_pretrained(args.model)
    other_heads = {}
    if args.train == "mask-head":
        model.freeze_detector()
        other_heads = load_other_heads(args.model, model)
    rate = args.learning_rate or LEARNING_RATES[args.train]
    optimizer = torch.optim.AdamW(parameter_groups(model, rate))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by mask AP are kept.
    evaluate = make_evaluator(data, accelerator, processor, masks=True)
    plan = TrainingPlan(
        args.output,
        args.num_steps,
        warmup_steps=min(50, args.num_steps // 10),
        save_steps=args.eval_steps,
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
    metrics = {"train": args.train, "best_step": state.best_step, "seconds": state.seconds}
    if state.stopped == "signal":
        return metrics

    # The kept weights, read back from the output folder.
    if state.best_metrics is not None:
        metrics["evaluation"] = state.best_metrics
    if args.test_split:
        best = GLIPv2ForInstanceSegmentation.from_pretrained(args.output)
        best = accelerator.prepare_model(best, evaluation_mode=True).eval()
        test = DetectionEvaluator(accelerator, processor, args.data, args.test_split, masks=True)
        metrics[args.test_split] = test(best)
    if accelerator.is_main_process:
        write_json(args.output / "metrics.json", metrics)
        print(json.dumps(metrics, indent=2))
        if args.push_to_hub:
            print(push_folder(args.output, args.push_to_hub))
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
