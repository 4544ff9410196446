"""
Labels a folder of images, or a data set of the Hub, with boxes, masks or captions.

    python examples/predict_folder.py --model MODEL --images images --labels cat dog --output outputs/labelled
    python examples/predict_folder.py --model MODEL --dataset cppe-5 --split test --labels mask gloves \\
        --task masks --format coco --output outputs/cppe
    python examples/predict_folder.py --model MODEL --images images --task captions --output outputs/captioned

Runs on many processes with `accelerate launch`. Predictions are written as they come (`predictions/`); after an
interruption the same command goes on where it was. At the end there is `predictions.parquet`, a row an image with
"image", "width", "height", and "scores", "labels", "boxes" (x1, y1, x2, y2 in pixels) and "masks" (COCO RLE counts) or
"caption"; or `predictions.json`, a COCO file (with a score for each object). Images that cannot be read are left out
and listed in `failures.json`.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from PIL import Image

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.data.files import read_text, replaced_file, write_json
from transformers_glipv2.data.hub import image_source
from transformers_glipv2.evaluation.detector import Detector
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    weights_id,
)
from transformers_glipv2.image_io import open_image
from transformers_glipv2.inference.detector import encode_labels, max_prompt_tokens
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

ROWS_PER_GROUP = 1000


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of images, also in its folders")
    source.add_argument("--dataset", help="Hub id or folder that `datasets.load_dataset` takes")
    add("--split", default="train", help="of the data set (default: train)")
    add("--image_column", default="image", help="of the data set (default: image)")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", nargs="+", help="boxes, masks: what to look for")
    labels.add_argument("--labels_file", type=Path, help="boxes, masks: a label a line")
    add("--task", choices=("boxes", "masks", "captions"), default="boxes", help="(default: boxes)")
    add("--format", choices=("parquet", "coco"), default="parquet", help="(default: parquet)")
    add("--output", required=True, type=Path, help="folder to write to")
    add("--threshold", type=float, default=0.3, help="on final scores (default: 0.3)")
    add("--max_detections", type=int, default=100, help="boxes of an image (default: 100)")
    add("--num_beams", type=int, default=5, help="captions: of beam search (default: 5)")
    add("--max_new_tokens", type=int, default=30, help="captions: (default: 30)")
    add("--limit", type=int, help="only the first so many images")
    add("--batch_size", type=int, default=1, help="images of a process at once (default: 1)")
    add("--num_workers", type=int, default=0, help="processes that read images, for each process (default: 0)")
    add("--images_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    args = parser.parse_args(arguments)
    if args.labels_file:
        lines = read_text(args.labels_file).splitlines()
        args.labels = [line.strip() for line in lines if line.strip()]
    if bool(args.labels) == (args.task == "captions"):
        parser.error("boxes and masks need --labels or --labels_file, and captions take none")
    return args


class Folder:
    """The images under a folder, by their paths in it."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder of images.")
        known = set(Image.registered_extensions())
        self.folder = folder
        self.names = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.suffix.lower() in known
        )

    def open(self, position: int) -> Image.Image:
        return open_image(self.folder / self.names[position])


class HubDataset:
    """The images of a data set, by their places in it."""

    def __init__(self, name: str, split: str, column: str):
        import datasets

        # Images are decoded when they are asked for, so that a broken one is a failure of its own.
        self.rows = datasets.load_dataset(name, split=split).select_columns([column])
        self.rows = self.rows.cast_column(column, datasets.Image(decode=False))
        self.column = column
        self.names = [f"{split}/{index}" for index in range(len(self.rows))]

    def open(self, position: int) -> Image.Image:
        return open_image(image_source(self.rows[position][self.column]))


def main(arguments: list[str] | None = None) -> Path:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    with accelerator.main_process_first():
        source = Folder(args.images) if args.images else HubDataset(args.dataset, args.split, args.image_column)
    predict = captioner(args, accelerator) if args.task == "captions" else detector(args, accelerator)

    names = source.names[: args.limit]
    keep = ("task", "labels", "threshold", "max_detections", "num_beams", "max_new_tokens", "batch_size")
    settings = {name: getattr(args, name) for name in keep}
    settings |= {"weights": weights_id(args.model), "source": str(args.images or args.dataset)}
    settings |= {"mixed_precision": accelerator.mixed_precision}
    shards = PredictionShards(args.output / "predictions", names, settings, args.images_per_file)

    def rows(items: list[tuple[str, Image.Image]]) -> list[list[dict[str, Any]]]:
        with accelerator.autocast():
            found = predict([image for _, image in items])
        return [
            [{"image": name, "width": image.width, "height": image.height, **columns}]
            for (name, image), columns in zip(items, found, strict=True)
        ]

    def load(position: int) -> tuple[str, Image.Image]:
        return names[position], source.open(position)

    predict_in_shards(shards, load, rows, accelerator, args.batch_size, args.num_workers, args.task)
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


Predict = Callable[[list[Image.Image]], list[dict[str, Any]]]


def detector(args: argparse.Namespace, accelerator: Accelerator) -> Predict:
    """Images to columns "scores", "labels", "boxes" and "masks"."""
    processor = GLIPv2Processor.from_pretrained(args.model)
    model_class = GLIPv2ForInstanceSegmentation if args.task == "masks" else GLIPv2ForObjectDetection
    model = model_class.from_pretrained(args.model).to(accelerator.device).eval()
    limit = min(processor.max_tokens, max_prompt_tokens(model, processor.tokenizer))
    prompts = encode_labels(args.labels, processor.tokenizer, limit)
    # A final score is the root of a product of two factors in [0, 1], so neither is below its square.
    detect = Detector(
        model,
        processor,
        prompts,
        threshold=args.threshold**2,
        max_detections=args.max_detections,
        masks=args.task == "masks",
    )

    def columns(result: dict[str, Any]) -> dict[str, Any]:
        kept = (result["scores"] >= args.threshold).nonzero()[:, 0].tolist()
        found = {
            "scores": result["scores"][kept].tolist(),
            "labels": [args.labels[index] for index in result["labels"][kept].tolist()],
            "boxes": result["boxes"][kept].tolist(),
        }
        if "masks" in result:
            found["masks"] = [result["masks"][index]["counts"] for index in kept]
        return found

    return lambda images: [columns(result) for result in detect(images)]


def captioner(args: argparse.Namespace, accelerator: Accelerator) -> Predict:
    """Images to the column "caption"."""
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForConditionalGeneration.from_pretrained(args.model).to(accelerator.device).eval()

    def caption(images: list[Image.Image]) -> list[dict[str, Any]]:
        inputs = processor.image_processor(images, return_tensors="pt").to(accelerator.device)
        tokens = model.generate(
            pixel_values=inputs["pixel_values"],
            pixel_mask=inputs["pixel_mask"],
            num_beams=args.num_beams,
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
        )
        lines = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [{"caption": line.strip()} for line in lines]

    return caption


def coco_file(rows: Iterator[dict[str, Any]], labels: list[str]) -> dict[str, Any]:
    """A COCO instances file with a score for each annotation, or a COCO captions file."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": label} for index, label in enumerate(labels, start=1)],
    }
    category_ids = {label: index for index, label in enumerate(labels, start=1)}
    for image_id, row in enumerate(rows, start=1):
        size = {"width": row["width"], "height": row["height"]}
        content["images"].append({"id": image_id, "file_name": row["image"], **size})
        if "caption" in row:
            content["annotations"].append({"id": image_id, "image_id": image_id, "caption": row["caption"]})
            continue
        for index, (score, label, (x1, y1, x2, y2)) in enumerate(
            zip(row["scores"], row["labels"], row["boxes"], strict=True)
        ):
            width, height = max(x2 - x1 + 1, 0.0), max(y2 - y1 + 1, 0.0)
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": score,
            }
            if "masks" in row:
                entry["segmentation"] = {"size": [row["height"], row["width"]], "counts": row["masks"][index]}
            content["annotations"].append(entry)
    return content


def write_parquet(path: Path, rows: Iterator[dict[str, Any]], task: str) -> None:
    """A row an image, a thousand in memory at a time."""
    fields = {"image": pa.string(), "width": pa.int32(), "height": pa.int32()}
    if task == "captions":
        fields["caption"] = pa.string()
    else:
        fields |= {"scores": pa.list_(pa.float32()), "labels": pa.list_(pa.string())}
        fields |= {"boxes": pa.list_(pa.list_(pa.float32()))}
    if task == "masks":
        fields["masks"] = pa.list_(pa.string())
    schema = pa.schema(fields)
    with replaced_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))


if __name__ == "__main__":
    main()
