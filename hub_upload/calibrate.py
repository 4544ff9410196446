"""
Shifts the scores of a trained detector so that a threshold is where boxes are most often right.

    python hub_upload/calibrate.py --model outputs/nano --output outputs/nano-calibrated --threshold 0.3 \\
        --annotations splits/animals/val.json splits/clothing/val.json \\
        --images images/animals/train images/clothing/train

Focal loss leaves the scores of a trained detector high or low as a whole. The detection head adds one bias to all
logits; the output is the model with another bias: the threshold of the highest F1 (boxes, all classes of a file asked
for), averaged over the files, is then `--threshold`. The order of the boxes of a label stays. Train the answer head
afterwards, since it weighs what it sees by these scores.
"""

import argparse
import math
from pathlib import Path
from statistics import fmean

from accelerate import Accelerator
from safetensors.torch import load_file

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ModelSource,
    ScriptParser,
    add_max_samples,
    add_output_folder,
    add_threshold,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.conversion.edited_folder import WEIGHTS, save_with_weights
from transformers_glipv2.training.evaluation import DetectionEvaluator

BIAS = "detection_head.bias"
TOLERANCE = 0.01
MAX_ROUNDS = 6


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--model", type=ModelSource, required=True, help="folder that training wrote")
    add("--annotations", type=InputFile, nargs="+", required=True, help="COCO-format files that no training saw")
    add("--images", type=InputFolder, nargs="+", required=True, help="folder of the images of each file")
    add_max_samples(parser, "images of each file, the first")
    add_threshold(parser, help="score at which F1 is to be highest")
    add_output_folder(parser, "folder to write; it must not exist")
    args = parser.parse_args(arguments)
    if len(args.images) != len(args.annotations):
        parser.error(f"--images: {len(args.images)} folders for {len(args.annotations)} files; pass one for each.")
    if not 0 < args.threshold < 1:
        parser.error(f"--threshold {args.threshold:g} cannot be reached; pass a score between 0 and 1.")
    return args


def main(arguments: list[str] | None = None) -> dict[str, float]:
    args = check_paths(parse_args(arguments))
    if args.output.exists():
        raise ValueError(f"{args.output} exists; choose a new folder.")
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model)
    evaluators = [
        DetectionEvaluator(Accelerator(cpu=True), processor, file, max_samples=args.max_samples, image_folder=images)
        for file, images in zip(args.annotations, args.images, strict=True)
    ]
    trained = model.detection_head.bias.item()
    found = best_threshold(model, evaluators)
    print(f"as trained: F1 is highest at {found:.3f}")
    for _ in range(MAX_ROUNDS):
        if abs(found - args.threshold) <= TOLERANCE:
            break
        model.detection_head.bias.data += logit_of_score(args.threshold) - logit_of_score(found)
        found = best_threshold(model, evaluators)
        print(f"bias {model.detection_head.bias.item() - trained:+.3f}: F1 is highest at {found:.3f}")

    weights = {**load_file(Path(args.model) / WEIGHTS), BIAS: model.detection_head.bias.data}
    save_with_weights(args.model, weights, args.output)
    return {"shift": model.detection_head.bias.item() - trained, "threshold": found}


def best_threshold(model: GLIPv2ForObjectDetection, evaluators: list[DetectionEvaluator]) -> float:
    """The score of the highest F1, averaged over the files."""
    thresholds = []
    for evaluator in evaluators:
        evaluator(model)
        threshold = evaluator.best_threshold()
        if threshold is None:
            raise ValueError("no box is on an object; calibrate a model that finds something in these images.")
        thresholds.append(threshold)
    return fmean(thresholds)


def logit_of_score(score: float) -> float:
    """The logit of a box with this score and a centerness of 1: a score is the root of label score x centerness."""
    return math.log(score**2 / (1 - score**2))


if __name__ == "__main__":
    run(main)
