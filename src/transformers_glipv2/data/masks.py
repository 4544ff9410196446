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
            "counts": list | str | bytes}` (crowds), a `(height, width)` array, or `None` or `[]` for no mask.
        height, width (`int`): of the image, in pixels.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool, or `None` where there is no mask.

    Raises:
        ValueError: when the segmentation is none of these, was made for another size, or holds numbers that fit no
            mask of this size.
    """
    if segmentation is None or (isinstance(segmentation, (list, tuple)) and not segmentation):
        return None
    problem = mask_problem(segmentation, height, width)
    if problem:
        raise ValueError(f"{problem}; expected polygons, COCO RLE or an array of the image's size.")
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(bool)
    # pycocotools is needed for files only; scenes made in memory carry arrays.
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, Mapping):
        return coco_mask.decode(compressed_rle(segmentation)).astype(bool)
    # Fewer than three corners are no area, and pycocotools would take four numbers for a box.
    polygons = [list(polygon) for polygon in segmentation if len(polygon) >= 6]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def mask_problem(segmentation: Any, height: int, width: int) -> str | None:
    """
    What is wrong with a segmentation, found without drawing it. What passes is safe to hand to pycocotools, whose C
    code trusts its arguments.

    Args:
        segmentation: as `decode_mask` takes it.
        height, width (`int`): of the image, in pixels.

    Returns:
        `str | None`: for a message; `None` for one that can be decoded, and for `None`.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, np.ndarray):
        if segmentation.shape != (height, width):
            return f"a mask of (height, width) {segmentation.shape} for an image of {(height, width)}"
        return None if segmentation.dtype.kind in "buif" else f"a mask of the type {segmentation.dtype}"
    if isinstance(segmentation, Mapping):
        return _rle_problem(segmentation, height, width)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)):
        return _polygon_problem(segmentation, height, width)
    return f"not a segmentation: {_short(segmentation)}"


def segmentation_box(segmentation: Any, height: int, width: int) -> list[float] | None:
    """x, y, width, height in pixels around polygons or a run-length mask; `None` where there is none or a bad one."""
    if not segmentation or mask_problem(segmentation, height, width):
        return None
    if isinstance(segmentation, Mapping):
        from pycocotools import mask as coco_mask

        return [float(value) for value in coco_mask.toBbox(compressed_rle(segmentation))]
    xs, ys = (np.concatenate([polygon[start::2] for polygon in segmentation]) for start in (0, 1))
    return [float(xs.min()), float(ys.min()), float(xs.max() - xs.min()), float(ys.max() - ys.min())]


def compressed_rle(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    """A run-length mask in which `mask_problem` finds none, as pycocotools takes it: with a string of counts."""
    if isinstance(segmentation["counts"], list):
        from pycocotools import mask as coco_mask

        return coco_mask.frPyObjects(dict(segmentation), *segmentation["size"])
    return {"size": list(segmentation["size"]), "counts": segmentation["counts"]}


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


def mask_polygon(mask: np.ndarray) -> np.ndarray | None:
    """
    One polygon around a mask, for formats that have neither several parts nor holes.

    It goes halfway between pixels inside and outside, so that it holds the centres of exactly the pixels of the mask.
    Pixels that touch at a corner are one part. See [`join_polygons`] for further parts and holes.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): bool.

    Returns:
        `np.ndarray` of shape `(corners, 2)`: x, y in pixels from edge to edge; `None` for an empty mask.
    """
    polygons = _outlines(mask)
    return join_polygons(polygons) if polygons else None


def join_polygons(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """
    Several polygons as one: each is joined to those before by a line there and back, where they are nearest.

    Args:
        polygons (`Sequence[np.ndarray]`): one or more of shape `(corners, 2)`.

    Returns:
        `np.ndarray` of shape `(corners, 2)`.
    """
    joined, *others = sorted(polygons, key=len, reverse=True)
    for other in others:
        distances = ((joined[:, None] - other[None]) ** 2).sum(-1)
        at, start = np.unravel_index(distances.argmin(), distances.shape)
        joined = np.concatenate([joined[: at + 1], other[start:], other[: start + 1], joined[at:]])
    return joined


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the parts of a mask, clockwise, and of its holes, the other way round."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    # Sides of pixels to the outside, with the pixel on the right: at the top to the right, on the right down, and so
    # on. A side starts at a corner, which is numbered by rows.
    corners = mask.shape[1] + 1
    steps = (1, corners, -1, -corners)
    outside = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = (0, 1, corners + 1, corners)
    sides: dict[int, list[int]] = {}
    for direction, (neighbour, start) in enumerate(zip(outside, starts, strict=True)):
        rows, columns = np.nonzero(inside & ~neighbour)
        for corner in (rows * corners + columns + start).tolist():
            sides.setdefault(corner, []).append(direction)
    outlines = []
    while sides:
        corner = next(iter(sides))
        direction = sides[corner][0] + 1
        walked = []
        while corner in sides:
            # To the left first, which joins pixels that touch at this corner.
            ways = [way % 4 for way in (direction + 3, direction, direction + 1)]
            direction = next(way for way in ways if way in sides[corner])
            sides[corner].remove(direction)
            if not sides[corner]:
                del sides[corner]
            walked.append((corner, direction))
            corner += steps[direction]
        passed, directions = np.array(walked).T
        outlines.append(_through_middles(passed, directions, corners))
    return outlines


def _through_middles(starts: np.ndarray, directions: np.ndarray, corners: int) -> np.ndarray:
    """The middles of sides of pixels, without those on a straight line between others."""
    along = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])[directions]
    points = 2 * np.stack([starts % corners, starts // corners], axis=1) + along
    turns = (np.roll(points, -1, axis=0) - points != points - np.roll(points, 1, axis=0)).any(axis=1)
    return points[turns] / 2


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


def _rle_problem(segmentation: Mapping[str, Any], height: int, width: int) -> str | None:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(counts, (list, str, bytes)) or not isinstance(size, (list, tuple)):
        return f"not a run-length mask: {_short(dict(segmentation))}"
    if height * width >= 1 << 32:
        return f"a run-length mask of {height} x {width} pixels; they end at 2^32"
    if list(size) != [height, width] or any(isinstance(side, bool) for side in size):
        return f"a mask of (height, width) {_short(tuple(size))} for an image of {(height, width)}"
    if isinstance(counts, list):
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
            return f"run lengths that are no whole numbers from 0 up: {_short(counts)}"
        total = sum(counts)
    else:
        runs = _decoded_counts(counts)
        if runs is None or (runs < 0).any():
            return f"a broken string of run lengths: {_short(counts)}"
        total = int(runs.sum())
    if total != height * width:
        return f"run lengths of {total} pixels for an image of {height} x {width} = {height * width}"
    return None


def _decoded_counts(text: str | bytes) -> np.ndarray | None:
    """
    The run lengths in a COCO string, int64, or `None` where it is none.

    A character holds 5 bits of a number, the lowest first; bit 5 says that more follow, and bit 4 of the last is the
    sign. From the fourth on, numbers are differences to the number two before.
    """
    try:
        data = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        return None
    characters = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not len(characters):
        return np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero((characters & 0x20) == 0)
    if characters.min() < 0 or characters.max() > 63 or not len(ends) or ends[-1] != len(characters) - 1:
        return None
    starts = np.r_[0, ends[:-1] + 1]
    lengths = ends - starts + 1
    # Seven characters hold 35 bits; pycocotools writes numbers of 32.
    if lengths.max() > 7:
        return None
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 0x1F) << (5 * places), starts)
    numbers -= np.where(characters[ends] & 0x10, 1 << (5 * lengths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _polygon_problem(polygons: Sequence[Any], height: int, width: int) -> str | None:
    for polygon in polygons:
        numbers = isinstance(polygon, (list, tuple)) and all(
            isinstance(value, (int, float)) and not isinstance(value, bool) for value in polygon
        )
        if not numbers or len(polygon) % 2:
            return f"not a polygon: {_short(polygon)}"
        # Drawing takes time and memory by the length of the outline. Comparisons are false for NaN.
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if not all(-side <= value <= 2 * side for value in values):
                return f"a polygon beyond an image of {width} x {height} by more than its size: {_short(polygon)}"
    if all(len(polygon) < 6 for polygon in polygons):
        return f"no polygon of three corners or more: {_short(polygons)}"
    return None


def _short(value: Any) -> str:
    text = str(value[:20] if isinstance(value, (list, tuple)) else value)
    return text if len(text) <= 80 else text[:77] + "..."
