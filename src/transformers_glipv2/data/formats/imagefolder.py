"""Folders of images with `metadata.jsonl`, as `datasets` reads them: a line an image, its boxes in `objects`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import read_lines
from transformers_glipv2.data.formats.coco import content_dataset
from transformers_glipv2.data.formats.source import (
    WHOLE,
    FoundData,
    ReadOptions,
    image_folder_of,
    is_split_name,
    named_splits,
    places_of,
)
from transformers_glipv2.data.schema import BoxReport

METADATA = "metadata.jsonl"
_OBJECTS = ("objects", "annotations")
_BOXES = ("bbox", "bboxes", "boxes")
_CATEGORIES = ("categories", "category", "labels", "label", "category_id", "names")
_NAME_FILES = ("classes.txt", "names.txt", "labels.txt")


def find_imagefolder(path: Path, images: Path | None) -> FoundData | None:
    """
    A folder with `metadata.jsonl`, or with one in a folder for each split; or the file itself.

    Raises:
        ValueError: when categories are numbers and no `classes.txt` names them.
    """
    if path.is_file():
        if path.suffix != ".jsonl":
            return None
        files, root = {WHOLE: path}, path.parent
    else:
        root = path
        files = {file.parent.name: file for file in sorted(path.glob(f"*/{METADATA}"))}
        if (path / METADATA).is_file():
            files = {WHOLE: path / METADATA}
    if not files:
        return None
    splits: dict[str, Any] = {}
    names = cache(partial(_class_names, root, list(files.values())))
    for name, file in files.items():
        splits[name] = partial(_read_split, file, images, name, None, names)
    if list(files) == [WHOLE]:
        folders = dict.fromkeys(Path(name).parts[0] for name in _file_names(files[WHOLE]))
        if folders and all(map(is_split_name, folders)):
            splits = {part: partial(_read_split, files[WHOLE], images, part, part, names) for part in folders}
    return FoundData("imagefolder", f"image folder, {METADATA}", named_splits(splits))


def _file_names(file: Path) -> Iterator[str]:
    for _, entry in _entries(file, None):
        if isinstance(entry.get("file_name"), str) and entry["file_name"]:
            yield entry["file_name"]


def _entries(file: Path, report: BoxReport | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines that are objects, each with where it is."""
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            entry = error
        if isinstance(entry, Mapping):
            yield where, entry
        elif report is not None:
            report.add("bad_entry", f"{where} is no JSON object: {str(entry)[:100]}")


def _class_names(root: Path, files: Sequence[Path]) -> dict[Any, str]:
    """Name by what stands for it: names stand for themselves, by alphabet; numbers need a `classes.txt`."""
    found = {category for file in files for _, entry in _entries(file, None) for category in _objects(entry)[1]}
    numbers = {category for category in found if isinstance(category, int) and not isinstance(category, bool)}
    if not numbers:
        return {name: name for name in sorted(name for name in found if isinstance(name, str) and name.strip())}
    file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if file is None:
        raise ValueError(
            f"{files[0]} has categories by number, such as {min(numbers)}, and nothing names them; write the names "
            f"in place of the numbers, or one name a line into {root / _NAME_FILES[0]}."
        )
    return dict(enumerate(line.strip() for line in read_lines(file) if line.strip()))


def _objects(entry: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Boxes and categories of a line, from columns or a list of objects; what is hashable of the categories."""
    objects = next((entry[name] for name in _OBJECTS if entry.get(name) is not None), entry)
    if isinstance(objects, list):
        rows = [one if isinstance(one, Mapping) else {} for one in objects]
        boxes = [next((one[name] for name in _BOXES if name in one), None) for one in rows]
        categories = [next((one[name] for name in _CATEGORIES if name in one), None) for one in rows]
    elif isinstance(objects, Mapping):
        boxes = next((objects[name] for name in _BOXES if isinstance(objects.get(name), list)), [])
        categories = next((objects[name] for name in _CATEGORIES if isinstance(objects.get(name), list)), [])
    else:
        boxes, categories = [], []
    return boxes, [one if isinstance(one, (str, int)) else str(one) for one in categories]


def _read_split(
    file: Path, images: Path | None, split: str, part: str | None, names: Any, options: ReadOptions
) -> ImageDataset:
    where = f"{file}, {split}" if split != WHOLE else str(file)
    report = BoxReport(options.policy, file.name if split == WHOLE else f"{file.name}, {split}")
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for line, entry in _entries(file, report):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            report.add("bad_entry", f"{line} has the file_name {name!r}")
            continue
        if part is not None and Path(name).parts[0] != part:
            continue
        size = {side: entry[side] for side in ("width", "height") if side in entry}
        entries.append({"id": name, "file_name": name, **size})
        boxes, categories = _objects(entry)
        if len(boxes) != len(categories):
            report.add("bad_entry", f"{line} has {len(boxes)} boxes and {len(categories)} categories")
            continue
        annotations += [
            {"id": f"{line}, object {index}", "image_id": name, "category_id": category, "bbox": box}
            for index, (box, category) in enumerate(zip(boxes, categories, strict=True))
        ]
    folder = file.parent
    if images is not None:
        folder = image_folder_of([entry["file_name"] for entry in entries[:5]], places_of([images], [split]))
    categories = [{"id": key, "name": name} for key, name in names().items()]
    return content_dataset(
        {"images": entries, "annotations": annotations, "categories": categories},
        where,
        folder,
        report,
        with_masks=options.with_masks,
        boxes_on=options.boxes_on,
        allow_outside_paths=options.allow_outside_paths,
    )
