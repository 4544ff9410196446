"""Composite images: named object crops pasted on backgrounds, with the masks and colours that came out."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from transformers_glipv2.data.augment import mask_box
from transformers_glipv2.data.scenes.assets import Background, ImageCache, ObjectCrop, SceneAssets
from transformers_glipv2.data.scenes.colours import PAINTS, named_colour, recolour

# Opacity (of 255) from which a pixel belongs to the object.
_OPAQUE = 96
# A scene's objects may hide each other so much at most; drawn anew for each scene.
_HIDDEN_LIMITS = (0.02, 0.15, 0.35, 0.6)
_NOISE = np.random.default_rng(0).normal(0, 1, (256, 256, 3)).astype(np.float32)


@dataclass
class ObjectSpec:
    """
    What should be in a scene.

    Attributes:
        noun (`str`): what.
        colour (`str` or `None`): a key of `PAINTS` to paint it with, where the object crop can be painted.
        strict (`bool`): leave it out when it does not come out in that colour.
    """

    noun: str
    colour: str | None = None
    strict: bool = False


@dataclass
class SceneObject:
    """
    What is in a scene.

    Attributes:
        noun (`str`), attributes (`tuple[str, ...]`): its name, and what the object crop is known to be ("wooden").
        colour (`str` or `None`): what a person would call it; `None` where that is not one colour.
        mask (`np.ndarray` of shape `(height, width)`): bool, the visible part.
        bbox (`list[float]`): x, y, width, height in pixels around the visible part.
        hidden_by (`dict[int, float]`): fraction of it that another object of the scene (by index) hides.
    """

    noun: str
    attributes: tuple[str, ...]
    colour: str | None
    mask: np.ndarray = field(repr=False)
    bbox: list[float]
    hidden_by: dict[int, float]

    @property
    def area(self) -> float:
        """Visible pixels."""
        return float(self.mask.sum())


@dataclass
class _Patch:
    noun: str
    attributes: tuple[str, ...]
    colour: str | None
    full_area: int
    visible: int
    hidden_by: dict[int, float] = field(default_factory=dict)


class SceneComposer:
    """
    Makes images of one split's object crops and backgrounds.

    Args:
        assets (`SceneAssets`): what there is.
        split (`str`): "train" or "test".
        size (`int`): longer side of the images, in pixels; the shorter one is 3/4 of it or more.
        extra_backgrounds (`Sequence`, *optional*): paths or `Background`s beside the assets' own.
        min_visible (`float`, *optional*, defaults to 0.4): fraction of an object that neither others nor the border
            hide.
        cache_megabytes (`int`, *optional*, defaults to 256): of decoded images kept in memory.
    """

    def __init__(
        self,
        assets: SceneAssets,
        split: str,
        size: int,
        extra_backgrounds: Sequence[Background | str | Path] = (),
        min_visible: float = 0.4,
        cache_megabytes: int = 256,
    ):
        self.assets = assets
        self.split = split
        self.size = size
        self.min_visible = min_visible
        self.backgrounds = assets.split_backgrounds(split, extra_backgrounds)
        self.cache = ImageCache(cache_megabytes)
        self.choices = {noun: assets.split_object_crops(noun, split) for noun in assets.object_crops}

    def draw_background(self, rng: random.Random) -> tuple[Image.Image, frozenset[str]]:
        """A background of a random shape, and the nouns that it may show."""
        short = rng.randint(round(0.75 * self.size), self.size)
        size = (self.size, short) if rng.random() < 0.65 else (short, self.size)
        way = rng.random()
        if way < 0.7 and self.backgrounds:
            chosen = rng.choice(self.backgrounds)
            return _random_crop(self.cache.get(chosen.file, "RGB", chosen.crop), size, rng), chosen.nouns
        if way < 0.8:
            return Image.new("RGB", size, _random_colour(rng)), frozenset()
        # A few random colours, enlarged: gradients and clouds, from coarse to fine.
        cells = rng.choice((2, 2, 3, 5, 9, 24))
        grain = np.array([_random_colour(rng) for _ in range(cells * cells)], dtype=np.float32)
        grain = grain.mean(axis=0) + (grain - grain.mean(axis=0)) * rng.uniform(0.15, 0.8)
        image = Image.fromarray(grain.reshape(cells, cells, 3).astype(np.uint8))
        return image.resize(size, Image.Resampling.BICUBIC), frozenset()

    def compose(
        self, canvas: Image.Image, specs: Iterable[ObjectSpec], rng: random.Random, allow_held_out: bool = False
    ) -> tuple[Image.Image, list[SceneObject]]:
        """
        Paste objects on a background.

        Args:
            canvas (`PIL.Image.Image`): RGB, painted on in corner.
            specs (`Iterable[ObjectSpec]`): those for which there is no room are left out.
            rng (`random.Random`): the only source of chance.
            allow_held_out (`bool`, *optional*, defaults to `False`): whether held-out (colour, noun) pairs may appear.

        Returns:
            `tuple[PIL.Image.Image, list[SceneObject]]`: the image and what is in it, the lowest first.
        """
        specs = list(specs)
        width, height = canvas.size
        owner = np.full((height, width), -1, dtype=np.int8)
        patches: list[_Patch] = []
        limit = min(rng.choice(_HIDDEN_LIMITS), 1 - self.min_visible)
        shadow = rng.uniform(0.25, 0.6) if rng.random() < 0.35 else 0.0
        for spec in specs:
            made = self._make_patch(spec, len(specs), min(width, height), rng, allow_held_out)
            if made is None:
                continue
            image, object_crop, colour = made
            solid = np.asarray(image.getchannel("A")) >= _OPAQUE
            corner = self._find_corner(owner, solid, patches, limit, rng)
            if corner is None:
                continue
            patch = _Patch(object_crop.noun, object_crop.attributes, colour, int(solid.sum()), 0)
            self._settle(owner, solid, corner, patches, patch)
            if shadow:
                _paste_shadow(canvas, image.getchannel("A"), corner, shadow)
            canvas.paste(image, corner, image)
        return _finished(canvas, rng), _objects_of(owner, patches)

    def _make_patch(
        self, spec: ObjectSpec, count: int, side: int, rng: random.Random, allow_held_out: bool
    ) -> tuple[Image.Image, ObjectCrop, str | None] | None:
        """An object crop, enlarged, turned, painted; `None` where it may not be shown as it came out."""
        choices = self.choices[spec.noun]
        if spec.colour is not None:
            choices = [object_crop for object_crop in choices if object_crop.recolour] or choices
        for _ in range(3):
            object_crop = rng.choice(choices)
            image = self._transformed(object_crop, count, side, rng)
            if spec.colour is not None and object_crop.recolour:
                image = recolour(image, object_crop.recolour, object_crop.hue, spec.colour)
            if self.split == "train":
                image = _varied(image, rng)
            colour = named_colour(image)
            if spec.strict and colour != spec.colour:
                continue
            if allow_held_out or (colour, object_crop.noun) not in self.assets.held_out_pairs:
                return image, object_crop, colour
        return None

    def _transformed(self, object_crop: ObjectCrop, count: int, side: int, rng: random.Random) -> Image.Image:
        image = self.cache.get(self.assets.folder / object_crop.file, "RGBA")
        largest = min(0.85, 1.15 / math.sqrt(count))
        smallest = 0.25 if count == 1 else 0.11
        longer = side * math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        # Small files may not be blown up beyond recognition.
        scale = min(longer / max(image.size), 2.5)
        stretch = math.exp(rng.uniform(-0.12, 0.12))
        size = (max(6, round(image.width * scale * stretch)), max(6, round(image.height * scale / stretch)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        if rng.random() < 0.5:
            image = image.rotate(rng.gauss(0, 10), Image.Resampling.BILINEAR, expand=True)
            image = image.crop(image.getchannel("A").getbbox())
        return image

    def _find_corner(
        self, owner: np.ndarray, solid: np.ndarray, patches: list[_Patch], limit: float, rng: random.Random
    ) -> tuple[int, int] | None:
        """Left and top where the object and those below it stay visible enough; `None` after a dozen tries."""
        height, width = owner.shape
        full = int(solid.sum())
        if full < 40:
            return None
        for _ in range(12):
            x, y = (
                round(rng.uniform(-0.1 * extent, room - 0.9 * extent))
                for extent, room in ((solid.shape[1], width), (solid.shape[0], height))
            )
            part, inside = _overlap(owner, solid, x, y)
            if inside.sum() < max(0.8, self.min_visible) * full:
                continue
            below = part[inside]
            lost = np.bincount(below[below >= 0], minlength=len(patches)) if len(patches) else ()
            if all(
                patch.visible - gone >= (1 - limit) * patch.full_area or gone == 0
                for patch, gone in zip(patches, lost, strict=True)
            ):
                return x, y
        return None

    @staticmethod
    def _settle(
        owner: np.ndarray, solid: np.ndarray, corner: tuple[int, int], patches: list[_Patch], patch: _Patch
    ) -> None:
        """Write the object into the map of owners and take what it hides off the others."""
        part, inside = _overlap(owner, solid, *corner)
        below = part[inside]
        index = len(patches)
        if index:
            for other, gone in enumerate(np.bincount(below[below >= 0], minlength=index)):
                if gone:
                    patches[other].visible -= int(gone)
                    patches[other].hidden_by[index] = gone / patches[other].full_area
        part[inside] = index
        patch.visible = int(inside.sum())
        patches.append(patch)


def _varied(image: Image.Image, rng: random.Random) -> Image.Image:
    """Paler, darker, skewed, coarser: a noun has few object crops, and the model must not overfit to them."""
    if rng.random() < 0.5:
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.5))
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.4))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))
    if rng.random() < 0.3:
        skew = rng.uniform(-0.3, 0.3)
        shift = round(abs(skew) * image.height)
        size = (image.width + shift, image.height)
        way = (1, skew, -shift if skew > 0 else 0, 0, 1, 0)
        image = image.transform(size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR)
    if rng.random() < 0.25:
        coarse = image.reduce(rng.choice((2, 2, 3))) if min(image.size) >= 24 else image
        image = coarse.resize(image.size, Image.Resampling.BILINEAR)
    return image


def _overlap(owner: np.ndarray, solid: np.ndarray, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image (a view) under a mask with its corner at x, y, and the part of the mask inside."""
    height, width = owner.shape
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + solid.shape[1], width), min(y + solid.shape[0], height)
    return owner[top:bottom, left:right], solid[top - y : bottom - y, left - x : right - x]


def _objects_of(owner: np.ndarray, patches: Sequence[_Patch]) -> list[SceneObject]:
    objects = []
    for index, patch in enumerate(patches):
        mask = owner == index
        objects.append(
            SceneObject(patch.noun, patch.attributes, patch.colour, mask, mask_box(mask), dict(patch.hidden_by))
        )
    return objects


def _paste_shadow(canvas: Image.Image, alpha: Image.Image, corner: tuple[int, int], strength: float) -> None:
    """A soft shadow to the lower right, blurred at a quarter of the size for speed."""
    small = (max(2, alpha.width // 4), max(2, alpha.height // 4))
    soft = Image.new("L", (small[0] + 4, small[1] + 4))
    soft.paste(alpha.resize(small, Image.Resampling.BILINEAR).point([int(v * strength) for v in range(256)]), (2, 2))
    soft = soft.filter(ImageFilter.BoxBlur(1)).resize((alpha.width + 16, alpha.height + 16), Image.Resampling.BILINEAR)
    offset = max(2, max(alpha.size) // 25)
    canvas.paste((0, 0, 0), (corner[0] - 8 + offset, corner[1] - 8 + offset), soft)


def _finished(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Mild changes of light, sharpness and grain over the whole image."""
    gain, lift = rng.uniform(0.88, 1.12), rng.uniform(-10, 10)
    canvas = canvas.point([min(255, max(0, int(v * gain + lift))) for v in range(256)] * 3)
    if rng.random() < 0.12:
        canvas = canvas.filter(ImageFilter.BoxBlur(1))
    if rng.random() < 0.15:
        width, height = canvas.size
        noise = np.tile(_NOISE, (-(-height // 256), -(-width // 256), 1))[:height, :width] * rng.uniform(2, 9)
        canvas = Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))
    return canvas


def _random_crop(image: Image.Image, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A part of an image with the wanted shape, in the wanted size."""
    scale = min(image.width / size[0], image.height / size[1]) * rng.uniform(0.45, 1)
    width, height = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    part = image.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def _random_colour(rng: random.Random) -> tuple[int, int, int]:
    if rng.random() < 0.4:
        level = rng.randint(30, 255)
        return (level, level, level)
    base = rng.choice(list(PAINTS.values()))
    fade = rng.random()
    red, green, blue = (int(channel * fade + rng.randint(40, 250) * (1 - fade)) for channel in base)
    return red, green, blue
