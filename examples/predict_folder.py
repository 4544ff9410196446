"""
Labels a folder of images, or a data set of the Hub, with boxes, masks or captions.

    python examples/predict_folder.py --model MODEL --images images --labels cat dog --output outputs/labelled
    python examples/predict_folder.py --model MODEL --dataset cppe-5 --split test --labels mask gloves \\
        --task masks --format coco --output outputs/cppe
    python examples/predict_folder.py --model MODEL --images images --task captions --output outputs/captioned

Runs on many processes with `accelerate launch`. Predictions are written as they come (`predictions/`); after an
interruption the same command goes on where it was. At the end there is `predictions.parquet`, a row for each image
with "image", "width", "height", and "scores", "labels", "boxes" (x1, y1, x2, y2 in pixels) and "masks" (COCO RLE
counts) or "caption"; or `predictions.json`, a COCO file (with a score for each object). Images that cannot be read are
left out and listed in `failures.json`; the same command tries them again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_generation,
    add_model,
    add_nms_threshold,
    add_output_folder,
    add_prediction,
    add_threshold,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import generate_captions, predict_images
from transformers_glipv2.cli.folder import HubImages, coco_file, write_parquet
from transformers_glipv2.cli.sources import ImageFolder
from transformers_glipv2.data.files import read_text, write_json
from transformers_glipv2.evaluation.shards import evaluation_accelerator
from transformers_glipv2.inference.detector import Detector
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

Predict = Callable[[list[Image.Image]], list[dict[str, Any]]]


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
    labels.add_argument("--labels", nargs="+", help="boxes, masks: names to look for")
    labels.add_argument("--labels_file", type=InputFile, help="boxes, masks: a label a line")
    add("--task", choices=("boxes", "masks", "captions"), default="boxes", help="(default: boxes)")
    add("--format", choices=("parquet", "coco"), default="parquet", help="(default: parquet)")
    add_output_folder(parser, "folder to write to")
    add_threshold(parser)
    add_nms_threshold(parser)
    add("--max_detections", type=positive_int, default=100, help="boxes of an image (default: 100)")
    add_generation(parser)
    add_prediction(parser)
    args = parser.parse_args(arguments)
    if bool(args.labels or args.labels_file) == (args.task == "captions"):
        parser.error("boxes and masks need --labels or --labels_file, and captions take none")
    return args


def main(arguments: list[str] | None = None) -> Path:
    args = check_paths(parse_args(arguments))
    if args.labels_file:
        lines = read_text(args.labels_file).splitlines()
        args.labels = [line.strip() for line in lines if line.strip()]
        if not args.labels:
            raise ValueError(f"--labels_file: {str(args.labels_file)!r} holds no label; write one a line.")
    accelerator = evaluation_accelerator(args.mixed_precision)
    with accelerator.main_process_first():
        source = ImageFolder(args.images) if args.images else HubImages(args.dataset, args.split, args.image_column)
    names = source.names[: args.max_samples]
    predict = captioner(args, accelerator) if args.task == "captions" else detector(args, accelerator)

    def load(index: int) -> tuple[str, Image.Image]:
        return names[index], source.open(index)

    def label(items: list[tuple[str, Image.Image]]) -> list[list[dict[str, Any]]]:
        with accelerator.autocast():
            found = predict([image for _, image in items])
        return [
            [{"image": name, "width": image.width, "height": image.height, **columns}]
            for (name, image), columns in zip(items, found, strict=True)
        ]

    keep = ("task", "labels", "threshold", "nms_threshold", "max_detections", "num_beams", "max_new_tokens")
    settings = {name: getattr(args, name) for name in keep} | {"source": str(args.images or args.dataset)}
    shards = predict_images(args, accelerator, names, load, label, args.task, settings)

    path = args.output / ("predictions.json" if args.format == "coco" else "predictions.parquet")
    if accelerator.is_main_process:
        if args.format == "coco":
            write_json(path, coco_file(shards.predictions(), args.labels or []))
        else:
            write_parquet(path, shards.predictions(), args.task)
        failures = shards.failures()
        write_json(args.output / "failures.json", failures)
        print(f"{len(names) - len(failures)} images in {path}; {len(failures)} could not be read (failures.json)")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return path


def detector(args: argparse.Namespace, accelerator: Accelerator) -> Predict:
    """Images to columns "scores", "labels", "boxes" and "masks"."""
    model_class = GLIPv2ForInstanceSegmentation if args.task == "masks" else GLIPv2ForObjectDetection
    model, processor = load_checkpoint(model_class, args.model, accelerator.device)
    masks = args.task == "masks"
    options = {name: getattr(args, name) for name in ("threshold", "nms_threshold", "max_detections", "batch_size")}
    detect = Detector(model, processor, **options, progress=False)

    def columns(result: dict[str, Any]) -> dict[str, Any]:
        found = {name: result[name].tolist() for name in ("scores", "boxes")}
        found["labels"] = result["text_labels"]
        if masks:
            found["masks"] = [mask["counts"] for mask in result["masks"]]
        return found

    ask = detect.segment if masks else detect.stream
    return lambda images: [columns(result) for result in ask(images, args.labels)]


def captioner(args: argparse.Namespace, accelerator: Accelerator) -> Predict:
    """Images to the column "caption"."""
    model, processor = load_checkpoint(GLIPv2ForConditionalGeneration, args.model, accelerator.device)

    def caption(images: list[Image.Image]) -> list[dict[str, Any]]:
        captions = generate_captions(model, processor, images, args.num_beams, args.max_new_tokens)
        return [{"caption": caption} for caption in captions]

    return caption


if __name__ == "__main__":
    run(main)
