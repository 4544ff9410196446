"""
Labels a folder of pictures, or a data set of the Hub, with boxes or masks.

    python examples/predict_folder.py --model MODEL --images pictures --labels cat dog --output outputs/labelled
    python examples/predict_folder.py --model MODEL --dataset cppe-5 --split test --labels mask gloves \\
        --task masks --format coco --output outputs/cppe

Runs on many processes with `accelerate launch`. Predictions are written as they come (`predictions/`); after an
interruption the same command goes on where it was. At the end there is `predictions.parquet`, a row a picture with
"image", "width", "height", "scores", "labels", "boxes" (x1, y1, x2, y2 in pixels) and "masks" (COCO RLE counts), or
`predictions.json`, a COCO file with a score for each annotation. Pictures that cannot be read are left out and listed
in `failures.json`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.evaluation.detector import Detector
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    replaced_file,
    weights_id,
    write_json,
)
from transformers_glipv2.inference import encode_labels, max_prompt_tokens
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

ROWS_PER_GROUP = 1000


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of pictures, also in its folders")
    source.add_argument("--dataset", help="Hub id or folder that `datasets.load_dataset` takes")
    add("--split", default="train", help="of the data set (default: train)")
    add("--image_column", default="image", help="of the data set (default: image)")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", nargs="+", help="what to look for")
    labels.add_argument("--labels_file", type=Path, help="a label a line")
    add("--task", choices=("boxes", "masks"), default="boxes", help="(default: boxes)")
    add("--format", choices=("parquet", "coco"), default="parquet", help="(default: parquet)")
    add("--output", required=True, type=Path, help="folder to write to")
    add("--threshold", type=float, default=0.3, help="on final scores (default: 0.3)")
    add("--max_detections", type=int, default=100, help="boxes of a picture (default: 100)")
    add("--limit", type=int, help="only the first so many pictures")
    add("--batch_size", type=int, default=1, help="pictures of a process at once (default: 1)")
    add("--num_workers", type=int, default=0, help="processes that read pictures, for each process (default: 0)")
    add("--pictures_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    return parser.parse_args(arguments)


class Folder:
    """The pictures under a folder, by their paths in it."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder of pictures.")
        known = set(Image.registered_extensions())
        self.folder = folder
        self.names = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.suffix.lower() in known
        )

    def open(self, position: int) -> Image.Image:
        with Image.open(self.folder / self.names[position]) as picture:
            return picture.convert("RGB")


class HubDataset:
    """The pictures of a data set, by their places in it."""

    def __init__(self, name: str, split: str, column: str):
        import datasets

        # Pictures are decoded when they are asked for, so that a broken one is a failure of its own.
        self.rows = datasets.load_dataset(name, split=split).select_columns([column])
        self.rows = self.rows.cast_column(column, datasets.Image(decode=False))
        self.image = datasets.Image()
        self.column = column
        self.names = [f"{split}/{index}" for index in range(len(self.rows))]

    def open(self, position: int) -> Image.Image:
        return self.image.decode_example(self.rows[position][self.column]).convert("RGB")


def main(arguments: list[str] | None = None) -> Path:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    labels = args.labels or [
        line for line in args.labels_file.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    with accelerator.main_process_first():
        source = Folder(args.images) if args.images else HubDataset(args.dataset, args.split, args.image_column)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model_class = GLIPv2ForInstanceSegmentation if args.task == "masks" else GLIPv2ForObjectDetection
    model = model_class.from_pretrained(args.model).to(accelerator.device).eval()
    limit = min(processor.max_tokens, max_prompt_tokens(model, processor.tokenizer))
    prompts = encode_labels(labels, processor.tokenizer, limit)
    # A final score is the root of a product of which no factor is below its square.
    detector = Detector(
        model,
        processor,
        prompts,
        threshold=args.threshold**2,
        max_detections=args.max_detections,
        masks=args.task == "masks",
    )

    names = source.names[: args.limit]
    settings = {name: getattr(args, name) for name in ("task", "threshold", "max_detections", "batch_size")}
    settings |= {"weights": weights_id(args.model), "labels": labels, "source": str(args.images or args.dataset)}
    settings |= {"mixed_precision": accelerator.mixed_precision}
    shards = PredictionShards(args.output / "predictions", names, settings, args.pictures_per_file)

    def detect(items: list[tuple[str, Image.Image]]) -> list[list[dict[str, Any]]]:
        with accelerator.autocast():
            results = detector([picture for _, picture in items])
        return [
            [row_of(name, picture, result, labels, args.threshold)]
            for (name, picture), result in zip(items, results, strict=True)
        ]

    predict_in_shards(
        shards,
        lambda position: (names[position], source.open(position)),
        detect,
        accelerator,
        args.batch_size,
        args.num_workers,
        args.task,
    )
    path = args.output / ("predictions.json" if args.format == "coco" else "predictions.parquet")
    if accelerator.is_main_process:
        if args.format == "coco":
            write_json(path, coco_file(shards.predictions(), labels))
        else:
            write_parquet(path, shards.predictions(), args.task == "masks")
        failures = shards.failures()
        write_json(args.output / "failures.json", failures)
        print(f"{len(names) - len(failures)} pictures in {path}; {len(failures)} could not be read (failures.json)")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return path


def row_of(
    name: str, picture: Image.Image, result: dict[str, Any], labels: list[str], threshold: float
) -> dict[str, Any]:
    """One picture's row."""
    kept = (result["scores"] >= threshold).nonzero()[:, 0].tolist()
    row = {
        "image": name,
        "width": picture.width,
        "height": picture.height,
        "scores": result["scores"][kept].tolist(),
        "labels": [labels[index] for index in result["labels"][kept].tolist()],
        "boxes": result["boxes"][kept].tolist(),
    }
    if "masks" in result:
        row["masks"] = [result["masks"][index]["counts"] for index in kept]
    return row


def coco_file(rows: Iterator[dict[str, Any]], labels: list[str]) -> dict[str, Any]:
    """A COCO instances file with a score for each annotation."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": label} for index, label in enumerate(labels, start=1)],
    }
    category_ids = {label: index for index, label in enumerate(labels, start=1)}
    for image_id, row in enumerate(rows, start=1):
        size = {"width": row["width"], "height": row["height"]}
        content["images"].append({"id": image_id, "file_name": row["image"], **size})
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


def write_parquet(path: Path, rows: Iterator[dict[str, Any]], with_masks: bool) -> None:
    """A row a picture, a thousand in memory at a time."""
    fields = {
        "image": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.string()),
        "boxes": pa.list_(pa.list_(pa.float32())),
    }
    if with_masks:
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
