"""
LVIS box and mask average precision, classic (Gupta et al., "LVIS", CVPR 2019) and fixed (Dave et al., "Evaluating
Large-Vocabulary Object Detectors: The Devil is in the Details", 2021).

The `lvis` package fails on numpy 1.24 and later and keeps every pair of image and category in memory, so the
arithmetic is here; overlaps are pycocotools'.

>>> evaluate_lvis_fixed("lvis_v1_minival.json", "results.json")["APr"]
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm.auto import tqdm

from transformers_glipv2.data.masks import decode_mask, encode_mask
from transformers_glipv2.evaluation.average_precision import (
    IOU_THRESHOLDS,
    match_detections,
    outside_areas,
    precision_and_recall,
)
from transformers_glipv2.evaluation.detections import (
    DetectionTable,
    detection_table,
    mean_or_minus_one,
    none_if_empty,
    read_annotations,
    subset_annotations,
    with_mask,
)

FREQUENCIES = ("r", "c", "f")
# How many classes GLIP puts into one prompt of the 1,203.
LABELS_PER_PROMPT = 40


def evaluate_lvis_fixed(
    annotations: str | Path | Mapping[str, Any],
    predictions: str | Path | Iterable[Mapping[str, Any]] | DetectionTable,
    iou_type: str = "bbox",
    *,
    per_category: int = 10_000,
    image_ids: Iterable[int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Fixed AP: the best `per_category` detections of each category over the whole set, and no limit an image.

    For this images must be predicted with far more than 300 detections. Arguments, results and errors otherwise as
    `evaluate_lvis`.
    """
    return evaluate_lvis(
        annotations,
        predictions,
        iou_type,
        per_image=None,
        per_category=per_category,
        image_ids=image_ids,
        progress=progress,
    )


def evaluate_lvis(
    annotations: str | Path | Mapping[str, Any],
    predictions: str | Path | Iterable[Mapping[str, Any]] | DetectionTable,
    iou_type: str = "bbox",
    *,
    per_image: int | None = 300,
    per_category: int | None = None,
    image_ids: Iterable[int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Classic LVIS AP: at most 300 detections an image, of all categories together.

    Both limits apply before the federated filter, which drops detections of categories that are neither in the
    image nor in its `neg_category_ids`; unmatched ones of its `not_exhaustive_category_ids` do not count.

    Args:
        annotations (`str`, `Path` or `Mapping`): an LVIS file or its content.
        predictions (`str`, `Path`, `Iterable[Mapping]` or `DetectionTable`): entries of `image_id`, `category_id`,
            `score` and `bbox` (x, y, width, height in pixels) or `segmentation` (RLE of the image's size).
        iou_type (`str`, *optional*, defaults to `"bbox"`): "bbox" or "segm".
        per_image (`int`, *optional*, defaults to 300): detections kept an image; `None` keeps all.
        per_category (`int`, *optional*): detections kept a category over all images; `None` keeps all. Of equal
            scores at the cut those of earlier entries stay.
        image_ids (`Iterable[int]`, *optional*): score these images only; predictions of others are refused.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `dict`: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl as fractions, -1 where there is nothing
        to average; `per_category`: id -> {"name", "frequency", "AP"}, `None` without ground truth.

    Raises:
        ValueError: when predictions name unknown images or categories or do not fit them, or the file lacks LVIS'
            fields.
    """
    content = read_annotations(annotations)
    if image_ids is not None:
        content = subset_annotations(content, image_ids)
    _check_lvis(content)
    for name, limit in (("per_image", per_image), ("per_category", per_category)):
        if limit is not None and limit < 1:
            raise ValueError(f"`{name}` is {limit}; pass at least 1, or None for no limit.")
    table = detection_table(predictions, content, iou_type)
    kept = np.arange(len(table))
    if per_image is not None:
        kept = top_of_each(table.image_ids, table.scores, per_image)
    if per_category is not None:
        kept = kept[top_of_each(table.category_ids[kept], table.scores[kept], per_category)]
    truth = _GroundTruth.of(content, iou_type)
    table = table.select(kept[truth.judged(table.image_ids[kept], table.category_ids[kept])])

    categories = sorted(content["categories"], key=lambda category: category["id"])
    precision, recall = [], []
    for category_id, rows in tqdm(
        _by_category(table, [category["id"] for category in categories]),
        total=len(categories),
        desc=f"LVIS {iou_type}",
        unit=" classes",
        disable=not progress,
    ):
        one_precision, one_recall = _evaluate_category(table.select(rows), truth, category_id)
        precision.append(one_precision)
        recall.append(one_recall)
    return _summary(np.stack(precision), np.stack(recall), categories)


def top_of_each(groups: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """
    Indices, rising, of the `limit` best scores of each group; of equal scores the earlier.

    Args:
        groups (`np.ndarray` of shape `(n,)`): integers.
        scores (`np.ndarray` of shape `(n,)`): higher is better.
        limit (`int`): at least 1.
    """
    order = np.lexsort((-scores, groups))  # stable
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]) if len(order) else order
    lengths = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    return np.sort(order[rank < limit])


def _by_category(table: DetectionTable, category_ids: Sequence[int]) -> Iterable[tuple[int, np.ndarray]]:
    """Category ids with the indices of each in the table: by image, then by falling score, then in the order given."""
    order = np.lexsort((-table.scores, table.image_ids, table.category_ids))
    bounds = np.searchsorted(table.category_ids[order], [*category_ids, np.iinfo(np.int64).max])
    for index, category_id in enumerate(category_ids):
        yield category_id, order[bounds[index] : bounds[index + 1]]


@dataclass
class _GroundTruth:
    """
    Args:
        regions: (category, image) -> boxes xywh or RLEs, in the file's order.
        areas: (category, image) -> their areas in pixels.
        ignored: (category, image) -> whether each has the field `ignore`, which makes it count like one of an area
            out of range: it need not be found, and what is found on it is neither right nor wrong.
        images: category -> images that hold it, rising.
        negative: image -> categories known to be absent.
        not_exhaustive: image -> categories of which only some objects are annotated.
    """

    regions: dict[tuple[int, int], list[Any]]
    areas: dict[tuple[int, int], list[float]]
    ignored: dict[tuple[int, int], list[bool]]
    images: dict[int, list[int]]
    negative: dict[int, set[int]]
    not_exhaustive: dict[int, set[int]]

    @classmethod
    def of(cls, content: Mapping[str, Any], iou_type: str) -> "_GroundTruth":
        sizes = {image["id"]: (image.get("height"), image.get("width")) for image in content["images"]}
        known = {category["id"] for category in content["categories"]}
        regions, areas, ignored = defaultdict(list), defaultdict(list), defaultdict(list)
        images = defaultdict(set)
        for entry in content["annotations"] if iou_type == "bbox" else with_mask(content["annotations"]):
            image, category, area = entry["image_id"], entry["category_id"], entry["area"]
            # The official evaluator's queries keep areas strictly above 0 only.
            if image not in sizes or category not in known or area <= 0:
                continue
            region = entry["bbox"] if iou_type == "bbox" else _rle(entry, *sizes[image])
            regions[category, image].append(region)
            areas[category, image].append(area)
            ignored[category, image].append(bool(entry.get("ignore")))
            images[category].add(image)
        return cls(
            regions,
            areas,
            ignored,
            {category: sorted(ids) for category, ids in images.items()},
            {image["id"]: set(image["neg_category_ids"]) for image in content["images"]},
            {image["id"]: set(image["not_exhaustive_category_ids"]) for image in content["images"]},
        )

    def judged(self, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """Bool `(n,)`: whether something is known about the category in the image."""
        known = {(category, image) for category, image in self.regions}
        known.update((category, image) for image, categories in self.negative.items() for category in categories)
        pairs = zip(category_ids.tolist(), image_ids.tolist(), strict=True)
        return np.fromiter((pair in known for pair in pairs), dtype=bool, count=len(image_ids))


def _rle(entry: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    if height is None or width is None:
        raise ValueError(f"image {entry['image_id']!r} has no size, which masks need.")
    try:
        return encode_mask(np.asarray(decode_mask(entry["segmentation"], height, width)))
    except ValueError as error:
        raise ValueError(f"annotation {entry.get('id')!r} of image {entry['image_id']!r}: {error}") from error


def _evaluate_category(table: DetectionTable, truth: _GroundTruth, category_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of one category; the table holds its detections by image and falling score."""
    areas = table.areas()
    table, areas = table.select(np.flatnonzero(areas > 0)), areas[areas > 0]
    matched = np.zeros((4, len(IOU_THRESHOLDS), len(table)), dtype=bool)
    ignored = np.zeros_like(matched)
    images, starts, counts = np.unique(table.image_ids, return_index=True, return_counts=True)
    rows_of = {
        image: slice(start, start + count)
        for image, start, count in zip(images.tolist(), starts.tolist(), counts.tolist(), strict=True)
    }
    num_truths = np.zeros(4, dtype=np.int64)
    for image in truth.images.get(category_id, ()):
        not_counted = outside_areas(np.asarray(truth.areas[category_id, image]))
        not_counted |= np.asarray(truth.ignored[category_id, image], dtype=bool)
        num_truths += (~not_counted).sum(axis=1)
        if image in rows_of:
            rows = rows_of[image]
            ious = _ious(table, rows, truth.regions[category_id, image])
            matched[:, :, rows], ignored[:, :, rows] = match_detections(ious, not_counted)
    partial = np.array([category_id in truth.not_exhaustive[int(image)] for image in table.image_ids], dtype=bool)
    ignored |= ~matched & (outside_areas(areas) | partial)[:, None, :]
    return precision_and_recall(table.scores, matched, ignored, num_truths)


def _ious(table: DetectionTable, rows: slice, regions: list[Any]) -> np.ndarray:
    """`(detections, ground truths)` of one image and category."""
    if table.masks is not None:
        return coco_mask.iou(table.masks[rows], regions, [0] * len(regions))
    return coco_mask.iou(table.boxes[rows], np.asarray(regions, dtype=np.float64), [0] * len(regions))


def _summary(precision: np.ndarray, recall: np.ndarray, categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """From precision `(categories, areas, thresholds, recalls)` and recall `(categories, areas, thresholds)`."""
    results: dict[str, Any] = {
        "AP": mean_or_minus_one(precision[:, 0]),
        "AP50": mean_or_minus_one(precision[:, 0, IOU_THRESHOLDS == 0.5]),
        "AP75": mean_or_minus_one(precision[:, 0, IOU_THRESHOLDS == 0.75]),
    }
    for index, letter in enumerate("sml", start=1):
        results[f"AP{letter}"] = mean_or_minus_one(precision[:, index])
    for letter in FREQUENCIES:
        rows = [category["frequency"] == letter for category in categories]
        results[f"AP{letter}"] = mean_or_minus_one(precision[rows, 0])
    results["AR"] = mean_or_minus_one(recall[:, 0])
    for index, letter in enumerate("sml", start=1):
        results[f"AR{letter}"] = mean_or_minus_one(recall[:, index])
    results["per_category"] = {
        category["id"]: {
            "name": category["name"],
            "frequency": category["frequency"],
            "AP": none_if_empty(mean_or_minus_one(precision[index, 0])),
        }
        for index, category in enumerate(categories)
    }
    return results


def _check_lvis(content: Mapping[str, Any]) -> None:
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key)
            if not isinstance(ids, (list, tuple)) or not all(isinstance(category_id, int) for category_id in ids):
                raise ValueError(f"image {image['id']!r} lacks a list of {key}; is this an LVIS file?")
    if not content["categories"]:
        raise ValueError("the annotations list no category.")
    for category in content["categories"]:
        if category.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"category {category['id']!r} has the frequency {category.get('frequency')!r}; expected r, c or f."
            )
