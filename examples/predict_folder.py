"""
Labels a folder of images, or a data set of the Hub, with boxes, masks or captions.

    python examples/predict_folder.py --model MODEL --images images --labels cat dog --output outputs/labelled
    python examples/predict_folder.py --model MODEL --dataset cppe-5 --split test --labels mask gloves \\
        --task masks --format coco --output outputs/cppe
    python examples/predict_folder.py --model MODEL --images images --task captions --output outputs/captioned

Runs on many processes with `accelerate launch`, or with `--engine ray` on a Ray cluster. Predictions are written as
they come (`predictions/`); after an interruption the same command goes on where it was. At the end there is
`predictions.parquet`, a row for each image with "image", "width", "height", and "scores", "labels", "boxes" (x1, y1,
x2, y2 in pixels) and "masks" (COCO RLE counts) or "caption"; or what --format says: COCO (with a score for each
object), CSV, YOLO, Label Studio, CVAT, FiftyOne. Images that cannot be read are left out and listed in
`failures.json`; the same command tries them again.
"""

import argparse
from pathlib import Path

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_backend,
    add_compile,
    add_generation,
    add_model,
    add_nms_threshold,
    add_output_folder,
    add_prediction,
    add_threshold,
    check_paths,
    non_negative_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.folder import label_images
from transformers_glipv2.data.formats.results import RESULT_FORMATS


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=InputFolder, help="folder of images, also in its folders")
    source.add_argument("--dataset", help="Hub id or folder that `datasets.load_dataset` takes")
    add("--split", default="train", help="of the data set (default: train)")
    add("--image_column", default="image", help="of the data set (default: image)")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", nargs="+", help="boxes, masks: names to look for (default: those of tuning)")
    labels.add_argument("--labels_file", type=InputFile, help="boxes, masks: a label a line")
    add("--task", choices=("boxes", "masks", "captions"), default="boxes", help="(default: boxes)")
    add("--format", choices=tuple(RESULT_FORMATS), default="parquet", help="(default: parquet)")
    add_output_folder(parser, "folder to write to")
    add_threshold(parser)
    add_nms_threshold(parser)
    add("--agnostic_nms", action="store_true", help="suppress overlapping boxes of different labels too")
    add("--max_detections", type=positive_int, default=100, help="boxes of an image (default: 100)")
    add_generation(parser)
    add_prediction(parser)
    add_backend(parser)
    add_compile(parser)
    add("--engine", choices=("local", "ray"), default="local", help="ray: actors of a Ray cluster (default: local)")
    add("--actors", type=positive_int, default=1, help="ray: models at work (default: 1)")
    add("--gpus_per_actor", type=non_negative_float, default=0.0, help="ray: 0: CPUs; 0.5: two on a GPU (default: 0)")
    args = parser.parse_args(arguments)
    if args.task == "captions" and (args.labels or args.labels_file):
        parser.error("captions take no labels")
    return args


def main(arguments: list[str] | None = None) -> Path:
    return label_images(check_paths(parse_args(arguments)))


if __name__ == "__main__":
    run(main)
