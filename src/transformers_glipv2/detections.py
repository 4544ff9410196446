"""From scores of (location, label) pairs to boxes: the original's post-processing, as pure functions on tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .boxes import batched_nms_inclusive

# Pairs of a location and a label that each level keeps for suppression, as in the original.
PRE_NMS_TOP_N = 1000


def label_scores(logits: Tensor, label_map: Tensor) -> Tensor:
    """
    Scores of labels from scores of words: the mean of the sigmoid over a label's tokens.

    Args:
        logits: `(anchors, tokens)` of one picture, before the sigmoid.
        label_map: boolean `(labels, tokens)`, each row with at least one token.

    Returns:
        `(anchors, labels)` in [0, 1], float32.
    """
    # Separators and padding, a third of a list of labels, need no sigmoid. Indexing copies, so it can be in place.
    used = label_map.any(0)
    probabilities = logits[:, used].float().sigmoid_()
    weights = label_map[:, used].float()
    return probabilities @ (weights / weights.sum(1, keepdim=True)).T


def cut_at(scores: Tensor, max_detections: int) -> Tensor:
    """Which of `scores` `(n,)` are among the best `max_detections`, boolean `(n,)`; ties at the cut all stay."""
    if len(scores) <= max_detections:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores >= scores.topk(max_detections).values[-1]


def select_detections(
    scores: Tensor,
    centerness: Tensor,
    boxes_xyxy: Tensor,
    level_sizes: Sequence[int],
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    pre_nms_top_n: int = PRE_NMS_TOP_N,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The boxes of one picture.

    Pairs of anchor and label whose score is above the threshold are ranked by score * centerness; each level keeps its
    best; the score becomes the root of that product; of boxes of one label that overlap the best stays; over all
    labels the best stay, with ties at the cut.

    Args:
        scores: `(anchors, labels)` as `label_scores` gives them.
        centerness: `(anchors,)` before the sigmoid.
        boxes_xyxy: `(anchors, 4)` inclusive corners in pixels, clipped to the picture.
        level_sizes: anchors of each level; their sum is `anchors`.
        threshold: on the score before centerness; equal is dropped.
        nms_threshold: IoU above which a box is suppressed.
        max_detections: boxes at most, over all labels.
        pre_nms_top_n: pairs that each level keeps.

    Returns:
        scores `(n,)` in falling order, labels `(n,)` long, boxes_xyxy `(n, 4)`.

    Raises:
        ValueError: when the levels do not add up, or the network overflowed.
    """
    if centerness.isnan().any():
        raise ValueError(
            "The network's results are not numbers. In float16 the maps of a model can overflow: load it with "
            "dtype=torch.bfloat16 or torch.float32."
        )
    if sum(level_sizes) != len(scores):
        raise ValueError(
            f"`level_sizes` {list(level_sizes)} adds up to {sum(level_sizes)}, but there are {len(scores)} anchors."
        )
    kept = []
    levels = (tensor.split(list(level_sizes)) for tensor in (scores, centerness, boxes_xyxy))
    for level_scores, level_centerness, level_boxes in zip(*levels, strict=True):
        anchor, label = (level_scores > threshold).nonzero(as_tuple=True)
        rank = level_scores[anchor, label] * level_centerness.float().sigmoid()[anchor]
        if len(rank) > pre_nms_top_n:
            rank, best = rank.topk(pre_nms_top_n)
            anchor, label = anchor[best], label[best]
        kept.append((rank.sqrt(), label, level_boxes[anchor]))
    scores, labels, boxes = (torch.cat(parts) for parts in zip(*kept, strict=True))
    order = batched_nms_inclusive(boxes, scores, labels, nms_threshold)
    order = order[cut_at(scores[order], max_detections)]
    return scores[order], labels[order], boxes[order]


def scale_boxes(boxes_xyxy: Tensor, size: Tensor | Sequence[float], target_size: Sequence[float]) -> Tensor:
    """
    Boxes of a resized picture in pixels of another size of it: corners are multiplied, as the original does.

    Args:
        boxes_xyxy: `(n, 4)` in pixels of the resized picture.
        size: its (height, width).
        target_size: (height, width) of the picture to measure in.

    Returns:
        `(n, 4)`.
    """
    height, width = (float(target) / float(own) for target, own in zip(target_size, size, strict=True))
    return boxes_xyxy * boxes_xyxy.new_tensor((width, height, width, height))


def merge_detections(
    results: Sequence[Mapping[str, Any]], indices: Sequence[Sequence[int]], max_detections: int = 100
) -> dict[str, Any]:
    """
    Results of several prompts over the same picture as one, under the labels' own indices.

    Suppression works within a label, and each label is in one prompt, so nothing more is suppressed.

    Args:
        results (`Sequence[dict]`): of each prompt as `post_process_grounded_object_detection` gives it: "scores",
            "labels", "boxes", "text_labels", and any other tensor or list with an entry a box (such as "masks").
        indices (`Sequence[Sequence[int]]`): of each prompt, the index that its labels get, as in
            `LabelPrompt.indices`.
        max_detections (`int`, *optional*, defaults to 100): boxes at most; ties at the cut all stay.

    Returns:
        `dict`: the same entries, in falling order of score.

    Raises:
        ValueError: when there is no result, or not one list of indices for each.
    """
    if not results or len(results) != len(indices):
        raise ValueError(
            f"Got {len(results)} results and {len(indices)} lists of indices; pass at least one result, and the "
            "`indices` of its prompt with each."
        )
    device = results[0]["scores"].device
    scores = torch.cat([result["scores"].to(device) for result in results])
    order = scores.argsort(descending=True, stable=True)
    order = order[cut_at(scores[order], max_detections)]
    merged: dict[str, Any] = {}
    for name, first in results[0].items():
        if name == "labels":
            parts = [
                torch.as_tensor(own, device=device)[result["labels"].to(device)]
                for result, own in zip(results, indices, strict=True)
            ]
            merged[name] = torch.cat(parts)[order]
        elif isinstance(first, Tensor):
            merged[name] = torch.cat([result[name].to(device) for result in results])[order]
        else:
            entries = [entry for result in results for entry in result[name]]
            merged[name] = [entries[place] for place in order.tolist()]
    return merged
