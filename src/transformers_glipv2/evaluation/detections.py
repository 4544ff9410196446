"""Annotations and result lists of detection benchmarks: read, checked, turned into columns."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from transformers.utils import logging

from transformers_glipv2.data.files import read_json
from transformers_glipv2.data.formats.coco_json import (
    annotation_problem,
    clean_id,
    clean_number,
    clean_side,
    crowd_flag,
)
from transformers_glipv2.data.masks import compressed_rle, mask_problem, segmentation_box
from transformers_glipv2.data.schema import BoxReport

logger = logging.get_logger(__name__)

IOU_TYPES = ("bbox", "segm")


def content_of(source: str | Path | Any) -> Any:
    """The content of a JSON file (also `.gz`), or the argument itself where it is no path."""
    return read_json(source) if isinstance(source, (str, Path)) else source


def read_annotations(source: str | Path | Mapping[str, Any], name: str | Path | None = None) -> dict[str, Any]:
    """
    A COCO-format annotation file, in which what `load_coco` accepts is brought into the official form: null where a
    default is meant, whole floats for ids and sizes, a box or an area that is missing.

    Args:
        source (`str`, `Path` or `Mapping`): the file, or its content.
        name (`str` or `Path`, *optional*): the file that the content is of, for messages.

    Returns:
        `dict`: a shallow copy with `images`, `annotations` and `categories`.

    Raises:
        ValueError: when a part is missing, an image is listed twice, or an entry has a field of a wrong kind; names
            the file and the entry.
    """
    content = content_of(source)
    if name is None:
        name = source if isinstance(source, (str, Path)) else "the annotations"
    found = content if isinstance(content, Mapping) else {}
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(found.get(key), (list, tuple))]
    if missing:
        raise ValueError(f"{name} lack {', '.join(missing)}; expected the content of a COCO instances file.")
    report = BoxReport("refuse", str(name))
    images = [_clean_image(entry, f"images[{index}]", report) for index, entry in enumerate(content["images"])]
    counts = Counter(image["id"] for image in images)
    twice = next((image_id for image_id, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{name} list image {twice!r} more than once; keep one entry an image.")
    categories = [
        _clean_category(entry, f"categories[{index}]", report) for index, entry in enumerate(content["categories"])
    ]
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in images}
    annotations = [
        _clean_annotation(entry, f"annotations[{index}]", sizes, report)
        for index, entry in enumerate(content["annotations"])
    ]
    return {**content, "images": images, "annotations": annotations, "categories": categories}


def _clean_image(entry: Any, where: str, report: BoxReport) -> Mapping[str, Any]:
    image_id = clean_id(entry.get("id")) if isinstance(entry, Mapping) else None
    if not isinstance(image_id, int):
        report.add("bad_entry", f"{where} has no whole number as `id`: {str(entry)[:80]}")
    sides = {side: clean_side(entry[side]) for side in ("height", "width") if entry.get(side) not in (None, 0)}
    if None in sides.values():
        report.add("bad_entry", f"{where}, id {image_id}, has another size than whole numbers: {str(entry)[:80]}")
    return {**entry, "height": None, "width": None, "id": image_id, **sides}


def _clean_category(entry: Any, where: str, report: BoxReport) -> Mapping[str, Any]:
    category_id = clean_id(entry.get("id")) if isinstance(entry, Mapping) else None
    if not isinstance(category_id, int) or entry.get("name") is None:
        report.add("bad_entry", f"{where} has no `name`, or no whole number as `id`: {str(entry)[:80]}")
    return {**entry, "id": category_id, "name": str(entry["name"])}


def _clean_annotation(entry: Any, where: str, sizes: Mapping[Any, Any], report: BoxReport) -> Mapping[str, Any]:
    problem = annotation_problem(entry)
    if problem:
        report.add("bad_entry", f"{where}{problem}")
    clean = {**entry, "iscrowd": crowd_flag(entry), "image_id": clean_id(entry.get("image_id"))}
    clean["category_id"] = clean_id(entry.get("category_id"))
    for field in ("image_id", "category_id"):
        if not isinstance(clean[field], int):
            report.add("bad_entry", f"{where} has the {field} {entry.get(field)!r}; expected a whole number"[:200])
    box = entry.get("bbox")
    if box in (None, [], ()):
        height, width = sizes.get(clean["image_id"], (None, None))
        box = segmentation_box(entry.get("segmentation"), height, width) if height and width else None
    if not isinstance(box, (list, tuple)) or len(box) != 4 or None in map(clean_number, box):
        report.add("not_a_number", f"{where}, id {entry.get('id')!r}, bbox {str(entry.get('bbox'))[:80]}")
    area = clean_number(entry.get("area"))
    return {**clean, "bbox": list(box), "area": float(box[2] * box[3]) if area is None else area}


def subset_annotations(annotations: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """The annotations of some images only; all categories stay. For scores of a part of a data set."""
    kept = set(image_ids)
    return {
        **annotations,
        "images": [image for image in annotations["images"] if image["id"] in kept],
        "annotations": [entry for entry in annotations["annotations"] if entry["image_id"] in kept],
    }


@dataclass
class DetectionTable:
    """
    Detections as columns, a twentieth of the memory that a list of dicts takes.

    Args:
        image_ids (`np.ndarray` of shape `(n,)`): int64.
        category_ids (`np.ndarray` of shape `(n,)`): int64.
        scores (`np.ndarray` of shape `(n,)`): float64.
        boxes (`np.ndarray` of shape `(n, 4)`): float64, x, y, width, height in pixels of the image.
        masks (`list[dict]`, *optional*): compressed COCO RLE, for masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, indices: np.ndarray) -> "DetectionTable":
        """The detections at these indices, in this order."""
        masks = None if self.masks is None else [self.masks[index] for index in indices]
        return DetectionTable(
            self.image_ids[indices], self.category_ids[indices], self.scores[indices], self.boxes[indices], masks
        )

    def areas(self) -> np.ndarray:
        """Of each detection in pixels: of its mask where there are masks, else of its box."""
        if self.masks is not None:
            # One at a time: pycocotools 2.0.11 puts the areas of a list into bytes, which numpy 2 refuses.
            return np.array([float(coco_mask.area(mask)) for mask in self.masks])
        return self.boxes[:, 2] * self.boxes[:, 3]


def detection_table(
    predictions: str | Path | Iterable[Mapping[str, Any]] | DetectionTable,
    annotations: Mapping[str, Any],
    iou_type: str = "bbox",
) -> DetectionTable:
    """
    A COCO or LVIS result list as checked columns.

    Args:
        predictions (`str`, `Path`, `Iterable[Mapping]` or `DetectionTable`): the json file, or its entries:
            `image_id`, `category_id`, `score` and, by `iou_type`, `bbox` (x, y, width, height in pixels) or
            `segmentation` (COCO RLE).
        annotations (`Mapping`): the benchmark's, for the ids and sizes of its images.
        iou_type (`str`, *optional*, defaults to `"bbox"`): "bbox" or "segm".

    Returns:
        `DetectionTable`: in the order given.

    Raises:
        ValueError: when an entry names an image or category that the annotations do not have, holds a number that is
            not finite, a box of negative size, or a mask of another size than its image's.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"`iou_type` is {iou_type!r}; choose one of {', '.join(IOU_TYPES)}.")
    table = predictions if isinstance(predictions, DetectionTable) else _columns(content_of(predictions), iou_type)
    if iou_type == "segm" and table.masks is None:
        raise ValueError("`predictions` hold no masks; give `segmentation` entries, or score with iou_type='bbox'.")
    _check_table(table, annotations, iou_type)
    return table


def _columns(entries: Iterable[Mapping[str, Any]], iou_type: str) -> DetectionTable:
    if isinstance(entries, Mapping):
        raise ValueError("`predictions` is one mapping; expected a result list: one entry a detection.")
    image_ids, category_ids, scores, boxes, masks = [], [], [], [], []
    field = "bbox" if iou_type == "bbox" else "segmentation"
    for index, entry in enumerate(entries):
        missing = [name for name in ("image_id", "category_id", "score", field) if name not in entry]
        if missing:
            raise ValueError(f"`predictions[{index}]` lacks {', '.join(missing)}; it has {', '.join(entry)}.")
        image_ids.append(entry["image_id"])
        category_ids.append(entry["category_id"])
        scores.append(entry["score"])
        if iou_type == "segm":
            masks.append(checked_rle(entry["segmentation"], f"predictions[{index}]"))
        elif len(entry["bbox"]) == 4:
            boxes.append(tuple(entry["bbox"]))
        else:
            raise ValueError(f"`predictions[{index}]` has the bbox {entry['bbox']}; expected x, y, width, height.")
    if masks:
        boxes = coco_mask.toBbox(masks)
    return DetectionTable(
        np.asarray(image_ids, dtype=np.int64),
        np.asarray(category_ids, dtype=np.int64),
        np.asarray(scores, dtype=np.float64),
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        masks if iou_type == "segm" else None,
    )


def checked_rle(segmentation: Any, where: str) -> dict[str, Any]:
    """COCO RLE, compressed or not, as pycocotools takes it; raises ValueError for anything else."""
    size = segmentation.get("size") if isinstance(segmentation, Mapping) else None
    sides = list(size) if isinstance(size, (list, tuple)) else []
    problem: str | None = "no run-length mask"
    if len(sides) == 2 and all(clean_side(side) for side in sides):
        problem = mask_problem({**segmentation, "size": sides}, *sides)
    if problem:
        raise ValueError(
            f"`{where}` has the segmentation {str(segmentation)[:80]}: {problem}; expected COCO RLE with `size` and "
            "`counts` (transformers_glipv2.data.masks.encode_mask makes it)."
        )
    return compressed_rle(segmentation)


def _check_table(table: DetectionTable, annotations: Mapping[str, Any], iou_type: str) -> None:
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in annotations["images"]}
    check_known("image", table.image_ids, sizes)
    check_known("category", table.category_ids, [category["id"] for category in annotations["categories"]])
    numbers = np.column_stack((table.scores, table.boxes))
    bad = ~np.isfinite(numbers).all(axis=1) | (table.boxes[:, 2:] < 0).any(axis=1)
    if bad.any():
        index = int(bad.argmax())
        raise ValueError(
            f"`predictions[{index}]` has the score {table.scores[index]} and the bbox {table.boxes[index].tolist()}; "
            "expected finite x, y and width, height >= 0 (not x1, y1, x2, y2)."
        )
    if iou_type == "segm":
        for index, mask in enumerate(table.masks or ()):
            size = sizes[int(table.image_ids[index])]
            if None not in size and tuple(mask["size"]) != size:
                raise ValueError(
                    f"the mask of `predictions[{index}]` is {tuple(mask['size'])} (height, width), but image "
                    f"{int(table.image_ids[index])} is {size}; resize masks to the original image."
                )


def check_known(what: str, ids: np.ndarray, known: Iterable[int]) -> None:
    """Raises ValueError when ids are predicted that the annotations do not list."""
    unknown = np.setdiff1d(ids, np.fromiter(known, dtype=np.int64))
    if len(unknown):
        raise ValueError(
            f"`predictions` name {len(unknown)} {what} ids that the annotations do not list, such as "
            f"{unknown[:5].tolist()}; were they made for another split, or are these positions instead of ids?"
        )


def with_mask(annotations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The annotations that have a `segmentation`; how many have none is logged, since mask scores leave them out."""
    kept = [entry for entry in annotations if entry.get("segmentation")]
    if annotations and not kept:
        raise ValueError(f"no `segmentation` in any of {len(annotations)} annotations; score with iou_type='bbox'.")
    if len(kept) < len(annotations):
        without = next(entry for entry in annotations if not entry.get("segmentation"))
        logger.warning(
            f"{len(annotations) - len(kept)} of {len(annotations)} annotations have no `segmentation` and are left "
            f"out of the scores of masks, such as annotation {without.get('id')!r} of image {without['image_id']!r}."
        )
    return kept


def mean_or_minus_one(values: np.ndarray) -> float:
    """The mean of the values that count (those above -1); -1 when there is none, as the official evaluators say."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0


def none_if_empty(value: float) -> float | None:
    """`None` for the -1 of `mean_or_minus_one`, for tables a category."""
    return None if value == -1 or math.isnan(value) else value
