"""Object crops with names and backgrounds: reading them, and dividing them between training and test."""

import json
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_glipv2.data.files import read_lines
from transformers_glipv2.data.scenes.colours import PAINTS
from transformers_glipv2.data.scenes.words import related_nouns
from transformers_glipv2.data.seeding import derive_random
from transformers_glipv2.images.image_io import open_image


def _names(text: str) -> frozenset[str]:
    return frozenset(" ".join(text.split()).split(", "))


# Photographs of landscapes may show these: there they are neither placed nor called absent.
BACKGROUND_NOUNS = _names(
    """
    bench, brick, building, bush, church, circle, cloud, clover, comet, curtain, door, droplet, fence, flower,
    hedge, house, island, leaf, light switch, log, moon, mountain, palm tree, paper, pine tree, planet, rainbow,
    rock, rug, seedling, shelf, square, star, street lamp, sun, table, tower, tree, wall socket, wave, window
    """
)
# Classes of COCO and Caltech 101: never held out, since training with those sets would show them.
_SHOWN_ELSEWHERE = _names(
    """
    accordion, airplane, anchor, ant, apple, backpack, banana, banknote, barrel, baseball, bear, beaver, bed,
    bench, bicycle, bird, boat, bonsai, book, bottle, bowl, brain, broccoli, bus, butterfly, cake, camera, car,
    carrot, cat, ceiling fan, chair, chandelier, clock, clothes hanger, computer mouse, cow, crab, crocodile, cup,
    dog, dolphin, doughnut, dragonfly, electric guitar, elephant, fire hydrant, flamingo, fork, frisbee, giraffe,
    handbag, headphones, hedgehog, helicopter, horse, hot dog, kangaroo, keyboard, kite, knife, lamp, laptop,
    llama, lobster, microwave, mobile phone, motorcycle, necktie, octopus, oven, panda, person, piano, pigeon,
    pizza, potted plant, pyramid, raccoon, refrigerator, remote control, rhinoceros, rooster, sandwich, saxophone,
    scissors, scorpion, sheep, sink, skateboard, skis, soccer ball, sofa, spoon, stapler, stop sign, strawberry,
    suitcase, sunflower, table, tangerine, teddy bear, television, tennis racket, toaster, toilet, toothbrush,
    traffic light, train, truck, turtle, umbrella, vase, watch, wheelchair, wine glass, wrench, zebra
    """
)
# A blue face is no face that a caption would call blue.
_NEVER_RECOLOURED = {"man", "woman", "boy", "girl", "baby", "hand", "smiley", "flag", "ear", "eye", "tangerine"}
_SPLIT_SEED = 20


@dataclass(frozen=True)
class ObjectCrop:
    """An image of one object on a transparent ground."""

    file: str
    noun: str
    attributes: tuple[str, ...] = ()
    recolour: str | None = None
    hue: int = 0


@dataclass(frozen=True)
class Background:
    """
    An image to paste on.

    Attributes:
        file (`str`): path.
        crop (`tuple[int, int, int, int]` or `None`): left, top, right, bottom in pixels of the file; `None` for all.
        nouns (`frozenset[str]`): what the image may show; in scenes over it they are neither placed nor absent.
    """

    file: str
    crop: tuple[int, int, int, int] | None = None
    nouns: frozenset[str] = BACKGROUND_NOUNS


class SceneAssets:
    """
    The object crops and backgrounds of a folder, divided.

    What is held out of training, always the same for the same folder:
    - `held_out_nouns`: about 8 % of the nouns, only such as share no word and no line of the table of look-alikes
      with a noun of training;
    - `held_out_pairs`: about 8 % of the (colour, noun) pairs that recolouring can make;
    - of nouns with several object crops a quarter of them, one at least;
    - a quarter of the backgrounds.

    Args:
        folder (`str` or `Path`): with `index.jsonl`, as `examples/fetch_scene_assets.py` writes it.

    Raises:
        ValueError: when the folder has no index or no object crops.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = self.folder / "index.jsonl"
        if not index.is_file():
            raise ValueError(
                f"{index} does not exist; fetch the images with examples/fetch_scene_assets.py --output FOLDER."
            )
        entries = [json.loads(line) for line in read_lines(index)]
        self.object_crops: dict[str, list[ObjectCrop]] = defaultdict(list)
        for entry in sorted((e for e in entries if e["kind"] == "object_crop"), key=lambda e: e["file"]):
            self.object_crops[entry["noun"]].append(_object_crop_of(entry))
        if not self.object_crops:
            raise ValueError(f"{index} lists no object crops; fetch them with examples/fetch_scene_assets.py.")
        self.backgrounds = [
            Background(str(self.folder / e["file"]), nouns=frozenset(e.get("nouns", BACKGROUND_NOUNS)))
            for e in sorted((e for e in entries if e["kind"] == "background"), key=lambda e: e["file"])
        ]
        self.licences = sorted({entry["licence"] for entry in entries if "licence" in entry})
        self.related = related_nouns(self.object_crops)
        self.held_out_nouns = self._draw_nouns()
        self.nouns = sorted(set(self.object_crops) - self.held_out_nouns)
        self.pairs = self._all_pairs(self.nouns)
        self.held_out_pairs = frozenset(pair for pair in self.pairs if _hash_fraction("pair", *pair) < 0.08)

    def split_object_crops(self, noun: str, split: str) -> list[ObjectCrop]:
        """The object crops of a noun that a split may show; of a noun with one only, and of held-out ones, all."""
        object_crops = self.object_crops[noun]
        if len(object_crops) == 1 or noun in self.held_out_nouns:
            return object_crops
        test = _test_indices(len(object_crops), noun)
        return [object_crop for index, object_crop in enumerate(object_crops) if (index in test) == (split == "test")]

    def split_backgrounds(self, split: str, extra: Sequence[Background | str | Path] = ()) -> list[Background]:
        """The backgrounds of a split, `extra` ones divided in the same way."""
        every = self.backgrounds + [b if isinstance(b, Background) else Background(str(b)) for b in extra]
        if len(every) == 1:
            return every
        test = _test_indices(len(every), "backgrounds")
        return [background for index, background in enumerate(every) if (index in test) == (split == "test")]

    def absent(self, vocabulary: Iterable[str], present: Iterable[str], background: Iterable[str] = ()) -> list[str]:
        """The nouns of a vocabulary that are certainly not in an image with these nouns and this background."""
        out = set(background)
        for noun in present:
            out.add(noun)
            out |= self.related.get(noun, frozenset())
        return [noun for noun in vocabulary if noun not in out]

    def draw_unrelated(self, pool: Sequence[str], count: int, shown: Iterable[str], rng: random.Random) -> list[str]:
        """Up to `count` nouns of a pool of which none is related to another or shown by the background."""
        chosen: list[str] = []
        out = set(shown)
        for noun in rng.sample(pool, min(len(pool), 4 * count + 40)):
            if len(chosen) == count:
                break
            if noun not in out:
                chosen.append(noun)
                out |= self.related[noun] | {noun}
        return chosen

    def _draw_nouns(self) -> frozenset[str]:
        """Whole groups of related nouns, at most three each, so that no word of theirs is left in training."""
        free, groups = set(self.object_crops), []
        while free:
            group, edge = set(), [min(free)]
            while edge:
                noun = edge.pop()
                if noun in free:
                    free.remove(noun)
                    group.add(noun)
                    edge += self.related[noun]
            if len(group) <= 3 and not group & (BACKGROUND_NOUNS | _SHOWN_ELSEWHERE):
                groups.append(sorted(group))
        groups.sort(key=lambda group: _hash_fraction("noun", group[0]))
        wanted = round(0.08 * len(self.object_crops))
        chosen: list[str] = []
        for nouns in groups:
            if len(chosen) >= wanted:
                break
            chosen += nouns
        return frozenset(chosen)

    def _all_pairs(self, nouns: Iterable[str]) -> list[tuple[str, str]]:
        return [
            (colour, noun)
            for noun in nouns
            if any(object_crop.recolour for object_crop in self.split_object_crops(noun, "train"))
            and any(object_crop.recolour for object_crop in self.split_object_crops(noun, "test"))
            for colour in PAINTS
        ]


class ImageCache:
    """
    Decoded images, the latest asked for, up to a size. Not sent to data loader workers: each fills its own.

    Args:
        megabytes (`int`): of decoded pixels at most.
    """

    def __init__(self, megabytes: int):
        self.limit = megabytes << 20
        self._clear()

    def get(self, path: str | Path, mode: str, crop: tuple[int, int, int, int] | None = None) -> Image.Image:
        """An image in a mode ("RGB" or "RGBA"), cropped; it must not be changed in index."""
        key = (str(path), mode, crop)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        if mode == "RGB":
            image = open_image(path)
        else:
            with Image.open(path) as stored:
                image = stored.convert(mode)
        if crop is not None:
            image = image.crop(crop)
        self._images[key] = image
        self._size += _size_of(image)
        while self._size > self.limit and len(self._images) > 1:
            self._size -= _size_of(self._images.popitem(last=False)[1])
        return image

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.limit = state["limit"]
        self._clear()

    def _clear(self) -> None:
        self._images: OrderedDict[Any, Image.Image] = OrderedDict()
        self._size = 0


def empty_crops(dataset: Any, min_side: int = 160, tries: int = 60) -> list[Background]:
    """
    Parts of annotated images without any object, as backgrounds.

    Args:
        dataset (`ImageDataset`): detection examples; the records' paths are kept, no image is read.
        min_side (`int`, *optional*, defaults to 160): pixels that a part must have in height and width.
        tries (`int`, *optional*, defaults to 60): random parts looked at in each image; the largest empty is taken.

    Returns:
        `list[Background]`: at most one an image.
    """
    found = []
    for record in dataset.records:
        width, height = record["width"], record["height"]
        boxes = np.array(record["objects"]["bbox"], dtype=float).reshape(-1, 4)
        rng = derive_random("empty crop", record["image_id"])
        best, best_area = None, 0
        for _ in range(tries):
            if width < min_side or height < min_side:
                break
            w, h = rng.randint(min_side, width), rng.randint(min_side, height)
            x, y = rng.randint(0, width - w), rng.randint(0, height - h)
            touches = (
                (boxes[:, 0] < x + w)
                & (boxes[:, 0] + boxes[:, 2] > x)
                & (boxes[:, 1] < y + h)
                & (boxes[:, 1] + boxes[:, 3] > y)
            )
            if w * h > best_area and not touches.any():
                best, best_area = (x, y, x + w, y + h), w * h
        if best is not None:
            found.append(Background(str(record["image_path"]), best))
    return found


def _object_crop_of(entry: Mapping[str, Any]) -> ObjectCrop:
    way = None if entry["noun"] in _NEVER_RECOLOURED else entry.get("recolour")
    return ObjectCrop(entry["file"], entry["noun"], tuple(entry.get("attributes", ())), way, entry.get("hue", 0))


def _test_indices(count: int, name: str) -> set[int]:
    return set(derive_random(_SPLIT_SEED, "test", name).sample(range(count), max(1, round(count / 4))))


def _hash_fraction(*parts: str) -> float:
    return derive_random(_SPLIT_SEED, *parts).random()


def _size_of(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())
