"""Which class is taken for which, and the score at which boxes are most often right."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

# Overlap from which a box is on an object.
MIN_IOU = 0.5


def best_threshold(content: Mapping[str, Any], predictions: Iterable[Mapping[str, Any]]) -> float | None:
    """
    The score at which the F1 of boxes is highest, over all classes, with the overlap of AP50.

    Args:
        content (`Mapping`): images and annotations as in a COCO file.
        predictions (`Iterable[Mapping]`): entries of a COCO result file.

    Returns:
        `float` or `None`: between the last box that counts and the next; `None` where there are no objects or boxes.
    """
    truth = _by_image_and_class(content["annotations"])
    scores: list[float] = []
    correct: list[bool] = []
    for key, entries in _by_image_and_class(predictions).items():
        entries.sort(key=lambda entry: -entry["score"])
        objects = truth.get(key, [])
        overlaps = _overlaps(entries, objects)
        free = set(range(len(objects)))
        for entry, row in zip(entries, overlaps, strict=True):
            best = max(free, key=row.__getitem__, default=None)
            hit = best is not None and row[best] >= MIN_IOU
            if hit:
                free.discard(best)
            scores.append(entry["score"])
            correct.append(bool(hit))
    if not scores or not any(correct):
        return None
    order = np.argsort(scores)[::-1]
    ordered, hits = np.array(scores)[order], np.array(correct)[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + len(content["annotations"]))
    last = int(f1.argmax())
    following = ordered[last + 1] if last + 1 < len(ordered) else 0.0
    return float((ordered[last] + following) / 2)


def confusion_matrix(
    content: Mapping[str, Any], predictions: Iterable[Mapping[str, Any]], threshold: float
) -> np.ndarray:
    """
    How often an object of one class is found as another.

    Boxes are given to objects of whatever class by falling score; each object gets one box at most.

    Args:
        content (`Mapping`): images, annotations and categories as in a COCO file.
        predictions (`Iterable[Mapping]`): entries of a COCO result file.
        threshold (`float`): lower-scoring boxes do not count.

    Returns:
        `np.ndarray` of shape `(classes + 1, classes + 1)`, integer: true class by found class, in the order of the
        categories; the last row counts boxes on no object, the last column objects without a box.
    """
    rank = {category["id"]: index for index, category in enumerate(content["categories"])}
    matrix = np.zeros((len(rank) + 1, len(rank) + 1), dtype=np.int64)
    found = _by_image(entry for entry in predictions if entry["score"] >= threshold)
    truth = _by_image(content["annotations"])
    for image_id in {**truth, **found}:
        objects, entries = truth.get(image_id, []), sorted(found.get(image_id, []), key=lambda one: -one["score"])
        overlaps = _overlaps(entries, objects)
        free = set(range(len(objects)))
        for entry, row in zip(entries, overlaps, strict=True):
            same = entry["category_id"]
            # Of the objects under a box that of its own class comes first.
            fits = [index for index in free if row[index] >= MIN_IOU]
            ranked = [(objects[index]["category_id"] == same, row[index], -index) for index in fits]
            best = -max(ranked)[2] if ranked else None
            if best is not None:
                free.discard(best)
            matrix[-1 if best is None else rank[objects[best]["category_id"]], rank[same]] += 1
        for index in free:
            matrix[rank[objects[index]["category_id"]], -1] += 1
    return matrix


def _by_image(entries: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"]].append(entry)
    return dict(groups)


def _by_image_and_class(entries: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"], entry["category_id"]].append(entry)
    return dict(groups)


def _overlaps(entries: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """IoU of boxes (x, y, width, height), shape `(entries, objects)`."""
    boxes = [torch.tensor([one["bbox"] for one in group]).reshape(-1, 4).float() for group in (entries, objects)]
    first, second = (box_convert(group, "xywh", "xyxy") for group in boxes)
    return box_iou(first, second).numpy()
