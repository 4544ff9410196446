"""
Boxes from the model's outputs, shared by the processor and the `Detector`: of all images of a batch at once.

A GPU is waited for in two places: `suppressed`, as nobody knows how many boxes stay, and `fetch`, which copies what
stays to the CPU, once for the whole batch.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .boxes import batched_nms_inclusive, denormalize_boxes, suppress, to_device
from .prompts import is_list

logger = logging.get_logger(__name__)

# Label scores (before centerness) above this make a candidate, as `MODEL.ATSS.INFERENCE_TH` of the original.
PRE_NMS_THRESHOLD = 0.05
# Pairs of a location and a label that each level keeps for suppression, as in the original.
PRE_NMS_TOP_N = 1000
# Scores of locations and labels that are looked through at once, which bounds memory at about 0.5 GB, and candidates
# that are compared with each other at once.
SCORES_AT_ONCE = 1 << 25
CANDIDATES_AT_ONCE = 40_000

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


def check_finite(finite: bool, name: str) -> None:
    """Raises ValueError, naming the tensor, unless all its values are finite."""
    if not finite:
        raise ValueError(
            f"The model's `{name}` holds NaN or infinity. Look for broken weights (a checkpoint that diverged); in "
            "float16 the maps of a model can overflow: load it with dtype=torch.bfloat16 or torch.float32."
        )


def check_target_sizes(target_sizes: Any, num_images: int) -> list[tuple[float, float]] | None:
    """
    Args:
        target_sizes: (height, width) of each image, as a list of pairs or a tensor `(batch, 2)`, or `None`.
        num_images: how many images there are.

    Returns:
        The sizes as a list of pairs, or `None`.

    Raises:
        TypeError, ValueError: for a wrong form or number, or a size that is not positive.
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
    if len(target_sizes) != num_images:
        raise ValueError(
            f"`target_sizes` has {len(target_sizes)} entries for {num_images} images; pass one (height, width) for "
            "each."
        )
    sizes = []
    for index, size in enumerate(target_sizes):
        size = size.tolist() if isinstance(size, Tensor) else size
        if not is_list(size) or len(size) != 2:
            raise ValueError(f"`target_sizes[{index}]` is {size!r}; pass a pair (height, width) in pixels.")
        height, width = (float(side) for side in size)
        if not (0 < height < math.inf and 0 < width < math.inf):
            raise ValueError(
                f"`target_sizes[{index}]` is {list(size)}; height and width in pixels must be above 0 and finite."
            )
        sizes.append((height, width))
    return sizes


def check_aspect(target_sizes: Sequence[Sequence[float]], image_sizes: Sequence[Sequence[float]]) -> None:
    """
    Raises ValueError for a target size that is (width, height).

    Args:
        target_sizes: (height, width) of each image.
        image_sizes: of each resized image, whose aspect ratio was kept.
    """
    for index, ((height, width), resized) in enumerate(zip(target_sizes, image_sizes, strict=True)):
        # The aspect ratio is kept up to rounding; only a difference that swapping removes is taken for a mistake.
        ratio = math.log(resized[0] / resized[1])
        stays, swapped = (abs(ratio - turn * math.log(height / width)) for turn in (1, -1))
        if stays > 0.1 and swapped < 0.2 * stays:
            raise ValueError(
                f"`target_sizes[{index}]` is [{height:g}, {width:g}], but the resized image is {resized[0]:g} high "
                f"and {resized[1]:g} wide; pass (height, width), for a PIL image `(image.height, image.width)`."
            )


# Scores to boxes -----------------------------------------------------------------------------------------------------


def label_scores(logits: Tensor, label_map: Tensor) -> Tensor:
    """
    Scores of labels from scores of tokens: the mean of the sigmoid over a label's tokens.

    Args:
        logits: `(..., anchors, tokens)`, before the sigmoid.
        label_map: boolean `(labels, tokens)`, each label with at least one token; on the CPU, or a GPU is waited for.

    Returns:
        `(..., anchors, labels)` in [0, 1], float32.
    """
    # Separators and padding, a third of a list of labels, need no sigmoid. Indexing copies, so it can be in place.
    used, weights = used_tokens(label_map)
    probabilities = logits[..., to_device(used, logits.device)].float().sigmoid_()
    return probabilities @ to_device(weights, logits.device)


def used_tokens(label_map: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of labels, long `(used,)`, and the weight of each in the mean of each label, `(used, labels)`."""
    used = label_map.any(0).nonzero()[:, 0]
    weights = label_map[:, used].float()
    return used, (weights / weights.sum(1, keepdim=True)).T


def cut_at(scores: Tensor, max_detections: int | None) -> Tensor:
    """
    Which of `scores` `(n,)` are among the best `max_detections`, boolean `(n,)`; ties at the cut all stay. `None` is
    no limit.
    """
    if max_detections is None or len(scores) <= max_detections:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores >= scores.topk(max_detections).values[-1]


@dataclass(frozen=True)
class Limits:
    """
    What chooses boxes; see [`select_detections`].

    Pairs of anchor and label whose label score is above `pre_nms_threshold` are candidates; each level keeps the best
    `pre_nms_top_n` by score * centerness; the root of that product is the score that is returned. Candidates from
    `threshold` on stay; of boxes of one label (with `agnostic_nms` of all labels) whose IoU is above `nms_threshold`
    the best stays; over all labels the best `max_detections` stay, with ties at the cut.
    """

    threshold: float = 0.05
    nms_threshold: float = 0.6
    max_detections: int | None = 100
    pre_nms_top_n: int = PRE_NMS_TOP_N
    pre_nms_threshold: float = PRE_NMS_THRESHOLD
    agnostic_nms: bool = False


def candidates(
    scores: Tensor, centerness: Tensor, boxes_xyxy: Tensor, level_sizes: Sequence[int], limits: Limits
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The candidates of several images, as many of each whatever the scores are, so that no GPU is waited for.

    Args:
        scores: `(images, anchors, labels)` as `label_scores` gives them.
        centerness: `(images, anchors)` before the sigmoid.
        boxes_xyxy: `(images, anchors, 4)`.
        level_sizes: anchors of each level; their sum is `anchors`.
        limits: `pre_nms_threshold` and `pre_nms_top_n` are read.

    Returns:
        scores `(images, candidates)`, NaN at fillers; labels long `(images, candidates)` and boxes
        `(images, candidates, 4)`; level after level, and in a level by anchor and label.
    """
    num_labels = scores.shape[2]
    product = scores * centerness.float().sigmoid()[..., None]
    product = product.masked_fill_(scores <= limits.pre_nms_threshold, -1.0).flatten(1)
    chosen, first = [], 0
    for size in level_sizes:
        own = product[:, first * num_labels : (first + size) * num_labels]
        if own.shape[1] > limits.pre_nms_top_n:
            best = own.topk(limits.pre_nms_top_n, dim=1, sorted=False).indices.sort(dim=1).values
        else:
            best = torch.arange(own.shape[1], device=own.device).expand(len(own), -1)
        chosen.append(best + first * num_labels)
        first += size
    index = torch.cat(chosen, dim=1)
    anchor, label = index // max(num_labels, 1), index % max(num_labels, 1)
    return product.gather(1, index).sqrt(), label, boxes_xyxy.gather(1, anchor[..., None].expand(-1, -1, 4))


def suppressed(
    scores: Tensor, labels: Tensor, boxes_xyxy: Tensor, num_labels: int, limits: Limits
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    The candidates of several images that stay, all suppressed together.

    Args:
        scores, labels, boxes_xyxy: as [`candidates`] gives them.
        num_labels: labels of an image at most.
        limits: `threshold`, `nms_threshold` and `agnostic_nms` are read.

    Returns:
        images `(n,)`, scores `(n,)` in falling order, labels `(n,)`, boxes_xyxy `(n, 4)`.
    """
    # A box below the threshold can suppress none above it, so it need not take part. NaN is not above it.
    image, index = (scores >= limits.threshold).nonzero(as_tuple=True)
    scores, labels, boxes_xyxy = scores[image, index], labels[image, index], boxes_xyxy[image, index]
    groups = image if limits.agnostic_nms else image * num_labels + labels
    kept = suppress(boxes_xyxy, scores, groups, limits.nms_threshold)
    return image[kept], scores[kept], labels[kept], boxes_xyxy[kept]


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the CPU, from one copy of all of them; in double precision, which holds all that they can hold."""
    device = tensors[0].device.type
    if device == "cpu":
        return list(tensors)
    dtype = torch.float32 if device == "mps" else torch.float64  # which MPS does not have
    together = torch.cat([tensor.flatten().to(dtype) for tensor in tensors]).cpu()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


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
    The boxes of one image, as [`Limits`] says.

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
        scores `(n,)` in falling order, labels `(n,)` long, boxes_xyxy `(n, 4)`; on the device of the scores.

    Raises:
        ValueError: when the levels do not add up, or the network's results are not finite.
    """
    limits = Limits(threshold, nms_threshold, max_detections, pre_nms_top_n, pre_nms_threshold, agnostic_nms)
    queries = [(scores[None], [0])]
    (found,) = find_boxes(queries, centerness[None], boxes_xyxy[None], level_sizes, limits)[0]
    kept, labels, boxes = (to_device(found[name], scores.device) for name in ("scores", "labels", "boxes"))
    return kept, labels, boxes


def find_boxes(
    queries: Iterable[tuple[Tensor, Sequence[int]]],
    centerness: Tensor,
    boxes_xyxy: Tensor,
    level_sizes: Sequence[int],
    limits: Limits,
    more: Mapping[str, Tensor] | None = None,
    image_sizes: Tensor | None = None,
) -> tuple[list[dict[str, Tensor]], list[list[float]]]:
    """
    The boxes of any number of queries (the labels of an image, or one phrase), as [`Limits`] says.

    Args:
        queries: some at a time, their scores `(queries, anchors, labels)` and the index of each one's image.
        centerness: `(images, anchors)` before the sigmoid.
        boxes_xyxy: `(images, anchors, 4)` inclusive corners in pixels, clipped to the image.
        level_sizes: anchors of each level; their sum is `anchors`.
        limits: what chooses boxes.
        more: further tensors that must be finite, by their names.
        image_sizes: `(images, 2)`, to be fetched with the boxes.

    Returns:
        For each query "scores" `(n,)` in falling order, "labels" `(n,)` long and "boxes" `(n, 4)` as they are given,
        on the CPU; and the image sizes.

    Raises:
        ValueError: when the levels do not add up, or the network's results are not finite.
    """
    if sum(level_sizes) != centerness.shape[1]:
        raise ValueError(
            f"`level_sizes` {list(level_sizes)} adds up to {sum(level_sizes)}, but there are {centerness.shape[1]} "
            "anchors."
        )
    finite = {name: value.isfinite().all() for name, value in {"centerness": centerness, **(more or {})}.items()}
    finite["logits"] = torch.ones((), dtype=torch.bool, device=centerness.device)
    parts: list[tuple[Tensor, ...]] = []
    count = 0
    for scores, images in queries:
        finite["logits"] = finite["logits"] & scores.isfinite().all()
        index = to_device(images, scores.device, torch.long)
        num_candidates = sum(min(size * scores.shape[2], limits.pre_nms_top_n) for size in level_sizes)
        at_once = max(1, CANDIDATES_AT_ONCE // max(num_candidates, 1))
        for some, own in zip(scores.split(at_once), index.split(at_once), strict=True):
            found = candidates(some, centerness[own], boxes_xyxy[own], level_sizes, limits)
            query, *kept = suppressed(*found, scores.shape[2], limits)
            parts.append((query + count, *kept))
            count += len(own)
    if image_sizes is None:
        image_sizes = centerness.new_zeros(0, 2)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    flags, sizes, *columns = fetch([torch.stack(list(finite.values())), image_sizes, *columns])
    return _read(dict(zip(finite, flags, strict=True)), columns, count, limits.max_detections), _numbers(sizes)


def _read(
    finite: Mapping[str, Tensor], columns: Sequence[Tensor], count: int, max_detections: int | None
) -> list[dict[str, Tensor]]:
    """The boxes of each of `count` queries, of what was fetched: queries, scores, labels and boxes."""
    for name, is_finite in finite.items():
        check_finite(bool(is_finite), name)
    if not columns:
        return []
    order = columns[0].argsort(stable=True)
    by_query = columns[0].bincount(minlength=count).tolist()
    results = []
    for scores, labels, boxes in zip(*(column[order].split(by_query) for column in columns[1:]), strict=True):
        kept = cut_at(scores, max_detections)
        results.append({"scores": scores[kept], "labels": labels[kept], "boxes": boxes[kept]})
    return results


def _numbers(tensor: Tensor) -> list[list[float]]:
    return tensor.tolist()


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
    return boxes_xyxy * to_device((width, height, width, height), boxes_xyxy.device, boxes_xyxy.dtype)


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


def level_sizes_of(outputs: Mapping[str, Any]) -> list[int]:
    """
    Locations of each level, P3 first.

    Raises:
        ValueError: when `outputs` were cut along the batch by code that does not know `level_shapes`.
    """
    shapes = outputs["level_shapes"]
    sizes = (shapes[0] if shapes.ndim == 3 else shapes).prod(-1).tolist()
    num_anchors = outputs["logits"].shape[1]
    if sum(sizes) != num_anchors:
        raise ValueError(
            f"`level_shapes` {shapes.tolist()} do not add up to {num_anchors} locations; pass the model's outputs as "
            "they are (a pipeline of transformers' own class: with `batch_size=1`)."
        )
    return sizes


def batch_detections(
    outputs: Mapping[str, Any],
    label_maps: Sequence[Tensor],
    target_sizes: Sequence[Sequence[float]] | None = None,
    limits: Limits | None = None,
    each_label: bool = False,
    keeps_aspect: bool = False,
) -> list[dict[str, Tensor]]:
    """
    The boxes of a batch, as [`Limits`] says.

    Args:
        outputs: of `GLIPv2ForObjectDetection`.
        label_maps: for each image boolean `(labels, tokens)`, the tokens of each label, on the CPU; it may be narrower
            than the padded text.
        target_sizes: (height, width) of each image to measure boxes in; by default the resized images'.
        limits: what chooses boxes; the defaults of [`Limits`] without.
        each_label: choose boxes for each label on its own, as for the phrases of a sentence.
        keeps_aspect: whether resizing kept the aspect ratio, so that swapped `target_sizes` can be noticed.

    Returns:
        For each image, or for each label of each image, "scores" `(n,)` in falling order, "labels" `(n,)` long,
        "boxes" `(n, 4)` xyxy in pixels of the target size; on the CPU.

    Raises:
        ValueError: when the network's results are not finite, or a target size is (width, height).
    """
    logits, image_sizes = outputs["logits"], outputs["image_sizes"]
    deltas = outputs.get("box_deltas")
    results, sizes = find_boxes(
        _label_queries(logits, label_maps) if each_label else _image_queries(logits, label_maps),
        outputs["centerness"],
        denormalize_boxes(outputs["pred_boxes"], image_sizes),
        level_sizes_of(outputs),
        limits or Limits(),
        # Clipping makes finite boxes of infinity.
        {} if deltas is None else {"box_deltas": deltas},
        image_sizes,
    )
    if target_sizes is not None:
        if keeps_aspect:
            check_aspect(target_sizes, sizes)
        owners = [image for image, named in enumerate(label_maps) for _ in range(len(named) if each_label else 1)]
        for image, result in zip(owners, results, strict=True):
            result["boxes"] = scale_boxes(result["boxes"], sizes[image], target_sizes[image])
    return results


def _image_queries(logits: Tensor, label_maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """The scores of a query an image, so many images at a time that memory is bounded."""
    most = max((len(named) for named in label_maps), default=0)
    at_once = max(1, SCORES_AT_ONCE // max(logits.shape[1] * most, 1))
    for start in range(0, len(label_maps), at_once):
        maps = label_maps[start : start + at_once]
        images = list(range(start, start + len(maps)))
        if all(named is maps[0] for named in maps):
            yield label_scores(logits[start : start + len(maps), :, : maps[0].shape[1]], maps[0]), images
            continue
        scores = [label_scores(logits[i, :, : named.shape[1]], named) for i, named in zip(images, maps, strict=True)]
        # Labels that an image does not have score 0, and never stay.
        yield torch.stack([F.pad(own, (0, most - own.shape[1])) for own in scores]), images


def _label_queries(logits: Tensor, label_maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """The scores of a query a label."""
    for image, named in enumerate(label_maps):
        if len(named):
            yield label_scores(logits[image, :, : named.shape[1]], named).T[..., None], [image] * len(named)


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
    mask = torch.ones(logits.shape[0], logits.shape[2], dtype=torch.bool) if mask is None else mask.bool().cpu()
    check_limits(threshold, nms_threshold, max_detections, pre_nms_threshold=pre_nms_threshold)
    sizes = check_target_sizes(target_sizes, len(logits))
    label_maps = []
    for index, own in enumerate(mask):
        tokens = own.nonzero()[1:-1, 0]  # without the special tokens around the text
        if not len(tokens):
            raise ValueError(f"The text of image {index} has no words; pass a label with at least one.")
        label_maps.append(torch.zeros(1, logits.shape[2], dtype=torch.bool).index_fill_(1, tokens, True))
    limits = Limits(threshold, nms_threshold, max_detections, pre_nms_threshold=pre_nms_threshold)
    return on_device_of(logits, batch_detections(outputs, label_maps, sizes, limits, keeps_aspect=keeps_aspect))


def on_device_of(tensor: Tensor, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results whose tensors are on the device of another one."""
    return [
        {name: to_device(value, tensor.device) if isinstance(value, Tensor) else value for name, value in one.items()}
        for one in results
    ]


__all__ = [
    "Limits",
    "batch_detections",
    "check_count",
    "check_finite",
    "check_fraction",
    "check_limits",
    "check_outputs",
    "check_target_sizes",
    "first_indices",
    "label_scores",
    "merge_detections",
    "on_device_of",
    "one_label_detections",
    "scale_boxes",
    "select_detections",
]
