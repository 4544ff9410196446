"""
Masks inside boxes to masks of the image, as pure functions: pasted, encoded as run lengths, or united.

Each mask is resized over its own box only and written out before the next is made, so that hundreds of masks of a
large image need the memory of one, unless they are asked for as full arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import check_boxes_shape
from ..post_processing import scale_boxes

# A mask is resized with a border of this many empty cells, so that it fades out at the sides of its box.
BORDER = 1


# One mask at a time --------------------------------------------------------------------------------------------------


def place_box(box_xyxy: Tensor, cells: int) -> tuple[int, int, int, int]:
    """
    The pixels that a mask with its border covers: the box grown by the border, its corners cut to whole pixels.

    Args:
        box_xyxy: `(4,)` inclusive corners in pixels of the image.
        cells: side of the mask without border.

    Returns:
        left, top, width, height in pixels; it may reach outside the image.
    """
    centre, half = (box_xyxy[:2] + box_xyxy[2:]) / 2, (box_xyxy[2:] - box_xyxy[:2]) / 2
    half = half * ((cells + 2 * BORDER) / cells)
    left, top = (centre - half).long().tolist()
    right, bottom = (centre + half).long().tolist()
    return left, top, max(right - left + 1, 1), max(bottom - top + 1, 1)


def paste_regions(
    mask_logits: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[Tensor, int, int]]:
    """
    Each mask at the image's resolution, but only where its box is.

    Args:
        mask_logits: `(n, side, side)`, the logit of each cell of the boxes.
        boxes_xyxy: `(n, 4)` inclusive corners in pixels of the image.
        size: (height, width) of the image.
        threshold: on the probability; equal is outside the mask.

    Yields:
        Boolean `(h, w)` on the CPU, the box's part of the mask; and its top and left in the image, so that `mask[top :
        top + h, left : left + w]` is that part. A box outside the image has no pixels.

    Raises:
        ValueError: when masks and boxes do not fit, or a size or threshold makes no sense.
    """
    check_masks(mask_logits, boxes_xyxy, size, threshold)
    height, width = size
    # All at once: a GPU would be waited for at each mask.
    for logits, box in zip(mask_logits.cpu(), boxes_xyxy.float().cpu(), strict=True):
        left, top, box_width, box_height = place_box(box, logits.shape[-1])
        probabilities = F.pad(logits.float().sigmoid(), [BORDER] * 4)
        rows = interpolation_weights(len(probabilities), box_height, -top, height - top)
        columns = interpolation_weights(len(probabilities), box_width, -left, width - left)
        yield rows @ probabilities @ columns.T > threshold, max(top, 0), max(left, 0)


def interpolation_weights(cells: int, pixels: int, start: int, stop: int) -> Tensor:
    """
    Bilinear resizing along one axis as a matrix, for a part of the pixels; as `F.interpolate` with
    `align_corners=False`.

    A box may reach far outside its image; only the part inside is computed.

    Args:
        cells: to resize from.
        pixels: to resize to.
        start, stop: the pixels wanted, cut to [0, pixels).

    Returns:
        `(pixels wanted, cells)`, two weights for each pixel.
    """
    start, stop = min(max(start, 0), pixels), min(max(stop, 0), pixels)
    wanted = torch.arange(start, max(stop, start), dtype=torch.float64)
    source = ((wanted + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    distance = (source[:, None] - torch.arange(cells)).abs()
    return (1 - distance).clamp(min=0).float()


def check_masks(mask_logits: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], threshold: float) -> None:
    """Raises `ValueError` or `TypeError` unless there is one square mask a box, an image and a probability."""
    check_boxes_shape(boxes_xyxy, "boxes_xyxy")
    if mask_logits.ndim != 3 or mask_logits.shape[1] != mask_logits.shape[2] or len(mask_logits) != len(boxes_xyxy):
        raise ValueError(
            f"`mask_logits` must have shape ({len(boxes_xyxy)}, side, side), one square mask a box, not "
            f"{tuple(mask_logits.shape)}."
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`size` must be (height, width) in pixels, not {tuple(size)}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"The threshold on masks is a probability between 0 and 1, not {threshold}.")


# Run lengths ---------------------------------------------------------------------------------------------------------


def encode_region(region: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """
    COCO's compressed run lengths of a mask that is empty outside one region.

    The same as pycocotools gives for the whole mask, made from the region alone.

    Args:
        region: boolean `(h, w)`.
        top, left: its position in the image.
        size: (height, width) of the image.

    Returns:
        {"size": [height, width], "counts": str}, as json and `pycocotools.mask.decode` take it.
    """
    height, width = (int(side) for side in size)
    # Runs go down the columns; an edge is where a pixel differs from the one above it.
    columns = np.zeros((region.shape[1], region.shape[0] + 2), dtype=bool)
    columns[:, 1:-1] = region.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    edges = (column + left) * height + row + top
    # A run that leaves a column at its bottom and enters the next at its top is one.
    same = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([same, same + 1]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]
    return {"size": [height, width], "counts": compress_counts(counts)}


def compress_counts(counts: np.ndarray) -> str:
    """
    Run lengths in COCO's text form: each but the first three as its difference from the last but one, in digits of
    five bits, lowest first, with a sixth bit where more follow and two's complement for the sign, from the character
    "0" on.
    """
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    digits, going = [], np.ones(len(values), dtype=bool)
    while going.any():
        digit = values & 31
        values = values >> 5
        more = np.where(digit & 16, values != -1, values != 0)
        digits.append(np.where(going, digit + 32 * more + 48, 0))
        going = going & more
    characters = np.stack(digits, axis=1).ravel().astype(np.uint8)
    return characters[characters > 0].tobytes().decode("ascii")


# Whole images ------------------------------------------------------------------------------------------------------


def instance_masks(
    mask_logits: Tensor,
    boxes_xyxy: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    return_rle: bool = False,
) -> Tensor | list[dict[str, Any]]:
    """
    The masks of an image's boxes.

    Args:
        mask_logits, boxes_xyxy, size, threshold: as in `paste_regions`.
        return_rle: run lengths in place of arrays, of which 300 of 4000 x 3000 pixels are 3.6 GB.

    Returns:
        Boolean `(n, height, width)` on the CPU; or for each mask {"size": [height, width], "counts": str}.
    """
    regions = paste_regions(mask_logits, boxes_xyxy, size, threshold)
    if return_rle:
        return [encode_region(region.numpy(), top, left, size) for region, top, left in regions]
    masks = torch.zeros((len(boxes_xyxy), *size), dtype=torch.bool)
    for mask, (region, top, left) in zip(masks, regions, strict=True):
        mask[top : top + region.shape[0], left : left + region.shape[1]] = region
    return masks


def union_mask(mask_logits: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """
    One mask of everything that several boxes show, as a referring phrase asks for.

    Args:
        mask_logits, boxes_xyxy, size, threshold: as in `paste_regions`; without boxes the mask is empty.

    Returns:
        Boolean `(height, width)` on the CPU.
    """
    union = torch.zeros(tuple(size), dtype=torch.bool)
    for region, top, left in paste_regions(mask_logits, boxes_xyxy, size, threshold):
        union[top : top + region.shape[0], left : left + region.shape[1]] |= region
    return union


def boxes_for_masks(
    boxes_xyxy: Sequence[Tensor], image_sizes: Tensor, target_sizes: Sequence[tuple[int, int]] | None
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """
    Boxes of finished detections in pixels of the resized images, where masks are predicted, and where masks go.

    Args:
        boxes_xyxy: for each image `(n_i, 4)` in pixels of its target size.
        image_sizes: `(batch, 2)` height and width of each resized image.
        target_sizes: (height, width) of each image to give masks in; `None` for the resized ones.

    Returns:
        For each image its boxes in pixels of the resized image, and the (height, width) of its masks.
    """
    own_sizes = [tuple(size) for size in image_sizes.tolist()]
    if target_sizes is None:
        return list(boxes_xyxy), own_sizes
    sizes = [tuple(int(side) for side in size) for size in target_sizes]
    scaled = [scale_boxes(boxes, size, own) for boxes, size, own in zip(boxes_xyxy, sizes, own_sizes, strict=True)]
    return scaled, sizes


@torch.no_grad()
def predict_mask_logits(
    outputs: Any,
    boxes_xyxy: Sequence[Tensor],
    positive_maps: Sequence[Tensor],
    target_sizes: Sequence[tuple[int, int]] | None = None,
    model: Any = None,
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """
    The model's masks in the boxes of finished detections.

    Args:
        outputs: of `GLIPv2ForInstanceSegmentation`.
        boxes_xyxy: for each image `(n_i, 4)` in pixels of its target size.
        positive_maps: for each image `(n_i, tokens)`, above 0 at the tokens of each box's label.
        target_sizes: (height, width) of each image that the boxes are measured in; `None` for the resized ones.
        model: the model that gave `outputs`; needed only for copies of outputs, which do not know it.

    Returns:
        For each image `(n_i, side, side)`, and the (height, width) that its boxes are measured in.

    Raises:
        TypeError: when the model predicts no masks.
        ValueError: when `outputs` do not know their model, or boxes do not fit them.
    """
    if model is None and not hasattr(outputs, "predict_masks"):
        raise TypeError(
            f"`outputs` ({type(outputs).__name__}) hold no masks; pass those of `GLIPv2ForInstanceSegmentation`."
        )
    boxes, sizes = boxes_for_masks(boxes_xyxy, outputs.image_sizes, target_sizes)
    if model is None:
        return outputs.predict_masks(boxes, positive_maps), sizes
    return model.predict_masks(outputs, boxes, positive_maps), sizes


def strong_boxes(phrase: Mapping[str, Any], threshold: float, keep_best: bool) -> dict[str, Any]:
    """
    A phrase's boxes that its mask is made of.

    Args:
        phrase: {"scores" `(n,)` in falling order, "boxes" `(n, 4)`, ...}.
        threshold: scores from here on count.
        keep_best: the first box counts whatever its score.

    Returns:
        The same entries with fewer boxes.
    """
    kept = phrase["scores"] >= threshold
    kept[: int(keep_best)] = True
    return {**phrase, "scores": phrase["scores"][kept], "boxes": phrase["boxes"][kept]}


def referring_masks(
    found: Sequence[Mapping[str, Any]],
    mask_logits: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """
    One mask for each phrase of an image.

    Args:
        found: a phrase's {"boxes" `(n_i, 4)` in pixels of `size`, ...} each.
        mask_logits: `(sum of n_i, side, side)`, those of all phrases in order.
        size, threshold: as in `paste_regions`.

    Returns:
        The same entries, each with "mask", boolean `(height, width)`: the union over the phrase's boxes.
    """
    logits = mask_logits.split([len(phrase["boxes"]) for phrase in found])
    return [
        {**phrase, "mask": union_mask(own, phrase["boxes"], size, threshold)}
        for phrase, own in zip(found, logits, strict=True)
    ]
