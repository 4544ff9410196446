"""EXIF orientation: images are turned upright, and annotations that were made on the stored pixels turn with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transformers_glipv2.data.masks import Segmentation, decode_mask

BOXES_ON = ("auto", "upright", "stored")


def check_boxes_on(boxes_on: str) -> None:
    """Raises ValueError for another name than those in `BOXES_ON`."""
    if boxes_on not in BOXES_ON:
        raise ValueError(f"`boxes_on` is {boxes_on!r}; choose one of {', '.join(BOXES_ON)}.")


def fits_stored_pixels(
    orientation: int, stored_size: tuple[int, int], size: tuple[int, int] | None, boxes_on: str = "auto"
) -> bool | None:
    """
    Whether annotations were made on an image's pixels as they are stored, without regard to its EXIF orientation.

    Args:
        orientation (`int`): of EXIF, 1 to 8.
        stored_size (`tuple[int, int]`): width and height as stored, in pixels.
        size (`tuple[int, int]` or `None`): width and height that the annotations give.
        boxes_on (`str`, *optional*, defaults to `"auto"`): "upright" or "stored" where the user knows; "auto" tells it
            from the size.

    Returns:
        `bool | None`: `None` where the size fits both, as of square images and those that are upside down.
    """
    if orientation == 1 or boxes_on != "auto":
        return orientation != 1 and boxes_on == "stored"
    if size is None:
        return False
    upright_size = stored_size[::-1] if orientation >= 5 else stored_size
    if upright_size == stored_size:
        return None
    return size == stored_size


def turn_objects(
    objects: Mapping[str, Sequence[Any]], orientation: int, stored_size: tuple[int, int]
) -> dict[str, list[Any]]:
    """
    Objects of the stored pixels as objects of the upright image.

    Args:
        objects (`Mapping[str, Sequence]`): columns of the schema.
        orientation (`int`): of EXIF, 1 to 8.
        stored_size (`tuple[int, int]`): width and height as stored, in pixels.

    Returns:
        `dict[str, list]`: with "bbox" and "segmentation" turned; other columns stay.
    """
    width, height = stored_size
    turned = {name: list(column) for name, column in objects.items()}
    turned["bbox"] = [_turn_box(box, orientation, width, height) for box in turned["bbox"]]
    if "segmentation" in turned:
        turned["segmentation"] = [
            turn_segmentation(mask, orientation, width, height) for mask in turned["segmentation"]
        ]
    return turned


def turn_point(x: float, y: float, orientation: int, width: int, height: int) -> tuple[float, float]:
    """A point of the stored image of `width` x `height` pixels in the upright one."""
    x, y = {
        1: (x, y),
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }[orientation]
    return x, y


def turn_segmentation(
    segmentation: Segmentation | None, orientation: int, width: int, height: int
) -> Segmentation | None:
    """A segmentation of the stored image in the upright one: polygons as polygons, everything else as an array."""
    if segmentation is None:
        return None
    if isinstance(segmentation, (Mapping, np.ndarray)):
        mask = np.asarray(decode_mask(segmentation, height, width))
        mirrored = {2: mask[:, ::-1], 4: mask[::-1], 5: mask.T, 7: mask[::-1, ::-1].T}
        turns = {1: 0, 3: 2, 6: -1, 8: 1}
        return np.ascontiguousarray(
            mirrored[orientation] if orientation in mirrored else np.rot90(mask, turns[orientation])
        )
    return [
        [
            value
            for x, y in zip(polygon[::2], polygon[1::2], strict=True)
            for value in turn_point(x, y, orientation, width, height)
        ]
        for polygon in segmentation
    ]


def _turn_box(box: Sequence[float], orientation: int, width: int, height: int) -> list[float]:
    x, y, w, h = box
    corners = [turn_point(*corner, orientation, width, height) for corner in ((x, y), (x + w, y + h))]
    (x1, x2), (y1, y2) = (sorted(values) for values in zip(*corners, strict=True))
    return [x1, y1, x2 - x1, y2 - y1]
