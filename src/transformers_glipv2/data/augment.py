"""Augmentations of examples: each is called with an example and a `random.Random`, and gives a new example."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from transformers_glipv2.data.masks import Segmentation, decode_mask

Example = dict[str, Any]
Augmentation = Callable[[Example, random.Random], Example]

# "right next to", "right now" and "left over" name no side.
_SIDE = re.compile(
    r"\b(?:(left)(?!\s+(?:over|alone|behind|out|open|unattended)\b)"
    r"|(right)(?!\s+(?:next|now|away|after|before|behind|beside|besides|by|at|in|there|here|above|below|beneath|under"
    r"|over|outside|inside|up|down|beyond|through|into|onto|angles?)\b))"
    r"(most|hand|ward|wards|side)?\b",
    re.IGNORECASE,
)


class Compose:
    """
    Augmentations one after the other.

    Args:
        augmentations (`Sequence[Callable]`): in order.
    """

    def __init__(self, augmentations: Sequence[Augmentation]):
        self.augmentations = list(augmentations)

    def __call__(self, example: Example, rng: random.Random) -> Example:
        for augmentation in self.augmentations:
            example = augmentation(example, rng)
        return example


class HorizontalFlip:
    """
    Mirrors image, boxes and masks, and swaps "left" and "right" in every text of the example.

    Args:
        probability (`float`, *optional*, defaults to 0.5).
    """

    def __init__(self, probability: float = 0.5):
        self.probability = _checked_probability(probability)

    def __call__(self, example: Example, rng: random.Random) -> Example:
        return flip_example(example) if rng.random() < self.probability else example


class PhotometricDistortion:
    """
    Random brightness, contrast, saturation and hue (`torchvision.transforms.v2.RandomPhotometricDistort`). Texts that
    name colours are trained more gently with a small `hue`.

    Args:
        probability (`float`, *optional*, defaults to 0.5): of each of the four.
        brightness, contrast, saturation (`tuple[float, float]`): ranges of the factors.
        hue (`tuple[float, float]`, *optional*, defaults to `(-0.02, 0.02)`): range in turns of the colour circle.
    """

    def __init__(
        self,
        probability: float = 0.5,
        brightness: tuple[float, float] = (0.875, 1.125),
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: tuple[float, float] = (-0.02, 0.02),
    ):
        self.transform = v2.RandomPhotometricDistort(brightness, contrast, saturation, hue, probability)

    def __call__(self, example: Example, rng: random.Random) -> Example:
        # torchvision samples from the global stream, whose state is kept.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.getrandbits(63))
            return {**example, "image": self.transform(example["image"])}


class CopyPaste:
    """
    Cuts objects out of another detection image and pastes them into this one.

    Only detection examples are changed: a sentence does not mention what is pasted. Only objects with a mask, and
    only of classes that the example's labels hold, are pasted: where others are in this image is unknown. What the
    pasted objects hide is taken off the masks and, where there is one, off the box; objects of which less than
    `min_visible` is left are dropped.

    Args:
        source: a map-style data set of detection examples with `segmentation`.
        probability (`float`, *optional*, defaults to 0.5).
        max_objects (`int`, *optional*, defaults to 3): pasted into one image.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 1.5)`): range of the objects' enlargement, after
            the images' shorter sides were brought to the same.
        min_visible (`float`, *optional*, defaults to 0.3): fraction of an object's area that must stay visible.
    """

    def __init__(
        self,
        source: Any,
        probability: float = 0.5,
        max_objects: int = 3,
        scale: tuple[float, float] = (0.5, 1.5),
        min_visible: float = 0.3,
    ):
        if max_objects < 1 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"`max_objects` must be >= 1 and `scale` rise from above 0, got {max_objects}, {scale}.")
        self.source = source
        self.probability = _checked_probability(probability)
        self.max_objects = max_objects
        self.scale = scale
        self.min_visible = _checked_probability(min_visible)

    def __call__(self, example: Example, rng: random.Random) -> Example:
        if example["kind"] != "detection" or rng.random() >= self.probability:
            return example
        donor = self.source[rng.randrange(len(self.source))]
        labels = set(example["labels"])
        segmentations = donor["objects"].get("segmentation") or []
        fit = [
            index
            for index, (name, mask) in enumerate(zip(donor["objects"]["category"], segmentations, strict=False))
            if name in labels and mask is not None and not donor["objects"].get("iscrowd", {index: 0})[index]
        ]
        for index in rng.sample(fit, min(rng.randint(1, self.max_objects), len(fit))):
            object_crop = crop_out(donor, index)
            if object_crop is not None:
                factor = rng.uniform(*self.scale) * min(example["image"].size) / min(donor["image"].size)
                name = donor["objects"]["category"][index]
                example = paste_object(example, name, *object_crop, factor, rng, self.min_visible)
        return example


def paste_object(
    example: Mapping[str, Any],
    name: str,
    object_crop: Image.Image,
    alpha: Image.Image,
    factor: float,
    rng: random.Random,
    min_visible: float = 0.3,
) -> Example:
    """
    A detection example with one more object somewhere inside it.

    Args:
        example (`Mapping`): with `objects` of bbox and category.
        name (`str`): class of the object.
        object_crop (`PIL.Image.Image`), alpha (`PIL.Image.Image`): its RGB image and its mask (mode L), of one size.
        factor (`float`): enlargement; less where it would not fit.
        rng (`random.Random`): draws position and mirroring.
        min_visible (`float`, *optional*, defaults to 0.3): fraction of an object's area that must stay visible.

    Returns:
        `dict`: a new example; the same one where nothing of the mask is left.
    """
    width, height = example["image"].size
    factor = min(factor, width / object_crop.width, height / object_crop.height)
    new_size = (max(1, int(object_crop.width * factor)), max(1, int(object_crop.height * factor)))
    if rng.random() < 0.5 and not _SIDE.search(name):
        object_crop, alpha = ImageOps.mirror(object_crop), ImageOps.mirror(alpha)
    alpha = alpha.resize(new_size, Image.Resampling.BILINEAR)
    position = (rng.randint(0, width - new_size[0]), rng.randint(0, height - new_size[1]))
    mask = np.zeros((height, width), dtype=bool)
    mask[position[1] : position[1] + new_size[1], position[0] : position[0] + new_size[0]] = np.asarray(alpha) >= 128
    if not mask.any():
        return dict(example)
    image = example["image"].copy()
    image.paste(object_crop.resize(new_size, Image.Resampling.BILINEAR), position, alpha)
    objects = hide(example["objects"], mask, min_visible)
    objects = {column: list(values) for column, values in objects.items()}
    new = {"bbox": mask_box(mask), "category": name, "segmentation": mask, "area": float(mask.sum()), "iscrowd": 0}
    count = len(objects["bbox"])
    objects.setdefault("segmentation", [None] * count)
    for column in objects:
        objects[column].append(new.get(column))
    pasted = {**example, "image": image, "objects": objects}
    if example.get("negative_labels") is not None:
        pasted["negative_labels"] = [label for label in example["negative_labels"] if label != name]
    return pasted


def flip_example(example: Mapping[str, Any]) -> Example:
    """
    An example mirrored left to right.

    Args:
        example (`Mapping`): of any kind.

    Returns:
        `dict`: image, boxes, masks, and all texts with their sides swapped; spans follow their words.
    """
    width, height = example["image"].size
    flipped = {**example, "image": ImageOps.mirror(example["image"])}
    for field in ("text", "question"):
        if example.get(field) is not None:
            flipped[field] = swap_sides(example[field])
    for field in ("labels", "negative_labels", "answers", "captions"):
        if example.get(field) is not None:
            flipped[field] = [swap_sides(text) for text in example[field]]
    if example.get("objects") is None:
        return flipped
    objects = dict(example["objects"])
    objects["bbox"] = [[width - x - w, y, w, h] for x, y, w, h in objects["bbox"]]
    for column in ("category", "phrase"):
        if column in objects:
            objects[column] = [swap_sides(name) if isinstance(name, str) else name for name in objects[column]]
    if "tokens_positive" in objects:
        moved = SpanMap(example["question"] if example["kind"] == "vqa" else example["text"])
        objects["tokens_positive"] = [[moved(*span) for span in spans] for spans in objects["tokens_positive"]]
    if "segmentation" in objects:
        objects["segmentation"] = [_flip_segmentation(mask, height, width) for mask in objects["segmentation"]]
    flipped["objects"] = objects
    return flipped


def swap_sides(text: str) -> str:
    """The text with "left" and "right" exchanged (also "leftmost", "right-hand", ...), capitals kept."""
    return _SIDE.sub(_other_side, text)


class SpanMap:
    """
    Where the characters of a text are after `swap_sides`.

    Args:
        text (`str`): before the swap.
    """

    def __init__(self, text: str):
        self.changes = [(match.start(), match.end(), len(_other_side(match))) for match in _SIDE.finditer(text)]

    def __call__(self, start: int, end: int) -> list[int]:
        """The span [start, end) in the swapped text; a border inside a swapped word moves to the word's border."""
        return [self._move(start, 0), self._move(end, 1)]

    def _move(self, position: int, is_end: int) -> int:
        shift = 0
        for start, end, length in self.changes:
            if position >= end:
                shift += length - (end - start)
            elif position > start:
                return start + shift + (length if is_end else 0)
        return position + shift


def hide(objects: Mapping[str, Sequence[Any]], mask: np.ndarray, min_visible: float) -> dict[str, list[Any]]:
    """
    What is left of an image's objects when something covers them.

    Args:
        objects (`Mapping[str, Sequence]`): columns of the schema.
        mask (`np.ndarray` of shape `(height, width)`): bool, what is hidden.
        min_visible (`float`): fraction of an object that must stay visible for it to be kept.

    Returns:
        `dict[str, list]`: masks without the hidden part, boxes around what is left of them. An object without a mask
        keeps its box and is judged by the box's area.
    """
    height, width = mask.shape
    kept: dict[str, list[Any]] = {column: [] for column in objects}
    for index, box in enumerate(objects["bbox"]):
        entry = {column: values[index] for column, values in objects.items()}
        own = decode_mask(entry.get("segmentation"), height, width)
        if own is None:
            x1, y1 = max(int(box[0]), 0), max(int(box[1]), 0)
            x2, y2 = max(round(box[0] + box[2]), x1 + 1), max(round(box[1] + box[3]), y1 + 1)
            part = mask[y1:y2, x1:x2]
            visible = 1.0 - part.mean() if part.size else 1.0
        else:
            left = own & ~mask
            visible = left.sum() / max(own.sum(), 1)
            if left.any() and visible < 1:
                entry["segmentation"], entry["bbox"] = left, mask_box(left)
        if visible >= min_visible and visible > 0:
            for column, value in entry.items():
                kept[column].append(value)
    return kept


def mask_box(mask: np.ndarray) -> list[float]:
    """x, y, width, height in pixels around the True pixels of a mask of shape `(height, width)`."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = float(columns[0]), float(rows[0])
    return [x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y]


def crop_out(example: Mapping[str, Any], index: int) -> tuple[Image.Image, Image.Image] | None:
    """Image and mask (mode L) of one object, cropped to it."""
    width, height = example["image"].size
    mask = decode_mask(example["objects"]["segmentation"][index], height, width)
    if mask is None or not mask.any():
        return None
    x, y, w, h = (int(value) for value in mask_box(mask))
    alpha = Image.fromarray(mask[y : y + h, x : x + w].astype(np.uint8) * 255)
    return example["image"].crop((x, y, x + w, y + h)), alpha


def _flip_segmentation(segmentation: Segmentation | None, height: int, width: int) -> Segmentation | None:
    if segmentation is None:
        return None
    if isinstance(segmentation, (Mapping, np.ndarray)):
        mask = decode_mask(segmentation, height, width)
        return None if mask is None else mask[:, ::-1]
    return [
        [width - value if position % 2 == 0 else value for position, value in enumerate(polygon)]
        for polygon in segmentation
    ]


def _other_side(match: re.Match[str]) -> str:
    word = match.group(1) or match.group(2)
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        other = other.upper()
    elif word[0].isupper():
        other = other.capitalize()
    return other + (match.group(3) or "")


def _checked_probability(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a probability must be in [0, 1], got {value}.")
    return value
