"""Boxes: anchors, box coding, overlap, the ATSS assignment and class-aware suppression, as pure functions on tensors.

Two conventions meet here and nowhere else:

- `boxes_xyxy`: x1, y1, x2, y2 in pixels of the resized, un-padded image. Corners are *inclusive*, as in the original
  GLIP: a box is `x2 - x1 + 1` pixels wide. Anchors are written the same way and may reach outside the image.
- normalised boxes: centre x, centre y, width, height, the corners divided by the image's width and height and then
  converted without any `+ 1`.

Arithmetic runs in float32 at least, whatever the model's dtype: bfloat16 steps are 4 pixels wide at x = 1000.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

# The weights of the box coder (of dx and dy, of dw and dh) and the largest log-size it decodes, as in the original.
CENTRE_WEIGHT, SIZE_WEIGHT = 10.0, 5.0
MAX_LOG_SIZE = math.log(1000.0 / 16.0)
# An anchor is a candidate for a box when its centre is inside by more than this, in pixels.
INSIDE_MARGIN = 0.01
# Distances between boxes and anchors that `assign_atss` holds at once; bounds its memory at about 100 MB.
DISTANCES_AT_ONCE = 1 << 23


def check_boxes_shape(boxes: Tensor, name: str) -> None:
    """Raises TypeError or ValueError unless `boxes` is a floating point tensor of shape `(..., 4)`."""
    if not isinstance(boxes, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor of shape (..., 4), got {type(boxes).__name__}.")
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"`{name}` must have shape (..., 4), got {tuple(boxes.shape)}.")
    if not boxes.is_floating_point():
        raise TypeError(f"`{name}` must hold floating point numbers, got {boxes.dtype}; call `.float()` on it.")


def check_boxes_xyxy(boxes: Tensor, name: str) -> None:
    """
    Raises ValueError, naming the first bad box and its values, unless every box of `boxes` `(n, 4)` is finite and has
    x1 <= x2 and y1 <= y2. Reads the values, so on a GPU it waits for them.
    """
    check_boxes_shape(boxes, name)
    if boxes.ndim != 2:
        raise ValueError(f"`{name}` must have shape (n, 4), got {tuple(boxes.shape)}.")
    # NaN fails both comparisons; infinite corners fail the second.
    good = (boxes[:, 2:] >= boxes[:, :2]).all(-1) & (boxes.abs() < math.inf).all(-1)
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        values = [round(value, 4) for value in boxes[index].tolist()]
        raise ValueError(
            f"`{name}[{index}]` is {values}; expected finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2. "
            "Drop or repair this box (xywh boxes are converted by `coco_to_inclusive_xyxy`)."
        )


def to_device(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers, or a tensor on the CPU, as a tensor on a device that is not waited for."""
    # `torch.tensor(..., device=...)` and `new_tensor` wait until all work that was given to a GPU is done.
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def anchor_grid(
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """
    One square anchor per location of every feature map.

    The anchor of cell (0, 0) is centred at (stride - 1) / 2, the middle of the cell's pixels, and spans `size` pixels
    with inclusive corners: size 64 at stride 8 gives [-28, -28, 35, 35]. The others are shifted by the stride. Anchors
    are never clipped to the image.

    Args:
        level_shapes: (height, width) of each feature map, finest (P3) first.
        strides: pixels of the image per cell, one per level.
        sizes: side of the anchor in pixels, one per level.
        device: where the anchors are made.
        dtype: of the result; half precision cannot hold the coordinates of large images.

    Returns:
        `(anchors, 4)` x1, y1, x2, y2 in pixels; P3 first, row-major within a level.

    Raises:
        ValueError: when the three arguments differ in length.
    """
    if not len(level_shapes) == len(strides) == len(sizes):
        raise ValueError(
            f"`level_shapes` ({len(level_shapes)}), `strides` ({len(strides)}) and `sizes` ({len(sizes)}) must have "
            "one entry per level."
        )
    centres, halves = [], []
    for (height, width), stride, size in zip(level_shapes, strides, sizes, strict=True):
        first_centre = (stride - 1) / 2
        # To half a step after the last centre, so that rounding adds none.
        centre_y, centre_x = (
            torch.arange(first_centre, first_centre + (side - 0.5) * stride, stride, device=device, dtype=dtype)
            for side in (height, width)
        )
        centres.append(torch.stack(torch.meshgrid(centre_x, centre_y, indexing="xy"), dim=-1).flatten(0, 1))
        halves.append(torch.full((height * width, 1), (size - 1) / 2, device=device, dtype=dtype))
    centre, half = torch.cat(centres), torch.cat(halves)
    return torch.cat((centre - half, centre + half), dim=-1)


def _centres_and_sizes(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left + 1


def encode_boxes(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """
    Writes boxes as offsets from anchors: 10 * (centre - anchor centre) / anchor size, 5 * log(size / anchor size),
    sizes with `+ 1`.

    Args:
        boxes_xyxy: `(n, 4)` inclusive corners in pixels (any leading dimensions that broadcast).
        anchors_xyxy: `(n, 4)` the anchor of each box.

    Returns:
        `(n, 4)` deltas dx, dy, dw, dh, float32 or wider. `decode_boxes` inverts it up to its size limit.
    """
    check_boxes_shape(boxes_xyxy, "boxes_xyxy")
    check_boxes_shape(anchors_xyxy, "anchors_xyxy")
    centres, sizes = _centres_and_sizes(_at_least_float32(boxes_xyxy))
    anchor_centres, anchor_sizes = _centres_and_sizes(_at_least_float32(anchors_xyxy))
    shifts = CENTRE_WEIGHT * ((centres - anchor_centres) / anchor_sizes)
    return torch.cat((shifts, SIZE_WEIGHT * (sizes / anchor_sizes).log()), dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """
    The inverse of `encode_boxes`. Log-sizes are cut at ln(1000 / 16), so a box is at most 62.5 anchors wide.

    Args:
        deltas: `(..., 4)` dx, dy, dw, dh as the box head predicts them.
        anchors: `(..., 4)` inclusive corners in pixels, broadcast against `deltas`.

    Returns:
        `(..., 4)` boxes_xyxy in pixels, not clipped, float32 or wider.
    """
    check_boxes_shape(deltas, "deltas")
    check_boxes_shape(anchors, "anchors")
    deltas = _at_least_float32(deltas)
    anchor_centres, anchor_sizes = _centres_and_sizes(_at_least_float32(anchors))
    centres = deltas[..., :2] / CENTRE_WEIGHT * anchor_sizes + anchor_centres
    half = 0.5 * ((deltas[..., 2:] / SIZE_WEIGHT).clamp(max=MAX_LOG_SIZE).exp() * anchor_sizes - 1)
    return torch.cat((centres - half, centres + half), dim=-1)


def clip_boxes(boxes_xyxy: Tensor, height: float | Tensor, width: float | Tensor) -> Tensor:
    """
    Moves corners outside of the image onto its border pixels: x to [0, width - 1], y to [0, height - 1].

    Args:
        boxes_xyxy: `(..., 4)` inclusive corners in pixels.
        height, width: of the un-padded image in pixels: numbers, or tensors that broadcast against
            `boxes_xyxy[..., 0]` (for a batch `(b, n, 4)`: shape `(b, 1)`).

    Returns:
        `(..., 4)` clipped boxes.
    """
    check_boxes_shape(boxes_xyxy, "boxes_xyxy")
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    right, bottom = (to_device(side, boxes_xyxy.device, boxes_xyxy.dtype) - 1 for side in (width, height))
    x1, x2 = (x.clamp(min=0).minimum(right) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0).minimum(bottom) for y in (y1, y2))
    return torch.stack((x1, y1, x2, y2), dim=-1)


def _image_scale(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """(..., 1, 4) width, height, width, height of each image, to broadcast over its boxes."""
    if image_sizes.shape[-1] != 2 or image_sizes.shape[:-1] != boxes.shape[:-2]:
        raise ValueError(
            f"`image_sizes` must have shape {(*boxes.shape[:-2], 2)} (height, width per image) for boxes of shape "
            f"{tuple(boxes.shape)}, got {tuple(image_sizes.shape)}."
        )
    height, width = image_sizes.to(device=boxes.device, dtype=boxes.dtype).unbind(-1)
    return torch.stack((width, height, width, height), dim=-1).unsqueeze(-2)


def normalize_boxes(boxes_xyxy: Tensor, image_sizes: Tensor) -> Tensor:
    """
    Pixels to fractions of the image: the form of `pred_boxes` and of `labels[i]["boxes"]`.

    Args:
        boxes_xyxy: `(b, n, 4)` corners in pixels of the un-padded image, or `(n, 4)` for one image.
        image_sizes: `(b, 2)` (height, width) of each un-padded image in pixels, or `(2,)`.

    Returns:
        `(b, n, 4)` centre x, centre y, width, height as fractions: corners divided by (width, height), converted
        without `+ 1`.
    """
    check_boxes_shape(boxes_xyxy, "boxes_xyxy")
    boxes = _at_least_float32(boxes_xyxy)
    boxes = boxes / _image_scale(boxes, image_sizes)
    return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), dim=-1)


def denormalize_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """
    Fractions to pixels, the inverse of `normalize_boxes`.

    Args:
        boxes: `(b, n, 4)` centre x, centre y, width, height as fractions, or `(n, 4)` for one image.
        image_sizes: `(b, 2)` (height, width) in pixels of the images to measure in, or `(2,)`.

    Returns:
        `(b, n, 4)` boxes_xyxy in pixels.
    """
    check_boxes_shape(boxes, "boxes")
    boxes = _at_least_float32(boxes)
    centres, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centres - half, centres + half), dim=-1) * _image_scale(boxes, image_sizes)


def coco_to_inclusive_xyxy(boxes_xywh: Tensor) -> Tensor:
    """
    COCO's x, y, width, height in pixels to inclusive corners: x2 = x + width - 1, never below x.

    Args:
        boxes_xywh: `(n, 4)`.

    Returns:
        `(n, 4)` boxes_xyxy.

    Raises:
        ValueError: names the first box that is not finite or has a negative width or height.
    """
    check_boxes_shape(boxes_xywh, "boxes_xywh")
    good = (boxes_xywh.abs() < math.inf).all(-1) & (boxes_xywh[..., 2:] >= 0).all(-1)
    if not bool(good.all()):
        index = tuple((~good).nonzero()[0].tolist())
        values = [round(value, 4) for value in boxes_xywh[index].tolist()]
        raise ValueError(
            f"`boxes_xywh[{', '.join(map(str, index))}]` is {values}; expected finite x, y and width, height >= 0. "
            "Drop or repair this box."
        )
    top_left = boxes_xywh[..., :2]
    return torch.cat((top_left, top_left + (boxes_xywh[..., 2:] - 1).clamp(min=0)), dim=-1)


def inclusive_xyxy_to_coco(boxes_xyxy: Tensor) -> Tensor:
    """Inclusive corners `(n, 4)` in pixels to COCO's x, y, width, height `(n, 4)`: width = x2 - x1 + 1."""
    check_boxes_shape(boxes_xyxy, "boxes_xyxy")
    return torch.cat((boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - boxes_xyxy[..., :2] + 1), dim=-1)


def _iou_inclusive(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise IoU with `+ 1` of boxes_xyxy `(..., 4)` that broadcast."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + 1).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    area_a = (a[..., 2:] - a[..., :2] + 1).prod(-1)
    area_b = (b[..., 2:] - b[..., :2] + 1).prod(-1)
    return intersection / (area_a + area_b - intersection)


def box_iou_inclusive(a: Tensor, b: Tensor) -> Tensor:
    """
    Intersection over union with inclusive corners: every width and height counts `+ 1`.

    Args:
        a: `(n, 4)` boxes_xyxy in pixels.
        b: `(m, 4)` boxes_xyxy in pixels.

    Returns:
        `(n, m)` in [0, 1].
    """
    check_boxes_shape(a, "a")
    check_boxes_shape(b, "b")
    return _iou_inclusive(_at_least_float32(a).unsqueeze(-2), _at_least_float32(b).unsqueeze(-3))


def batched_nms_inclusive(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """
    Class-aware non-maximum suppression with the original's IoU.

    In falling order of score, a box is dropped when its IoU (with `+ 1`) with an already kept box of the same label is
    strictly above the threshold. Equal scores are taken in the order given.

    IoU with `+ 1` is the plain IoU of (x1, y1, x2 + 1, y2 + 1). In double precision a box whose IoU equals the
    threshold stays. (torchvision's CUDA kernel rounds the threshold to float32.)

    Args:
        boxes: `(n, 4)` boxes_xyxy in pixels.
        scores: `(n,)`.
        labels: `(n,)` integers.
        iou_threshold: in [0, 1].

    Returns:
        `(kept,)` long, indices into `boxes` by falling score.

    Raises:
        ValueError: when the shapes disagree or a box or score is not finite.
    """
    check_boxes_shape(boxes, "boxes")
    if boxes.ndim != 2:
        raise ValueError(f"`boxes` must have shape (n, 4), got {tuple(boxes.shape)}.")
    if scores.shape != boxes.shape[:1] or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"`scores` {tuple(scores.shape)} and `labels` {tuple(labels.shape)} must have one entry for each of the "
            f"{len(boxes)} boxes."
        )
    # Decoded boxes narrower than a pixel have x2 < x1, rightly, so only numbers that are none are refused.
    finite = boxes.isfinite().all(-1) & ~scores.isnan()
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise ValueError(
            f"`boxes[{index}]` is {boxes[index].tolist()} with score {float(scores[index])}; expected finite numbers."
        )
    return suppress(boxes, scores, labels, iou_threshold)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """
    `batched_nms_inclusive` without its checks, for boxes of any number of images at once; a GPU is waited for once.

    Args:
        boxes: `(n, 4)` boxes_xyxy in pixels, finite.
        scores: `(n,)`.
        groups: `(n,)` integers of at least 0; boxes of different ones (images, labels) leave each other alone.
        iou_threshold: in [0, 1].

    Returns:
        `(kept,)` long, indices into `boxes` by falling score; equal scores in the order given.
    """
    if boxes.device.type == "mps":  # no float64 there
        return suppress(boxes.cpu(), scores.cpu(), groups.cpu(), iou_threshold).to(boxes.device)
    if len(boxes) == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    x1, y1, x2, y2 = boxes.double().unbind(1)
    half_open = torch.stack((x1, y1, x2 + 1, y2 + 1), dim=1)
    # Moving each group by an offset keeps groups apart only where no coordinate is negative.
    half_open -= half_open.amin()
    if boxes.device.type == "cpu":
        # Group by group where there are many boxes, as comparing all of them with each other takes longer.
        kept = batched_nms(half_open, scores.double(), groups.unique(return_inverse=True)[1], iou_threshold)
    else:
        # In one launch, where `batched_nms` makes one a group; in double precision the offsets change no IoU.
        offsets = groups.double() * (half_open.amax() + 1)
        kept = nms(half_open + offsets[:, None], scores.double(), iou_threshold)
    # torchvision leaves open which of two equal scores comes first.
    kept = kept.sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _nearest_anchors(centres: Tensor, anchor_centres: Tensor, count: int) -> Tensor:
    """
    Indices `(n, count)` of the nearest anchors of one level, ascending. Of anchors as far as the last one, the first
    in row-major order are taken: `topk` of distances alone picks differently by device and size.
    """
    difference = (centres[:, None, 0] - anchor_centres[None, :, 0]).square_()
    # Squared distances: the same order as distances, without the ties that rounding a root makes.
    distance = difference.add_((centres[:, None, 1] - anchor_centres[None, :, 1]).square_())
    # The bits of floats above 0 rise as the floats do, so that distance and index make one key without ties.
    key = (distance.view(torch.int32).long() << 32) + torch.arange(len(anchor_centres), device=distance.device)
    nearest = key.topk(count, dim=1, largest=False, sorted=False).values
    return (nearest & 0xFFFFFFFF).sort(dim=1).values


@torch.no_grad()
def assign_atss(
    anchors: Tensor,
    num_anchors_per_level: Sequence[int],
    boxes_xyxy: Tensor,
    image: Tensor,
    num_images: int,
    topk: int = 9,
) -> tuple[Tensor, Tensor]:
    """
    Adaptive training sample selection (Zhang et al., CVPR 2020): which anchors learn which box, for all images of a
    batch at once, which spares a GPU hundreds of small steps.

    For each box the `topk` anchors nearest by centre are taken from every level (all of a level that has fewer). Of
    these candidates those become positive whose IoU reaches the mean plus the unbiased standard deviation of the
    candidates' IoUs, and whose centre is inside the box by more than 0.01 pixel on each side. An anchor that is
    positive for several boxes of its image learns the one it overlaps most, the first of them if equal. A box may end
    with no anchor.

    Args:
        anchors: `(anchors, 4)` boxes_xyxy in pixels, level after level, the same for all images.
        num_anchors_per_level: how many anchors each level has; their sum is `anchors`.
        boxes_xyxy: `(n, 4)` boxes of all images in the same pixels, finite and not reversed (`check_boxes_xyxy`); an
            image may have none (all its anchors are background).
        image: long `(n,)`, the image of each box, in [0, num_images).
        num_images: how many there are.
        topk: candidates per level and box.

    Returns:
        `(num_images, anchors)` long: the index in `boxes_xyxy` of the box that each anchor learns, -1 = background;
        and `(n, candidates)` long: the anchors that are candidates of each box.

    Raises:
        ValueError: when the levels do not add up.
    """
    check_boxes_shape(anchors, "anchors")
    if sum(num_anchors_per_level) != len(anchors):
        raise ValueError(
            f"`num_anchors_per_level` {list(num_anchors_per_level)} adds up to {sum(num_anchors_per_level)}, but "
            f"there are {len(anchors)} anchors."
        )
    if topk < 1:
        raise ValueError(f"`topk` must be at least 1, got {topk}.")
    anchors, boxes = anchors.float(), boxes_xyxy.to(device=anchors.device, dtype=torch.float32)
    # The anchors of all images, one image after the other.
    matched = torch.full((num_images * len(anchors),), -1, dtype=torch.long, device=anchors.device)
    best_iou = anchors.new_full((len(matched),), -math.inf)
    num_candidates = sum(min(topk, count) for count in num_anchors_per_level)
    if len(boxes) == 0 or len(anchors) == 0:
        return matched.view(num_images, len(anchors)), image.new_zeros(len(boxes), num_candidates)
    anchor_centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    boxes_at_once = max(1, DISTANCES_AT_ONCE // len(anchors))
    all_candidates = []
    for start in range(0, len(boxes), boxes_at_once):
        chunk = boxes[start : start + boxes_at_once]
        centres = (chunk[:, :2] + chunk[:, 2:]) / 2
        nearest, first = [], 0
        for count in num_anchors_per_level:
            if count:
                level = _nearest_anchors(centres, anchor_centres[first : first + count], min(topk, count))
                nearest.append(level + first)
            first += count
        candidates = torch.cat(nearest, dim=1)  # (boxes, candidates)
        all_candidates.append(candidates)
        iou = _iou_inclusive(chunk.unsqueeze(1), anchors[candidates])
        spread = iou.std(1, keepdim=True) if iou.shape[1] > 1 else torch.zeros_like(iou)
        candidate_centres = anchor_centres[candidates]
        margin = torch.cat(
            (candidate_centres - chunk[:, None, :2], chunk[:, None, 2:] - candidate_centres), dim=-1
        ).amin(-1)
        positive = (iou >= iou.mean(1, keepdim=True) + spread) & (margin > INSIDE_MARGIN)
        box = torch.arange(start, start + len(chunk), device=anchors.device)[:, None].expand_as(candidates).flatten()
        anchor = (candidates + image[start : start + len(chunk), None] * len(anchors)).flatten()
        # Candidates that are not positive take part without a chance, so that shapes depend on no value.
        pair_iou = iou.masked_fill(~positive, -math.inf).flatten()
        # Best pair of each anchor: highest IoU first, then the lowest box. A later chunk wins only by a higher IoU.
        chunk_best = torch.full_like(best_iou, -math.inf).scatter_reduce_(0, anchor, pair_iou, "amax")
        wins = (pair_iou == chunk_best[anchor]) & (pair_iou > best_iou[anchor])
        winner = torch.full_like(matched, len(boxes))
        winner.scatter_reduce_(0, anchor, torch.where(wins, box, len(boxes)), "amin")
        matched = torch.where(winner < len(boxes), winner, matched)
        best_iou = torch.maximum(best_iou, chunk_best)
    return matched.view(num_images, len(anchors)), torch.cat(all_candidates)


def centerness_targets(boxes_xyxy: Tensor, anchors: Tensor) -> Tensor:
    """
    How central each anchor is in its box (FCOS): sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), with the
    distances l, t, r, b from the anchor's centre to the sides.

    Args:
        boxes_xyxy: `(p, 4)` the box each positive anchor learns, pixels.
        anchors: `(p, 4)` those anchors.

    Returns:
        `(p,)` in [0, 1], 0 for an anchor whose centre is outside, float32 or wider.
    """
    check_boxes_shape(boxes_xyxy, "boxes_xyxy")
    check_boxes_shape(anchors, "anchors")
    boxes_xyxy, anchors = _at_least_float32(boxes_xyxy), _at_least_float32(anchors)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = (centres - boxes_xyxy[..., :2]).clamp(min=0), (boxes_xyxy[..., 2:] - centres).clamp(min=0)
    longer = torch.maximum(before, after).clamp(min=torch.finfo(before.dtype).tiny)
    return (torch.minimum(before, after) / longer).prod(-1).sqrt()
