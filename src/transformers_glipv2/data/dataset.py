"""
Examples of the schema whose images are opened when they are asked for.

No loader holds images in memory, only their annotations, packed: about 200 bytes an example, 60 a box, and polygons.
COCO files of 50 MB and more are read once, into a cache that processes share (`formats.coco_cache`). Other formats
that are one json file (LVIS, GoldG, ...) need 5 to 6 times the file's size while it is read, since Python parses it
whole, and 15 seconds a million boxes. Line-wise files, folders and the Hub can be streamed (`streaming=True`) in
constant memory.
"""

import io
import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from tqdm.auto import tqdm

from transformers_glipv2.data.orientation import fits_stored_pixels, turn_objects
from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.images.image_io import ImageFile, open_image, orientation_of


class ImageDataset(Dataset):
    """
    A map-style data set over records: examples of the schema with an `image_path` instead of the `image`.

    Args:
        records (`Sequence[Mapping]`): examples without `image`; `width` and `height`, where present, are checked
            against the image.
        class_names (`list[str]`, *optional*): detection: every class of the data set; examples without `labels` of
            their own get it.
        report (`BoxReport`, *optional*): where unreadable images are counted; skipped by default.

    An unreadable image under the policy "skip" is replaced by the next readable example, counted and logged once;
    under "refuse" it raises. Examples carry their own `image_id`, so they stay identifiable.
    """

    # What loaders of COCO and LVIS files add: ids and frequencies of the classes, in the order of `class_names`.
    category_ids: list[Any]
    frequencies: list[str | None]
    # How many images do not exist, and where the first should be.
    missing_images: tuple[int, str | None] = (0, None)

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
            raise IndexError(f"example {index} of a data set of {length} examples")
        for step in range(length):
            example = self.read((index + step) % length)
            if example is not None:
                return example
        raise ValueError(f"none of the {length} images can be read; the first failure: {self.report.summary()}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Examples in order, each readable one once."""
        for index in range(len(self)):
            example = self.read(index)
            if example is not None:
                yield example

    def read(self, index: int) -> dict[str, Any] | None:
        """The example at an index, or `None` where its image is left out; the report counts why."""
        return read_example(self.records[index], self.class_names, self.report)

    def read_upright(self, index: int) -> dict[str, Any] | None:
        """As `read`, without the image: of its file only the head is read."""
        example, source = _opened_head(self.records[index], self.report)
        return None if source is None else example

    def select(self, indices: Sequence[int]) -> "ImageDataset":
        """The examples at these indices, in this order; an index may come several times."""
        selected = ImageDataset(_Selection(self.records, indices), self.class_names, self.report)
        for name in ("category_ids", "frequencies"):
            if hasattr(self, name):
                setattr(selected, name, getattr(self, name))
        return selected

    def filter(self, keep: Callable[[Mapping[str, Any]], bool]) -> "ImageDataset":
        """The examples whose record passes; no image is opened."""
        return self.select([index for index, record in enumerate(self.records) if keep(record)])

    def stream(self) -> "ImageStream":
        """The same examples as an iterable that data loader workers share."""
        return ImageStream(_Repeat(self.records), self.class_names, self.report)


class ImageStream(IterableDataset):
    """
    Examples in the order of their source, read while they are asked for.

    Args:
        read_records (`Callable[[BoxReport], Iterable[Mapping]]`): starts a pass over the records of `ImageDataset`,
            and counts problems in the report it is given.
        class_names (`list[str]`, *optional*), report (`BoxReport`, *optional*): as in `ImageDataset`. The report's
            counts are those of the pass that was started last.

    Unreadable images are left out, counted and logged once. Data loader workers share the examples between them:
    each reads every annotation, but opens its own images only. Streams of the Hub are shared by `datasets` instead,
    file by file.
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
        if worker is None or self._source_splits_by_worker:
            return self._examples(0, 1)
        return self._examples(worker.id, worker.num_workers)

    def all_examples(self) -> Iterator[dict[str, Any]]:
        """
        Every example, also in a data loader worker: what `IndexedStream` numbers.

        Raises:
            ValueError: for a stream of the Hub in one of several workers, where `datasets` gives each a part.
        """
        worker = get_worker_info()
        if self._source_splits_by_worker and worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"`datasets` shares a stream between the {worker.num_workers} workers of a data loader, so its "
                "examples cannot be numbered; use one worker, or load the data set with `streaming=False`."
            )
        return self._examples(0, 1)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the next pass anew, where the source is a `datasets` stream that shuffles."""
        if hasattr(self.read_records, "set_epoch"):
            self.read_records.set_epoch(epoch)

    @property
    def _source_splits_by_worker(self) -> bool:
        return getattr(self.read_records, "splits_by_worker", False)

    def _examples(self, worker_id: int, num_workers: int) -> Iterator[dict[str, Any]]:
        self.report.counts.clear()
        for index, record in enumerate(self.read_records(self.report)):
            is_own = index % num_workers == worker_id
            example = read_example(record, self.class_names, self.report) if is_own else None
            if example is not None:
                yield example
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
        for record in tqdm(records, desc="reading annotations", unit=" examples", delay=5, leave=False):
            self._bytes += pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)} records")
        return pickle.loads(memoryview(self._bytes)[self._ends[position] : self._ends[position + 1]])


def make_dataset(
    read_records: Callable[[BoxReport], Iterable[Mapping[str, Any]]],
    report: BoxReport,
    class_names: list[str] | None = None,
    streaming: bool = False,
) -> "ImageDataset | ImageStream":
    """What every loader returns: all records packed, or a stream of them; problems are logged once all were read."""
    if streaming:
        return ImageStream(read_records, class_names, report)
    records = PackedRecords(read_records(report))
    report.warn_once()
    return ImageDataset(records, class_names, report)


def read_example(record: Mapping[str, Any], class_names: list[str] | None, report: BoxReport) -> dict[str, Any] | None:
    """
    The example of a record, its image opened and upright.

    Args:
        record (`Mapping`): an example with `image_path` instead of `image`: a file's path, its `bytes`, a PIL image,
            or a function that returns one of these. `boxes_on`, where it is there, says whether boxes were made on the
            "upright" image or on its "stored" pixels (see `load_coco`).
        class_names (`list[str]`, *optional*): the `labels` of a detection example that has none.
        report (`BoxReport`): counts unreadable images and those of another size than the record's, and decides.

    Returns:
        `dict | None`: `None` where the image is left out.
    """
    example, source = _opened_head(record, report)
    if source is None:
        return None
    if class_names is not None and example["kind"] == "detection":
        example.setdefault("labels", class_names)
    try:
        image = open_image(source)
    except (OSError, ValueError) as error:
        report.add("unreadable_image", f"{_where(record)}: {error}")
        report.warn_once()
        return None
    return {"image": image, **example}


def _where(record: Mapping[str, Any]) -> str:
    source = record["image_path"]
    return f"image {record['image_id']!r} at {source if isinstance(source, (str, Path)) else 'its bytes'}"


def _opened_head(record: Mapping[str, Any], report: BoxReport) -> tuple[dict[str, Any], ImageFile | None]:
    """The example without its image, with upright boxes, and what to open; `None` where it is left out."""
    example = dict(record)
    source = example.pop("image_path")
    boxes_on = example.pop("boxes_on", "auto")
    where = _where(record)
    size = (example["width"], example["height"]) if example.get("width") and example.get("height") else None
    try:
        source = source() if callable(source) else source
        orientation, stored_size = stored_orientation(source)
    except (OSError, ValueError) as error:
        report.add("unreadable_image", f"{where}: {error}")
        report.warn_once()
        return example, None
    upright_size = stored_size[::-1] if orientation >= 5 else stored_size
    is_stored = fits_stored_pixels(orientation, stored_size, size, boxes_on)
    has_objects = bool(example.get("objects") and example["objects"]["bbox"])
    if is_stored and size in (None, stored_size):
        size = upright_size
        if example.get("width"):
            example |= {"width": size[0], "height": size[1]}
        if has_objects:
            example["objects"] = turn_objects(example["objects"], orientation, stored_size)
            report.note("turned", where)
    elif is_stored is None and has_objects:
        report.note("orientation_unclear", where)
    if size is not None and upright_size != size:
        action = report.add("wrong_size", f"{where} is {upright_size}, its annotations say {size}")
        report.warn_once()
        if action == "skip":
            return example, None
    report.warn_once()
    return example, source


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


def stored_orientation(source: ImageFile) -> tuple[int, tuple[int, int]]:
    """
    EXIF orientation, 1 to 8, and (width, height) as stored, of an image of which only the head is read; raises OSError
    or ValueError where it cannot be.
    """
    if isinstance(source, Image.Image):
        return orientation_of(source), source.size
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return orientation_of(image), image.size
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def iterate_annotations(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Sequence[str], Any]]:
    """
    What counting needs of each record, in order: its `image_path`, and the `category` and `bbox` of its objects.

    Records that can give these without the rest (`iterate_annotations` of `ArrowRecords`) do so, in a tenth of the
    time.
    """
    if hasattr(records, "iterate_annotations"):
        yield from records.iterate_annotations()
        return
    for index in range(len(records)):
        record = records[index]
        objects = record.get("objects") or {}
        yield record["image_path"], objects.get("category", ()), objects.get("bbox", ())


class _Selection(Sequence):
    """Some of the records, without a copy of them."""

    def __init__(self, records: Sequence[Mapping[str, Any]], indices: Iterable[int]):
        self.records = records
        self.indices = array("q", indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.records[position] for position in self.indices[index]]
        return self.records[self.indices[index]]

    def iterate_annotations(self) -> Iterator[tuple[Any, Sequence[str], Any]]:
        """See the function of this name: of the selected records, from a pass over all where they are in order."""
        if all(one < other for one, other in pairwise(self.indices)):
            wanted = iter(self.indices)
            index = next(wanted, None)
            for position, found in enumerate(iterate_annotations(self.records)):
                if index is None:
                    return
                if position == index:
                    yield found
                    index = next(wanted, None)
            return
        for index in self.indices:
            yield from iterate_annotations([self.records[index]])


class _Repeat:
    """Records in memory, as what `ImageStream` calls; a class, so that it can be pickled."""

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        self.records = records

    def __call__(self, report: BoxReport) -> Sequence[Mapping[str, Any]]:
        return self.records
