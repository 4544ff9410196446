"""Segmentations of every kind as boolean arrays: polygons, compressed and plain run lengths, arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any] | np.ndarray


def decode_mask(segmentation: Segmentation | None, height: int, width: int) -> np.ndarray | None:
    """
    One mask.

    Args:
        segmentation: COCO polygons `[[x0, y0, x1, y1, ...], ...]` in pixels, COCO RLE `{"size": [height, width],
            "counts": list | str | bytes}` (crowds), a `(height, width)` array, or `None`.
        height, width (`int`): of the image, in pixels.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool, or `None` where there is no mask.

    Raises:
        ValueError: when the segmentation is none of these, or was made for another size.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, np.ndarray):
        _check_size(segmentation.shape, height, width)
        return segmentation.astype(bool)
    # pycocotools is needed for files only; scenes made in memory carry arrays.
    from pycocotools import mask as coco_mask

    rle = _as_rle(segmentation, height, width)
    if rle is None:
        return None
    _check_size(rle["size"], height, width)
    return coco_mask.decode(rle).astype(bool)


def mask_problem(segmentation: Any, height: int, width: int) -> str | None:
    """
    What is wrong with a segmentation, found without drawing it.

    Args:
        segmentation: as `decode_mask` takes it.
        height, width (`int`): of the image, in pixels.

    Returns:
        `str | None`: for a message; `None` for one that can be decoded, and for `None`.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, np.ndarray):
        size = segmentation.shape
    elif isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if not isinstance(segmentation.get("counts"), (list, str, bytes)) or not isinstance(size, Sequence):
            return f"not a run-length mask: {str(dict(segmentation))[:80]}"
    elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        return _polygon_problem(segmentation)
    else:
        return f"not a segmentation: {str(segmentation)[:80]}"
    if tuple(size) == (height, width):
        return None
    return f"a mask of (height, width) {tuple(size)} for an image of {(height, width)}"


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """
    A boolean mask as compressed COCO RLE.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): bool.

    Returns:
        `dict`: `{"size": [height, width], "counts": str}`, ready for json.
    """
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def stack_masks(segmentations: Sequence[Segmentation | None], height: int, width: int) -> np.ndarray:
    """
    The masks of all objects of an image.

    Returns:
        `np.ndarray` of shape `(objects, height, width)`, bool; all False where an object has no mask, which mask
        losses must leave out.
    """
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for index, segmentation in enumerate(segmentations):
        mask = decode_mask(segmentation, height, width)
        if mask is not None:
            masks[index] = mask
    return masks


def _as_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any] | None:
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, Mapping):
        if isinstance(segmentation.get("counts"), list):
            return coco_mask.frPyObjects(dict(segmentation), *segmentation["size"])
        if isinstance(segmentation.get("counts"), (str, bytes)):
            return dict(segmentation)
    elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        # Fewer than three corners are no area, and pycocotools would take four numbers for a box.
        polygons = [list(polygon) for polygon in segmentation if len(polygon) >= 6]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) if polygons else None
    raise ValueError(f"not a segmentation: {str(segmentation)[:80]}; expected polygons, COCO RLE or an array.")


def _check_size(size: Sequence[int], height: int, width: int) -> None:
    if tuple(size) != (height, width):
        raise ValueError(f"a mask of (height, width) {tuple(size)} does not fit an image of {(height, width)}.")


def _polygon_problem(polygons: Sequence[Any]) -> str | None:
    for polygon in polygons:
        numbers = isinstance(polygon, Sequence) and all(isinstance(value, (int, float)) for value in polygon)
        if not numbers or len(polygon) % 2 or not np.isfinite(polygon).all():
            return f"not a polygon: {str(polygon)[:80]}"
    if all(len(polygon) < 6 for polygon in polygons):
        return f"no polygon of three corners or more: {str(polygons)[:80]}"
    return None
