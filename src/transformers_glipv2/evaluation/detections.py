"""Annotations and result lists of detection benchmarks: read, checked, turned into columns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from transformers_glipv2.data.files import read_json

IOU_TYPES = ("bbox", "segm")


def content_of(source: str | Path | Any) -> Any:
    """The content of a JSON file (also `.gz`), or the argument itself where it is no path."""
    return read_json(source) if isinstance(source, (str, Path)) else source


def read_annotations(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """
    A COCO-format annotation file.

    Args:
        source (`str`, `Path` or `Mapping`): the file, or its content.

    Returns:
        `dict`: a shallow copy with `images`, `annotations` and `categories`.

    Raises:
        ValueError: when a part is missing, or an image is listed twice.
    """
    content = content_of(source)
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise ValueError(f"the annotations lack {', '.join(missing)}; expected the content of a COCO instances file.")
    image_ids = [image["id"] for image in content["images"]]
    if len(set(image_ids)) != len(image_ids):
        twice = next(image_id for image_id in image_ids if image_ids.count(image_id) > 1)
        raise ValueError(f"the annotations list image {twice!r} more than once; keep one entry an image.")
    return dict(content)


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
        """The rows at these indices, in this order."""
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
            masks.append(compressed_rle(entry["segmentation"], f"predictions[{index}]"))
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


def compressed_rle(segmentation: Mapping[str, Any], where: str) -> dict[str, Any]:
    """COCO RLE, compressed or not, as pycocotools takes it; raises ValueError for anything else."""
    if not isinstance(segmentation, Mapping) or "counts" not in segmentation or len(segmentation["size"]) != 2:
        raise ValueError(
            f"`{where}` has the segmentation {str(segmentation)[:80]}; expected COCO RLE with `size` and `counts` "
            "(transformers_glipv2.data.masks.encode_mask makes it)."
        )
    if isinstance(segmentation["counts"], (str, bytes)):
        return {"size": list(segmentation["size"]), "counts": segmentation["counts"]}
    return coco_mask.frPyObjects(dict(segmentation), *segmentation["size"])


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


def annotation_areas(annotations: Sequence[Mapping[str, Any]]) -> list[float]:
    """The area of each annotation in pixels; that of its box where the file gives none."""
    return [
        float(entry["area"]) if entry.get("area") is not None else float(entry["bbox"][2] * entry["bbox"][3])
        for entry in annotations
    ]


def mean_or_minus_one(values: np.ndarray) -> float:
    """The mean of the values that count (those above -1); -1 when there is none, as the official evaluators say."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0


def none_if_empty(value: float) -> float | None:
    """`None` for the -1 of `mean_or_minus_one`, for tables a category."""
    return None if value == -1 or math.isnan(value) else value
