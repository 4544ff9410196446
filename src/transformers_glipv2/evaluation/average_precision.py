"""
Matching of detections to ground truth and average precision, vectorised over IoU thresholds and areas.

The rules are those of the COCO and LVIS evaluators; what is ours is that one category at a time is held in memory and
that only detections which overlap something are looped over.
"""

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
# All, small, medium, large; in pixels, both ends belong to the range.
AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])


def outside_areas(areas: np.ndarray) -> np.ndarray:
    """`(4, n)` bool: whether each of `(n,)` areas is outside each of `AREA_RANGES`."""
    return (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])


def match_detections(ious: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Greedy matching in one image and category, for every area range and IoU threshold.

    A detection takes the free ground truth that it overlaps most, at the threshold or above; ground truth that counts
    goes before ignored one; of equal overlaps the later wins, as in the official evaluators.

    Args:
        ious (`np.ndarray` of shape `(detections, ground truths)`): detections by falling score.
        ignored (`np.ndarray` of shape `(areas, ground truths)`): bool, ground truth that does not count.

    Returns:
        Two bool arrays of shape `(areas, thresholds, detections)`: matched, and matched to ignored ground truth.
    """
    num_detections, num_truths = ious.shape
    num_areas = len(ignored)
    shape = (num_areas, len(IOU_THRESHOLDS), num_detections)
    matched, matched_ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    # Ignored ground truth comes last in the official order, and this decides ties: in the columns' order within each
    # kind the later wins, so columns are looked at from the end.
    backwards = ious[:, ::-1]
    ignored = ignored[:, None, ::-1]
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[None, :, None]
    free = np.ones((num_areas, len(IOU_THRESHOLDS), num_truths), dtype=bool)
    area_index, threshold_index = np.indices(shape[:2])
    for detection in np.flatnonzero(ious.max(axis=1, initial=0.0) >= limits[0, 0, 0]):
        overlap = backwards[detection]
        possible = free & (overlap >= limits)
        counting = possible & ~ignored
        has_counting = counting.any(axis=2, keepdims=True)
        possible = np.where(has_counting, counting, possible)
        chosen = np.where(possible, overlap, -1.0).argmax(axis=2)
        hit = possible.any(axis=2)
        free[area_index[hit], threshold_index[hit], chosen[hit]] = False
        matched[:, :, detection] = hit
        matched_ignored[:, :, detection] = hit & ~has_counting[:, :, 0]
    return matched, matched_ignored


def precision_and_recall(
    scores: np.ndarray, matched: np.ndarray, ignored: np.ndarray, num_truths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Interpolated precision and final recall of one category.

    Args:
        scores (`np.ndarray` of shape `(detections,)`): of all images; equal scores count in the order given.
        matched, ignored (`np.ndarray` of shape `(areas, thresholds, detections)`): bool.
        num_truths (`np.ndarray` of shape `(areas,)`): ground truths that count.

    Returns:
        precision `(areas, thresholds, 101)` and recall `(areas, thresholds)`; -1 where no ground truth counts.
    """
    num_areas, num_thresholds, num_detections = matched.shape
    precision = np.full((num_areas, num_thresholds, len(RECALL_THRESHOLDS)), -1.0)
    recall = np.full((num_areas, num_thresholds), -1.0)
    order = np.argsort(-scores, kind="stable")
    for area in np.flatnonzero(num_truths):
        if not num_detections:
            precision[area], recall[area] = 0.0, 0.0
            continue
        counted = ~ignored[area][:, order]
        hits = matched[area][:, order]
        true_positives = np.cumsum(hits & counted, axis=1, dtype=np.float64)
        false_positives = np.cumsum(~hits & counted, axis=1, dtype=np.float64)
        recalls = true_positives / num_truths[area]
        precisions = true_positives / (false_positives + true_positives + np.spacing(1))
        envelope = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
        for threshold in range(num_thresholds):
            position = np.searchsorted(recalls[threshold], RECALL_THRESHOLDS, side="left")
            reached = position < num_detections
            precision[area, threshold] = 0.0
            precision[area, threshold, reached] = envelope[threshold, position[reached]]
        recall[area] = recalls[:, -1]
    return precision, recall
