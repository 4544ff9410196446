"""The boxes of one image from the model's outputs, shared by the processor and the `Detector`."""

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import logging

from .boxes import batched_nms_inclusive, denormalize_boxes
from .prompts import is_list

logger = logging.get_logger(__name__)

# Label scores (before centerness) above this make a candidate, as `MODEL.ATSS.INFERENCE_TH` of the original.
PRE_NMS_THRESHOLD = 0.05
# Pairs of a location and a label that each level keeps for suppression, as in the original.
PRE_NMS_TOP_N = 1000

# Checks --------------------------------------------------------------------------------------------------------------


def check_outputs(outputs: Any) -> None:
    """Raises TypeError unless `outputs` has what post-processing reads."""
    needed = ("logits", "centerness", "pred_boxes", "level_shapes", "image_sizes")
    missing = [name for name in needed if getattr(outputs, name, None) is None]
    if missing:
        raise TypeError(
            f"`outputs` ({type(outputs).__name__}) has no {', '.join(missing)}; pass what a GLIPv2 model that "
            "detects gives with `return_dict=True`."
        )


def check_fraction(value: Any, name: str) -> None:
    """Raises TypeError or ValueError, naming the argument, unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number in [0, 1], got {type(value).__name__} {value!r}.")
    if not 0 <= cast(float, value) <= 1:  # which NaN is not either; `float()` fails for huge integers
        raise ValueError(f"`{name}` must be in [0, 1], got {value}.")


def check_count(value: Any, name: str) -> None:
    """Raises TypeError or ValueError, naming the argument, unless `value` is a whole number of at least 1."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number of at least 1, got {type(value).__name__} {value!r}.")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def check_limits(
    threshold: float,
    nms_threshold: float,
    max_detections: int | None,
    name: str = "max_detections",
    pre_nms_threshold: float = PRE_NMS_THRESHOLD,
) -> None:
    """
    Raises TypeError or ValueError, naming the argument, for thresholds outside [0, 1] and for a limit on the number of
    boxes that is no whole number of at least 1 (`None` is no limit).
    """
    for key, value in (
        ("threshold", threshold),
        ("pre_nms_threshold", pre_nms_threshold),
        ("nms_threshold", nms_threshold),
    ):
        check_fraction(value, key)
    if max_detections is not None:
        check_count(max_detections, name)


def first_indices(labels: Sequence[str], name: str) -> list[int]:
    """
    Where each label comes first: `[0, 1]` for `["cat", "dog", "cat"]`. A label that is listed several times is
    answered under its first index, everywhere; a warning says so once.
    """
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        if label in first:
            logger.warning_once(
                f"`{name}` lists {label!r} more than once; its boxes are returned under its first index only."
            )
        first.setdefault(label, index)
    return list(first.values())


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises ValueError, naming the tensor, when it holds NaN or infinity. On a GPU it waits for the values."""
    if tensor.numel() and not tensor.isfinite().all():
        raise ValueError(
            f"The model's `{name}` holds NaN or infinity. Look for broken weights (a checkpoint that diverged); in "
            "float16 the maps of a model can overflow: load it with dtype=torch.bfloat16 or torch.float32."
        )


def check_target_sizes(target_sizes: Any, image_sizes: Tensor, keeps_aspect: bool) -> list[tuple[float, float]] | None:
    """
    Args:
        target_sizes: (height, width) of each image, as a list of pairs or a tensor `(batch, 2)`, or `None`.
        image_sizes: `(batch, 2)` height and width of the resized images.
        keeps_aspect: whether resizing kept the aspect ratio, so that a swapped height and width can be noticed.

    Returns:
        The sizes as a list of pairs, or `None`.

    Raises:
        TypeError, ValueError: for a wrong form or number, a size that is not positive, or (width, height).
    """
    if target_sizes is None:
        return None
    if isinstance(target_sizes, Tensor):
        target_sizes = target_sizes.tolist()
    if not is_list(target_sizes):
        raise TypeError(
            f"`target_sizes` must be a list of (height, width) or a tensor (batch, 2), got "
            f"{type(target_sizes).__name__}."
        )
    target_sizes = list(target_sizes)
    if len(target_sizes) != len(image_sizes):
        raise ValueError(
            f"`target_sizes` has {len(target_sizes)} entries for {len(image_sizes)} images; pass one (height, "
            "width) for each."
        )
    sizes = []
    for index, (size, resized) in enumerate(zip(target_sizes, image_sizes.tolist(), strict=True)):
        size = size.tolist() if isinstance(size, Tensor) else size
        if not is_list(size) or len(size) != 2:
            raise ValueError(f"`target_sizes[{index}]` is {size!r}; pass a pair (height, width) in pixels.")
        height, width = (float(side) for side in size)
        if not (0 < height < math.inf and 0 < width < math.inf):
            raise ValueError(
                f"`target_sizes[{index}]` is {list(size)}; height and width in pixels must be above 0 and finite."
            )
        # The aspect ratio is kept up to rounding; only a difference that swapping removes is taken for a mistake.
        if keeps_aspect:
            ratio = math.log(resized[0] / resized[1])
            stays, swapped = (abs(ratio - turn * math.log(height / width)) for turn in (1, -1))
            if stays > 0.1 and swapped < 0.2 * stays:
                raise ValueError(
                    f"`target_sizes[{index}]` is {list(size)}, but the resized image is {resized[0]} high and "
                    f"{resized[1]} wide; pass (height, width), for a PIL image `(image.height, image.width)`."
                )
        sizes.append((height, width))
    return sizes


# Scores to boxes -----------------------------------------------------------------------------------------------------


def label_scores(logits: Tensor, label_map: Tensor) -> Tensor:
    """
    Scores of labels from scores of tokens: the mean of the sigmoid over a label's tokens.

    Args:
        logits: `(anchors, tokens)` of one image, before the sigmoid.
        label_map: boolean `(labels, tokens)`, each label with at least one token.

    Returns:
        `(anchors, labels)` in [0, 1], float32.
    """
    # Separators and padding, a third of a list of labels, need no sigmoid. Indexing copies, so it can be in place.
    used = label_map.any(0)
    probabilities = logits[:, used].float().sigmoid_()
    weights = label_map[:, used].float()
    return probabilities @ (weights / weights.sum(1, keepdim=True)).T


def cut_at(scores: Tensor, max_detections: int | None) -> Tensor:
    """
    Which of `scores` `(n,)` are among the best `max_detections`, boolean `(n,)`; ties at the cut all stay. `None` is
    no limit.
    """
    if max_detections is None or len(scores) <= max_detections:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores >= scores.topk(max_detections).values[-1]


def select_detections(
    scores: Tensor,
    centerness: Tensor,
    boxes_xyxy: Tensor,
    level_sizes: Sequence[int],
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int | None = 100,
    pre_nms_top_n: int = PRE_NMS_TOP_N,
    pre_nms_threshold: float = PRE_NMS_THRESHOLD,
    agnostic_nms: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The boxes of one image.

    Pairs of anchor and label whose label score is above `pre_nms_threshold` are candidates; each level keeps the best
    by score * centerness; the root of that product is the score that is returned. Candidates from `threshold` on stay;
    of boxes of one label that overlap the best stays; over all labels the best stay, with ties at the cut.

    Args:
        scores: `(anchors, labels)` as `label_scores` gives them.
        centerness: `(anchors,)` before the sigmoid.
        boxes_xyxy: `(anchors, 4)` inclusive corners in pixels, clipped to the image.
        level_sizes: anchors of each level; their sum is `anchors`.
        threshold: the lowest score that is returned.
        nms_threshold: IoU above which a box is suppressed.
        max_detections: boxes at most, over all labels; `None` for no limit.
        pre_nms_top_n: candidates that each level keeps.
        pre_nms_threshold: on the label's score before centerness; equal is dropped.
        agnostic_nms: suppress across labels, so that one object gets one label.

    Returns:
        scores `(n,)` in falling order, labels `(n,)` long, boxes_xyxy `(n, 4)`.

    Raises:
        ValueError: when the levels do not add up, or the network's results are not finite.
    """
    check_finite(scores, "logits")
    check_finite(centerness, "centerness")
    if sum(level_sizes) != len(scores):
        raise ValueError(
            f"`level_sizes` {list(level_sizes)} adds up to {sum(level_sizes)}, but there are {len(scores)} anchors."
        )
    kept = []
    levels = (tensor.split(list(level_sizes)) for tensor in (scores, centerness, boxes_xyxy))
    for level_scores, level_centerness, level_boxes in zip(*levels, strict=True):
        anchor, label = (level_scores > pre_nms_threshold).nonzero(as_tuple=True)
        product = level_scores[anchor, label] * level_centerness.float().sigmoid()[anchor]
        if len(product) > pre_nms_top_n:
            product, best = product.topk(pre_nms_top_n)
            anchor, label = anchor[best], label[best]
        kept.append((product.sqrt(), label, level_boxes[anchor]))
    scores, labels, boxes = (torch.cat(parts) for parts in zip(*kept, strict=True))
    # A box below the threshold can suppress none above it, so it need not take part.
    stays = scores >= threshold
    scores, labels, boxes = scores[stays], labels[stays], boxes[stays]
    groups = torch.zeros_like(labels) if agnostic_nms else labels
    order = batched_nms_inclusive(boxes, scores, groups, nms_threshold)
    order = order[cut_at(scores[order], max_detections)]
    return scores[order], labels[order], boxes[order]


def scale_boxes(boxes_xyxy: Tensor, size: Tensor | Sequence[float], target_size: Sequence[float]) -> Tensor:
    """
    Boxes of a resized image in pixels of another size of it: corners are multiplied, as the original does.

    Args:
        boxes_xyxy: `(n, 4)` in pixels of the resized image.
        size: its (height, width).
        target_size: (height, width) of the image to measure in.

    Returns:
        `(n, 4)`.
    """
    height, width = (float(target) / float(own) for target, own in zip(target_size, size, strict=True))
    return boxes_xyxy * boxes_xyxy.new_tensor((width, height, width, height))


def merge_detections(
    results: Sequence[Mapping[str, Any]],
    indices: Sequence[Sequence[int]],
    max_detections: int | None = 100,
    agnostic_nms_threshold: float | None = None,
) -> dict[str, Any]:
    """
    Results of several prompts over the same image as one, under the labels' own indices.

    Suppression works within a label, and each label is in one prompt, so nothing more is suppressed unless asked for.

    Args:
        results (`Sequence[dict]`): of each prompt as `post_process_grounded_object_detection` gives it: "scores",
            "labels", "boxes", "text_labels", and any other tensor or list with an entry a box (such as "masks").
        indices (`Sequence[Sequence[int]]`): of each prompt, the index that its labels get, as in
            `LabelPrompt.indices`.
        max_detections (`int`, *optional*, defaults to 100): boxes at most; ties at the cut all stay; `None` for no
            limit.
        agnostic_nms_threshold (`float`, *optional*): IoU above which the weaker of two boxes goes, whatever their
            labels; by default boxes of different labels stay.

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
    if agnostic_nms_threshold is None or len(results) == 1:
        order = scores.argsort(descending=True, stable=True)
    else:
        boxes = torch.cat([result["boxes"].to(device) for result in results])
        one_label = torch.zeros(len(scores), dtype=torch.long, device=device)
        order = batched_nms_inclusive(boxes, scores, one_label, agnostic_nms_threshold)
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
            merged[name] = [entries[index] for index in order.tolist()]
    return merged


# Model outputs to boxes ----------------------------------------------------------------------------------------------


def level_sizes_of(outputs: Mapping[str, Any], index: int) -> list[int]:
    """
    Locations of each level, P3 first.

    Raises:
        ValueError: when `outputs` were cut along the batch by code that does not know `level_shapes`.
    """
    shapes = outputs["level_shapes"]
    sizes = (shapes[index] if shapes.ndim == 3 else shapes).prod(-1).tolist()
    num_anchors = outputs["logits"].shape[1]
    if sum(sizes) != num_anchors:
        raise ValueError(
            f"`level_shapes` {shapes.tolist()} do not add up to {num_anchors} locations; pass the model's outputs as "
            "they are (a pipeline of transformers' own class: with `batch_size=1`)."
        )
    return sizes


def image_detections(
    outputs: Mapping[str, Any],
    index: int,
    label_map: Tensor,
    target_size: Sequence[float] | None = None,
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int | None = 100,
    pre_nms_top_n: int = PRE_NMS_TOP_N,
    pre_nms_threshold: float = PRE_NMS_THRESHOLD,
    agnostic_nms: bool = False,
) -> dict[str, Tensor]:
    """
    The boxes of one image; see [`select_detections`].

    Args:
        outputs: of `GLIPv2ForObjectDetection`.
        index: the image's index in the batch.
        label_map: boolean `(labels, tokens)`, the tokens of each label; it may be narrower than the padded text.
        target_size: (height, width) to measure boxes in; by default the resized image's.
        threshold, nms_threshold, max_detections, pre_nms_top_n, pre_nms_threshold, agnostic_nms: as there.

    Returns:
        "scores" `(n,)` in falling order, "labels" `(n,)` long, "boxes" `(n, 4)` xyxy in pixels of `target_size`.

    Raises:
        ValueError: when the network's results are not finite.
    """
    image_size = outputs["image_sizes"][index]
    logits = outputs["logits"][index, :, : label_map.shape[1]]
    check_box_deltas(outputs, index)
    scores, labels, boxes = select_detections(
        label_scores(logits, label_map.to(logits.device)),
        outputs["centerness"][index],
        denormalize_boxes(outputs["pred_boxes"][index], image_size),
        level_sizes_of(outputs, index),
        threshold,
        nms_threshold,
        max_detections,
        pre_nms_top_n,
        pre_nms_threshold,
        agnostic_nms,
    )
    if target_size is not None:
        boxes = scale_boxes(boxes, image_size, target_size)
    return {"scores": scores, "labels": labels, "boxes": boxes}


def check_box_deltas(outputs: Mapping[str, Any], index: int) -> None:
    """Raises ValueError when an image's box regression is not finite; clipping makes finite boxes of infinity."""
    deltas = outputs.get("box_deltas")
    if deltas is not None:
        check_finite(deltas[index], "box_deltas")


def one_label_detections(
    outputs: Mapping[str, Any],
    threshold: float = 0.05,
    target_sizes: Any = None,
    keeps_aspect: bool = True,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    pre_nms_threshold: float = PRE_NMS_THRESHOLD,
) -> list[dict[str, Tensor]]:
    """
    Boxes where the whole text of each image is one label between two special tokens, as transformers' own zero-shot
    detection pipeline asks for them.

    Args:
        outputs: of `GLIPv2ForObjectDetection`.
        threshold: the lowest score that is returned.
        target_sizes: (height, width) of each image to measure boxes in; by default the resized images'.
        keeps_aspect: whether resizing kept the aspect ratio, so that swapped `target_sizes` can be noticed.
        nms_threshold: IoU above which a box is suppressed.
        max_detections: boxes of an image at most.
        pre_nms_threshold: on the label's score before centerness; equal is dropped.

    Returns:
        For each image "scores" `(n,)` in falling order, "labels" `(n,)`, all 0, "boxes" `(n, 4)` xyxy in pixels.

    Raises:
        TypeError, ValueError: for a text without words, wrong `target_sizes`, or limits out of range.
    """
    logits, mask = outputs["logits"], outputs.get("attention_mask")
    mask = torch.ones(logits.shape[0], logits.shape[2], dtype=torch.bool) if mask is None else mask.bool()
    check_limits(threshold, nms_threshold, max_detections, pre_nms_threshold=pre_nms_threshold)
    checked = check_target_sizes(target_sizes, outputs["image_sizes"], keeps_aspect)
    sizes: Sequence[tuple[float, float] | None] = checked or [None] * len(logits)
    results = []
    for index, size in enumerate(sizes):
        tokens = mask[index].nonzero()[1:-1, 0]  # without the special tokens around the text
        if not len(tokens):
            raise ValueError(f"The text of image {index} has no words; pass a label with at least one.")
        label_map = torch.zeros(1, logits.shape[2], dtype=torch.bool)
        label_map[0, tokens.cpu()] = True
        results.append(
            image_detections(
                outputs,
                index,
                label_map,
                size,
                threshold,
                nms_threshold,
                max_detections,
                pre_nms_threshold=pre_nms_threshold,
            )
        )
    return results


__all__ = [
    "check_count",
    "check_finite",
    "check_fraction",
    "check_limits",
    "check_outputs",
    "check_target_sizes",
    "first_indices",
    "image_detections",
    "label_scores",
    "merge_detections",
    "one_label_detections",
    "scale_boxes",
    "select_detections",
]
