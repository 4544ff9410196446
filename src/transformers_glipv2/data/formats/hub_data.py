"""Data sets of the `datasets` library: saved by `save_to_disk`, as parquet files, or on the Hub."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.formats.source import WHOLE, FoundData, ReadOptions, named_splits, split_name
from transformers_glipv2.data.hub import from_hf_dataset
from transformers_glipv2.data.hub_export import import_datasets

_PREFIX = "hf://datasets/"


def is_hub_id(path: str) -> bool:
    """Whether this is USER/NAME of the Hub, and nothing on this disk: also `hf://datasets/USER/NAME`."""
    if path.startswith(_PREFIX):
        return True
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None and not Path(path).parts[0].startswith(".")


def find_saved(path: Path, images: Path | None) -> FoundData | None:
    """A folder that `save_to_disk` wrote, or one of parquet files."""
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        loaded = import_datasets().load_from_disk(str(path))
        return _found(loaded, "datasets, save_to_disk", str(path))
    files = [path] if path.suffix == ".parquet" and path.is_file() else []
    if path.is_dir():
        files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet"), *path.glob("*/*.parquet")])
    if not files:
        return None
    by_split: dict[str, list[str]] = {}
    for file in dict.fromkeys(files):
        # "train-00000-of-00002.parquet", or "train/0.parquet"
        name = file.stem.partition("-")[0] if file.parent in (path, path / "data") else file.parent.name
        usual = split_name(name)
        by_split.setdefault(usual if usual in ("train", "val", "test") else "train", []).append(str(file))
    loaded = import_datasets().load_dataset("parquet", data_files=by_split)
    if list(by_split) == ["train"] and not any(split_name(file.stem.partition("-")[0]) == "train" for file in files):
        loaded = loaded["train"]
    return _found(loaded, "datasets, parquet files", str(path))


def find_on_hub(name: str) -> FoundData:
    """A data set of the Hub, downloaded into the cache of `datasets`; raises what `datasets.load_dataset` raises."""
    name = name.removeprefix(_PREFIX)
    return _found(import_datasets().load_dataset(name), f"datasets, {name} of the Hub", name)


def _found(loaded: Any, form: str, name: str) -> FoundData:
    splits = dict(loaded) if isinstance(loaded, dict) else {WHOLE: loaded}
    read = {split: partial(_read_split, dataset, f"{name}, {split}") for split, dataset in splits.items()}
    return FoundData("datasets", form, named_splits(read))


def _read_split(loaded: Any, name: str, options: ReadOptions) -> ImageDataset:
    dataset = from_hf_dataset(loaded, policy=options.policy, name=name)
    assert isinstance(dataset, ImageDataset)
    if dataset.class_names is not None:
        dataset.category_ids = list(range(1, len(dataset.class_names) + 1))
    return dataset
