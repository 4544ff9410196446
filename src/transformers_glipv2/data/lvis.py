"""LVIS (v1, v0.5, minival): a long tail of classes, of which each image was searched for some only."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco import ImageFinder, by_image, coco_record, read_coco_json
from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.prompts import clean_label


def class_name(name: str) -> str:
    """`clean_label` without the white space that brackets leave at an end: "bow_(weapon)" becomes "bow"."""
    return clean_label(name).strip()


def load_lvis(
    annotation_file: str | Path,
    image_folder: str | Path,
    *,
    policy: str | Mapping[str, str] = "skip",
    with_masks: bool = False,
    keep_empty: bool = True,
    clean: Callable[[str], str] | None = class_name,
) -> ImageDataset:
    """
    Detection rows of an LVIS file.

    Args:
        annotation_file (`str` or `Path`): the json (`.gz` too).
        image_folder (`str` or `Path`): holds COCO's images, `train2017/` and `val2017/` or all in one folder.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation`.
        keep_empty (`bool`, *optional*, defaults to `True`): keep images without objects: their `negative_labels`
            still teach.
        clean (`Callable[[str], str]`, *optional*, defaults to `class_name`): applied to every name; `None` keeps
            them as LVIS writes them.

    Returns:
        `ImageDataset`: rows as of `load_coco`, with `negative_labels` (classes verified to be absent; the others are
        only unknown) and `not_exhaustive_labels` (classes of which some objects have no box). `class_names` follow the
        file's order, `category_ids` are its ids, `frequencies` its "r", "c", "f". Cleaned names of two classes may be
        equal; they stay apart by place, and in a sentence they are one.

    Raises:
        FileNotFoundError: when there is no annotation file.
        ValueError: when the file is not LVIS format, or the policy refuses.
    """
    path = Path(annotation_file)
    content = read_coco_json(path, what="LVIS")
    report = BoxReport(policy, path.name)
    clean = clean if clean is not None else str
    categories = {entry["id"]: clean(entry["name"]) for entry in content["categories"]}
    find = ImageFinder(Path(image_folder))

    def records() -> Iterator[dict[str, Any]]:
        for image, annotations in by_image(content, report, ("width", "height")):
            name = _file_name(image, report)
            record = coco_record(image, annotations, categories, report, with_masks) if name else None
            if record is None or name is None or not (keep_empty or record["objects"]["bbox"]):
                continue
            present = set(record["objects"]["category"])
            negatives = _names(image, "neg_category_ids", categories, report)
            record["negative_labels"] = [label for label in negatives if label not in present]
            record["not_exhaustive_labels"] = _names(image, "not_exhaustive_category_ids", categories, report)
            yield {**record, "image_path": find(name)}

    dataset = ImageDataset(PackedRecords(records()), list(categories.values()), report)
    report.warn_once()
    dataset.category_ids = list(categories)
    dataset.frequencies = [entry.get("frequency") for entry in content["categories"]]
    return dataset


def _file_name(image: Mapping[str, Any], report: BoxReport) -> str | None:
    """v1 gives an address, "http://images.cocodataset.org/train2017/000000391895.jpg", whose end names the file."""
    if image.get("coco_url"):
        return "/".join(image["coco_url"].split("/")[-2:])
    if image.get("file_name"):
        return image["file_name"]
    report.add("bad_entry", f"image {image['id']!r} has neither coco_url nor file_name")
    return None


def _names(image: Mapping[str, Any], field: str, categories: Mapping[int, str], report: BoxReport) -> list[str]:
    """The class names of one of the image's lists of ids, each once."""
    names: dict[str, None] = {}
    for category_id in image.get(field, ()):
        if category_id in categories:
            names[categories[category_id]] = None
        else:
            report.add("unknown_class", f"image {image['id']!r}, {field}, category id {category_id!r}")
    return list(names)
