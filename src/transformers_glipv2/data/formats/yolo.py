"""
YOLO: a text file of boxes beside each image, and a `data.yaml` that says where the images of each split are and what
the classes are called (Ultralytics, Roboflow); also a folder with `classes.txt` (Label Studio) or `obj.names` (CVAT).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from transformers_glipv2.data.dataset import ImageDataset, stored_orientation
from transformers_glipv2.data.files import read_lines, read_text
from transformers_glipv2.data.formats.coco import content_dataset
from transformers_glipv2.data.formats.coco_json import clean_number
from transformers_glipv2.data.formats.source import (
    IMAGE_SUFFIXES,
    WHOLE,
    FoundData,
    ReadOptions,
    is_split_name,
    list_images,
    named_splits,
)
from transformers_glipv2.data.image_files import ImageFinder
from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.images.image_io import image_size

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test", "minival")
_NAME_FILES = ("classes.txt", "obj.names", "data/obj.names", "labels/classes.txt", "predefined_classes.txt")
# Of a fraction; a box may leave its image, but pixels are far beyond.
_HIGHEST = 3.0


def find_yolo(path: Path, images: Path | None) -> FoundData | None:
    """
    A `data.yaml`, a folder with one, or a folder with `classes.txt` or `obj.names`.

    Raises:
        ValueError: when the names of the classes are missing, or a split's images are not where the file says.
    """
    if path.is_file():
        if path.suffix not in (".yaml", ".yml"):
            return None
        content = _yaml(path)
        if "sources" in content:
            raise ValueError(f"{path} is a data file, which lists `sources`; pass a data set here.")
        return _from_yaml(path, content, images)
    for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
        content = _yaml(file)
        if "names" in content and any(key in content for key in _SPLIT_KEYS):
            return _from_yaml(file, content, images)
    for name in _NAME_FILES:
        if (path / name).is_file():
            return _from_names(path, path / name, images)
    return None


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    return content if isinstance(content, Mapping) else {}


def _from_yaml(file: Path, content: Mapping[str, Any], images: Path | None) -> FoundData:
    names = _class_names(content.get("names"), file)
    points = content.get("kpt_shape")
    pose = isinstance(points, Sequence) and len(points) == 2
    base = content.get("path")
    splits = {}
    for key in _SPLIT_KEYS:
        if content.get(key):
            entries = content[key] if isinstance(content[key], list) else [content[key]]
            read = partial(_read_split, file, entries, base, images, names, pose, key)
            splits[key] = read
    if not splits:
        raise ValueError(f"{file} names no images: give it `train` and `val`, each a folder or a list of images.")
    return FoundData("yolo", f"YOLO, {file.name}", named_splits(splits))


def _from_names(folder: Path, file: Path, images: Path | None) -> FoundData | None:
    names = _class_names([line.strip() for line in read_lines(file) if line.strip()], file)
    root = images or (folder / "images" if (folder / "images").is_dir() else folder)
    parts = {entry.name: entry for entry in sorted(root.iterdir()) if entry.is_dir() and is_split_name(entry.name)}
    splits = {
        part: partial(_read_split, file, [entry.absolute()], None, root.absolute(), names, False, part)
        for part, entry in (parts or {WHOLE: root}).items()
    }
    return FoundData("yolo", f"YOLO, {file.name}", named_splits(splits))


def _class_names(names: Any, file: Path) -> dict[int, str]:
    """Names by class number, from a list or a mapping."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise ValueError(f"{file} has no `names` of the classes; write them as a list, in the order of their numbers.")
    numbered = {}
    for key, name in names.items():
        number = int(key) if str(key).isdecimal() else None
        if number is None or not isinstance(name, (str, int, float)) or not str(name).strip():
            raise ValueError(f"{file}: `names` has {key!r}: {name!r}; expected a class number and a name.")
        numbered[number] = str(name).strip()
    return dict(sorted(numbered.items()))


# Images --------------------------------------------------------------------------------------------------------------


def _read_split(
    file: Path,
    entries: Sequence[Any],
    base: Any,
    images: Path | None,
    names: Mapping[int, str],
    pose: bool,
    split: str,
    options: ReadOptions,
) -> ImageDataset:
    report = BoxReport(options.policy, file.name if split == WHOLE else f"{file.name}, {split}")
    root = images if images is not None else file.parent
    listed: dict[str, None] = {}
    all_listed = True
    for entry in entries:
        place, start = _place_of(str(entry), base, root, file, split, options.allow_outside_paths)
        all_listed &= place.is_dir()
        listed |= dict.fromkeys(_images_of(place, start, root))
    if not listed:
        raise ValueError(f"{file} has the images of {split} at {entries[0]!r}, and there is none.")
    places = (root, file.parent)  # labels may have stayed where the file is
    content = _content(list(listed), places, names, pose, report, options, f"{file}, {split}", all_listed)
    return content_dataset(
        content,
        f"{file}, {split}",
        root,
        report,
        with_masks=options.with_masks,
        boxes_on=options.boxes_on,
        allow_outside_paths=options.allow_outside_paths,
    )


def _place_of(
    entry: str, base: Any, root: Path, file: Path, split: str, allow_outside_paths: bool
) -> tuple[Path, Path]:
    """The folder, list or image that an entry of `data.yaml` means, and the folder that it starts from."""
    entry = entry.replace("\\", "/")
    inside = entry.removeprefix("../")  # Roboflow's files start from a folder that is not there
    starts = list(_starts(root, base))
    tried = list(dict.fromkeys((start / name, start) for start in starts for name in (entry, inside)))
    found = [(place, start) for place, start in tried if place.exists()]
    allowed = [
        (place, start)
        for place, start in found
        if allow_outside_paths or place.resolve().is_relative_to(root.resolve())
    ]
    if allowed:
        return allowed[0]
    if found:
        raise ValueError(
            f"{file} has the images of {split} at {found[0][0]}, outside of {root}; pass that folder as --images, or "
            "--allow_outside_paths if you trust the file."
        )
    raise FileNotFoundError(
        f"{file} has the images of {split} at {entry!r}, and there is no {tried[0][0]}; mend `path` or the entry, or "
        "pass the folder that it starts from as --images."
    )


def _images_of(place: Path, start: Path, root: Path) -> list[str]:
    """File names, from the root on where they are in it, of a folder of images, a list of them, or one image."""
    if place.is_dir():
        return [str(_from_root(place / name, root)) for name in list_images(place)]
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [str(_from_root(place, root))]
    return [_listed(line, place, start, root) for line in map(str.strip, read_lines(place)) if line]


def _starts(root: Path, base: Any) -> Iterator[Path]:
    """What entries of a `data.yaml` start from: as Ultralytics has it, and as Roboflow's and moved folders need it."""
    if base:
        yield root / str(base).replace("\\", "/")
        yield root / PurePosixPath(str(base).replace("\\", "/")).name
    yield root


def _listed(line: str, file: Path, start: Path, root: Path) -> str:
    """A line of a list of images: relative to the list where it begins with "./", as Ultralytics reads it."""
    line = line.replace("\\", "/")
    starts = [file.parent] if line.startswith("./") else [start, file.parent, root]
    path = next((folder / line for folder in starts if (folder / line).is_file()), starts[0] / line)
    return str(_from_root(path, root))


def _from_root(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


# Labels --------------------------------------------------------------------------------------------------------------


def _content(
    file_names: Sequence[str],
    places: Sequence[Path],
    names: Mapping[int, str],
    pose: bool,
    report: BoxReport,
    options: ReadOptions,
    where: str,
    all_listed: bool,
) -> dict[str, Any]:
    """
    The images and their label files as a COCO file would hold them. Where whole folders are listed, a label file
    without an image is one whose image is missing.
    """
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    root = places[0]
    find = ImageFinder(root, options.allow_outside_paths)
    seen: set[Path] = set()
    folders: set[Path] = set()
    for name in file_names:
        path = find(name, report, where)
        if path is None:
            continue
        try:
            size = stored_orientation(path)[1] if options.boxes_on == "stored" else image_size(path)
        except (OSError, ValueError) as error:
            report.add("unreadable_image", f"{where}, {name}: {error}")
            continue
        entries.append({"id": name, "file_name": name, "width": size[0], "height": size[1]})
        label = _label_file(Path(path), places)
        if label is None:
            report.note("no_labels", f"{where}, {name}")
            continue
        seen.add(label)
        folders.add(label.parent)
        shown = label.relative_to(root).as_posix() if label.is_relative_to(root) else str(label)
        annotations += _boxes(label, shown, name, size, pose, report)
    if entries and not seen:
        raise FileNotFoundError(
            f"none of the {len(entries)} images of {where} has a label file: there is no "
            f"{next(_label_candidates(root / entries[0]['file_name'], places))}."
        )
    if all_listed:
        _report_orphans(folders, seen, report)
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _label_candidates(image: Path, places: Sequence[Path]) -> Iterator[Path]:
    """`labels/` in place of the last `images/` in the path, else beside the image."""
    root, *others = places
    images = [image]
    if image.is_relative_to(root):
        images += [other / image.relative_to(root) for other in others if other != root]
    for path in images:
        parts = path.parts
        if "images" in parts[:-1]:
            last = len(parts) - 2 - parts[:-1][::-1].index("images")
            yield Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        yield path.with_suffix(".txt")
        yield path.parent / "labels" / f"{path.stem}.txt"


def _label_file(image: Path, places: Sequence[Path]) -> Path | None:
    return next((path for path in _label_candidates(image, places) if path.is_file()), None)


def _report_orphans(folders: set[Path], seen: set[Path], report: BoxReport) -> None:
    """Label files without an image: the image is missing."""
    for folder in sorted(folders):
        for file in sorted(folder.glob("*.txt")):
            other = file.name in ("classes.txt", "notes.txt", "README.txt") or file.name.startswith("README.")
            if file not in seen and not other:
                report.add("unreadable_image", f"{file} has no image of its name")


def _boxes(
    file: Path, shown: str, image: str, size: tuple[int, int], pose: bool, report: BoxReport
) -> Iterator[dict[str, Any]]:
    """The lines of a label file as annotations: a class number and a box or a polygon, in fractions of the image."""
    seen: set[tuple[float, ...]] = set()
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{shown}, line {number}"
        values = [clean_number(field) for field in fields]
        if pose:
            values = values[:5]
        problem = _line_problem(fields, values)
        if problem:
            report.add("bad_entry", f"{where}, {problem}")
            continue
        numbers = tuple(value for value in values if value is not None)
        if numbers in seen:
            report.add("bad_entry", f"{where}, the same box comes twice")
            continue
        seen.add(numbers)
        width, height = size
        entry: dict[str, Any] = {"id": where, "image_id": image, "category_id": int(numbers[0])}
        if len(numbers) == 5:
            x, y, w, h = numbers[1:]
            entry["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        else:
            polygon = [value * side for value, side in zip(numbers[1:], (width, height) * len(numbers), strict=False)]
            entry["segmentation"] = [polygon]
        yield entry


def _line_problem(fields: Sequence[str], values: Sequence[float | None]) -> str | None:
    shown = " ".join(fields)[:60]
    if "," in shown or ";" in shown:
        return f"{shown!r}: numbers are separated by spaces and written with a dot"
    if None in values or values[0] != int(values[0] or 0):
        return f"{shown!r}: expected a class number and fractions"
    count = len(values) - 1
    if count != 4 and (count < 6 or count % 2):
        return f"{shown!r} has {count} numbers after the class; a box has 4, a polygon pairs from 6 on"
    if max(abs(value or 0) for value in values[1:]) > _HIGHEST:
        return f"{shown!r}: expected fractions of the image's width and height, these look like pixels"
    return None
