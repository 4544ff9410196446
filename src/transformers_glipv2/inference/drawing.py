"""
Results drawn into images: boxes and masks with their names.

torchvision's `draw_segmentation_masks` paints what several masks cover black, and its `draw_bounding_boxes` writes in
the size of the image only with a font file, so masks and names are drawn here.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MASK_OPACITY = 0.5
# Around a name, in pixels.
PADDING = 2
# From this overlap on, two boxes show one object.
SAME_IOU = 0.9


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

    Names of objects whose boxes are all but the same stand together ("banana 0.52 / apple 0.40"). No name hides
    another as long as there is room; one that stands away from its box is tied to it by a line.

    Args:
        image: RGB; it is not changed.
        objects: the highest-scoring first; they are drawn last, on top, and their names have the first choice.
    """
    colors = [palette_color(index if one.group is None else one.group) for index, one in enumerate(objects)]
    ordered = list(zip(objects, colors, strict=True))[::-1]
    drawing = Image.fromarray(_with_masks(np.asarray(image.convert("RGB")), ordered))
    pen = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(max(12, max(image.size) // 50))
    line = max(2, max(image.size) // 300)
    groups = same_boxes([one.box for one in objects])
    for first, *_ in groups[::-1]:
        x1, y1, x2, y2 = objects[first].box
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colors[first], width=line)
    names = [" / ".join(dict.fromkeys(text for index in group if (text := objects[index].text))) for group in groups]
    shown = [(group[0], name) for group, name in zip(groups, names, strict=True) if name]
    texts = [_wrapped(pen, name, font, image.width - 2 * PADDING) for _, name in shown]
    sizes = [_patch_size(pen, text, font) for text in texts]
    corners = place_names([objects[first].box for first, _ in shown], sizes, image.size)
    patches = [(x, y, x + width, y + height) for (x, y), (width, height) in zip(corners, sizes, strict=True)]
    for (first, _), patch in zip(shown, patches, strict=True):
        _tie(pen, patch, objects[first].box, colors[first], line)
    for (first, _), text, patch in list(zip(shown, texts, patches, strict=True))[::-1]:
        pen.rectangle(patch, fill=colors[first])
        pen.multiline_text((patch[0] + PADDING, patch[1] + PADDING), text, fill="black", font=font, anchor="la")
    return drawing


def same_boxes(boxes: Sequence[Sequence[float]]) -> list[list[int]]:
    """Groups of indices of boxes that are all but the same: whose IoU with the group's first is 0.9 or more."""
    groups: list[list[int]] = []
    for index, box in enumerate(boxes):
        group = next((group for group in groups if _iou(boxes[group[0]], box) >= SAME_IOU), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups


def place_names(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """
    Where names stand: above their box or in one of its corners, else as near to it as they hide no other name.

    Args:
        boxes: x1, y1, x2, y2 in pixels of each name's box; the first names choose first.
        sizes: width and height of each name's patch.
        image_size: width and height.

    Returns:
        The upper left corner of each patch, inside the image where the patch fits. Patches do not overlap, but where
        there is no room left.
    """
    taken = np.zeros((0, 4))
    places = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        limits = np.array([max(image_size[0] - 1 - width, 0), max(image_size[1] - 1 - height, 0)])
        near = np.round(_near(box, width, height)).clip(0, limits)
        overlaps = (_covered(near[:, 0], width, taken[:, ::2]) * _covered(near[:, 1], height, taken[:, 1::2])).sum(1)
        x, y = near[overlaps.argmin()].astype(int).tolist()
        if overlaps.min() > 0:
            # The whole image; of the places that hide least the nearest to where the name would be best.
            xs = np.arange(0, limits[0] + width // 4 + 1, width // 4 + 1).clip(0, limits[0])
            ys = np.arange(0, limits[1] + height // 2 + 1, height // 2 + 1).clip(0, limits[1])
            hidden = _covered(ys, height, taken[:, 1::2]) @ _covered(xs, width, taken[:, ::2]).T
            distances = np.abs(ys - near[0, 1])[:, None] + np.abs(xs - near[0, 0])
            if hidden.min() < overlaps.min():
                row, column = divmod(np.where(hidden == hidden.min(), distances, np.inf).argmin(), len(xs))
                x, y = int(xs[column]), int(ys[row])
        places.append((x, y))
        taken = np.concatenate([taken, [[x, y, x + width + 1, y + height + 1]]])
    return places


def _near(box: Sequence[float], width: int, height: int) -> np.ndarray:
    """Corners of a patch at a box, the best first: above, inside, below; at its left, then at its right."""
    x1, y1, x2, y2 = box[0], box[1], max(box[0], box[2]), max(box[1], box[3])
    heights = (y1 - height, y1, y2 + 1, y2 - height)
    return np.array([(x, y) for x in (x1, x2 - width) for y in heights])


def _covered(starts: np.ndarray, length: int, taken: np.ndarray) -> np.ndarray:
    """Pixels along an axis that stretches from `starts` `(n,)` on share with those that are taken, `(n, m)`."""
    lower, upper = np.maximum(starts[:, None], taken[:, 0]), np.minimum(starts[:, None] + length + 1, taken[:, 1])
    return (upper - lower).clip(0)


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _wrapped(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont, width: int) -> str:
    """A text in as many lines as it needs, broken between words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _patch_size(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont) -> tuple[int, int]:
    _, _, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, anchor="la")
    return math.ceil(right) + 2 * PADDING, math.ceil(bottom) + 2 * PADDING


def _tie(
    pen: ImageDraw.ImageDraw, patch: Sequence[float], box: Sequence[float], color: tuple[int, int, int], line: int
) -> None:
    """A line from a patch to the nearest point of its box, where they do not touch."""
    ends = []
    for first, last, start, end in zip(patch[:2], patch[2:], box[:2], box[2:], strict=True):
        if last < start - line:
            ends.append((last, start))
        elif first > max(start, end) + line:
            ends.append((first, max(start, end)))
        else:
            middle = (max(first, start) + min(last, max(start, end))) / 2
            ends.append((middle, middle))
    (x1, x2), (y1, y2) = ends
    if (x1, y1) != (x2, y2):
        pen.line((x1, y1, x2, y2), fill=color, width=line)


def _with_masks(pixels: np.ndarray, ordered: Sequence[tuple[DrawnObject, tuple[int, int, int]]]) -> np.ndarray:
    masked = [(one, color) for one, color in ordered if one.mask is not None]
    if not masked:
        return pixels
    pixels = pixels.astype(np.float32)
    for one, color in masked:
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


def palette_color(index: int) -> tuple[int, int, int]:
    """Bright colours, neighbours far apart in hue (steps of the golden section)."""
    red, green, blue = colorsys.hsv_to_rgb(0.618034 * index % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


__all__ = ["DrawnObject", "draw", "palette_color", "place_names", "same_boxes"]
