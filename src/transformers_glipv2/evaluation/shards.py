"""
Predictions in json files that are written as they come, by any number of processes, so that a killed run goes on.

Images are divided into blocks of neighbours; a block is predicted by one process and written as one file, under its
final name only when it is whole. What remains to be done is therefore the blocks without a file, and predictions come
back in the order of the images whoever made them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_glipv2.data.files import read_json, write_json

logger = logging.get_logger(__name__)

SETTINGS_FILE = "settings.json"


class PredictionShards:
    """
    A folder of prediction files.

    Args:
        folder (`str` or `Path`): made where it is missing.
        keys (`Sequence`): ids of all images (or sentences, questions), in order; each once, int or str.
        settings (`Mapping`): whatever predictions depend on (model, prompts, thresholds); plain json values.
        size (`int`, *optional*, defaults to 32): images of a file. A kill loses at most so many a process.

    Raises:
        ValueError: when ids repeat, or the folder holds predictions of other settings.
    """

    def __init__(self, folder: str | Path, keys: Sequence[int | str], settings: Mapping[str, Any], size: int = 32):
        if size < 1:
            raise ValueError(f"`size` is {size}; a file holds at least one image.")
        self.folder = Path(folder)
        self.keys = list(keys)
        if len(set(self.keys)) != len(self.keys):
            raise ValueError(f"`keys` has {len(self.keys)} entries but {len(set(self.keys))} ids; give each once.")
        self.blocks = [(start, min(start + size, len(self.keys))) for start in range(0, len(self.keys), size)]
        self.settings = json.loads(json.dumps({**settings, "images_per_file": size}, sort_keys=True))
        self._check_settings()

    def remaining(self) -> list[tuple[int, int]]:
        """Blocks [start, stop) of positions in `keys` without a file; one whose file is damaged is predicted again."""
        remaining = []
        for block in self.blocks:
            try:
                self._read(block)
            except FileNotFoundError:
                remaining.append(block)
            except ValueError as error:
                logger.warning(f"{error} Its images are predicted again.")
                remaining.append(block)
        return remaining

    def failed(self, block: tuple[int, int]) -> list[int]:
        """Positions of the images of a written block that could not be read."""
        return [block[0] + index for index, entry in enumerate(self._read(block)) if entry.get("error")]

    def path(self, block: tuple[int, int]) -> Path:
        """Where a block's predictions are."""
        return self.folder / f"predictions-{block[0]:08d}-{block[1]:08d}.json"

    def write(self, block: tuple[int, int], entries: Sequence[Mapping[str, Any]]) -> None:
        """
        Write a whole block.

        Args:
            block (`tuple[int, int]`): of `blocks`.
            entries (`Sequence[Mapping]`): one an image, in order: "id", "predictions" (entries of the benchmark's own
                format) and, for an image that failed, "error".

        Raises:
            ValueError: when the entries are not those of the block.
        """
        ids = [entry["id"] for entry in entries]
        if ids != self.keys[slice(*block)]:
            raise ValueError(f"block {block} holds the ids {self.keys[slice(*block)]}, got {ids}.")
        write_json(self.path(block), list(entries), indent=None)

    def entries(self) -> Iterator[dict[str, Any]]:
        """
        All entries in the order of `keys`, one file in memory at a time.

        Raises:
            FileNotFoundError: when a block is missing.
            ValueError: when a file is damaged; names it.
        """
        for block in self.blocks:
            yield from self._read(block)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """The benchmark's entries of all images, in order."""
        for entry in self.entries():
            yield from entry["predictions"]

    def failures(self) -> dict[Any, str]:
        """Id -> what went wrong, of images that could not be read."""
        return {entry["id"]: entry["error"] for entry in self.entries() if entry.get("error")}

    def _read(self, block: tuple[int, int]) -> list[dict[str, Any]]:
        path = self.path(block)
        entries = read_json(path)
        if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
            raise ValueError(f"{path} is damaged: it is no list of predictions by image.")
        if [entry["id"] for entry in entries] != self.keys[slice(*block)]:
            raise ValueError(f"{path} holds other images than expected.")
        return entries

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS_FILE
        if not path.is_file():
            write_json(path, self.settings)
            return
        try:
            found = read_json(path)
            if not isinstance(found, dict):
                raise ValueError(f"{path} is damaged: it holds no settings.")
        except ValueError as error:
            # Nobody can say any more what the predictions beside it were made with.
            logger.warning(f"{error} All images of {self.folder} are predicted again.")
            for block in self.blocks:
                self.path(block).unlink(missing_ok=True)
            write_json(path, self.settings)
            return
        names = sorted(
            name for name in {*found, *self.settings} if found.get(name, ...) != self.settings.get(name, ...)
        )
        if names:
            was, now = ({name: values.get(name) for name in names} for values in (found, self.settings))
            raise ValueError(
                f"{self.folder} holds predictions made with {was}, not {now}; choose another output folder, or remove "
                "this one to start again."
            )


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and "id" in entry and isinstance(entry.get("predictions"), list)


def weights_id(model: str | Path) -> str:
    """
    What tells one set of weights from another, for `settings`: a digest of a local folder's weights; a Hub id is its
    own name.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(model).glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if Path(model).is_dir() else str(model)


def evaluation_accelerator(mixed_precision: str | None = None) -> Accelerator:
    """An `Accelerator` whose processes may wait a day for each other: they need not end at the same time."""
    return Accelerator(
        mixed_precision=mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))]
    )


def predict_in_shards(
    shards: PredictionShards,
    load: Callable[[int], Any],
    predict: Callable[[list[Any]], list[list[dict[str, Any]]]],
    accelerator: Accelerator,
    batch_size: int = 1,
    num_workers: int = 0,
    description: str = "predicting",
) -> None:
    """
    Predict every image that has no prediction yet, over all processes; returns on all when all are done. An image that
    could not be read before, and now can, is predicted with its block.

    Batches are neighbours within a block, so they are the same whatever the number of processes and however often the
    run was killed, and so are the predictions.

    Args:
        shards (`PredictionShards`): where predictions go.
        load (`Callable[[int], Any]`): the image at a position of `shards.keys`, in whatever form `predict` takes. An
            image that cannot be read raises `OSError` or `ValueError`; it is listed as failed, without predictions.
        predict (`Callable[[list], list[list[dict]]]`): loaded images to the benchmark's entries of each.
        accelerator (`Accelerator`): shares out the blocks.
        batch_size (`int`, *optional*, defaults to 1): images of one call of `predict`.
        num_workers (`int`, *optional*, defaults to 0): processes that load images.
        description (`str`, *optional*): for the progress bar, which shows the main process's part.
    """
    # All look before any writes, so that all divide the same list.
    loaded = LoadedImages(load)
    remaining = blocks_to_predict(shards, loaded)
    accelerator.wait_for_everyone()
    mine = remaining[accelerator.process_index :: accelerator.num_processes]
    batches = [
        list(range(first, min(first + batch_size, stop)))
        for start, stop in mine
        for first in range(start, stop, batch_size)
    ]
    loader = DataLoader(loaded, batch_sampler=batches, collate_fn=list, num_workers=num_workers)
    blocks = iter(mine)
    block: tuple[int, int] | None = next(blocks, None)
    entries: list[dict[str, Any]] = []
    total = sum(stop - start for start, stop in mine)
    with tqdm(total=total, desc=description, unit=" images", disable=not accelerator.is_main_process) as bar:
        for batch in loader:
            entries += predicted_entries(shards, batch, predict)
            bar.update(len(batch))
            if block is not None and batch[-1][0] == block[1] - 1:
                shards.write(block, entries)
                block, entries = next(blocks, None), []
    accelerator.wait_for_everyone()


def blocks_to_predict(shards: PredictionShards, loaded: "LoadedImages") -> list[tuple[int, int]]:
    """Blocks without predictions, and those with an image that could not be read before and now can."""
    remaining = shards.remaining()
    for written in sorted(set(shards.blocks) - set(remaining)):
        if any(loaded[position][2] is None for position in shards.failed(written)):
            remaining.append(written)
    return sorted(remaining)


def predicted_entries(
    shards: PredictionShards,
    batch: Sequence[tuple[int, Any, str | None]],
    predict: Callable[[list[Any]], list[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    """Entries, as of `PredictionShards.write`, of a batch of `LoadedImages`."""
    good = [image for _, image, error in batch if error is None]
    predicted = iter(predict(good) if good else [])
    entries = []
    for position, _, error in batch:
        entry = {"id": shards.keys[position], "predictions": [] if error else next(predicted)}
        entries.append({**entry, "error": error} if error else entry)
    return entries


class LoadedImages(Dataset):
    """Position -> (position, image, error message or `None`)."""

    def __init__(self, load: Callable[[int], Any]):
        self.load = load

    def __getitem__(self, position: int) -> tuple[int, Any, str | None]:
        try:
            return position, self.load(position), None
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for some broken files
            return position, None, f"{type(error).__name__}: {error}"
