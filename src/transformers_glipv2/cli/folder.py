"""Labelling of many images: where they come from, and the files that hold the labels."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from transformers_glipv2 import GLIPv2Config
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.evaluation import generate_captions, images_for_batches, prediction_shards
from transformers_glipv2.cli.sources import ImageFolder, ImageList
from transformers_glipv2.data.files import read_text, write_json
from transformers_glipv2.data.formats.results import RESULT_FORMATS, check_format, write_results
from transformers_glipv2.data.hub import image_source
from transformers_glipv2.evaluation.ray_shards import predict_with_ray
from transformers_glipv2.evaluation.shards import PredictionShards, evaluation_accelerator, predict_in_shards
from transformers_glipv2.images.image_io import open_image
from transformers_glipv2.inference.detector import Detector
from transformers_glipv2.modeling_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

Predict = Callable[[list[Image.Image]], list[dict[str, Any]]]

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
        self.files: dict[str, Path] = {}

    def open(self, index: int) -> Image.Image:
        """An image as RGB, upright."""
        return open_image(image_source(self.examples[index][self.column]))


def label_images(args: argparse.Namespace) -> Path:
    """
    Labels the images of a folder or a data set and writes one file (of YOLO a folder), on any number of processes.

    Args:
        args (`argparse.Namespace`): flags of `examples/predict_folder.py`.

    Returns:
        `Path`: the file of predictions; images that could not be read are listed beside it in `failures.json`.

    Raises:
        OSError, ValueError: when the images, the labels or the model cannot be used.
    """
    check_format(args.format, args.task)
    if args.labels_file:
        lines = read_text(args.labels_file).splitlines()
        args.labels = [line.strip() for line in lines if line.strip()]
        if not args.labels:
            raise ValueError(f"--labels_file: {str(args.labels_file)!r} holds no label; write one a line.")
    if not args.labels and args.task != "captions":
        args.labels = tuned_labels(args.model)
    accelerator = evaluation_accelerator(args.mixed_precision)
    with accelerator.main_process_first():
        source = open_source(args)
    names = source.names[: args.max_samples]
    keep = ("task", "labels", *DETECTION_OPTIONS, "num_beams", "max_new_tokens")
    settings = {name: getattr(args, name) for name in keep} | {"source": str(args.images or args.dataset)}
    shards = prediction_shards(args, accelerator, names, settings)
    at_once = images_for_batches(args.batch_size, args.images_per_file)
    if args.engine == "ray":
        threads = max(args.num_workers, 1)
        make = partial(make_worker, args)
        predict_with_ray(shards, source.open, make, at_once, args.actors, args.gpus_per_actor, threads, args.task)
    else:
        load, label = make_worker(args)
        predict_in_shards(shards, load, label, accelerator, at_once, args.num_workers, args.task)

    path = args.output / RESULT_FORMATS[args.format].file_name
    if accelerator.is_main_process:
        write_results(path, results_of(shards, source), args.format, classes=args.labels or [], task=args.task)
        failures = shards.failures()
        write_json(args.output / "failures.json", failures)
        print(f"{len(names) - len(failures)} images in {path}; {len(failures)} could not be read (failures.json)")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return path


def tuned_labels(model: str) -> list[str]:
    """
    The classes that a model was fine-tuned for.

    Raises:
        ValueError: when there are none.
    """
    labels = GLIPv2Config.from_pretrained(model).labels
    if not labels:
        raise ValueError(
            f"boxes and masks need --labels or --labels_file: {model} was not fine-tuned for classes of its own."
        )
    return list(labels)


def results_of(shards: PredictionShards, source: ImageFolder | ImageList | HubImages) -> Iterator[dict[str, Any]]:
    """The predictions of all images that could be read, with the files that the images are in."""
    for prediction in shards.predictions():
        yield {**prediction, "file": source.files.get(prediction["image"])}


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
    options = {name: getattr(args, name) for name in (*DETECTION_OPTIONS, "batch_size", "backend", "compile")}
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
    loaded = load_checkpoint(GLIPv2ForConditionalGeneration, args.model, accelerator.device)
    detector = Detector(*loaded, batch_size=args.batch_size, progress=False)

    def caption(images: list[Image.Image]) -> list[dict[str, Any]]:
        captions = generate_captions(detector, images, args.num_beams, args.max_new_tokens)
        return [{"caption": caption} for caption in captions]

    return caption
