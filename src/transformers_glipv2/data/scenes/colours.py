"""Colours of object crops: naming them from their pixels, and giving them another one."""

import numpy as np
from PIL import Image, ImageChops

# What a recoloured object crop is painted with; `named_colour` decides what the result is called.
PAINTS = {
    "red": (215, 30, 30),
    "orange": (245, 135, 20),
    "yellow": (245, 215, 40),
    "green": (50, 160, 60),
    "blue": (40, 90, 215),
    "purple": (135, 60, 185),
    "pink": (245, 120, 190),
}
COLOUR_NAMES = (*PAINTS, "brown", "black", "white", "gray")

# Fractions of a crop's pixels: a colour is its name when it covers so much and no other covers more than the second.
_MAIN_FRACTION = 0.55
_OTHER_FRACTION = 0.25
_SAMPLE = 24
_OPAQUE = 96


def _names_of_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Index into `COLOUR_NAMES` + 1, or 0 between two names. Hue in degrees, the others in [0, 1]."""
    names = np.zeros(hue.shape, dtype=np.uint8)

    def put(name: str, where: np.ndarray) -> None:
        names[where & (names == 0)] = COLOUR_NAMES.index(name) + 1

    put("black", value < 0.18)
    put("white", (saturation < 0.10) & (value > 0.85))
    put("gray", (saturation < 0.10) & (value > 0.30) & (value < 0.75))
    reddish = (hue <= 12) | (hue >= 348)
    put("red", reddish & (saturation >= 0.5) & (value >= 0.4))
    put("pink", (reddish | (hue >= 310)) & (saturation >= 0.2) & (saturation < 0.75) & (value >= 0.65))
    put("brown", (hue > 8) & (hue < 40) & (saturation >= 0.3) & (value < 0.62))
    put("orange", (hue >= 18) & (hue <= 39) & (saturation >= 0.55) & (value >= 0.75))
    put("yellow", (hue >= 45) & (hue <= 66) & (saturation >= 0.4) & (value >= 0.65))
    put("green", (hue >= 80) & (hue <= 160) & (saturation >= 0.3) & (value >= 0.25))
    put("blue", (hue >= 196) & (hue <= 250) & (saturation >= 0.35) & (value >= 0.3))
    put("purple", (hue >= 262) & (hue <= 300) & (saturation >= 0.28) & (value >= 0.3))
    return names


def _to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in [0, 1] of `(n, 3)` bytes."""
    hsv = np.asarray(Image.fromarray(pixels.reshape(1, -1, 3)).convert("HSV"), dtype=np.float32).reshape(-1, 3)
    return hsv[:, 0] * (360 / 256), hsv[:, 1] / 255, hsv[:, 2] / 255


def _name_table() -> np.ndarray:
    """`_names_of_hsv` for 32 steps of red, green and blue, so that a scene needs look-ups only."""
    steps = (np.arange(32, dtype=np.uint8) << 3) + 4
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return _names_of_hsv(*_to_hsv(np.ascontiguousarray(grid.reshape(-1, 3)))).reshape(32, 32, 32)


_TABLE = _name_table()


def _sampled(object_crop: Image.Image) -> np.ndarray:
    """`(n, 3)` bytes: some opaque pixels of an RGBA image, evenly spread."""
    pixels = np.asarray(object_crop.resize((_SAMPLE, _SAMPLE), Image.Resampling.NEAREST)).reshape(-1, 4)
    return np.ascontiguousarray(pixels[pixels[:, 3] >= _OPAQUE, :3])


def named_colour(object_crop: Image.Image) -> str | None:
    """
    The one colour that a person would call an object crop by.

    Args:
        object_crop (`PIL.Image.Image`): RGBA.

    Returns:
        `str | None`: a name in `COLOUR_NAMES`, or `None` for crops of several colours or of one between two names.
    """
    pixels = _sampled(object_crop)
    if len(pixels) < 8:
        return None
    red, green, blue = (pixels >> 3).T
    counts = np.bincount(_TABLE[red, green, blue], minlength=len(COLOUR_NAMES) + 1)[1:] / len(pixels)
    main = int(counts.argmax())
    others = np.delete(counts, main)
    return COLOUR_NAMES[main] if counts[main] >= _MAIN_FRACTION and others.max() <= _OTHER_FRACTION else None


def recolour_way(object_crop: Image.Image) -> tuple[str | None, int]:
    """
    How an object crop can be recoloured.

    Args:
        object_crop (`PIL.Image.Image`): RGBA.

    Returns:
        `tuple[str | None, int]`: "shift" with its own hue in [0, 256) where one hue covers the crop, "tint" with 0
        where it is light and grey, `None` with 0 where neither would look like one colour.
    """
    pixels = _sampled(object_crop)
    if len(pixels) < 8:
        return None, 0
    hue, saturation, value = _to_hsv(pixels)
    chromatic = (saturation >= 0.25) & (value >= 0.2)
    if chromatic.mean() >= 0.6:
        angles = np.deg2rad(hue[chromatic])
        mean = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())
        near = np.abs((angles - mean + np.pi) % (2 * np.pi) - np.pi) <= np.deg2rad(25)
        if near.mean() >= 0.8:
            return "shift", int(np.rad2deg(mean) % 360 * 256 / 360) % 256
    if (saturation < 0.18).mean() >= 0.8 and value.mean() >= 0.55:
        return "tint", 0
    return None, 0


def recolour(object_crop: Image.Image, way: str, hue: int, colour: str) -> Image.Image:
    """
    An object crop in another colour; light, shade and texture stay.

    Args:
        object_crop (`PIL.Image.Image`): RGBA.
        way (`str`), hue (`int`): as `recolour_way` gives them.
        colour (`str`): a key of `PAINTS`.

    Returns:
        `PIL.Image.Image`: RGBA. `named_colour` decides whether it came out in that colour.
    """
    rgb, alpha = object_crop.convert("RGB"), object_crop.getchannel("A")
    if way == "tint":
        painted = ImageChops.multiply(rgb, Image.new("RGB", rgb.size, PAINTS[colour]))
    else:
        target = int(np.asarray(Image.new("RGB", (1, 1), PAINTS[colour]).convert("HSV"))[0, 0, 0])
        shift = target - hue
        h, s, v = rgb.convert("HSV").split()
        h = h.point([(level + shift) % 256 for level in range(256)])
        if colour == "pink":
            # Full saturation at this hue is magenta.
            s = s.point([int(level * 0.6) for level in range(256)])
            v = v.point([255 - int((255 - level) * 0.6) for level in range(256)])
        painted = Image.merge("HSV", (h, s, v)).convert("RGB")
    painted.putalpha(alpha)
    return painted
