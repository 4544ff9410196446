"""What every format is read into: a function for each split that gives the examples `load_coco` would give."""

import json
import mmap
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset

# A data set that is not divided.
WHOLE = "all"
IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
_CANONICAL = {spelling: name for name, spellings in _SPLIT_NAMES.items() for spelling in spellings}


@dataclass(frozen=True)
class ReadOptions:
    """How examples are read, whatever the format: the arguments of `load_coco` of the same names."""

    policy: str | Mapping[str, str] = "skip"
    with_masks: bool = False
    boxes_on: str = "auto"
    allow_outside_paths: bool = False


@dataclass
class FoundData:
    """
    A data set that a format has recognised.

    Attributes:
        format (`str`): a name in `open.FORMATS`.
        form (`str`): which form of it, for people: "COCO, SPLIT/_annotations.coco.json (Roboflow)".
        splits (`dict[str, Callable[[ReadOptions], ImageDataset]]`): reads each split; `{"all": ...}` where the data
            set is not divided.
    """

    format: str
    form: str
    splits: dict[str, Callable[[ReadOptions], ImageDataset]]


def split_name(name: str) -> str:
    """The usual name of a split: "train" for "train2017" and "training", "val" for "valid" and "instances_val"."""
    plain = re.sub(r"[-_ ]?(19|20)\d\d$", "", name.lower().removeprefix("instances_"))
    return _CANONICAL.get(plain, plain)


def is_split_name(name: str) -> bool:
    """Whether a file or folder of this name is a split: "train", "val2017", "test-dev"."""
    return split_name(name) in (*_SPLIT_NAMES, "minival", "test-dev", "trainval")


def named_splits(found: Mapping[str, Any]) -> dict[str, Any]:
    """By the usual names of splits, train before val before test; names that would clash stay as they are."""
    names = [split_name(name) for name in found]
    usual = {
        (new if names.count(new) == 1 else name): value
        for (name, value), new in zip(found.items(), names, strict=True)
    }
    order = {name: index for index, name in enumerate(_SPLIT_NAMES)}
    return dict(sorted(usual.items(), key=lambda item: (order.get(split_name(item[0]), len(order)), item[0])))


def list_images(folder: Path) -> list[str]:
    """The images in a folder and the folders in it: paths relative to it, with "/", in order. Hidden ones are not."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = Path(parent).relative_to(folder)
        found += [
            (start / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def places_of(parents: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """Folders where the images of a split may be: a folder of its name in each of these, then these."""
    parents, names = list(parents), list(dict.fromkeys(names))
    return [*(parent / name for parent in parents for name in names), *parents]


def image_folder_of(file_names: Sequence[str], candidates: Iterable[Path]) -> Path:
    """
    The first folder in which one of these images is: under its whole name, else without its leading folders; the
    first candidate where there is none.
    """
    folders = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    names = [Path(name.replace("\\", "/")).parts for name in file_names]
    longest = max(map(len, names), default=0)
    for skipped in range(longest):
        for folder in folders:
            if any(len(parts) > skipped and folder.joinpath(*parts[skipped:]).is_file() for parts in names):
                return folder
    return folders[0]


def first_strings(path: Path, key: str, count: int = 5) -> list[str]:
    """The first values of a key in a JSON file that is not parsed; none of a packed one."""
    if path.suffix == ".gz" or not path.stat().st_size:
        return []
    pattern = re.compile(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key.encode())
    found: list[str] = []
    match: re.Match[bytes] | None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in pattern.finditer(content):
            try:
                found.append(json.loads(match[1]))
            except ValueError:
                continue
            if len(found) == count:
                break
        # The pattern holds on to the map until its last match is gone.
        match = None
    return found
