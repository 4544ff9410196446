"""
Rows of the schema whose images are opened when they are asked for.

No loader holds images in memory, only their annotations, packed: about 200 bytes a row, 60 a box, and polygons. The
formats that are one json file (COCO, LVIS, GoldG, ...) need 5 to 6 times the file's size while it is read, since
Python parses it whole, and 15 seconds a million boxes. Line-wise files, folders and the Hub can be streamed
(`streaming=True`) in constant memory; a large json file can be made into such a data set once, by
`to_hf_dataset(load_coco(...)).to_parquet(...)` or `.push_to_hub(...)`.
"""

import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from tqdm.auto import tqdm

from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.image_io import ImageFile, open_image


class ImageDataset(Dataset):
    """
    A map-style data set over records: rows of the schema with an `image_path` in the place of the `image`.

    Args:
        records (`Sequence[Mapping]`): rows without `image`; `width` and `height`, where present, are checked against
            the image.
        class_names (`list[str]`, *optional*): detection: every class of the data set; rows that have no `labels` of
            their own get it.
        report (`BoxReport`, *optional*): where unreadable images are counted; skipped by default.

    An unreadable image under the policy "skip" is replaced by the next readable row, counted and told once; under
    "refuse" it raises. Rows carry their own `image_id`, so nothing is mistaken for something else.
    """

    # What loaders of COCO and LVIS files add: ids and frequencies of the classes, in the order of `class_names`.
    category_ids: list[int]
    frequencies: list[str | None]

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        class_names: list[str] | None = None,
        report: BoxReport | None = None,
    ):
        self.records = records
        self.class_names = class_names
        self.report = report if report is not None else BoxReport()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"row {index} of a data set of {length} rows")
        for step in range(length):
            row = self._read((index + step) % length)
            if row is not None:
                return row
        raise ValueError(f"none of the {length} images can be read; the first failure: {self.report.summary()}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows in order, each readable one once."""
        for index in range(len(self)):
            row = self._read(index)
            if row is not None:
                yield row

    def select(self, indices: Sequence[int]) -> "ImageDataset":
        """The rows at these indices, in this order; an index may come several times."""
        return ImageDataset(_Selection(self.records, indices), self.class_names, self.report)

    def filter(self, keep: Callable[[Mapping[str, Any]], bool]) -> "ImageDataset":
        """The rows whose record (no image is opened) passes."""
        return self.select([index for index, record in enumerate(self.records) if keep(record)])

    def stream(self) -> "ImageStream":
        """The same rows as an iterable that data loader workers share."""
        return ImageStream(_Repeat(self.records), self.class_names, self.report)

    def _read(self, index: int) -> dict[str, Any] | None:
        return read_row(self.records[index], self.class_names, self.report)


class ImageStream(IterableDataset):
    """
    Rows in the order of their source, read while they are asked for.

    Args:
        read_records (`Callable[[BoxReport], Iterable[Mapping]]`): starts a pass over the records of `ImageDataset`,
            and counts problems in the report it is given.
        class_names (`list[str]`, *optional*), report (`BoxReport`, *optional*): as in `ImageDataset`. The report's
            counts are those of the pass that was started last.

    Unreadable images are left out, counted and told once. Data loader workers share the rows between them: each
    reads every annotation, but opens its own images only. Streams of the Hub are shared by `datasets` instead, file
    by file.
    """

    def __init__(
        self,
        read_records: Callable[[BoxReport], Iterable[Mapping[str, Any]]],
        class_names: list[str] | None = None,
        report: BoxReport | None = None,
    ):
        self.read_records = read_records
        self.class_names = class_names
        self.report = report if report is not None else BoxReport()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is None or self._is_shared_by_source:
            return self._rows(0, 1)
        return self._rows(worker.id, worker.num_workers)

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """
        Every row, also in a data loader worker: what `IndexedStream` numbers.

        Raises:
            ValueError: for a stream of the Hub in one of several workers, where `datasets` gives each a part.
        """
        worker = get_worker_info()
        if self._is_shared_by_source and worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"`datasets` shares a stream between the {worker.num_workers} workers of a data loader, so its rows "
                "cannot be numbered; use one worker, or load the data set with `streaming=False`."
            )
        return self._rows(0, 1)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the next pass anew, where the source is a `datasets` stream that shuffles."""
        if hasattr(self.read_records, "set_epoch"):
            self.read_records.set_epoch(epoch)

    @property
    def _is_shared_by_source(self) -> bool:
        return getattr(self.read_records, "shares_among_workers", False)

    def _rows(self, place: int, count: int) -> Iterator[dict[str, Any]]:
        self.report.counts.clear()
        for index, record in enumerate(self.read_records(self.report)):
            row = read_row(record, self.class_names, self.report) if index % count == place else None
            if row is not None:
                yield row
        self.report.warn_once()


class PackedRecords(Sequence):
    """
    Records pickled into one block of memory and unpacked one by one.

    A Python dict with its lists takes several times the memory, and data loader workers that count references to a
    million of them would copy them all; a block is shared.

    Args:
        records (`Iterable[Mapping]`): read once, in order.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]]):
        self._bytes = bytearray()
        self._ends = array("q", [0])
        # Shown only where it takes longer than a few seconds.
        for record in tqdm(records, desc="reading annotations", unit=" rows", delay=5, leave=False):
            self._bytes += pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"record {index} of {len(self)} records")
        return pickle.loads(memoryview(self._bytes)[self._ends[place] : self._ends[place + 1]])


def make_dataset(
    read_records: Callable[[BoxReport], Iterable[Mapping[str, Any]]],
    report: BoxReport,
    class_names: list[str] | None = None,
    streaming: bool = False,
) -> "ImageDataset | ImageStream":
    """What every loader returns: all records packed, or a stream of them; problems are told once all were read."""
    if streaming:
        return ImageStream(read_records, class_names, report)
    records = PackedRecords(read_records(report))
    report.warn_once()
    return ImageDataset(records, class_names, report)


def read_row(record: Mapping[str, Any], class_names: list[str] | None, report: BoxReport) -> dict[str, Any] | None:
    """
    The row of a record, its image opened.

    Args:
        record (`Mapping`): a row with `image_path` in the place of `image`: a file's path, its `bytes`, a PIL image,
            or a function that gives one of these.
        class_names (`list[str]`, *optional*): the `labels` of a detection row that has none.
        report (`BoxReport`): counts unreadable images and those of another size than the record's, and decides.

    Returns:
        `dict | None`: `None` where the image is left out.
    """
    row = dict(record)
    source = row.pop("image_path")
    name = source if isinstance(source, (str, Path)) else "its bytes"
    if class_names is not None and row["kind"] == "detection":
        row.setdefault("labels", class_names)
    size = (row["width"], row["height"]) if row.get("width") and row.get("height") else None
    try:
        image = open_for_annotations(source() if callable(source) else source, size)
    except (OSError, ValueError) as error:
        report.add("unreadable_image", f"image {row['image_id']!r} at {name}: {error}")
        report.warn_once()
        return None
    if size is not None and image.size != size:
        where = f"image {row['image_id']!r} at {name} is {image.size}, its annotations say {size}"
        action = report.add("wrong_size", where)
        report.warn_once()
        if action == "skip":
            return None
    return {"image": image, **row}


def open_for_annotations(source: ImageFile, size: tuple[int, int] | None = None) -> Image.Image:
    """
    As `image_io.open_image`, upright; but pixels stay as they are stored where only so the image has the size that it
    was annotated in.

    Args:
        source: a file, its bytes, or an image that is open already.
        size (`tuple[int, int]`, *optional*): width and height in pixels that the annotations were made for.
    """
    image = open_image(source)
    if size is not None and image.size != size and image.size == size[::-1]:
        stored = open_image(source, upright=False)
        return stored if stored.size == size else image
    return image


class _Selection(Sequence):
    """Some of the records, without a copy of them."""

    def __init__(self, records: Sequence[Mapping[str, Any]], indices: Iterable[int]):
        self.records = records
        self.indices = array("q", indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.records[place] for place in self.indices[index]]
        return self.records[self.indices[index]]


class _Repeat:
    """Records that are there already, as what `ImageStream` calls; a class, so that it can be pickled."""

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        self.records = records

    def __call__(self, report: BoxReport) -> Sequence[Mapping[str, Any]]:
        return self.records
