"""
A file that says what a run is trained on: data sets with weights, sizes of images, augmentations.

    sources:                    # what is mixed; `weight` is its share of the rows, every other key goes to the loader
      - {kind: coco, path: coco-mini, split: train, with_masks: true, weight: 1}
      - {kind: "my_package.my_module:my_loader", path: scenes, seed: 3, weight: 2}
    sizes: [320, 384, 448]      # shortest edges in pixels, one drawn for each step; default: the processor's size
    max_size: 640               # longest edge in pixels that goes with them
    mlm_probability: 0.15       # of a word to be hidden
    max_negatives: 85           # absent classes in the sentence of a detection row, at most
    augment: {flip: 0.5, photometric: 0.5, copy_paste: 0.0}    # probabilities; copy_paste needs a source with masks
    evaluation: {path: coco-mini, split: val, max_samples: 100}

Paths are relative to the file. YAML, of which JSON is a part.
"""

import difflib
import importlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from transformers_glipv2.data.augment import Compose, CopyPaste, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.files import read_text
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.data.sampling import DetectionSampler, GroundedText, token_counter
from transformers_glipv2.prompts import clean_label

# Loaders by kind; the first argument of each is the path.
LOADERS = {
    "coco": "transformers_glipv2.data.formats.coco:load_coco",
    "lvis": "transformers_glipv2.data.lvis:load_lvis",
    "flickr30k": "transformers_glipv2.data.flickr30k:load_flickr30k",
    "mixed_grounding": "transformers_glipv2.data.mixed_grounding:load_mixed_grounding",
    "phrasecut": "transformers_glipv2.data.phrasecut:load_phrasecut",
    "pseudo_boxes": "transformers_glipv2.data.pseudo_boxes:load_pseudo_boxes",
    "captions": "transformers_glipv2.data.captions:load_coco_captions",
    "karpathy_captions": "transformers_glipv2.data.captions:load_karpathy_captions",
    "vqa": "transformers_glipv2.data.vqa:load_vqa",
    "hub": "transformers_glipv2.data.hub:load_hub",
    "scenes": "transformers_glipv2.data.scenes.scenes:load_scenes",
    "mosaics": "transformers_glipv2.data.scenes.mosaics:MosaicScenes",
}
# What else may be a path relative to the data file.
_PATHS = ("image_folder", "annotations_file", "background_folder")


@dataclass
class DataFile:
    """
    The content of a data file, checked; see the head of this module.

    Attributes:
        folder (`Path`): paths are relative to it.
        sources (`list[dict]`), sizes (`list[int]` or `None`), max_size (`int` or `None`), mlm_probability (`float`),
        max_negatives (`int`), augment (`dict[str, float]`), evaluation (`dict` or `None`): as in the file.
    """

    folder: Path
    sources: list[dict[str, Any]]
    sizes: list[int] | None = None
    max_size: int | None = None
    mlm_probability: float = 0.15
    max_negatives: int = 85
    augment: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None


def read_data_file(path: str | Path) -> DataFile:
    """
    Reads and checks a data file.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: for unknown keys, kinds and augmentations, or when there is no source.
    """
    path = Path(path)
    content = yaml.safe_load(read_text(path))
    if not isinstance(content, Mapping) or not content.get("sources"):
        raise ValueError(f"{path} lists no `sources`; give at least one, such as {{kind: coco, path: FOLDER}}.")
    known = set(DataFile.__dataclass_fields__) - {"folder"}
    _check_known(content, known, f"{path}")
    _check_known(content.get("augment", {}), {"flip", "photometric", "copy_paste"}, f"`augment` of {path}")
    for index, source in enumerate(content["sources"]):
        where = f"source {index} of {path}"
        if "kind" not in source or "path" not in source:
            raise ValueError(f"{where} is {source}; it needs `kind` ({', '.join(LOADERS)} or module:name) and `path`.")
        if ":" not in source["kind"]:
            _check_known([source["kind"]], set(LOADERS), f"`kind` of {where}")
    return DataFile(folder=path.parent, **content)


def load_sources(data: DataFile) -> tuple[list[Any], list[float]]:
    """The data sets of the sources and their weights, in the file's order."""
    datasets, weights = [], []
    for source in data.sources:
        options = {name: value for name, value in source.items() if name not in ("kind", "path", "weight")}
        options |= {name: _place(data.folder, options[name]) for name in options.keys() & set(_PATHS)}
        datasets.append(_loader(source["kind"])(_place(data.folder, source["path"]), **options))
        weights.append(float(source.get("weight", 1.0)))
    return datasets, weights


def make_mixture(data: DataFile, num_draws: int, seed: int) -> MixtureDataset:
    """The sources, mixed by their weights, `num_draws` rows altogether."""
    datasets, weights = load_sources(data)
    return MixtureDataset(datasets, weights, seed=seed, length=num_draws)


def make_collator(data: DataFile, processor: Any, mixture: MixtureDataset, batch_size: int, seed: int):
    """
    The collator of a run.

    Args:
        data (`DataFile`).
        processor (`GLIPv2Processor`).
        mixture (`MixtureDataset`): its first source with masks gives what copy-paste pastes.
        batch_size (`int`): rows of one optimizer step; they share a size.
        seed (`int`).

    Returns:
        `GroundingCollator`.
    """
    return GroundingCollator(
        processor,
        sampler=make_sampler(processor, max_negatives=data.max_negatives),
        augment=_augmentation(data, mixture),
        sizes=data.sizes,
        max_size=data.max_size,
        size_period=batch_size,
        mlm_probability=data.mlm_probability,
        max_text_length=processor.max_tokens,
        seed=seed,
    )


def make_sampler(processor: Any, **options: Any) -> DetectionSampler:
    """A `DetectionSampler` of clean names that fit the processor's texts."""
    return DetectionSampler(
        max_tokens=processor.max_tokens - processor.tokenizer.num_special_tokens_to_add(),
        count_tokens=token_counter(processor.tokenizer),
        clean=clean_name,
        **options,
    )


class SamplerBySource:
    """
    Sentences for fine-tuning: rows of the mixture's first source list all its classes in order, as the tuned model
    will be asked; the others get sampled ones.

    Args:
        processor (`GLIPv2Processor`).
        num_classes (`int`): of the first source.
    """

    def __init__(self, processor: Any, num_classes: int):
        self.fixed = make_sampler(processor, max_negatives=num_classes, full_probability=1.0, shuffle=False)
        self.sampled = make_sampler(processor)

    def __call__(self, row: Mapping[str, Any], rng: random.Random) -> GroundedText:
        return (self.fixed if row["source"] == 0 else self.sampled)(row, rng)


def clean_name(name: str) -> str:
    """A class name as prompts have it; one that is all in brackets stays as it is."""
    return clean_label(name).strip() or name


def _augmentation(data: DataFile, mixture: MixtureDataset) -> Compose | None:
    steps: list[Callable] = []
    if data.augment.get("copy_paste"):
        donor = next(
            (
                dataset
                for source, dataset in zip(data.sources, mixture.sources, strict=True)
                if source.get("with_masks")
            ),
            None,
        )
        if donor is None:
            raise ValueError("`copy_paste` cuts objects out by their masks; give a source `with_masks: true`.")
        steps.append(CopyPaste(donor, probability=data.augment["copy_paste"]))
    if data.augment.get("flip"):
        steps.append(HorizontalFlip(data.augment["flip"]))
    if data.augment.get("photometric"):
        steps.append(PhotometricDistortion(data.augment["photometric"]))
    return Compose(steps) if steps else None


def _place(folder: Path, path: Any) -> Any:
    """A path relative to the data file, or what was given where nothing is there (a Hub id, a name in a folder)."""
    if isinstance(path, list):
        return [_place(folder, part) for part in path]
    return folder / path if isinstance(path, str) and (folder / path).exists() else path


def _loader(kind: str) -> Callable[..., Any]:
    module, _, name = LOADERS.get(kind, kind).partition(":")
    return getattr(importlib.import_module(module), name)


def _check_known(given: Any, known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"{where} has {name!r}{hint}; known: {', '.join(sorted(known))}.")
