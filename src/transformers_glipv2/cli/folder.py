"""Labelling of many images: where they come from, and the files that hold the labels."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from PIL import Image

from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.evaluation import generate_captions, prediction_shards
from transformers_glipv2.cli.sources import ImageFolder, ImageList
from transformers_glipv2.data.files import read_text, replaced_file, write_json
from transformers_glipv2.data.hub import image_source
from transformers_glipv2.evaluation.ray_shards import predict_with_ray
from transformers_glipv2.evaluation.shards import evaluation_accelerator, predict_in_shards
from transformers_glipv2.images.image_io import open_image
from transformers_glipv2.inference.detector import Detector
from transformers_glipv2.modeling_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

Predict = Callable[[list[Image.Image]], list[dict[str, Any]]]

ROWS_PER_GROUP = 1000
DETECTION_OPTIONS = ("threshold", "nms_threshold", "agnostic_nms", "max_detections")


class HubImages:
    """
    The images of a data set that `datasets.load_dataset` takes.

    Args:
        name (`str`): Hub id or folder.
        split (`str`), column (`str`): of the data set.

    Attributes:
        names (`list[str]`): `SPLIT/INDEX`.
    """

    def __init__(self, name: str, split: str, column: str):
        import datasets

        # Images are decoded when they are asked for, so that a broken one is a failure of its own.
        self.examples = datasets.load_dataset(name, split=split).select_columns([column])
        self.examples = self.examples.cast_column(column, datasets.Image(decode=False))
        self.column = column
        self.names = [f"{split}/{index}" for index in range(len(self.examples))]

    def open(self, index: int) -> Image.Image:
        """An image as RGB, upright."""
        return open_image(image_source(self.examples[index][self.column]))


def label_images(args: argparse.Namespace) -> Path:
    """
    Labels the images of a folder or a data set and writes one file, on any number of processes.

    Args:
        args (`argparse.Namespace`): flags of `examples/predict_folder.py`.

    Returns:
        `Path`: the file of predictions; images that could not be read are listed beside it in `failures.json`.

    Raises:
        OSError, ValueError: when the images, the labels or the model cannot be used.
    """
    if args.labels_file:
        lines = read_text(args.labels_file).splitlines()
        args.labels = [line.strip() for line in lines if line.strip()]
        if not args.labels:
            raise ValueError(f"--labels_file: {str(args.labels_file)!r} holds no label; write one a line.")
    accelerator = evaluation_accelerator(args.mixed_precision)
    with accelerator.main_process_first():
        source = open_source(args)
    names = source.names[: args.max_samples]
    keep = ("task", "labels", *DETECTION_OPTIONS, "num_beams", "max_new_tokens")
    settings = {name: getattr(args, name) for name in keep} | {"source": str(args.images or args.dataset)}
    shards = prediction_shards(args, accelerator, names, settings)
    if args.engine == "ray":
        threads = max(args.num_workers, 1)
        make = partial(make_worker, args)
        predict_with_ray(
            shards, source.open, make, args.batch_size, args.actors, args.gpus_per_actor, threads, args.task
        )
    else:
        load, label = make_worker(args)
        predict_in_shards(shards, load, label, accelerator, args.batch_size, args.num_workers, args.task)

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


def open_source(args: argparse.Namespace) -> ImageFolder | ImageList | HubImages:
    """
    The images that `--images` (a folder, or a list of files, folders and URLs), or `--dataset`, `--split` and
    `--image_column` name.
    """
    if not args.images:
        return HubImages(args.dataset, args.split, args.image_column)
    given = args.images if isinstance(args.images, list) else [args.images]
    if len(given) == 1 and Path(given[0]).is_dir():
        return ImageFolder(Path(given[0]))
    return ImageList(given)


def make_worker(args: argparse.Namespace) -> tuple[Callable[[int], Any], Callable[[list[Any]], list[Any]]]:
    """What opens an image by its index, and what labels a batch of them, with a model in memory."""
    accelerator = evaluation_accelerator(args.mixed_precision)
    source = open_source(args)
    predict = captioner(args, accelerator) if args.task == "captions" else detector(args, accelerator)

    def load(index: int) -> tuple[str, Image.Image]:
        return source.names[index], source.open(index)

    def label(items: list[tuple[str, Image.Image]]) -> list[list[dict[str, Any]]]:
        with accelerator.autocast():
            found = predict([image for _, image in items])
        return [
            [{"image": name, "width": image.width, "height": image.height, **columns}]
            for (name, image), columns in zip(items, found, strict=True)
        ]

    return load, label


def detector(args: argparse.Namespace, accelerator: Accelerator) -> Predict:
    """Images to columns "scores", "labels", "boxes" and "masks"."""
    model_class = GLIPv2ForInstanceSegmentation if args.task == "masks" else GLIPv2ForObjectDetection
    model, processor = load_checkpoint(model_class, args.model, accelerator.device)
    masks = args.task == "masks"
    options = {name: getattr(args, name) for name in (*DETECTION_OPTIONS, "batch_size", "backend")}
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


def coco_file(examples: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    """
    A COCO instances file with a score for each annotation, or a COCO captions file.

    Args:
        examples (`Iterable[Mapping]`): "image", "width", "height", and "scores", "labels", "boxes" (inclusive xyxy in
            pixels) and "masks" (counts of COCO run lengths), or "caption".
        labels (`Sequence[str]`): the categories, whose ids begin at 1.
    """
    category_ids = {label: index for index, label in enumerate(labels, start=1)}
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": label} for label, index in category_ids.items()],
    }
    for image_id, example in enumerate(examples, start=1):
        size = {"width": example["width"], "height": example["height"]}
        content["images"].append({"id": image_id, "file_name": example["image"], **size})
        if "caption" in example:
            content["annotations"].append({"id": image_id, "image_id": image_id, "caption": example["caption"]})
            continue
        for index, (score, label, (x1, y1, x2, y2)) in enumerate(
            zip(example["scores"], example["labels"], example["boxes"], strict=True)
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
            if "masks" in example:
                entry["segmentation"] = {
                    "size": [example["height"], example["width"]],
                    "counts": example["masks"][index],
                }
            content["annotations"].append(entry)
    return content


def write_parquet(path: Path, examples: Iterable[Mapping[str, Any]], task: str) -> None:
    """
    One row for each image, a thousand in memory at a time; the file is there as a whole or not at all.

    Args:
        path (`Path`): to write.
        examples (`Iterable[Mapping]`): as for [`coco_file`].
        task (`str`): "boxes", "masks" or "captions".
    """
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
        group: list[Mapping[str, Any]] = []
        for example in examples:
            group.append(example)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
