"""
Photographs with boxes, changed anew each time they are shown: enlarged parts, reduced images, mosaics, pasted objects;
and sentences about them: referring phrases, captions, questions.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from transformers_glipv2.data.augment import Example, crop_out, flip_example, paste_object
from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.masks import decode_mask
from transformers_glipv2.data.scenes.assets import ImageCache
from transformers_glipv2.data.scenes.colours import named_colour
from transformers_glipv2.data.scenes.language import (
    QUESTION_TYPES,
    SceneText,
    answers_of,
    list_caption,
    question,
    referring_phrase,
    relation_caption,
)
from transformers_glipv2.data.scenes.render import SceneObject
from transformers_glipv2.data.scenes.words import NUMBERS, related_nouns
from transformers_glipv2.data.seeding import derive_random

DEFAULT_KINDS = {"detection": 1.0, "grounding": 0.0, "caption": 0.0, "vqa": 0.0}
_TRIES = 20


class Photographs(Dataset):
    """
    An endless source of a COCO-format data set: `photographs[i]` depends on the seed and `i` alone, and every
    photograph comes once a pass.

    "detection" examples ask for the classes of this data set alone: of others nobody knows whether they are there.
    "grounding", "caption" and "vqa" examples are sentences about the boxes ("the blue dress left of the bag", "how
    many dogs are there?"), made as those of composite scenes; colours need masks. Such sentences are about the whole
    photograph and about all of its objects, so a data set should have every object of its classes labelled.

    There is no `len`: give `MixtureDataset` a length.

    Args:
        annotations (`str` or `Path`), image_folder, split: as `load_coco` takes them.
        seed (`int`, *optional*, defaults to 0).
        kinds (`Mapping[str, float]`, *optional*): fractions of the kinds of examples; by default detection alone.
        mosaics (`float`, *optional*, defaults to 0.2): fraction of detection examples that are four photographs.
        enlarged (`float`, *optional*, defaults to 0.35): fraction that are a part of a photograph.
        reduced (`float`, *optional*, defaults to 0.15): fraction that are a photograph within an even margin.
        pasted (`float`, *optional*, defaults to 0.0): how often objects of `paste_from` are pasted into one.
        paste_from (`Sequence[str]` or `str`, *optional*): COCO-format files with masks; objects of this data set's
            classes are taken. By default those of the data set itself.
        paste_images (`Sequence[str]` or `str`, *optional*): image folders of `paste_from`, in its order.
        names (`Mapping[str, str]`, *optional*): other names of classes, so that data sets agree.
        flip (`float`, *optional*, defaults to 0.0): how often tiles of a mosaic are mirrored.
        cache_megabytes (`int`, *optional*, defaults to 256): of decoded images, in each worker.

    Raises:
        ValueError: when a fraction is out of range or a kind is unknown.
    """

    def __init__(
        self,
        annotations: str | Path,
        image_folder: str | Path | None = None,
        split: str | None = None,
        seed: int = 0,
        kinds: Mapping[str, float] | None = None,
        mosaics: float = 0.2,
        enlarged: float = 0.35,
        reduced: float = 0.15,
        pasted: float = 0.0,
        paste_from: Sequence[str] | str = (),
        paste_images: Sequence[str] | str = (),
        names: Mapping[str, str] | None = None,
        flip: float = 0.5,
        cache_megabytes: int = 256,
    ):
        kinds = dict(DEFAULT_KINDS if kinds is None else kinds)
        if not kinds or set(kinds) - set(DEFAULT_KINDS) or min(kinds.values()) < 0 or not sum(kinds.values()):
            raise ValueError(f"`kinds` must give fractions of {', '.join(DEFAULT_KINDS)}, got {kinds}.")
        if min(mosaics, enlarged, reduced, pasted, flip) < 0 or mosaics + enlarged + reduced > 1 or pasted > 1:
            raise ValueError(
                "`mosaics`, `enlarged` and `reduced` must be fractions of one whole and `pasted` and `flip` "
                f"probabilities, got {mosaics}, {enlarged}, {reduced}, {pasted} and {flip}."
            )
        self.seed, self.kinds, self.flip = seed, kinds, flip
        self.mosaics, self.enlarged, self.reduced, self.pasted = mosaics, enlarged, reduced, pasted
        self.names = dict(names or {})
        self.dataset = load_coco(annotations, image_folder, split=split, with_masks=True)
        self.class_names = list(dict.fromkeys(self._named(name) for name in self.dataset.class_names or ()))
        self.related = related_nouns(self.class_names)
        self.cache = ImageCache(cache_megabytes)
        donors = [self.dataset] if pasted and not paste_from else self._donors(paste_from, paste_images)
        self.donors = donors if pasted else []
        self.objects = self._masked_objects() if pasted else {}

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            raise IndexError(f"photograph {index}: they are numbered from 0 and have no end.")
        rng = derive_random("photograph", self.seed, index)
        epoch, position = divmod(index, len(self.dataset))
        order = list(range(len(self.dataset)))
        derive_random("photographs", self.seed, epoch).shuffle(order)
        example = self._read(order[position])
        kind = rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        if kind != "detection":
            told = self._told(example, kind, rng)
            if told is not None:
                return told
        return self._changed(_without_masks(example), rng)

    def answers(self) -> list[str]:
        """Every answer that a question may have; none where no questions are asked."""
        return answers_of(self.class_names) if self.kinds.get("vqa") else []

    def _named(self, name: str) -> str:
        return self.names.get(name, name)

    def _read(self, index: int, dataset: ImageDataset | None = None) -> Example:
        """An example with its image from the cache."""
        record = dict((dataset or self.dataset).records[index])
        path = record.pop("image_path")
        objects = dict(record["objects"])
        objects["category"] = [self._named(name) for name in objects["category"]]
        image = self.cache.get(path, "RGB")
        return {**record, "image": image, "objects": objects, "labels": self.class_names}

    # ------------------------------------------------------------------------------------------------- detection

    def _changed(self, example: Example, rng: random.Random) -> Example:
        way = rng.random()
        if way < self.mosaics:
            others = [_without_masks(self._read(rng.randrange(len(self.dataset)))) for _ in range(3)]
            tiles = [example, *others]
            rng.shuffle(tiles)
            tiles = [flip_example(tile) if rng.random() < self.flip else tile for tile in tiles]
            example = {**mosaic(tiles, example["image"].size, rng), "labels": self.class_names}
        elif way < self.mosaics + self.enlarged:
            example = enlarged_part(example, rng)
        elif way < self.mosaics + self.enlarged + self.reduced:
            example = reduced_image(example, rng)
        if self.objects and rng.random() < self.pasted:
            example = _without_masks(self._with_pasted(example, rng))
        return example

    def _with_pasted(self, example: Example, rng: random.Random) -> Example:
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(list(self.objects))
            donor, image, index = rng.choice(self.objects[name])
            source = self._read(image, self.donors[donor])
            cut = crop_out(source, index)
            if cut is not None:
                wanted = rng.uniform(0.15, 0.7) * min(example["image"].size)
                example = paste_object(example, name, *cut, wanted / max(cut[0].size), rng)
        return example

    def _donors(self, files: Sequence[str] | str, folders: Sequence[str] | str) -> list[ImageDataset]:
        files = [files] if isinstance(files, str) else list(files)
        folders = [folders] if isinstance(folders, str) else list(folders)
        if not folders:
            return [load_coco(file, with_masks=True) for file in files]
        return [load_coco(file, folder, with_masks=True) for file, folder in zip(files, folders, strict=True)]

    def _masked_objects(self) -> dict[str, list[tuple[int, int, int]]]:
        """By class: data set, image and object of everything that can be cut out and is large enough to be seen."""
        found: dict[str, list[tuple[int, int, int]]] = {}
        for donor, dataset in enumerate(self.donors):
            for image, record in enumerate(dataset.records):
                objects = record["objects"]
                masks = objects.get("segmentation") or [None] * len(objects["bbox"])
                for index, (name, box, mask) in enumerate(
                    zip(objects["category"], objects["bbox"], masks, strict=True)
                ):
                    name = self._named(name)
                    if mask is not None and name in self.related and min(box[2:]) >= 24:
                        found.setdefault(name, []).append((donor, image, index))
        return found

    # ------------------------------------------------------------------------------------------------- sentences

    def _told(self, example: Example, kind: str, rng: random.Random) -> Example | None:
        """A grounding, caption or vqa example; `None` where nothing can be said without doubt."""
        objects = scene_objects(example)
        counts = [sum(o.noun == other.noun for other in objects) for o in objects]
        if not objects or max(counts) >= len(NUMBERS):
            return None
        if kind == "vqa":
            present = {o.noun for o in objects}
            out = present.union(*(self.related[noun] for noun in present))
            absent = [name for name in self.class_names if name not in out]
            for question_type in rng.sample(QUESTION_TYPES, len(QUESTION_TYPES)):
                sentence = question(objects, absent, rng, question_type)
                if sentence is not None:
                    return {
                        **_sentence_example(example, kind, objects, sentence),
                        "question": sentence.text,
                        "answers": [sentence.answer] * 10,
                        "question_type": question_type,
                    }
            return None
        if kind == "caption":
            sentence = list_caption(objects, "a picture of ")
            captions = [sentence.text, list_caption(objects, "", with_colour=False).text]
            return {**_sentence_example(example, kind, objects, sentence), "captions": captions}
        sentence = referring_phrase(objects, rng) if rng.random() < 0.6 else relation_caption(objects, rng)
        if sentence is None:
            sentence = list_caption(objects, rng.choice(("", "a picture of ")), rng.random() < 0.7)
        return _sentence_example(example, kind, objects, sentence)


def scene_objects(example: Mapping[str, Any], min_size: float = 8.0) -> list[SceneObject]:
    """
    The objects of a photograph as the sentences of composite scenes take them.

    Args:
        example (`Mapping`): a detection example; without masks no colour is known.
        min_size (`float`, *optional*, defaults to 8.0): pixels of the shorter side; smaller objects are left out.
    """
    image, objects = example["image"], example["objects"]
    width, height = image.size
    masks = objects.get("segmentation") or [None] * len(objects["bbox"])
    found = []
    for index, (box, noun) in enumerate(zip(objects["bbox"], objects["category"], strict=True)):
        if min(box[2:]) < min_size:
            continue
        mask, colour = decode_mask(masks[index], height, width), None
        if mask is not None and mask.any():
            cut = crop_out(example, index)
            if cut is not None:
                rgba = cut[0].convert("RGBA")
                rgba.putalpha(cut[1])
                colour = named_colour(rgba)
        else:
            mask = np.zeros((height, width), dtype=bool)
            x, y, w, h = (round(value) for value in box)
            mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
        found.append(SceneObject(noun, (), colour, mask, list(box), {}))
    return found


def enlarged_part(
    example: Mapping[str, Any], rng: random.Random, scale: tuple[float, float] = (0.4, 0.9), min_visible: float = 0.35
) -> Example:
    """
    A part of a photograph, in which its objects are larger.

    Args:
        example (`Mapping`): a detection example without masks.
        rng (`random.Random`): the only source of chance.
        scale (`tuple[float, float]`): range of the part's sides over the photograph's.
        min_visible (`float`): fraction of a box that must be in the part for its object to be kept, clipped.

    Returns:
        `dict`: the part; the photograph itself where none with an object came out.
    """
    width, height = example["image"].size
    if not example["objects"]["bbox"]:
        return dict(example)
    for _ in range(_TRIES):
        factor = rng.uniform(*scale)
        stretch = rng.uniform(0.8, 1.25) ** 0.5
        w, h = max(32, min(width, int(width * factor * stretch))), max(32, min(height, int(height * factor / stretch)))
        x, y = rng.randint(0, max(0, width - w)), rng.randint(0, max(0, height - h))
        objects = shifted(example["objects"], 1.0, -x, -y, (w, h), min_visible)
        if objects["bbox"]:
            image = example["image"].crop((x, y, x + w, y + h))
            return {**example, "image": image, "objects": objects, "width": w, "height": h}
    return dict(example)


def reduced_image(
    example: Mapping[str, Any], rng: random.Random, scale: tuple[float, float] = (0.45, 0.85)
) -> Example:
    """
    A photograph within a margin of one colour, in which its objects are smaller.

    Args:
        example (`Mapping`): a detection example without masks.
        rng (`random.Random`): the only source of chance.
        scale (`tuple[float, float]`): range of the photograph's sides over the new image's.
    """
    width, height = example["image"].size
    factor = rng.uniform(*scale)
    w, h = max(1, int(width * factor)), max(1, int(height * factor))
    canvas = Image.new("RGB", (width, height), tuple(rng.randint(0, 255) for _ in range(3)))
    x, y = rng.randint(0, width - w), rng.randint(0, height - h)
    canvas.paste(example["image"].resize((w, h), Image.Resampling.BILINEAR), (x, y))
    return {**example, "image": canvas, "objects": shifted(example["objects"], w / width, x, y, (width, height), 0.0)}


def mosaic(tiles: Sequence[Mapping[str, Any]], size: tuple[int, int], rng: random.Random) -> Example:
    """
    Four photographs in one.

    Args:
        tiles (`Sequence[Mapping]`): four detection examples without masks: top left, top right, bottom left and right.
        size (`tuple[int, int]`): width and height of the mosaic in pixels.
        rng (`random.Random`): draws where the tiles meet.

    Returns:
        `dict`: the first tile's example with the image and the objects of all.
    """
    width, height = size
    middle_x, middle_y = int(width * rng.uniform(0.35, 0.65)), int(height * rng.uniform(0.35, 0.65))
    canvas = Image.new("RGB", size, tuple(rng.randint(0, 255) for _ in range(3)))
    boxes: list[list[float]] = []
    categories: list[str] = []
    corners = ((0, 0), (middle_x, 0), (0, middle_y), (middle_x, middle_y))
    ends = ((middle_x, middle_y), (width, middle_y), (middle_x, height), (width, height))
    for tile, (x, y), (end_x, end_y) in zip(tiles, corners, ends, strict=True):
        factor = min((end_x - x) / tile["image"].width, (end_y - y) / tile["image"].height)
        w, h = max(1, int(tile["image"].width * factor)), max(1, int(tile["image"].height * factor))
        canvas.paste(tile["image"].resize((w, h), Image.Resampling.BILINEAR), (x, y))
        objects = shifted(tile["objects"], factor, x, y, size, 0.0)
        boxes += objects["bbox"]
        categories += objects["category"]
    areas = [w * h for _, _, w, h in boxes]
    objects = {"bbox": boxes, "category": categories, "area": areas, "iscrowd": [0] * len(boxes)}
    return {**tiles[0], "image": canvas, "objects": objects, "width": width, "height": height}


def shifted(
    objects: Mapping[str, Sequence[Any]], factor: float, x: float, y: float, size: tuple[int, int], min_visible: float
) -> dict[str, list[Any]]:
    """
    Objects without masks after their image was scaled and moved.

    Args:
        objects (`Mapping[str, Sequence]`): columns of the schema.
        factor (`float`): of the scale; then the move by `x` and `y` pixels.
        size (`tuple[int, int]`): width and height of the new image, to which boxes are clipped.
        min_visible (`float`): fraction of a box that must be inside for its object to be kept.
    """
    kept: dict[str, list[Any]] = {column: [] for column in objects}
    for index, (left, top, w, h) in enumerate(objects["bbox"]):
        x1, y1 = left * factor + x, top * factor + y
        x2, y2 = x1 + w * factor, y1 + h * factor
        cut_x1, cut_y1 = max(x1, 0.0), max(y1, 0.0)
        cut_x2, cut_y2 = min(x2, float(size[0])), min(y2, float(size[1]))
        if min(cut_x2 - cut_x1, cut_y2 - cut_y1) < 2:
            continue
        area = (cut_x2 - cut_x1) * (cut_y2 - cut_y1)
        if area < min_visible * (x2 - x1) * (y2 - y1):
            continue
        for column, values in objects.items():
            kept[column].append(values[index])
        kept["bbox"][-1] = [cut_x1, cut_y1, cut_x2 - cut_x1, cut_y2 - cut_y1]
        if "area" in kept:
            kept["area"][-1] = area
    return kept


def _without_masks(example: Mapping[str, Any]) -> Example:
    objects = {column: values for column, values in example["objects"].items() if column != "segmentation"}
    return {**example, "objects": objects}


def _sentence_example(
    example: Mapping[str, Any], kind: str, objects: Sequence[SceneObject], sentence: SceneText
) -> Example:
    indices = sorted(sentence.spans)
    return {
        "image": example["image"],
        "image_id": example["image_id"],
        "kind": kind,
        "text": sentence.text,
        "objects": {
            "bbox": [list(objects[index].bbox) for index in indices],
            "area": [objects[index].area for index in indices],
            "phrase": [sentence.phrases[index] for index in indices],
            "tokens_positive": [sentence.spans[index] for index in indices],
        },
        "referents": [indices.index(index) for index in sentence.referents],
    }
