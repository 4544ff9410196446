"""
Results drawn into images: boxes and masks with their names.

torchvision's `draw_segmentation_masks` paints what several masks cover black, and its `draw_bounding_boxes` writes in
the size of the image only with a font file, so masks and names are drawn here.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MASK_OPACITY = 0.5


@dataclass
class DrawnObject:
    """
    One object to draw.

    Attributes:
        text (`str`): its name, written at the box.
        box (`Sequence[float]`): x1, y1, x2, y2 in pixels of the image.
        mask (`np.ndarray` of shape `(height, width)`, *optional*): boolean.
        group (`int`, *optional*): objects of a group share a colour; by default each has its own.
    """

    text: str
    box: Sequence[float]
    mask: np.ndarray | None = None
    group: int | None = None


def draw(image: Image.Image, objects: Sequence[DrawnObject]) -> Image.Image:
    """
    A copy of the image with boxes, half-transparent masks with bright outlines, and names.

    Args:
        image: RGB; it is not changed.
        objects: the highest-scoring first; they are drawn last, on top.
    """
    colors = [palette_color(index if one.group is None else one.group) for index, one in enumerate(objects)]
    ordered = list(zip(objects, colors, strict=True))[::-1]
    drawing = Image.fromarray(_with_masks(np.asarray(image.convert("RGB")), ordered))
    pen = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(max(12, max(image.size) // 50))
    line = max(2, max(image.size) // 300)
    for one, color in ordered:
        x1, y1, x2, y2 = one.box
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color, width=line)
    for one, color in ordered:
        _write(pen, one.text, one.box[0], one.box[1], color, font, image.size)
    return drawing


def _with_masks(pixels: np.ndarray, ordered: Sequence[tuple[DrawnObject, tuple[int, int, int]]]) -> np.ndarray:
    pixels = pixels.astype(np.float32)
    for one, color in ordered:
        if one.mask is None:
            continue
        mask = np.asarray(one.mask, dtype=bool)
        if mask.shape != pixels.shape[:2]:
            raise ValueError(
                f"the mask of {one.text!r} has shape {mask.shape}; expected the image's {pixels.shape[:2]} "
                "(height, width)."
            )
        pixels[mask] = (1 - MASK_OPACITY) * pixels[mask] + MASK_OPACITY * np.array(color, dtype=np.float32)
        inner = mask.copy()
        inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        pixels[mask & ~inner] = color
    return pixels.round().astype(np.uint8)


def _write(pen, text: str, x: float, y: float, color: tuple[int, int, int], font, size: tuple[int, int]) -> None:
    """A name on a patch of its colour, above the corner (x, y) and inside the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x = min(max(x, 0), max(size[0] - right - 4, 0))
    y = max(y - bottom - 4, 0)
    pen.rectangle((x, y, x + right + 4, y + bottom + 4), fill=color)
    pen.text((x + 2 - left, y + 2 - min(top, 0)), text, fill="black", font=font)


def palette_color(index: int) -> tuple[int, int, int]:
    """Bright colours, neighbours far apart in hue (steps of the golden section)."""
    red, green, blue = colorsys.hsv_to_rgb(0.618034 * index % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


__all__ = ["DrawnObject", "draw", "palette_color"]
