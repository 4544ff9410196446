"""Data sets written as COCO or YOLO, with their images: what `glipv2 data convert` does."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from transformers_glipv2.data.dataset import ImageDataset, stored_orientation
from transformers_glipv2.data.files import replaced_file, write_json, write_text
from transformers_glipv2.data.formats.coco import ROBOFLOW_FILE
from transformers_glipv2.data.formats.open import LocalDataset
from transformers_glipv2.data.formats.source import WHOLE
from transformers_glipv2.data.masks import decode_mask, encode_mask, join_polygons, mask_polygon

# What others call the split; Roboflow's readers know "valid" only.
_ROBOFLOW_NAMES = {"val": "valid", WHOLE: "train"}
_YOLO_NAMES = {WHOLE: "train"}


def convert_dataset(data: LocalDataset, output: str | Path, format: str) -> dict[str, int]:
    """
    Writes a data set, with copies of its images, in another format.

    What the checks of `load_coco` leave out (damaged images, boxes that are none) is left out, and images that are
    stored on their side are written upright. Images keep their names; a second one of a name gets a number.

    Args:
        data (`LocalDataset`): opened with masks where they are to be written.
        output (`str` or `Path`): a folder that is new or empty.
        format (`str`): "coco": `SPLIT/_annotations.coco.json` beside the images, as Roboflow has it; "yolo":
            `data.yaml` with `images/SPLIT` and `labels/SPLIT`, as Ultralytics has it. YOLO has no boxes around crowds,
            which are left out, and one polygon for each mask, which joins several parts by lines.

    Returns:
        `dict[str, int]`: number of images by split.

    Raises:
        FileExistsError: when the folder holds something.
        ValueError: for another format.
    """
    if format not in WRITERS:
        raise ValueError(f"`format` is {format!r}; choose one of {', '.join(WRITERS)}.")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already; choose a new folder.")
    output.mkdir(parents=True, exist_ok=True)
    return WRITERS[format](data, output)


def _write_coco(data: LocalDataset, output: Path) -> dict[str, int]:
    counts = {}
    for split in data.split_names:
        dataset = data.split(split, for_scoring=True)
        names = list(dataset.class_names or [])
        folder = output / _ROBOFLOW_NAMES.get(split, split)
        numbers = {name: number for number, name in enumerate(names, start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for file_name, example in _copied(dataset, folder):
            width, height = example["image"].size
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
            for entry in _objects(example):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": numbers[entry["category"]],
                        "bbox": entry["bbox"],
                        "area": entry.get("area") or entry["bbox"][2] * entry["bbox"][3],
                        "iscrowd": entry.get("iscrowd") or 0,
                        **_as_json(entry.get("segmentation")),
                    }
                )
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / ROBOFLOW_FILE, content, indent=None)
        counts[split] = len(images)
    return counts


def _write_yolo(data: LocalDataset, output: Path) -> dict[str, int]:
    counts = {}
    names = list(data.classes)
    for split in data.split_names:
        names += [name for name in data.splits[split].class_names or () if name not in names]
    numbers = {name: number for number, name in enumerate(names)}
    content: dict[str, Any] = {}
    for split in data.split_names:
        name = _YOLO_NAMES.get(split, split)
        content[name] = f"images/{name}"
        counts[split] = 0
        for file_name, example in _copied(data.split(split), output / "images" / name):
            counts[split] += 1
            lines = [_yolo_line(entry, numbers, *example["image"].size) for entry in _objects(example)]
            write_text((output / "labels" / name / file_name).with_suffix(".txt"), "".join(lines))
    content["names"] = dict(enumerate(names))
    write_text(output / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return counts


WRITERS: dict[str, Callable[[LocalDataset, Path], dict[str, int]]] = {"coco": _write_coco, "yolo": _write_yolo}


def _yolo_line(entry: Mapping[str, Any], numbers: Mapping[str, int], width: int, height: int) -> str:
    polygon = _one_polygon(entry.get("segmentation"), width, height)
    if polygon is not None:
        values = (polygon / (width, height)).ravel().tolist()
    else:
        x, y, w, h = entry["bbox"]
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    return f"{numbers[entry['category']]} {' '.join(f'{value:.10g}' for value in values)}\n"


def _one_polygon(segmentation: Any, width: int, height: int) -> np.ndarray | None:
    """A mask of any kind as corners `(n, 2)` in pixels; `None` where there is none."""
    if isinstance(segmentation, list):
        parts = [np.reshape(polygon, (-1, 2)) for polygon in segmentation if len(polygon) >= 6]
        return join_polygons(parts) if parts else None
    mask = decode_mask(segmentation, height, width)
    return None if mask is None else mask_polygon(mask)


def _objects(example: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    objects = example["objects"]
    for index in range(len(objects["bbox"])):
        yield {name: column[index] for name, column in objects.items()}


def _as_json(segmentation: Any) -> dict[str, Any]:
    if segmentation is None:
        return {}
    if not isinstance(segmentation, (list, Mapping)):
        segmentation = encode_mask(segmentation)
    return {"segmentation": segmentation}


def _copied(dataset: ImageDataset, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples that can be read, each with the name under which its image is in the folder now."""
    folder.mkdir(parents=True, exist_ok=True)
    used: Counter[str] = Counter()
    for index in range(len(dataset)):
        example = dataset.read(index)
        if example is None:
            continue
        source = dataset.records[index]["image_path"]
        source = source() if callable(source) else source
        path = Path(source) if isinstance(source, (str, Path)) else Path(f"{example['image_id']}.png")
        stem, suffix = path.stem.replace("\\", "_").replace("/", "_"), path.suffix.lower()
        used[stem] += 1
        name = f"{stem}{suffix}" if used[stem] == 1 else f"{stem}_{used[stem]}{suffix}"
        if isinstance(source, (str, Path)) and stored_orientation(source)[0] == 1:
            shutil.copyfile(source, folder / name)
        else:
            _save(example["image"], folder / name)
        yield name, example


def _save(image: Image.Image, path: Path) -> None:
    with replaced_file(path) as temporary:
        format = Image.registered_extensions()[path.suffix]
        image.save(temporary, format, **({"quality": 95} if format in ("JPEG", "WEBP") else {}))
