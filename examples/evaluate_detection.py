"""
Evaluates a GLIPv2 checkpoint on COCO, LVIS or ODinW, or on data of your own in any format.

    python examples/evaluate_detection.py --model MODEL --output outputs/own --data raccoon --split test
    python examples/evaluate_detection.py --model MODEL --output outputs/coco-val \\
        --annotations annotations/instances_val2017.json --images val2017
    python examples/evaluate_detection.py --model MODEL --output outputs/lvis --benchmark lvis \\
        --annotations lvis_v1_minival.json --images coco2017
    python examples/evaluate_detection.py --model MODEL --output outputs/odinw --benchmark odinw \\
        --images odinw --sets 13

Runs on many processes with `accelerate launch`. Predictions are written as they come (`predictions/`, and at the end
`predictions.json`, a COCO or LVIS result file); after an interruption the same command goes on where it was. Scores go
to `metrics.json`. A file without annotations (COCO's test-dev) is predicted for the evaluation server, and not scored.

`--data` takes what `open_dataset` takes (COCO, YOLO, Pascal VOC, CSV, ...). Images of a split that is not there are
never scored; `--val_fraction` holds out the same images as training with it does.

`--tta` detects at several sizes, mirrored and not, and merges the boxes. `--masks` predicts and scores masks too.
ODinW fine-tuned per data set: `--model outputs/finetuned/{set}`.
"""

import argparse
from typing import Any

from transformers_glipv2.cli.arguments import (
    DataSource,
    InputFile,
    InputFolder,
    ScriptParser,
    add_backend,
    add_compile,
    add_image_size,
    add_model,
    add_nms_threshold,
    add_output_folder,
    add_outside_paths,
    add_prediction,
    add_threshold,
    add_val_fraction,
    check_paths,
    fraction,
    positive_int,
)
from transformers_glipv2.cli.detection_evaluation import TTA_SIZES, complete, evaluate_detector
from transformers_glipv2.cli.errors import run
from transformers_glipv2.evaluation.lvis import LABELS_PER_PROMPT


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id; with `{set}` one for each data set of ODinW")
    add_output_folder(parser, "folder for predictions and scores")
    add("--benchmark", choices=("coco", "lvis", "odinw"), default="coco", help="how to score (default: coco)")
    add("--annotations", type=InputFile, help="coco, lvis: the JSON file")
    add("--data", type=DataSource, help="instead of --annotations: data of your own, in any format")
    add("--images", type=InputFolder, help="folder of images; odinw: the folder of all data sets")
    add("--sets", nargs="+", default=["13"], help="odinw: 13, 35 or names (default: 13)")
    add("--split", help="--data, odinw: the split to score (default: test; of --data else val, else all)")
    add_val_fraction(parser, 0.0)
    add("--masks", action="store_true", help="predict masks and score them too")
    add("--tta", action="store_true", help="detect at several sizes and mirrored, and merge boxes")
    shown = " ".join(map(str, TTA_SIZES))
    add_image_size(parser, f"one, or with --tta several (with --tta by default {shown})")
    add("--labels_per_prompt", type=positive_int, help=f"(default: as many as fit; lvis: {LABELS_PER_PROMPT})")
    add("--max_detections", type=positive_int, help="boxes of an image (default: 100; lvis: 300 of each prompt)")
    add_threshold(parser, default=0.0)
    add("--pre_nms_threshold", type=fraction, default=0.05, help="label score of a candidate box (default: 0.05)")
    add_nms_threshold(parser)
    add_prediction(parser)
    add_backend(parser)
    add_compile(parser)
    add_outside_paths(parser)
    args = parser.parse_args(arguments)
    try:
        complete(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return evaluate_detector(check_paths(parse_args(arguments)))


if __name__ == "__main__":
    run(main)
