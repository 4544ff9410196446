"""PhraseCut (VGPhraseCut_v0): one phrase of an image, and boxes and polygons of everything that it refers to."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.files import read_json
from transformers_glipv2.data.formats.coco_json import clean_id
from transformers_glipv2.data.image_files import ImageFinder
from transformers_glipv2.data.schema import BoxReport, checked_objects


def load_phrasecut(
    folder: str | Path,
    image_folder: str | Path,
    split: str = "train",
    *,
    policy: str | Mapping[str, str] = "skip",
    file_names: Mapping[Any, str] | None = None,
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Grounding examples with masks of PhraseCut, one a task (a phrase of an image).

    Args:
        folder (`str` or `Path`): holds `refer_SPLIT.json` and `image_data_split.json`.
        image_folder (`str` or `Path`): holds Visual Genome's images, `ID.jpg`.
        split (`str`, *optional*, defaults to `"train"`): "train", "val", "test" or "miniv".
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        file_names (`Mapping[int, str]`, *optional*): names of images under `image_folder` by id, where they are not
            `ID.jpg`; images that it does not name are left out and counted.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): follow file names and links that lead out of
            the image folder. Only for files that are trusted.

    Returns:
        `ImageDataset`: examples with `task_id` and objects of bbox, phrase, tokens_positive (the whole phrase) and
        segmentation (polygons in pixels, as published: some leave the image). An object is an instance; the
        phrase's mask is the union.

    Raises:
        FileNotFoundError: when a file is missing, or every image.
        ValueError: when a file is not PhraseCut's, or the policy refuses.
    """
    folder = Path(folder)
    path = folder / f"refer_{split}.json"
    tasks, images = read_json(path), read_json(folder / "image_data_split.json")
    for name, content in ((path.name, tasks), ("image_data_split.json", images)):
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{folder / name} is not a file of PhraseCut: expected a list of objects.")
    sizes = {clean_id(entry.get("image_id")): (entry.get("width"), entry.get("height")) for entry in images}
    report = BoxReport(policy, f"PhraseCut {split}")
    find = ImageFinder(image_folder, allow_outside_paths)

    def records() -> Iterator[dict[str, Any]]:
        seen: set[int | str] = set()
        for task in tasks:
            image, task_id = clean_id(task.get("image_id")), clean_id(task.get("task_id"))
            name = f"{image}.jpg" if file_names is None else file_names.get(image)
            if image not in sizes or name is None:
                report.add("unknown_image", f"task {task_id!r} of image {image!r}")
            elif task_id is None or task_id in seen:
                report.add("bad_entry", f"image {image!r}: task {task_id!r} has no id or comes twice")
            else:
                seen.add(task_id)
                record = task_record(task, *sizes[image], report)
                if record is None:
                    continue
                image_path = find(name, report, f"task {task_id!r}")
                if image_path is not None:
                    yield {**record, "image_path": image_path}

    dataset = ImageDataset(PackedRecords(records()), report=report)
    report.warn_once()
    find.check_any_found(path)
    return dataset


def task_record(task: Mapping[str, Any], width: int, height: int, report: BoxReport) -> dict[str, Any] | None:
    """
    One task as a record of `ImageDataset`, without `image_path`; `None` where it is left out.

    Args:
        task (`Mapping`): with task_id, image_id, phrase, instance_boxes (x, y, width, height of each instance) and
            Polygons (instances, each a list of polygons, each a list of [x, y]).
        width, height (`int`): the image's, in pixels.
        report (`BoxReport`): counts problems.
    """
    where = f"task {task['task_id']!r}"
    phrase = task.get("phrase")
    boxes: Any = task.get("instance_boxes")
    instances: Any = task.get("Polygons")
    if not isinstance(phrase, str) or not phrase.strip():
        report.add("empty_text", f"{where}, phrase {phrase!r}")
        return None
    lists = isinstance(boxes, list) and isinstance(instances, list)
    if not lists or len(boxes) != len(instances) or not isinstance(width, int) or not isinstance(height, int):
        report.add("bad_entry", f"{where}: it needs a size, and as many `instance_boxes` as `Polygons`")
        return None
    objects = {
        "bbox": boxes,
        "phrase": [phrase] * len(boxes),
        "tokens_positive": [[[0, len(phrase)]]] * len(boxes),
        "segmentation": [flat_polygons(polygons) for polygons in instances],
    }
    return {
        "kind": "grounding",
        "image_id": task["image_id"],
        "task_id": task["task_id"],
        "width": width,
        "height": height,
        "text": phrase,
        "objects": checked_objects(objects, width, height, report, where, text=phrase),
    }


def flat_polygons(polygons: Any) -> Any:
    """Polygons of `[[x, y], ...]` in COCO's form `[x0, y0, x1, y1, ...]`; anything else comes back as it is."""
    try:
        return [[float(value) for x, y in polygon for value in (x, y)] for polygon in polygons]
    except (TypeError, ValueError):
        return polygons
