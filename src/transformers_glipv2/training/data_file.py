"""
A file that says what a run is trained on: data sets with weights, sizes of images, augmentations.

    sources:                    # what is mixed; `weight` is its fraction of the examples, other keys go to the loader
      - {kind: coco, path: coco-mini, split: train, with_masks: true, weight: 1}
      - {kind: "my_package.my_module:my_loader", path: scenes, seed: 3, weight: 2}
    sizes: [320, 384, 448]      # shortest edges in pixels, one drawn for each step; default: the processor's size
    max_size: 640               # longest edge in pixels that goes with them
    mlm_probability: 0.15       # of a token to be masked
    max_negatives: 85           # absent classes in the sentence of a detection example, at most
    augment: {flip: 0.5, photometric: 0.5, copy_paste: 0.0}    # probabilities; copy_paste needs a source with masks
    stream_readers: 4           # with streamed shards: data loader workers of a process that read shards of their own
    evaluation: {path: coco-mini, split: val, max_samples: 100}

Paths are relative to the file. YAML, of which JSON is a part. A loader of your own (`module:name`) is imported and
called, so a file that names one can run any program: it is refused unless `allow_custom_loaders` says that you trust
the file.
"""

import difflib
import importlib
import inspect
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from transformers_glipv2.data.augment import Compose, CopyPaste, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.files import read_text
from transformers_glipv2.data.formats.coco import looks_like_coco
from transformers_glipv2.data.lanes import can_be_dealt
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.data.sampling import DetectionSampler, GroundedText, token_counter
from transformers_glipv2.prompts import clean_labels

# Loaders by kind; the first argument of each is the path.
LOADERS = {
    "detection": "transformers_glipv2.data.formats.open:load_split",
    "coco": "transformers_glipv2.data.formats.coco:load_coco",
    "lvis": "transformers_glipv2.data.lvis:load_lvis",
    "flickr30k": "transformers_glipv2.data.flickr30k:load_flickr30k",
    "mixed_grounding": "transformers_glipv2.data.mixed_grounding:load_mixed_grounding",
    "phrasecut": "transformers_glipv2.data.phrasecut:load_phrasecut",
    "pseudo_boxes": "transformers_glipv2.data.pseudo_boxes:load_pseudo_boxes",
    "captions": "transformers_glipv2.data.captions:load_coco_captions",
    "karpathy_captions": "transformers_glipv2.data.captions:load_karpathy_captions",
    "vqa": "transformers_glipv2.data.vqa:load_vqa",
    "image_questions": "transformers_glipv2.data.vqa:load_image_questions",
    "hub": "transformers_glipv2.data.hub:load_hub",
    "webdataset": "transformers_glipv2.data.webdataset:load_webdataset",
    "scenes": "transformers_glipv2.data.scenes.scenes:load_scenes",
    "photographs": "transformers_glipv2.data.photographs:Photographs",
    "mosaics": "transformers_glipv2.data.scenes.mosaics:MosaicScenes",
}
# What else may be a path relative to the data file.
_PATHS = ("image_folder", "annotations_file", "background_folder", "paste_from", "paste_images")
_AUGMENTATIONS = ("flip", "photometric", "copy_paste")


@dataclass
class DataFile:
    """
    The content of a data file, checked; see the head of this module.

    Attributes:
        folder (`Path`): paths are relative to it.
        sources (`list[dict]`), sizes (`list[int]` or `None`), max_size (`int` or `None`), mlm_probability (`float`),
        max_negatives (`int`), augment (`dict[str, float]`), stream_readers (`int`), evaluation (`dict` or `None`): as
            in the file.
        allow_custom_loaders (`bool`): whether `kind` may be `module:name`.
        name (`str`): of the file, for messages.
    """

    folder: Path
    sources: list[dict[str, Any]]
    sizes: list[int] | None = None
    max_size: int | None = None
    mlm_probability: float = 0.15
    max_negatives: int = 85
    augment: dict[str, float] = field(default_factory=dict)
    stream_readers: int = 1
    evaluation: dict[str, Any] | None = None
    allow_custom_loaders: bool = False
    name: str = "the data file"


# Reading and checking ------------------------------------------------------------------------------------------------


def is_data_file(path: str | Path) -> bool:
    """Whether a path is a data file, rather than a data set: of YOLO a `data.yaml` too, of COCO a json."""
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix in (".yaml", ".yml"):
        return "sources" in _read_yaml(path) or "names" not in _read_yaml(path)
    return path.suffix == ".json" and not looks_like_coco(path)


def read_data_file(path: str | Path, allow_custom_loaders: bool = False) -> DataFile:
    """
    Reads and checks a data file.

    Args:
        path (`str` or `Path`): of the file.
        allow_custom_loaders (`bool`, *optional*, defaults to `False`): let `kind` name a function of your own,
            `module:name`, which is imported and called.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is no YAML, a key is unknown or missing, a value is of a wrong type or out of range, or it
            names a loader of its own; the message names the key and the file.
    """
    path = Path(path)
    content = _read_yaml(path)
    if not content.get("sources"):
        raise ValueError(f"{path} lists no `sources`; give at least one, such as {{kind: coco, path: FOLDER}}.")
    not_in_the_file = {"folder", "allow_custom_loaders", "name"}
    _check_known(content, set(DataFile.__dataclass_fields__) - not_in_the_file, f"{path}")
    content = {name: value for name, value in content.items() if value is not None}
    data = DataFile(folder=path.parent, name=str(path), allow_custom_loaders=allow_custom_loaders, **content)
    check_data_file(data)
    return data


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file, empty where it is no mapping."""
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    return content if isinstance(content, Mapping) else {}


def check_data_file(data: DataFile) -> None:
    """
    Raises:
        ValueError: when a value is of a wrong type or out of range, a key is unknown or missing, or a loader of its
            own is not allowed; the message names the key and the file.
    """
    where = data.name
    if not isinstance(data.sources, list):
        raise ValueError(f"`sources` of {where} is {data.sources!r}; expected a list.")
    for index, source in enumerate(data.sources):
        _check_source(source, f"source {index} of {where}", data.allow_custom_loaders)
    if data.sizes is not None:
        if not isinstance(data.sizes, list) or not data.sizes:
            raise ValueError(f"`sizes` of {where} is {data.sizes!r}; expected a list of pixels, such as [320, 384].")
        for index, size in enumerate(data.sizes):
            _check_number(size, f"`sizes[{index}]` of {where}", "pixels", low=1, whole=True)
    if data.max_size is not None:
        _check_number(data.max_size, f"`max_size` of {where}", "pixels", low=1, whole=True)
        if data.sizes is not None and data.max_size < max(data.sizes):
            raise ValueError(
                f"`max_size` of {where} is {data.max_size}, less than the shortest edge {max(data.sizes)} of `sizes`; "
                "it is the longest edge that goes with them."
            )
    _check_number(data.stream_readers, f"`stream_readers` of {where}", low=1, whole=True)
    _check_number(data.mlm_probability, f"`mlm_probability` of {where}", low=0, high=1)
    if data.mlm_probability == 1:
        raise ValueError(f"`mlm_probability` of {where} is 1: no token would be left to predict the others from.")
    _check_number(data.max_negatives, f"`max_negatives` of {where}", "classes", low=0, whole=True)
    _check_mapping(data.augment, f"`augment` of {where}")
    _check_known(data.augment, set(_AUGMENTATIONS), f"`augment` of {where}")
    for name, probability in data.augment.items():
        _check_number(probability, f"`augment.{name}` of {where}", low=0, high=1)
    if data.evaluation is not None:
        _check_evaluation(data.evaluation, f"`evaluation` of {where}", data.allow_custom_loaders)


def _check_source(source: Any, where: str, allow_custom_loaders: bool) -> None:
    _check_mapping(source, where)
    if "kind" not in source or "path" not in source:
        raise ValueError(f"{where} is {source}; it needs `kind` ({', '.join(LOADERS)} or module:name) and `path`.")
    kind, paths = source["kind"], source["path"]
    if not isinstance(kind, str):
        raise ValueError(f"`kind` of {where} is {kind!r}; expected one of {', '.join(LOADERS)} or module:name.")
    if ":" not in kind:
        _check_known([kind], set(LOADERS), f"`kind` of {where}")
    elif not allow_custom_loaders:
        raise ValueError(_refused_loader(kind, where))
    for path in paths if isinstance(paths, list) and paths else [paths]:
        if not isinstance(path, (str, Path)) or not str(path):
            raise ValueError(f"`path` of {where} is {paths!r}; expected a path or a list of paths.")
    if "weight" in source:
        _check_number(source["weight"], f"`weight` of {where}", low=0)
        if source["weight"] == 0:
            raise ValueError(f"`weight` of {where} is 0; leave out a source that is not to be used.")


def _check_evaluation(evaluation: Any, where: str, allow_custom_loaders: bool) -> None:
    _check_mapping(evaluation, where)
    if "kind" in evaluation:
        options = {name: value for name, value in evaluation.items() if name != "max_samples"}
        _check_source(options, where, allow_custom_loaders)
    else:
        _check_known(evaluation, {"path", "split", "max_samples", "size", "boxes_on", "allow_outside_paths"}, where)
        if not isinstance(evaluation.get("path"), (str, Path)):
            raise ValueError(f"{where} is {evaluation}; it needs the `path` of a COCO-format folder or file.")
        if not isinstance(evaluation.get("split", ""), str):
            raise ValueError(f"`split` of {where} is {evaluation['split']!r}; expected the name of a split.")
        if "size" in evaluation:
            _check_mapping(evaluation["size"], f"`size` of {where}")
            edges = {"shortest_edge", "longest_edge"}
            _check_known(evaluation["size"], edges, f"`size` of {where}")
            for name in sorted(edges):
                _check_number(evaluation["size"].get(name), f"`size.{name}` of {where}", "pixels", low=1, whole=True)
    if "max_samples" in evaluation:
        _check_number(evaluation["max_samples"], f"`max_samples` of {where}", "examples", low=1, whole=True)


def _check_mapping(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; expected keys with values, such as {{name: value}}.")


def _check_number(
    value: Any, where: str, unit: str = "", low: float = -math.inf, high: float = math.inf, whole: bool = False
) -> None:
    fits = not isinstance(value, bool) and isinstance(value, int if whole else (int, float)) and low <= value <= high
    # Integers beyond all floats are refused like infinity.
    if not fits or not abs(value) <= sys.float_info.max:
        number = f"{'a whole number' if whole else 'a number'}{f' of {unit}' if unit else ''}"
        limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise ValueError(f"{where} is {value!r}; expected {number} {limits}.")


def _check_known(given: Any, known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"{where} has {name!r}{hint}; known: {', '.join(sorted(known))}.")


def _refused_loader(kind: str, where: str) -> str:
    return (
        f"`kind` of {where} is {kind!r}, a function that would be imported and called: a data file from somebody else "
        "could run any program on this machine. Where you trust the file, pass `--allow_custom_loaders` "
        f"(`allow_custom_loaders=True`); else choose of {', '.join(LOADERS)}."
    )


# Loading -------------------------------------------------------------------------------------------------------------


def load_sources(data: DataFile) -> tuple[list[Any], list[float]]:
    """
    The data sets of the sources and their weights, in the file's order.

    Raises:
        ValueError: when a loader does not take an option or lacks one, or is not allowed; what loaders raise comes
            through.
    """
    datasets, weights = [], []
    for index, source in enumerate(data.sources):
        where = f"source {index} of {data.name}"
        options = {name: value for name, value in source.items() if name not in ("kind", "path", "weight")}
        options |= {name: resolved_path(data.folder, options[name]) for name in options.keys() & set(_PATHS)}
        loader = _loader(source["kind"], where, data.allow_custom_loaders)
        path = resolved_path(data.folder, source["path"])
        _check_options(loader, path, options, where)
        datasets.append(loader(path, **options))
        weights.append(float(source.get("weight", 1.0)))
    return datasets, weights


def make_mixture(data: DataFile, num_steps: int, batch_size: int, seed: int) -> MixtureDataset:
    """
    The sources, mixed by their weights.

    Args:
        data (`DataFile`).
        num_steps (`int`), batch_size (`int`): of the run. Streamed shards are dealt out to the images of a step.
        seed (`int`).
    """
    datasets, weights = load_sources(data)
    lanes = batch_size * data.stream_readers if any(map(can_be_dealt, datasets)) else 1
    return MixtureDataset(datasets, weights, seed=seed, length=num_steps * batch_size, lanes=lanes)


def make_collator(data: DataFile, processor: Any, mixture: MixtureDataset, batch_size: int, seed: int):
    """
    The collator of a run.

    Args:
        data (`DataFile`).
        processor (`GLIPv2Processor`).
        mixture (`MixtureDataset`): its first source with masks gives what copy-paste pastes.
        batch_size (`int`): examples of one optimizer step; they share a size.
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
        clean=clean_labels,
        **options,
    )


class SamplerBySource:
    """
    Sentences for fine-tuning: those of the mixture's first sources list all their classes in order, as the prompts of
    the tuned model will; the other sources get sampled classes.

    Args:
        processor (`GLIPv2Processor`).
        num_classes (`int`): of the first sources.
        num_sources (`int`, *optional*, defaults to 1): how many first sources there are.
    """

    def __init__(self, processor: Any, num_classes: int, num_sources: int = 1):
        self.num_sources = num_sources
        self.fixed = make_sampler(processor, max_negatives=num_classes, full_probability=1.0, shuffle=False)
        self.sampled = make_sampler(processor)

    def __call__(self, example: Mapping[str, Any], rng: random.Random) -> GroundedText:
        return (self.fixed if example["source"] < self.num_sources else self.sampled)(example, rng)


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
            raise ValueError(
                f"`augment.copy_paste` of {data.name} cuts objects out by their masks; give a source "
                "`with_masks: true`."
            )
        steps.append(CopyPaste(donor, probability=data.augment["copy_paste"]))
    if data.augment.get("flip"):
        steps.append(HorizontalFlip(data.augment["flip"]))
    if data.augment.get("photometric"):
        steps.append(PhotometricDistortion(data.augment["photometric"]))
    return Compose(steps) if steps else None


def resolved_path(folder: Path, path: Any) -> Any:
    """
    A path relative to the data file as a string, which all loaders take, or what was given where nothing is there (a
    Hub id, a name in a folder).
    """
    if isinstance(path, list):
        return [resolved_path(folder, part) for part in path]
    return str(folder / path) if isinstance(path, (str, Path)) and (folder / path).exists() else path


def _loader(kind: str, where: str, allow_custom_loaders: bool) -> Callable[..., Any]:
    if kind not in LOADERS and not allow_custom_loaders:
        raise ValueError(_refused_loader(kind, where))
    module, _, name = LOADERS.get(kind, kind).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if kind in LOADERS:
            raise
        raise ValueError(f"`kind` of {where} is {kind!r}, which cannot be imported: {error}.") from error


def _check_options(loader: Callable[..., Any], path: Any, options: Mapping[str, Any], where: str) -> None:
    signature = inspect.signature(loader)
    known = [name for name, parameter in signature.parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    if len(known) == len(signature.parameters):
        _check_known(options, {"kind", "path", "weight", *known[1:]}, where)
    try:
        signature.bind(path, **options)
    except TypeError as error:
        raise ValueError(f"{where}: {error}; add it to the source.") from error
