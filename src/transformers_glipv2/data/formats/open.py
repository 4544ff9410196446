"""Data sets in whatever format they are: recognised, divided into splits, counted."""

import contextlib
import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import ImageDataset, iterate_annotations
from transformers_glipv2.data.formats.coco import find_coco
from transformers_glipv2.data.formats.hub_data import find_on_hub, find_saved, is_hub_id
from transformers_glipv2.data.formats.imagefolder import find_imagefolder
from transformers_glipv2.data.formats.source import WHOLE, FoundData, ReadOptions, split_name
from transformers_glipv2.data.formats.tables import find_table
from transformers_glipv2.data.formats.voc import find_voc
from transformers_glipv2.data.formats.yolo import find_yolo
from transformers_glipv2.data.held_out import held_out_indices
from transformers_glipv2.data.schema import actions_of

# Asked in this order; the first that recognises a path reads it.
FORMATS: dict[str, Callable[[Path, Path | None], FoundData | None]] = {
    "datasets": find_saved,
    "imagefolder": find_imagefolder,
    "coco": find_coco,
    "yolo": find_yolo,
    "voc": find_voc,
    "csv": find_table,
}
ACCEPTED = (
    "a COCO json or a folder with one, a YOLO data.yaml or its folder, a Pascal VOC folder, a CSV file, a folder of "
    "images with metadata.jsonl, or a data set saved by `datasets`"
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


@dataclass
class SplitReport:
    """
    What a split holds.

    Attributes:
        images (`int`), without_objects (`int`), missing (`int`): numbers of images.
        first_missing (`str` or `None`): where the first image that does not exist should be.
        boxes (`Counter[str]`): by class name.
        sizes (`Counter[str]`): boxes by size as COCO has it, "small" (below 32 x 32 pixels), "medium" and "large"
            (from 96 x 96 on).
        problems (`str`): of its annotations, see `BoxReport.summary`.
    """

    images: int
    without_objects: int
    missing: int
    first_missing: str | None
    boxes: Counter[str]
    sizes: Counter[str]
    problems: str


@dataclass
class DataReport:
    """
    What a data set is and holds; as text a table with a line for each split, and its problems.

    Attributes:
        path, form (`str`): where it is, and what it was taken for.
        classes (`list[str]`): in the order of their numbers.
        splits (`dict[str, SplitReport]`): by name.
        notes (`list[str]`): what was held out, and what is odd between splits.
    """

    path: str
    form: str
    classes: list[str]
    splits: dict[str, SplitReport]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        names = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        lines = [f"{self.path}: {self.form}", f"{_count(len(self.classes), 'class', 'classes')}: {names}"]
        width = max(map(len, self.splits), default=0)
        for name, split in self.splits.items():
            empty = f", {_count(split.without_objects, 'image', 'images')} without" if split.without_objects else ""
            boxes = _count(split.boxes.total(), "box", "boxes")
            lines.append(f"{name:{width}}  {_count(split.images, 'image', 'images')}, {boxes}{empty}")
        return "\n".join([*lines, *self.notes, *self.problems()])

    def as_json(self) -> dict[str, Any]:
        """What `json.dumps` takes."""
        splits = {name: dict(vars(split)) for name, split in self.splits.items()}
        return {**vars(self), "splits": splits}

    def problems(self) -> list[str]:
        """One line each, without those that two splits of one file share."""
        lines: dict[str, None] = {}
        for name, split in self.splits.items():
            if split.missing:
                count = _count(split.missing, "image", "images")
                hint = "copy what is missing there, or pass the folder of images as --images"
                lines[f"{name}: {count} missing, the first {split.first_missing}; {hint}"] = None
            lines |= dict.fromkeys(split.problems.splitlines())
        return list(lines)


class LocalDataset:
    """
    A data set that `open_dataset` has recognised.

    Attributes:
        path (`str`), format (`str`), form (`str`): where it is, its format (a name in `FORMATS`), and the format in
            words.
        split_names (`list[str]`): the splits that there are.
        splits (`Mapping[str, ImageDataset]`): the examples of each, read when they are first asked for.
        classes (`list[str]`): of the first split, in the order of their numbers.
        report (`DataReport`): counts of images, boxes, classes and problems. Reads all splits.
    """

    def __init__(self, path: str, found: FoundData, options: ReadOptions, val_fraction: float, seed: int):
        self.path = path
        self.format = found.format
        self.form = found.form
        self.split_names = list(found.splits)
        self._sources = dict(found.splits)
        self._options = options
        self._seed = seed
        self._val_fraction = val_fraction
        self._divided: str | None = None
        self._held_out: tuple[list[int], str] | None = None
        self._read: dict[tuple[str, bool], ImageDataset] = {}
        has_val = any(split_name(name) in ("val", "minival") for name in self._sources)
        divided = next((name for name in self._sources if name in ("train", WHOLE)), None)
        if val_fraction and not has_val and divided is not None:
            self._divided = divided
            self.split_names = ["train", "val", *(name for name in self._sources if name != divided)]
        self.splits: Mapping[str, ImageDataset] = _Splits(self)

    def split(self, name: str, flag: str = "--split", for_scoring: bool = False) -> ImageDataset:
        """
        The examples of a split.

        Args:
            name (`str`): as in `split_names`, or another usual name for it ("valid" for "val"). A data set that is
                not divided is all "train".
            flag (`str`, *optional*): what the user chooses the split by, for the message.
            for_scoring (`bool`, *optional*, defaults to `False`): keep boxes around crowds, which are left out of
                training, and of which scores take no account.

        Raises:
            ValueError: when there is no such split; names those that there are.
        """
        known = {split_name(own): own for own in self.split_names} | {own: own for own in self.split_names}
        if self.split_names == [WHOLE]:
            known["train"] = WHOLE
        own = known.get(name, known.get(split_name(name)))
        if own is None:
            hint = f"pass one of them by {flag}"
            if split_name(name) == "val":
                hint += ", or hold out a part of the training images by --val_fraction 0.15"
            raise ValueError(
                f"{self.path} has no split {name!r}; {_named(self.split_names)}, taken for {self.form}: {hint}."
            )
        if self._divided is None or own not in ("train", "val"):
            return self._read_source(own, for_scoring)
        whole = self._read_source(self._divided, for_scoring)
        held_out = set(self._held_out_indices()[0])
        return whole.select([index for index in range(len(whole)) if (index in held_out) == (own == "val")])

    def evaluation_split(self) -> str:
        """
        The split that scores are of where none is named: "test", else "val", else all of data that is not divided.

        Raises:
            ValueError: when there are training images only.
        """
        for name in ("test", "val", "minival", WHOLE):
            if name in self.split_names:
                return name
        raise ValueError(
            f"{self.path} has no split to score, {_named(self.split_names)}; name one of them by --split, or hold out "
            "a part of the training images by --val_fraction 0.15."
        )

    @property
    def classes(self) -> list[str]:
        return list(self.splits[self.split_names[0]].class_names or [])

    @property
    def report(self) -> DataReport:
        splits = {name: self.splits[name] for name in self.split_names}
        read = {name: _read_through(own) for name, own in splits.items()}
        notes = []
        if self._divided is not None:
            held_out, how = self._held_out_indices()
            count = len(held_out)
            notes.append(
                f"val is {_count(count, 'image', 'images')} held out of {len(splits['train']) + count} "
                f"(--val_fraction {self._val_fraction:g}, seed {self._seed}, {how})"
            )
        notes += [*_shared_images({name: paths for name, (_, paths) in read.items()}), *_other_classes(splits)]
        reports = {name: report for name, (report, _) in read.items()}
        return DataReport(self.path, self.form, self.classes, reports, notes)

    def _held_out_indices(self) -> tuple[list[int], str]:
        if self._held_out is None:
            assert self._divided is not None
            whole = self._read_source(self._divided, False)
            self._held_out = held_out_indices(whole.records, self._val_fraction, self._seed)
            if not self._held_out[0]:
                raise ValueError(
                    f"{self.path} has one image to train on, of which no val split can be held out; "
                    "train without one (--val_fraction 0)."
                )
        return self._held_out

    def _read_source(self, name: str, for_scoring: bool) -> ImageDataset:
        key = (name, for_scoring)
        if key not in self._read:
            other = self._read.get((name, not for_scoring))
            if other is not None and not other.report.counts["crowd"]:
                self._read[key] = other
            else:
                options = self._options
                if for_scoring:
                    options = replace(options, policy={**actions_of(options.policy), "crowd": "keep"})
                self._read[key] = self._sources[name](options)
        return self._read[key]


class _Splits(Mapping):
    """Splits by name, each read when it is asked for."""

    def __init__(self, data: LocalDataset):
        self._data = data

    def __getitem__(self, name: str) -> ImageDataset:
        if name not in self._data.split_names:
            raise KeyError(name)
        return self._data.split(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._data.split_names)

    def __len__(self) -> int:
        return len(self._data.split_names)


def open_dataset(
    path: str | Path,
    images: str | Path | None = None,
    val_fraction: float = 0.15,
    seed: int = 0,
    *,
    format: str | None = None,
    policy: str | Mapping[str, str] = "skip",
    with_masks: bool = False,
    boxes_on: str = "auto",
    allow_outside_paths: bool = False,
) -> LocalDataset:
    """
    A data set of boxes in whatever format it is: COCO, YOLO, Pascal VOC, CSV, an image folder with `metadata.jsonl`,
    or one of `datasets`, on disk or on the Hub. See docs/data-formats.md.

    Annotations of all formats are checked as `load_coco` checks them.

    Args:
        path (`str` or `Path`): a file or folder, or USER/NAME of the Hub.
        images (`str` or `Path`, *optional*): where file names start from, where the annotations do not say it.
        val_fraction (`float`, *optional*, defaults to 0.15): of the training images, held out as "val" where the data
            set has no such split; 0 for none. See `held_out_indices`.
        seed (`int`, *optional*, defaults to 0): of what is held out.
        format (`str`, *optional*): a name in `FORMATS`, where a folder holds several.
        policy, with_masks, boxes_on, allow_outside_paths: as for `load_coco`.

    Returns:
        `LocalDataset`.

    Raises:
        FileNotFoundError: when there is nothing at the path.
        ValueError: when no format recognises it, or it recognises one that is incomplete; and, when a split is read,
            as `load_coco`.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"`val_fraction` is {val_fraction}; it must be at least 0 and below 1.")
    if format is not None and format not in FORMATS:
        raise ValueError(f"`format` is {format!r}; choose one of {', '.join(FORMATS)}.")
    options = ReadOptions(policy, with_masks, boxes_on, allow_outside_paths)
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"there is no folder of images {str(images)!r}.")
    found = _find(str(path), None if images is None else Path(images), format)
    return LocalDataset(str(path), found, options, val_fraction, seed)


def load_split(
    path: str | Path,
    image_folder: str | Path | None = None,
    *,
    split: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    for_scoring: bool = False,
    **options: Any,
) -> ImageDataset:
    """
    The examples of one split of a data set in any format: what a data file means by `kind: detection`.

    Args:
        path (`str` or `Path`), image_folder (`str` or `Path`, *optional*), seed (`int`): as `path`, `images` and
            `seed` of `open_dataset`.
        split (`str`, *optional*): needed where there are several.
        val_fraction (`float`, *optional*, defaults to 0.0): as for `open_dataset`; give the same to the source and to
            the evaluation.
        for_scoring (`bool`, *optional*, defaults to `False`): as for `LocalDataset.split`.
        options: further ones of `open_dataset`.

    Raises:
        ValueError: when there is no such split, or none is named and there are several; and as `open_dataset`.
    """
    data = open_dataset(path, image_folder, val_fraction, seed, **options)
    if split is None and len(data.split_names) > 1:
        raise ValueError(f"{data.path} has several splits, {', '.join(data.split_names)}; pass one as `split`.")
    return data.split(data.split_names[0] if split is None else split, "`split`", for_scoring)


def _find(name: str, images: Path | None, format: str | None) -> FoundData:
    path = Path(name)
    if not path.exists():
        if is_hub_id(name):
            return find_on_hub(name)
        raise FileNotFoundError(f"there is no data set at {name!r}; expected {ACCEPTED}, or USER/NAME of the Hub.")
    for key, find in FORMATS.items():
        if format in (None, key):
            found = find(path, images)
            if found is not None:
                return found
    if path.is_file() and path.suffix in _ARCHIVES and not name.endswith(".json.gz"):
        raise ValueError(f"{name} is an archive; unpack it, and pass the folder.")
    if format is not None:
        raise ValueError(f"{name} is no data set of the format {format!r}.")
    there = sorted(entry.name for entry in path.iterdir())[:8] if path.is_dir() else []
    shown = f" It holds {', '.join(there)}." if there else ""
    raise ValueError(f"{name} is no data set that is known here; expected {ACCEPTED}.{shown}")


# Reports -------------------------------------------------------------------------------------------------------------


def _read_through(dataset: ImageDataset) -> tuple[SplitReport, list[str]]:
    """The counts of a split, and the paths of its image files, by one pass over its records."""
    boxes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    paths: list[str] = []
    empty = 0
    rows = iterate_annotations(dataset.records)
    for source, categories, bbox in tqdm(rows, "counting boxes", len(dataset), unit=" images", delay=5, leave=False):
        if isinstance(source, str):
            paths.append(source)
        empty += not len(categories)
        boxes.update(categories)
        areas = np.reshape(bbox, (-1, 4))[:, 2:].prod(1)
        small, large = int((areas < 32**2).sum()), int((areas >= 96**2).sum())
        sizes.update(small=small, medium=len(areas) - small - large, large=large)
    missing, first = dataset.missing_images
    return SplitReport(len(dataset), empty, missing, first, boxes, sizes, dataset.report.summary()), paths


def _shared_images(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each two splits that have images in common, by file or by content, of the paths of their images."""
    by_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for name, paths in splits.items() if len(splits) > 1 else ():
        for path in paths:
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if stat.S_ISREG(found.st_mode):
                    by_size[found.st_size].append((name, path))
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for same in by_size.values():
        if len({name for name, _ in same}) == 1:
            continue
        contents: dict[bytes, dict[str, str]] = defaultdict(dict)
        for name, path in same:
            digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
            for other, first in contents[digest].items():
                if other != name:
                    shared[other, name].append(first)
            contents[digest].setdefault(name, path)
    return [
        f"{_count(len(paths), 'image is', 'images are')} in {one} and in {other} too, the first {paths[0]}: scores on "
        "one say nothing about the other"
        for (one, other), paths in shared.items()
    ]


def _other_classes(splits: Mapping[str, ImageDataset]) -> list[str]:
    """A line for each split with classes that the first does not have."""
    (first, *others) = splits
    known = set(splits[first].class_names or ())
    lines = []
    for name in others:
        unknown = [label for label in splits[name].class_names or () if label not in known]
        if unknown:
            lines.append(f"{name} has classes that {first} does not have: {', '.join(unknown[:10])}")
    return lines


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _named(splits: list[str]) -> str:
    if splits == [WHOLE]:
        return "it is not divided into splits"
    return f"its splits are {', '.join(splits)}" if len(splits) > 1 else f"its only split is {splits[0]}"
