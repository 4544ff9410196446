"""An endless, seeded source of composite scenes with boxes, masks, captions, referring phrases and questions."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.scenes.assets import Background, SceneAssets, empty_crops
from transformers_glipv2.data.scenes.colours import PAINTS
from transformers_glipv2.data.scenes.language import (
    QUESTION_TYPES,
    SceneText,
    answers_of,
    coloured_labels,
    list_caption,
    question,
    referring_phrase,
    relation_caption,
)
from transformers_glipv2.data.scenes.render import ObjectSpec, SceneComposer, SceneObject
from transformers_glipv2.data.seeding import derive_random

DEFAULT_KINDS = {"detection": 0.5, "grounding": 0.3, "vqa": 0.1, "caption": 0.1}
# Samples what a scene should hold, given what its background may show.
Specs = Callable[[random.Random, frozenset[str]], list[ObjectSpec]]
TEST_PARTS = ("seen", "held_out_pairs", "held_out_nouns")


class CompositeScenes(Dataset):
    """
    Endless scenes as examples of the schema: `scenes[i]` depends on the seed, the split and `i` alone.

    "detection" examples ask for every noun of the vocabulary; `negative_labels` holds what is certainly absent. A part
    of them looks for colours too ("red chair" beside an absent "blue chair"). "grounding" examples mention some of the
    objects or refer to one of them; there `referents` lists the objects that the whole sentence means, and is empty
    for captions. "vqa" examples have `question_type` and ten equal answers. "caption" examples mention everything;
    `captions` holds further true ones.

    There is no `len`: give `MixtureDataset` a length.

    Args:
        assets (`SceneAssets`, `str` or `Path`): or the folder that they are in.
        split (`str`, *optional*, defaults to `"train"`): or "test": other object crops and backgrounds. Neither shows
            nor names held-out nouns or (colour, noun) pairs; see `test_scenes` for those.
        seed (`int`, *optional*, defaults to 0).
        size (`int`, *optional*, defaults to 384): longer side in pixels; the shorter one is 3/4 of it or more.
        kinds (`Mapping[str, float]`, *optional*): fractions of the kinds of examples.
        colour_labels (`float`, *optional*, defaults to 0.25): fraction of detection examples that ask for colours.
        max_objects (`int`, *optional*, defaults to 8): in a scene.
        extra_backgrounds (`Sequence`, *optional*): images beside the assets' own; see `empty_crops`.
        cache_megabytes (`int`, *optional*, defaults to 256): of decoded images, in each worker.

    Raises:
        ValueError: when an argument is out of range or a kind is unknown.
    """

    def __init__(
        self,
        assets: SceneAssets | str | Path,
        split: str = "train",
        seed: int = 0,
        size: int = 384,
        kinds: Mapping[str, float] | None = None,
        colour_labels: float = 0.25,
        max_objects: int = 8,
        extra_backgrounds: Sequence[Background | str | Path] = (),
        cache_megabytes: int = 256,
    ):
        kinds = dict(DEFAULT_KINDS if kinds is None else kinds)
        if split not in ("train", "test"):
            raise ValueError(f'`split` is {split!r}; choose "train" or "test".')
        if not kinds or set(kinds) - set(DEFAULT_KINDS) or min(kinds.values()) < 0 or not sum(kinds.values()):
            raise ValueError(f"`kinds` must give fractions of {', '.join(DEFAULT_KINDS)}, got {kinds}.")
        if not 0 <= colour_labels <= 1 or not 1 <= max_objects <= 8 or size < 64:
            raise ValueError(
                "`colour_labels` must be in [0, 1], `max_objects` in [1, 8] and `size` at least 64, got "
                f"{colour_labels}, {max_objects} and {size}."
            )
        self.assets = assets if isinstance(assets, SceneAssets) else SceneAssets(assets)
        self.split = split
        self.seed = seed
        self.kinds = kinds
        self.colour_labels = colour_labels
        self.max_objects = max_objects
        self.composer = SceneComposer(self.assets, split, size, extra_backgrounds, cache_megabytes=cache_megabytes)
        self.paintable = [n for n in self.assets.nouns if any(c.recolour for c in self.composer.choices[n])]

    @property
    def class_names(self) -> list[str]:
        """The nouns that detection examples ask for."""
        return self.assets.nouns

    def answers(self) -> list[str]:
        """Every answer that a question may have."""
        return answers_of(self.assets.nouns)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(f"scene {index}: the scenes are numbered from 0 and have no end.")
        rng = derive_random("scene", self.split, self.seed, index)
        kind = rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        make = {
            "detection": self._detection_example,
            "grounding": self._grounding_example,
            "caption": self._caption_example,
            "vqa": self._vqa_example,
        }[kind]
        example = _first(make, rng, f"{kind} example", self.assets)
        return {"image_id": f"{self.split}-{self.seed}-{index}", "kind": kind, **example}

    # ---------------------------------------------------------------------------------------------- kinds of examples

    def _detection_example(self, rng: random.Random) -> dict[str, Any] | None:
        image, objects, shown = self._scene(rng, self._any_specs)
        if not objects:
            return None
        if rng.random() < self.colour_labels:
            categories, negatives = coloured_labels(self.assets, objects, shown, rng)
            labels = sorted({*categories, *negatives})
        else:
            categories, labels = [o.noun for o in objects], self.assets.nouns
            negatives = self.assets.absent(labels, categories, shown)
        columns = {**_columns(objects, range(len(objects))), "category": categories}
        return {"image": image, "labels": labels, "negative_labels": negatives, "objects": columns}

    def _grounding_example(self, rng: random.Random) -> dict[str, Any] | None:
        way = rng.random()
        image, objects, _ = self._scene(rng, self._twin_specs if way < 0.5 else self._any_specs)
        if not objects:
            return None
        sentence = None
        if way < 0.5:
            sentence = referring_phrase(objects, rng)
        elif way < 0.8:
            sentence = relation_caption(objects, rng)
        if sentence is None:
            sentence = list_caption(objects, rng.choice(("", "", "a picture of ", "there is ")), rng.random() < 0.7)
        return _grounded(image, objects, sentence)

    def _referring_example(self, rng: random.Random) -> dict[str, Any] | None:
        image, objects, _ = self._scene(rng, self._twin_specs)
        sentence = referring_phrase(objects, rng)
        return _grounded(image, objects, sentence) if sentence is not None else None

    def _caption_example(self, rng: random.Random) -> dict[str, Any] | None:
        image, objects, _ = self._scene(rng, self._few_specs)
        if not objects:
            return None
        sentence = list_caption(objects, "a picture of ")
        further = [list_caption(objects, "there is ").text, list_caption(objects, "", with_colour=False).text]
        related = relation_caption(objects, rng)
        if related is not None and len(related.spans) == len(objects):
            further.append(related.text)
        columns = _grounded_columns(objects, sentence)
        return {"image": image, "text": sentence.text, "captions": [sentence.text, *further], "objects": columns}

    def _vqa_example(self, rng: random.Random) -> dict[str, Any] | None:
        kind = rng.choice(QUESTION_TYPES)
        specs = {"how many": self._counted_specs, "which color": self._painted_specs}.get(kind, self._few_specs)
        image, objects, shown = self._scene(rng, specs)
        if not objects:
            return None
        absent = self.assets.absent(self.assets.nouns, [o.noun for o in objects], shown)
        sentence = question(objects, absent, rng, kind)
        if sentence is None or self._is_held_out(sentence):
            return None
        return {
            "image": image,
            "question": sentence.text,
            "answers": [sentence.answer] * 10,
            "question_type": kind,
            "objects": _grounded_columns(objects, sentence),
        }

    def _is_held_out(self, sentence: SceneText) -> bool:
        """Questions may ask for what is not there; that must not be what training never sees."""
        return any(f"{colour} {noun}" in sentence.text for colour, noun in self.assets.held_out_pairs)

    # ------------------------------------------------------------------------------------------------ what is shown

    def _scene(self, rng: random.Random, specs: Specs) -> tuple[Image.Image, list[SceneObject], frozenset[str]]:
        canvas, shown = self.composer.draw_background(rng)
        image, objects = self.composer.compose(canvas, specs(rng, shown), rng)
        return image, objects, shown

    def _nouns(self, rng: random.Random, count: int, shown: frozenset[str], pool: Sequence[str] = ()) -> list[str]:
        return self.assets.draw_unrelated(pool or self.assets.nouns, count, shown, rng)

    def _any_specs(self, rng: random.Random, shown: frozenset[str]) -> list[ObjectSpec]:
        count = min(self.max_objects, rng.choices(range(1, 9), (10, 16, 18, 16, 14, 11, 8, 7))[0])
        nouns = self._nouns(rng, count, shown)
        chosen = nouns[:1]
        for noun in nouns[1:]:
            chosen.append(rng.choice(chosen) if rng.random() < 0.2 else noun)
        return [self._painted(noun, rng, 0.35) for noun in chosen]

    def _few_specs(self, rng: random.Random, shown: frozenset[str]) -> list[ObjectSpec]:
        nouns = self._nouns(rng, min(self.max_objects, rng.choice((1, 2, 2, 2, 3, 3, 4))), shown)
        return [self._painted(noun, rng, 0.4) for noun in nouns]

    def _twin_specs(self, rng: random.Random, shown: frozenset[str]) -> list[ObjectSpec]:
        """Two or three of a noun, in different colours where that can be, and something else beside them."""
        nouns = self._nouns(rng, rng.randint(2, 4), shown)
        twins = self._nouns(rng, 1, shown, self.paintable)
        if not nouns:
            return []
        if twins and not any(noun in self.assets.related[twins[0]] or noun == twins[0] for noun in nouns[1:]):
            nouns[0] = twins[0]
        copies = rng.choice((2, 2, 3))
        colours = rng.sample(list(PAINTS), copies)
        specs = [ObjectSpec(nouns[0], colour if rng.random() < 0.8 else None) for colour in colours]
        specs += [self._painted(noun, rng, 0.3) for noun in nouns[1:]]
        rng.shuffle(specs)
        return specs[: self.max_objects]

    def _counted_specs(self, rng: random.Random, shown: frozenset[str]) -> list[ObjectSpec]:
        nouns = self._nouns(rng, rng.choice((1, 2, 3)), shown)
        specs = [ObjectSpec(noun) for noun in nouns[:1]] * rng.randint(1, 6) + [ObjectSpec(noun) for noun in nouns[1:]]
        rng.shuffle(specs)
        return specs[: self.max_objects]

    def _painted_specs(self, rng: random.Random, shown: frozenset[str]) -> list[ObjectSpec]:
        first = self._nouns(rng, 1, shown, self.paintable) if self.paintable else []
        others = self._nouns(rng, rng.choice((0, 1, 1, 2)), shown)
        others = [noun for noun in others if not any(noun == one or noun in self.assets.related[one] for one in first)]
        return [self._painted(noun, rng, 0.8) for noun in [*first, *others]]

    def _painted(self, noun: str, rng: random.Random, probability: float) -> ObjectSpec:
        return ObjectSpec(noun, rng.choice(list(PAINTS)) if rng.random() < probability else None)


def load_scenes(
    assets: str | Path, background_folder: str | Path | None = None, background_split: str = "train", **options: Any
) -> CompositeScenes:
    """
    Composite scenes for a training data file.

    Args:
        assets (`str` or `Path`): the folder of the object crops.
        background_folder (`str` or `Path`, *optional*): a COCO-format folder whose images give further backgrounds,
            without annotated objects.
        background_split (`str`, *optional*, defaults to `"train"`): of that folder.
        options: what else `CompositeScenes` takes.
    """
    extra = [] if background_folder is None else coco_backgrounds(background_folder, background_split)
    return CompositeScenes(assets, extra_backgrounds=extra, **options)


def coco_backgrounds(folder: str | Path, split: str = "train") -> list[Background]:
    """Parts of a COCO-format folder's images without annotated objects; see `empty_crops`."""
    return empty_crops(load_coco(folder, split=split, policy={"crowd": "keep"}))


class TestScenes(Dataset):
    """
    A fixed list of test scenes; see `test_scenes`.

    Examples are of kind "detection". `labels` is the prompt: what is in the scene and `negatives` sampled labels that
    are not, in a random order; `negative_labels` those alone.
    """

    __test__ = False  # no test of pytest's, whatever its name

    def __init__(
        self,
        assets: SceneAssets,
        part: str,
        count: int,
        negatives: int,
        seed: int,
        size: int,
        extra_backgrounds: Sequence[Background | str | Path],
    ):
        self.assets, self.part, self.count, self.negatives, self.seed = assets, part, count, negatives, seed
        self.composer = SceneComposer(assets, "test", size, extra_backgrounds)
        self.held_pairs = sorted(assets.held_out_pairs)
        self.held_nouns = sorted(assets.held_out_nouns)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        rng = derive_random("test scene", self.part, self.seed, index)
        image, objects, shown = _first(self._scene, rng, f"scene of the part {self.part!r}", self.assets)
        names = [self._name(o) for o in objects]
        negatives = self._negatives([o.noun for o in objects], shown, rng)
        labels = [*dict.fromkeys(names), *negatives]
        rng.shuffle(labels)
        columns = {**_columns(objects, range(len(objects))), "category": names}
        return {
            "image": image,
            "image_id": f"{self.part}-{self.seed}-{index}",
            "kind": "detection",
            "labels": labels,
            "negative_labels": negatives,
            "objects": columns,
        }

    def _scene(self, rng: random.Random) -> tuple[Image.Image, list[SceneObject], frozenset[str]] | None:
        canvas, shown = self.composer.draw_background(rng)
        specs = self._specs(rng, shown)
        image, objects = self.composer.compose(canvas, specs, rng, allow_held_out=self.part != "seen")
        return (image, objects, shown) if objects else None

    def _name(self, o: SceneObject) -> str:
        return f"{o.colour} {o.noun}" if self.part == "held_out_pairs" else o.noun

    def _specs(self, rng: random.Random, shown: frozenset[str]) -> list[ObjectSpec]:
        count = rng.choices(range(1, 7), (3, 4, 4, 3, 2, 1))[0]
        if self.part == "held_out_pairs":
            colours: dict[str, list[str]] = {}
            for colour, noun in self.held_pairs:
                colours.setdefault(noun, []).append(colour)
            nouns = self.assets.draw_unrelated(sorted(colours), count, shown, rng)
            return [ObjectSpec(noun, rng.choice(colours[noun]), strict=True) for noun in nouns]
        pool = self.held_nouns if self.part == "held_out_nouns" else self.assets.nouns
        nouns = self.assets.draw_unrelated(pool, count, shown, rng)
        chosen = nouns[:1]
        for noun in nouns[1:]:
            chosen.append(rng.choice(chosen) if rng.random() < 0.2 else noun)
        paint = [rng.choice(list(PAINTS)) if rng.random() < 0.35 else None for _ in chosen]
        return [ObjectSpec(noun, colour) for noun, colour in zip(chosen, paint, strict=True)]

    def _negatives(self, present: Sequence[str], shown: frozenset[str], rng: random.Random) -> list[str]:
        """Of the part's own kind and of seen labels, half and half where there are enough."""
        vocabulary = self.assets.absent(sorted(self.assets.object_crops), present, shown)
        if self.part == "held_out_pairs":
            absent = set(vocabulary)
            pool = [f"{colour} {noun}" for colour, noun in self.assets.pairs if noun in absent]
            return rng.sample(pool, min(self.negatives, len(pool)))
        held = [noun for noun in vocabulary if noun in self.assets.held_out_nouns]
        seen = [noun for noun in vocabulary if noun not in self.assets.held_out_nouns]
        own = rng.sample(held, min(self.negatives // 2, len(held))) if self.part == "held_out_nouns" else []
        return own + rng.sample(seen, min(self.negatives - len(own), len(seen)))


def test_scenes(
    assets: SceneAssets | str | Path,
    part: str = "seen",
    count: int = 500,
    negatives: int = 20,
    seed: int = 0,
    size: int = 384,
    extra_backgrounds: Sequence[Background | str | Path] = (),
) -> TestScenes:
    """
    The composite test: scenes of object crops and backgrounds that training does not show.

    Args:
        assets (`SceneAssets`, `str` or `Path`): or the folder that they are in.
        part (`str`, *optional*, defaults to `"seen"`): "seen": nouns of training; "held_out_pairs": labels such as
            "red chair" where training showed red objects and chairs but no red chair; "held_out_nouns": nouns that
            training neither showed nor named.
        count (`int`, *optional*, defaults to 500): scenes.
        negatives (`int`, *optional*, defaults to 20): absent labels in each prompt.
        seed (`int`, *optional*, defaults to 0), size (`int`, *optional*, defaults to 384): as in `CompositeScenes`.
        extra_backgrounds (`Sequence`, *optional*): as in `CompositeScenes`, of which a quarter is for the test.

    Returns:
        `TestScenes`: a data set of detection examples.

    Raises:
        ValueError: when the part is unknown or the assets have nothing for it.
    """
    if part not in TEST_PARTS:
        raise ValueError(f"`part` is {part!r}; choose one of {', '.join(TEST_PARTS)}.")
    assets = assets if isinstance(assets, SceneAssets) else SceneAssets(assets)
    have = {"seen": assets.nouns, "held_out_pairs": assets.held_out_pairs, "held_out_nouns": assets.held_out_nouns}
    if not have[part]:
        raise ValueError(f"{assets.folder} has too few object crops to hold any out for the part {part!r}.")
    return TestScenes(assets, part, count, negatives, seed, size, extra_backgrounds)


test_scenes.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it where it is imported


class ReferringScenes(Dataset):
    """
    A fixed number of test scenes with one referring phrase each ("the red cup left of the bottle").

    Examples are of kind "grounding": `referents` holds the one object that `text` as a whole means; further objects
    are the landmarks.

    Args:
        assets (`SceneAssets`, `str` or `Path`): or the folder that they are in.
        count (`int`, *optional*, defaults to 500).
        seed (`int`, *optional*, defaults to 0), size (`int`, *optional*, defaults to 384), extra_backgrounds: as in
            `CompositeScenes`.
    """

    def __init__(
        self,
        assets: SceneAssets | str | Path,
        count: int = 500,
        seed: int = 0,
        size: int = 384,
        extra_backgrounds: Sequence[Background | str | Path] = (),
    ):
        self.scenes = CompositeScenes(
            assets, "test", seed, size, {"grounding": 1.0}, extra_backgrounds=extra_backgrounds
        )
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"phrase {index} of {self.count}")
        rng = derive_random("referring", self.scenes.seed, index)
        example = _first(self.scenes._referring_example, rng, "referring phrase", self.scenes.assets)
        return {"image_id": f"referring-{self.scenes.seed}-{index}", "kind": "grounding", **example}


def _columns(objects: Sequence[SceneObject], indices: Sequence[int]) -> dict[str, list[Any]]:
    kept = [objects[index] for index in indices]
    return {
        "bbox": [list(o.bbox) for o in kept],
        "segmentation": [o.mask for o in kept],
        "area": [o.area for o in kept],
    }


def _grounded_columns(objects: Sequence[SceneObject], sentence: SceneText) -> dict[str, list[Any]]:
    """The objects that a sentence mentions, with their spans."""
    indices = sorted(sentence.spans)
    return {
        **_columns(objects, indices),
        "phrase": [sentence.phrases[index] for index in indices],
        "tokens_positive": [sentence.spans[index] for index in indices],
    }


def _grounded(image: Image.Image, objects: Sequence[SceneObject], sentence: SceneText) -> dict[str, Any]:
    indices = sorted(sentence.spans)
    referents = [indices.index(index) for index in sentence.referents]
    return {
        "image": image,
        "text": sentence.text,
        "objects": _grounded_columns(objects, sentence),
        "referents": referents,
    }


def _first(make: Callable[[random.Random], Any], rng: random.Random, what: str, assets: SceneAssets) -> Any:
    """The first result that is not `None`; chance may leave a scene empty or without anything to ask."""
    for _ in range(500):
        made = make(rng)
        if made is not None:
            return made
    raise ValueError(f"no {what} came out in 500 tries; {assets.folder} has too few different object crops for it.")
