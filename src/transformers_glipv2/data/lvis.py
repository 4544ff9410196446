"""LVIS (v1, v0.5, minival): a long tail of classes, of which each image was searched for some only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco_json import (
    by_image,
    check_any_object,
    checked_categories,
    clean_id,
    coco_record,
    read_coco_json,
)
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.orientation import check_boxes_on
from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.prompts import clean_labels


def load_lvis(
    annotation_file: str | Path,
    image_folder: str | Path,
    *,
    policy: str | Mapping[str, str] = "skip",
    with_masks: bool = False,
    keep_empty: bool = True,
    clean: Callable[[Sequence[str]], list[str]] | None = clean_labels,
    boxes_on: str = "auto",
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Detection examples of an LVIS file.

    Args:
        annotation_file (`str` or `Path`): the json (`.gz` too).
        image_folder (`str` or `Path`): holds COCO's images, `train2017/` and `val2017/` or all in one folder.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation`.
        keep_empty (`bool`, *optional*, defaults to `True`): keep images without objects: their `negative_labels`
            are still known to be absent.
        clean (`Callable`, *optional*, defaults to `clean_labels`): all names to those of prompts; `None` keeps them as
            LVIS writes them.
        boxes_on, allow_outside_paths: as for `load_coco`.

    Returns:
        `ImageDataset`: examples as of `load_coco`, with `negative_labels` (classes verified to be absent; of the
        others nothing is known) and `not_exhaustive_labels` (classes of which some objects have no box).
        `class_names` follow the file's order, `category_ids` are its ids, `frequencies` its "r", "c", "f".

    Raises:
        FileNotFoundError: when there is no annotation file, or none of its images.
        ValueError: when the file is not LVIS format, the policy refuses, or it has annotations of which none can be
            used.
    """
    path = Path(annotation_file)
    content = read_coco_json(path, what="LVIS")
    report = BoxReport(policy, path.name)
    check_boxes_on(boxes_on)
    names = checked_categories(content["categories"], content["annotations"], report, path)
    cleaned = list(names.values()) if clean is None else clean(list(names.values()))
    categories = dict(zip(names, cleaned, strict=True))
    find = ImageFinder(image_folder, allow_outside_paths)

    def records() -> Iterator[dict[str, Any]]:
        for image, annotations in by_image(content, report):
            where = f"image {image['id']!r}"
            name = image_file_name(image, report)
            image_path = find(name, report, where) if name else None
            size = None
            if image_path is not None:
                size = annotated_size(image["width"], image["height"], image_path, report, where)
            if size is None:
                continue
            image |= {"width": size[0], "height": size[1]}
            record = coco_record(image, annotations, categories, report, with_masks)
            if not (keep_empty or record["objects"]["bbox"]):
                continue
            present = set(record["objects"]["category"])
            negatives = _names(image, "neg_category_ids", categories, report)
            record["negative_labels"] = [label for label in negatives if label not in present]
            record["not_exhaustive_labels"] = _names(image, "not_exhaustive_category_ids", categories, report)
            yield {**record, "image_path": image_path, **({} if boxes_on == "auto" else {"boxes_on": boxes_on})}

    packed = PackedRecords(records())
    report.warn_once()
    find.check_any_found(path)
    check_any_object(any(record["objects"]["bbox"] for record in packed), len(content["annotations"]), report, path)
    dataset = ImageDataset(packed, list(categories.values()), report)
    dataset.category_ids = list(categories)
    entries = [entry for entry in content["categories"] if isinstance(entry, Mapping)]
    frequencies = {clean_id(entry.get("id")): entry.get("frequency") for entry in entries}
    dataset.frequencies = [frequencies[category_id] for category_id in categories]
    return dataset


def image_file_name(image: Mapping[str, Any], report: BoxReport) -> str | None:
    """v1 gives an address, "http://images.cocodataset.org/train2017/000000391895.jpg", whose end names the file."""
    address, name = image.get("coco_url"), image.get("file_name")
    if isinstance(address, str) and address:
        return "/".join(address.split("/")[-2:])
    if isinstance(name, str) and name:
        return name
    report.add("bad_entry", f"image {image['id']!r} has the coco_url {address!r} and the file_name {name!r}")
    return None


def _names(image: Mapping[str, Any], field: str, categories: Mapping[Any, str], report: BoxReport) -> list[str]:
    """The class names of one of the image's lists of ids, each once."""
    names: dict[str, None] = {}
    ids = image.get(field)
    for category_id in map(clean_id, ids if isinstance(ids, list) else ()):
        if category_id in categories:
            names[categories[category_id]] = None
        else:
            report.add("unknown_class", f"image {image['id']!r}, {field}, category id {category_id!r}")
    return list(names)
