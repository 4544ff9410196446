"""
Pascal VOC: an XML file of boxes for each image, in `Annotations/` with lists of images in `ImageSets/Main/`, or beside
the images (labelImg, Roboflow).
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import read_lines
from transformers_glipv2.data.formats.coco import content_dataset
from transformers_glipv2.data.formats.coco_json import clean_number, clean_side
from transformers_glipv2.data.formats.source import (
    IMAGE_SUFFIXES,
    WHOLE,
    FoundData,
    ReadOptions,
    image_folder_of,
    is_split_name,
    named_splits,
    places_of,
    split_name,
)
from transformers_glipv2.data.schema import BoxReport

_LISTS = Path("ImageSets", "Main")


def find_voc(path: Path, images: Path | None) -> FoundData | None:
    """
    A folder with `Annotations/` (and `ImageSets/Main/`), or with XML files, also in a folder for each split.

    Raises:
        FileNotFoundError: when an image set lists no annotation that is there.
    """
    if path.is_file():
        return None
    annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
    lists = {
        file.stem: file for file in sorted((path / _LISTS).glob("*.txt")) if is_split_name(file.stem)
    }  # the others, such as "dog_train", are of one class
    if len(lists) > 1:
        lists.pop("trainval", None)  # the images of train and val once more
    files = {name: _listed(file, annotations) for name, file in lists.items()}
    if not files:
        folders = {entry.name: entry for entry in sorted(annotations.iterdir()) if entry.is_dir()}
        files = {name: _xml_files(folder) for name, folder in folders.items() if is_split_name(name)}
        files = {name: found for name, found in files.items() if found}
    if not files:
        found = _xml_files(annotations)
        files = {WHOLE: found} if found else {}
    if not files or not any(map(_looks_like_voc, next(iter(files.values()))[:5])):
        return None
    names = cache(partial(_class_names, [file for split in files.values() for file in split]))
    splits = {name: partial(_read_split, path, name, found, names, images) for name, found in files.items()}
    form = "Pascal VOC, ImageSets/Main" if lists else "Pascal VOC, XML files"
    return FoundData("voc", form, named_splits(splits))


def _xml_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.xml") if not file.name.startswith("."))


def _listed(file: Path, annotations: Path) -> list[Path]:
    """The XML files of an image set; a second column says whether a class is there and is left out."""
    names = [line.split()[0] for line in read_lines(file) if line.strip()]
    files = [annotations / (name if name.endswith(".xml") else f"{name}.xml") for name in names]
    if files and not any(map(Path.is_file, files)):
        raise FileNotFoundError(f"{file} lists {names[0]!r}, and there is no {files[0]}; nor of the others.")
    return files


def _looks_like_voc(file: Path) -> bool:
    with open(file, "rb") as opened:
        return b"<annotation" in opened.read(2000)


def _read_split(
    root: Path, split: str, files: Sequence[Path], names: Any, images: Path | None, options: ReadOptions
) -> ImageDataset:
    where = f"{root.name}, {split}" if split != WHOLE else root.name
    report = BoxReport(options.policy, where)
    classes = names()
    if not classes:
        raise ValueError(f"no XML file of {root} has an object with a name, so there is no class to look for.")
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file in files:
        try:
            tree = _parse(file)
        except (OSError, ValueError) as error:
            report.add("bad_entry", str(error))
            continue
        image = _image_entry(tree, file, root, report)
        entries.append(image)
        annotations += _objects(tree, image["id"], file, classes, report)
    categories = [{"id": name, "name": name} for name in classes]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    folder = _image_folder(root, split, files, entries, images)
    for entry in entries:
        entry["file_name"] = _existing_name(entry["file_name"], Path(entry["id"]), folder)
    return content_dataset(
        content,
        f"{root}, {split}" if split != WHOLE else root,
        folder,
        report,
        with_masks=options.with_masks,
        boxes_on=options.boxes_on,
        allow_outside_paths=options.allow_outside_paths,
    )


def _image_folder(
    root: Path, split: str, files: Sequence[Path], entries: Sequence[dict[str, Any]], images: Path | None
) -> Path:
    parents = [images] if images is not None else [root / name for name in ("JPEGImages", "images", "Images", ".")]
    candidates = places_of(parents, (split, split_name(split)))
    if images is None:
        candidates = [*(file.parent for file in files[:1]), *candidates]
    # The name in the file, or that of the file with the extension of an image.
    names = [entry["file_name"] for entry in entries[:5]]
    names += [f"{Path(entry['id']).stem}{suffix}" for entry in entries[:5] for suffix in sorted(IMAGE_SUFFIXES)]
    return image_folder_of(names, candidates)


def _existing_name(name: str, annotation: Path, folder: Path) -> str:
    """The name that the XML gives; where it is wrong (renamed files keep it), that of the XML file itself."""
    if (folder / name).is_file():
        return name
    for suffix in sorted(IMAGE_SUFFIXES):
        for parent in (annotation.parent, Path()):
            own = (parent / annotation.name).with_suffix(suffix)
            if (folder / own).is_file():
                return own.as_posix()
    return name


# XML -----------------------------------------------------------------------------------------------------------------


def _parse(file: Path) -> ElementTree.Element:
    """
    The tree of an annotation.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no annotation.
    """
    data = file.read_bytes()
    if b"<!ENTITY" in data:
        raise ValueError(f"{file} defines entities, which annotations have no use for.")
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{file} is not XML: {error}.") from error
    if tree.tag != "annotation":
        raise ValueError(f"{file} holds <{tree.tag}>; expected <annotation>.")
    return tree


def _class_names(files: Sequence[Path]) -> list[str]:
    """Every name that an object of these files has, by alphabet: VOC lists its classes nowhere."""
    names = set()
    for file in files:
        try:
            names |= {(entry.findtext("name") or "").strip() for entry in _parse(file).iter("object")}
        except (OSError, ValueError):
            continue  # counted when its split is read
    return sorted(names - {""})


def _image_entry(tree: ElementTree.Element, file: Path, root: Path, report: BoxReport) -> dict[str, Any]:
    shown = file.relative_to(root).as_posix()
    name = (tree.findtext("filename") or "").strip() or f"{file.stem}.jpg"
    entry: dict[str, Any] = {"id": shown, "file_name": name}
    width, height = (clean_side((tree.findtext(f"size/{side}") or "").strip()) for side in ("width", "height"))
    if width and height:
        return {**entry, "width": width, "height": height}
    report.note("no_size", shown)
    return entry


def _objects(
    tree: ElementTree.Element, image_id: str, file: Path, classes: Sequence[str], report: BoxReport
) -> Iterator[dict[str, Any]]:
    """
    Boxes in pixels from 0. Those of Pascal VOC itself count from 1 and include their last pixel; what other tools
    write does not.
    """
    official = "VOC" in (tree.findtext("source/database") or "")
    for number, entry in enumerate(tree.iter("object"), start=1):
        where = f"{file.name}, object {number}"
        name = (entry.findtext("name") or "").strip()
        corners = [clean_number(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not name:
            report.add("bad_entry", f"{where} has no name")
            continue
        if any(corner is None for corner in corners):
            report.add("not_a_number", f"{where}, {name}, has no bndbox of xmin, ymin, xmax and ymax")
            continue
        x1, y1, x2, y2 = (corner or 0.0 for corner in corners)
        x1, y1 = (x1 - 1, y1 - 1) if official else (x1, y1)
        yield {
            "id": where,
            "image_id": image_id,
            "category_id": name,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
