"""
Scores of detectors on COCO, LVIS, ODinW and data of one's own, as `glipv2 evaluate` and the script of examples/ give
them.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.evaluation import (
    images_for_batches,
    predict_images,
    score_predictions,
    write_predictions,
)
from transformers_glipv2.cli.training import set_image_size
from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import read_json
from transformers_glipv2.data.formats.coco_json import checked_categories
from transformers_glipv2.data.formats.open import open_dataset
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.lvis import image_file_name
from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.evaluation.coco import evaluate_coco, scored_content
from transformers_glipv2.evaluation.detections import read_annotations
from transformers_glipv2.evaluation.detector import (
    coco_entries,
    detect_augmented,
    encode_sentence,
    open_annotated_image,
)
from transformers_glipv2.evaluation.lvis import LABELS_PER_PROMPT, evaluate_lvis, evaluate_lvis_fixed
from transformers_glipv2.evaluation.odinw import odinw_sets, odinw_table, summarize_odinw
from transformers_glipv2.evaluation.shards import PredictionShards, evaluation_accelerator
from transformers_glipv2.inference.detector import Detector, encode_labels, max_prompt_tokens
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.prompts import clean_labels

# Shortest edges in pixels; the longest is at most 5/3 of it, as 800 goes with 1333.
TTA_SIZES = (600, 800, 1000, 1200)
LONGEST_EDGE_RATIO = 1333 / 800


@dataclass
class Job:
    """A data set: the content of its file, its images, and its labels."""

    name: str
    content: dict[str, Any]
    image_folder: Path | None
    labels: list[str]
    category_ids: Sequence[int | str]
    sentence: tuple[str, list[tuple[int, int]]] | None = None
    examples: ImageDataset | None = None


def evaluate_detector(args: argparse.Namespace) -> dict[str, Any]:
    """
    Predicts all images and scores the predictions, on any number of processes.

    Args:
        args (`argparse.Namespace`): flags of `examples/evaluate_detection.py`, checked by [`complete`].

    Returns:
        `dict`: the scores of each data set, which `metrics.json` of the output holds too; empty where there are no
        annotations, and on other processes than the main one.

    Raises:
        OSError, ValueError: when the data, the images or the model cannot be used.
    """
    accelerator = evaluation_accelerator(args.mixed_precision)
    scores: dict[str, Any] = {}
    for job in jobs_of(args):
        shards = predict(job, args, accelerator)
        if accelerator.is_main_process:
            scores[job.name] = score(job, args, shards)

    def summary() -> dict[str, Any]:
        if args.benchmark != "odinw":
            return scores if any(scores.values()) else {}
        each = {name: values["bbox"]["AP"] for name, values in scores.items()}
        print(odinw_table({args.split: each}))
        return scores | summarize_odinw(each)

    return score_predictions(args, accelerator, summary)


def complete(args: argparse.Namespace) -> None:
    """Fills in defaults that depend on other flags; raises ValueError for flags that do not go together."""
    if args.data is not None and (args.annotations is not None or args.benchmark != "coco"):
        raise ValueError("--data goes with --benchmark coco, and without --annotations")
    if args.benchmark != "odinw" and args.annotations is None and args.data is None:
        raise ValueError("--data is needed, or --annotations for coco and lvis")
    if args.images is None and args.data is None:
        raise ValueError("--images is needed where there is no --data")
    if args.benchmark == "odinw":
        args.split = args.split or "test"
        if args.split not in ("train", "val", "test"):
            raise ValueError(f"--split is {args.split!r}; odinw has train, val and test")
    if args.tta and args.masks:
        raise ValueError("--tta merges boxes only; run --masks without it")
    if args.tta and args.image_size is None:
        args.image_size = list(TTA_SIZES)
    if args.image_size is not None and len(args.image_size) > 1 and not args.tta:
        raise ValueError(f"--image_size has {len(args.image_size)} sizes; give one, or merge several with --tta")
    if args.labels_per_prompt is None and args.benchmark == "lvis":
        args.labels_per_prompt = LABELS_PER_PROMPT
    if args.max_detections is None and args.benchmark != "lvis":
        args.max_detections = 100


def jobs_of(args: argparse.Namespace) -> Iterator[Job]:
    """The data sets, one in memory at a time."""
    if args.data is not None:
        yield own_job(args)
        return
    if args.benchmark != "odinw":
        content = read_annotation_file(args.annotations)
        categories = checked_categories(
            content["categories"],
            content["annotations"] or (),
            BoxReport("refuse", args.annotations.name),
            args.annotations,
        )
        labels = clean_labels(list(categories.values()))
        yield Job(args.benchmark, content, args.images, labels, list(categories))
        return
    sets = odinw_sets(args.sets[0] if len(args.sets) == 1 else args.sets)
    files = {name: entry.annotation_file(args.images, args.split) for name, entry in sets.items()}
    missing = [f"{name} ({path})" for name, path in files.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"data sets of ODinW without annotations: {', '.join(missing)}; download them, or choose others by --sets."
        )
    for name, entry in sets.items():
        content = read_annotation_file(files[name])
        yield Job(name, content, files[name].parent, entry.labels, entry.category_ids, entry.sentence())


def own_job(args: argparse.Namespace) -> Job:
    """One split of data in any format."""
    data = open_dataset(
        args.data,
        args.images,
        args.val_fraction,
        with_masks=args.masks,
        allow_outside_paths=args.allow_outside_paths,
    )
    split = args.split or data.evaluation_split()
    examples = data.split(split, for_scoring=True)
    content = scored_content(examples, args.max_samples)
    print(f"{args.data}: {data.form}; {split}, {len(content['images'])} images")
    labels = clean_labels(examples.class_names or [])
    return Job(split, content, None, labels, [entry["id"] for entry in content["categories"]], examples=examples)


def read_annotation_file(path: Path) -> dict[str, Any]:
    """A COCO-format file, also one without annotations."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("annotations") is not None:
        return read_annotations(content, path)
    return {**read_annotations({**content, "annotations": []}, path), "annotations": None}


def predict(job: Job, args: argparse.Namespace, accelerator: Accelerator) -> PredictionShards:
    """Predictions of all images of a data set, by all processes."""
    source = args.model.replace("{set}", job.name)
    model_class = GLIPv2ForInstanceSegmentation if args.masks else GLIPv2ForObjectDetection
    model, processor = load_checkpoint(model_class, source, accelerator.device)
    if not args.tta:
        set_image_size(processor, args.image_size)
    if job.sentence is not None:
        prompts = [encode_sentence(*job.sentence, list(range(len(job.labels))), model, processor.tokenizer)]
    else:
        limit = min(processor.max_tokens, max_prompt_tokens(model, processor.tokenizer))
        prompts = encode_labels(job.labels, processor.tokenizer, limit, args.labels_per_prompt)
    # Votes at several scales count before the threshold does.
    limits = {name: getattr(args, name) for name in ("pre_nms_threshold", "nms_threshold", "max_detections")}
    detector = Detector(
        model,
        processor,
        args.backend,
        args.compile,
        threshold=0.0,
        **limits,
        batch_size=args.batch_size,
        progress=False,
    )
    images = job.content["images"][: args.max_samples]
    find = ImageFinder(job.image_folder or ".", args.allow_outside_paths)
    # What is wrong with an image, such as a name that leads out of the folder, makes it one that cannot be read.
    report = BoxReport("refuse", job.name)

    def load(index: int):
        image, where = images[index], f"image {images[index]['id']!r}"
        if job.examples is not None:
            example = job.examples.read(image["index"])
            if example is None:
                raise OSError(f"{image['name']} cannot be read: {job.examples.report.summary()}")
            return image, example["image"]
        # A report that refuses raises where anything else would give `None`.
        path: Any = find(image_file_name(image, report), report, where)  # type: ignore[arg-type]
        size: Any = annotated_size(image.get("width"), image.get("height"), path, report, where)
        width, height = size
        return {**image, "width": width, "height": height}, open_annotated_image(path, (width, height))

    def detect(items):
        entries, images = zip(*items, strict=True)
        target_sizes = [(image["height"], image["width"]) for image in entries]
        results: Iterable[dict[str, Any]]
        with accelerator.autocast():
            if args.tta:
                sizes = [{"shortest_edge": s, "longest_edge": round(s * LONGEST_EDGE_RATIO)} for s in args.image_size]
                results = detect_augmented(detector, images, prompts, sizes, target_sizes=target_sizes)
            else:
                results = detector.run_prompts(images, prompts, target_sizes, args.masks)
        found = zip(entries, results, strict=True)
        lists = [coco_entries(image["id"], result, job.category_ids) for image, result in found]
        return [[entry for entry in entries if entry["score"] >= args.threshold] for entries in lists]

    keep = ("benchmark", "split", "masks", "labels_per_prompt", "threshold", "tta", "image_size")
    settings = {name: getattr(args, name) for name in keep} | limits | {"labels": job.labels}
    if job.examples is not None:
        settings["images"] = [image["name"] for image in images]
    image_ids = [image["id"] for image in images]
    output = output_of(job, args)
    at_once = images_for_batches(args.batch_size, args.images_per_file)
    return predict_images(args, accelerator, image_ids, load, detect, job.name, settings, output, source, at_once)


def score(job: Job, args: argparse.Namespace, shards: PredictionShards) -> dict[str, Any]:
    """Scores of a data set, on one process; none where there are no annotations."""
    write_predictions(output_of(job, args), shards, "count as empty")
    if job.content["annotations"] is None:
        return {}
    common: dict[str, Any] = {"image_ids": shards.keys}
    scores = {}
    for iou_type in ("bbox", "segm") if args.masks else ("bbox",):
        if args.benchmark == "lvis":
            scores[f"{iou_type}_fixed"] = evaluate_lvis_fixed(job.content, shards.predictions(), iou_type, **common)
            scores[f"{iou_type}_classic"] = evaluate_lvis(job.content, shards.predictions(), iou_type, **common)
        else:
            scores[iou_type] = evaluate_coco(job.content, shards.predictions(), iou_type, **common)
    for kind, values in scores.items():
        # -1 says that there is nothing to average.
        shown = {name: value for name, value in values.items() if name != "per_category" and value >= 0}
        print(job.name, kind, {name: round(100 * value, 2) for name, value in shown.items()})
    return scores


def output_of(job: Job, args: argparse.Namespace) -> Path:
    return args.output / job.name if args.benchmark == "odinw" else args.output
