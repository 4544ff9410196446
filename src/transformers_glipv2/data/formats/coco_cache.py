"""
Large COCO files: read once, in portions, into a file that all processes map into memory.

The cache holds the examples that `load_coco` gives, with the report of their problems, in an Arrow file beside a json
that says what it was made from. It is in `glipv2/annotations` of the Hugging Face cache (`HF_HOME`) and can be deleted
at any time: it is made anew when it is missing, damaged or older than its source. Of several processes one makes it
and the others wait.
"""

import gzip
import hashlib
import json
import os
import shutil
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.formats.arrow_records import ArrowRecords, ObjectColumns, RecordWriter
from transformers_glipv2.data.formats.coco_json import (
    check_any_object,
    clean_categories,
    clean_id,
    clean_image,
    coco_record,
    dataset_of,
    found_image,
    note_same_names,
    unknown_image,
    without_dummies,
)
from transformers_glipv2.data.formats.json_index import (
    EntryList,
    NotIndexableError,
    Portion,
    index_json,
    parsed_lines,
    read_entry,
)
from transformers_glipv2.data.image_files import ImageFinder
from transformers_glipv2.data.orientation import check_boxes_on
from transformers_glipv2.data.schema import BoxReport, actions_of

logger = logging.get_logger(__name__)

# Of what the examples of a file are: caches of other versions are made anew.
VERSION = 1
CACHED_FROM = 50_000_000  # bytes
# So many images of a cache are looked for when it is opened.
_SPOT_CHECKS = 200
_BLOCK = 4096  # images
_LISTS = ("images", "annotations", "categories")


def is_large(path: Path) -> bool:
    """Whether a COCO file is read through the cache: from `CACHED_FROM` bytes on."""
    return path.stat().st_size >= CACHED_FROM


@dataclass(frozen=True)
class Source:
    """What a cache is made from: a file, and the arguments of `load_coco`."""

    path: str
    image_folder: str
    actions: Mapping[str, str]
    with_masks: bool
    keep_empty: bool
    boxes_on: str
    allow_outside_paths: bool

    def key(self) -> str:
        """The name of the cache. Relative paths mean other files from elsewhere."""
        text = json.dumps([os.path.abspath(self.path), os.path.abspath(self.image_folder), asdict(self)])
        return f"{Path(self.path).name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def state(self) -> list[int]:
        """What tells whether the file is still the same."""
        found = os.stat(self.path)
        return [VERSION, found.st_size, found.st_mtime_ns]


def cached_coco(
    path: Path,
    image_folder: str | Path,
    policy: str | Mapping[str, str] = "skip",
    with_masks: bool = False,
    keep_empty: bool = True,
    boxes_on: str = "auto",
    allow_outside_paths: bool = False,
) -> ImageDataset | None:
    """
    The examples of a COCO file, from its cache, which is made first where there is none.

    Args:
        path (`Path`), image_folder (`str` or `Path`), policy, with_masks, keep_empty, boxes_on, allow_outside_paths:
            as for `load_coco`.

    Returns:
        `ImageDataset | None`: `None` where the file has to be read as a whole: it is not plain COCO, the cache cannot
        be written, or pyarrow is not installed.

    Raises:
        FileNotFoundError, ValueError: as `load_coco`.
    """
    check_boxes_on(boxes_on)
    if find_spec("pyarrow") is None:
        logger.warning(f"pyarrow is not installed, so {path} is read as a whole by every process.")
        return None
    source = Source(
        str(path), str(image_folder), actions_of(policy), with_masks, keep_empty, boxes_on, allow_outside_paths
    )
    cache = Path(HF_HOME) / "glipv2" / "annotations" / source.key()
    dataset = _opened(cache, source)
    if dataset is not None:
        return dataset
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cache}.lock"):
            # Another process may have made it meanwhile.
            return _opened(cache, source) or _made(cache, source)
    except (NotIndexableError, OverflowError):
        return None
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError) as error:
        logger.warning(f"{path} is read as a whole by every process, since its cache cannot be written: {error}")
        return None


def _opened(cache: Path, source: Source) -> ImageDataset | None:
    """The data set of a cache; `None` where there is none, it is damaged, or its file or images have changed."""
    try:
        about = json.loads(_about(cache).read_bytes())
        file = cache.with_name(about["file"])
        if about["state"] != source.state() or file.stat().st_size != about["size"]:
            return None
        categories = dict(about["categories"])
        names = list(dict.fromkeys(categories.values()))
        records = ArrowRecords(file, names, source.with_masks, source.boxes_on)
        report = BoxReport(source.actions, Path(source.path).name)
        report.restore(about["report"])
        dataset = dataset_of(records, categories, report, (about["missing"], about["first_missing"]))
        if len(records) != about["examples"] or not _has_same_images(records, source, about["left_out"]):
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    report.warn_once()
    return dataset


def _has_same_images(records: ArrowRecords, source: Source, left_out: Sequence[Mapping[str, Any]]) -> bool:
    """Whether images that were there still are (some are looked for), and none has come that was not."""
    step = max(len(records) // _SPOT_CHECKS, 1)
    is_found = records.is_found()
    for index in range(0, len(records), step):
        if is_found[index] and not os.path.isfile(records.image_path(index)):
            return False
    find = ImageFinder(source.image_folder, source.allow_outside_paths)
    names = (os.path.relpath(records.image_path(index), find.folder) for index in np.flatnonzero(~is_found).tolist())
    if any(find.exists(name) for name in names):
        return False
    # Counted in a report of its own: the real one has them already.
    report = BoxReport()
    return all(found_image(dict(image), find, report) is None for image in left_out)


def _about(cache: Path) -> Path:
    return cache.with_name(f"{cache.name}.json")


def _made(cache: Path, source: Source) -> ImageDataset | None:
    """Make a cache and open it; only one process may do so at a time."""
    state = source.state()
    for old in cache.parent.iterdir():
        if old.name.startswith(f"{cache.name}-"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    building = cache.with_name(f"{cache.name}-building")
    building.mkdir()
    try:
        about = _build(source, _unpacked(Path(source.path), building), building)
        # Processes that still read the cache before have its file open under another name.
        file = cache.with_name(f"{cache.name}-{state[2]}-{os.getpid()}.arrow")
        os.replace(building / "examples.arrow", file)
        write_json(_about(cache), {**about, "state": state, "file": file.name, "size": file.stat().st_size}, None)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return _opened(cache, source)


def _unpacked(path: Path, folder: Path) -> Path:
    """The file, or its content where it is compressed."""
    if path.suffix != ".gz":
        return path
    unpacked = folder / "unpacked.json"
    try:
        with gzip.open(path, "rb") as packed, open(unpacked, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NotIndexableError(str(error)) from error
    return unpacked


def _build(source: Source, path: Path, folder: Path) -> dict[str, Any]:
    """Write the examples of an unpacked file to `examples.arrow` in a folder; returns what is to know about them."""
    name = Path(source.path)
    report = BoxReport(source.actions, name.name)
    find = ImageFinder(source.image_folder, source.allow_outside_paths)
    lists = index_json(path, _LISTS)
    with open(path, "rb") as file:
        listed = clean_categories(list(lists["categories"].entries(file)), report, name)
        images = _Images(lists["images"].entries(file), report)
        annotations = _Annotations(images, [entry["id"] for entry in listed], folder)
        annotations.read(file, lists["annotations"], report)
        categories = without_dummies(listed, annotations.used)
        note_same_names(categories, report, name)
        blocks = _Blocks(images, annotations, file, listed, categories, source, report, find)
        with RecordWriter(folder / "examples.arrow", source.with_masks) as writer:
            for first in tqdm(range(0, len(images), annotations.block), "reading examples", delay=5, leave=False):
                writer.write(*blocks.read(first, min(first + annotations.block, len(images))))
    if not (find.found and writer.objects):
        report.warn_once()
    find.check_any_found(name)
    check_any_object(writer.objects > 0, len(lists["annotations"]), report, name)
    return {
        "examples": writer.examples,
        "categories": list(categories.items()),
        "report": report.state(),
        "missing": find.missing,
        "first_missing": find.first_missing,
        "left_out": blocks.left_out,
    }


class _Images:
    """The images of a file that can be used, in a fraction of the memory of its entries."""

    def __init__(self, entries: Iterator[Any], report: BoxReport):
        self.positions: dict[int | str, int] = {}
        self._names: list[str] = []
        self._sides = array("q")
        for index, entry in enumerate(entries):
            image = clean_image(entry, index, self.positions, report, ("file_name",))
            if image is not None:
                self.positions[image["id"]] = len(self._names)
                self._names.append(image["file_name"])
                self._sides.extend((image["width"] or 0, image["height"] or 0))
        self._ids = list(self.positions)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        width, height = self._sides[2 * index : 2 * index + 2]
        name = self._names[index]
        return {"id": self._ids[index], "file_name": name, "width": width or None, "height": height or None}

    def sizes(self) -> np.ndarray:
        """Width and height of each, 0 where the file does not give it."""
        return np.array(self._sides, dtype=np.float64).reshape(-1, 2)


class _Lookup:
    """Positions by id, of one or of many at once; -1 for those that are not listed."""

    def __init__(self, positions: Mapping[Any, int]):
        self._positions = positions
        numbers = [key for key in positions if isinstance(key, int) and -(2**62) < key < 2**62]
        self._first, last = min(numbers, default=0), max(numbers, default=-1)
        self._sorted = np.array(sorted(numbers), dtype=np.int64)
        found = np.array([positions[key] for key in self._sorted.tolist()], dtype=np.int32)
        # Ids in a row, as most files have them, need no search.
        self._is_table = last - self._first < 8 * len(numbers) + 1024
        if self._is_table:
            self._found = np.full(last - self._first + 1, -1, dtype=np.int32)
            self._found[self._sorted - self._first] = found
        else:
            self._found = found

    def one(self, key: Any) -> int:
        return self._positions.get(key, -1)

    def many(self, keys: np.ndarray, is_null: np.ndarray) -> np.ndarray:
        if not len(self._sorted):
            return np.full(len(keys), -1, dtype=np.int32)
        if self._is_table:
            is_listed = (keys >= self._first) & (keys < self._first + len(self._found))
            places = np.where(is_listed, keys, self._first) - self._first
        else:
            places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
            is_listed = self._sorted[places] == keys
        return np.where(is_listed & ~is_null, self._found[places], np.int32(-1))


# An annotation while it waits for the others of its image: which image, where it is in the file, and, where it is
# plain, the rest. Categories are positions in the file's list.
_WAITING = np.dtype(
    [("image", "i4"), ("start", "i8"), ("length", "i8"), ("category", "i4"), ("bbox", "f8", (4,)), ("area", "f8")]
)


class _Annotations:
    """
    The annotations of a file by image. They wait in one file for each block of images, so that memory does not grow
    with their number.

    Args:
        images (`_Images`): of the file.
        category_ids (`Sequence`): that the file lists.
        folder (`Path`): for the files.

    Attributes:
        used (`set`): the category ids that annotations have.
        is_plain (`np.ndarray` of shape `(images,)`): whether the annotations of an image are all as they should be.
        block (`int`): how many images are in one.
    """

    def __init__(self, images: _Images, category_ids: Sequence[Any], folder: Path):
        self.used: set[Any] = set()
        self.is_plain = np.ones(len(images), dtype=bool)
        # Not many more than 256 files are open at once.
        self.block = max(_BLOCK, len(images) // 256)
        self._folder = folder
        self._images = _Lookup(images.positions)
        self._categories = _Lookup({category_id: index for index, category_id in enumerate(category_ids)})
        self._sizes = images.sizes()

    def read(self, file: BinaryIO, entries: EntryList, report: BoxReport) -> None:
        """Read all of them, in portions."""
        with ExitStack() as stack:
            files = []
            for first in range(0, len(self.is_plain), self.block):
                files.append(stack.enter_context(open(self._file(first), "wb")))
            bar = stack.enter_context(tqdm(total=len(entries), desc="reading annotations", delay=5, leave=False))
            for portion in entries.read(file):
                waiting, is_plain = self._waiting(portion)
                bar.update(len(waiting))
                is_known = waiting["image"] >= 0
                self.is_plain[waiting["image"][is_known & ~is_plain]] = False
                if not is_known.all():
                    first = int(np.flatnonzero(~is_known)[0])
                    entry = read_entry(file, int(portion.starts[first]), int(portion.lengths[first]))
                    where = unknown_image(entry, portion.first + first)
                    report.add("unknown_image", where, int((~is_known).sum()))
                waiting = waiting[is_known]
                waiting = waiting[np.argsort(waiting["image"], kind="stable")]
                blocks, begins = np.unique(waiting["image"] // self.block, return_index=True)
                for block, part in zip(blocks.tolist(), np.split(waiting, begins[1:]), strict=False):
                    part.tofile(files[block])

    def of_images(self, first: int, last: int) -> tuple[np.ndarray, list[int]]:
        """
        Those of a block of images.

        Returns:
            `tuple[np.ndarray, list[int]]`: `_WAITING` by image and in the file's order; and where those of each image
            begin, with the end of the last.
        """
        found = np.fromfile(self._file(first), dtype=_WAITING)
        found = found[np.argsort(found["image"], kind="stable")]
        return found, np.searchsorted(found["image"], np.arange(first, last + 1)).tolist()

    def _file(self, first: int) -> Path:
        return self._folder / f"images-from-{first}"

    def _waiting(self, portion: Portion) -> tuple[np.ndarray, np.ndarray]:
        """A portion in the form in which it waits, and which of it is plain."""
        waiting = np.zeros(len(portion.starts), dtype=_WAITING)
        waiting["start"], waiting["length"] = portion.starts, portion.lengths
        table = _arrow_table(portion)
        if table is None:
            entries = parsed_lines(portion.lines)
            self.used.update(clean_id(entry.get("category_id")) for entry in entries)
            waiting["image"] = [self._images.one(clean_id(entry.get("image_id"))) for entry in entries]
            return waiting, np.zeros(len(entries), dtype=bool)
        self.used.update(table["category_id"].unique().to_pylist())
        image, category = (
            lookup.many(table[name].fill_null(0).to_numpy(), table[name].is_null().to_numpy())
            for name, lookup in (("image_id", self._images), ("category_id", self._categories))
        )
        bbox = _four_columns(table["bbox"])
        x, y, width, height = bbox.T
        with np.errstate(over="ignore"):  # An area that is not finite is not plain.
            area = np.where(table["area"].is_null().to_numpy(), width * height, table["area"].to_numpy())
        # As `checked_box`: up to a pixel may be outside. Images without a size have 0, in which no box is.
        sizes = self._sizes[image] if len(self._sizes) else np.zeros((len(image), 2))
        is_inside = (x >= -1) & (y >= -1) & (x + width <= sizes[:, 0] + 1) & (y + height <= sizes[:, 1] + 1)
        is_plain = is_inside & (width > 0) & (height > 0) & (sizes > 0).all(1) & np.isfinite(area) & (category >= 0)
        is_plain &= table["iscrowd"].fill_null(0).to_numpy() == 0
        waiting["image"], waiting["category"], waiting["bbox"], waiting["area"] = image, category, bbox, area
        return waiting, is_plain


def _arrow_table(portion: Portion) -> Any:
    """Annotations as columns; `None` where one of them has another kind of value."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    whole, number = pa.int64(), pa.float64()
    fields = {"image_id": whole, "category_id": whole, "bbox": pa.list_(number), "area": number, "iscrowd": whole}
    text = portion.lines
    # Blocks are parsed in parallel, and each holds one entry at least.
    block = max(1 << 20, int(portion.lengths.max()) + 1000)
    try:
        table = arrow_json.read_json(
            pa.BufferReader(text),
            arrow_json.ReadOptions(block_size=block),
            arrow_json.ParseOptions(explicit_schema=pa.schema(fields.items()), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    return table.combine_chunks() if len(table) == len(portion.starts) else None


def _four_columns(boxes: Any) -> np.ndarray:
    """Lists of four numbers `(n, 4)`, NaN for those that are others."""
    lengths = boxes.combine_chunks().value_lengths().fill_null(0).to_numpy()
    values = boxes.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if (lengths == 4).all():
        return values.reshape(-1, 4)
    found = np.full((len(lengths), 4), np.nan)
    is_four = lengths == 4
    found[is_four] = values[(np.cumsum(lengths) - lengths)[is_four, None] + np.arange(4)]
    return found


class _Blocks:
    """Neighbouring images of a file as examples; where all annotations of an image are plain, none is looked at."""

    def __init__(
        self,
        images: _Images,
        annotations: _Annotations,
        file: BinaryIO,
        listed: Sequence[Mapping[str, Any]],
        categories: Mapping[int | str, str],
        source: Source,
        report: BoxReport,
        find: ImageFinder,
    ):
        self.left_out: list[dict[str, Any]] = []
        self._images, self._annotations, self._file = images, annotations, file
        self._categories, self._source, self._report, self._find = categories, source, report, find
        self._numbers = {label: number for number, label in enumerate(dict.fromkeys(categories.values()))}
        # Of each listed category the number of its name; those that are dropped have no annotation.
        self._positions = np.array([self._numbers.get(entry["name"], -1) for entry in listed], dtype=np.int32)

    def read(self, first: int, last: int) -> tuple[list[dict[str, Any]], list[int], list[ObjectColumns]]:
        """The images from `first` to `last` as `RecordWriter.write` takes them."""
        waiting, borders = self._annotations.of_images(first, last)
        category, is_crowd = self._positions[waiting["category"]], np.zeros(len(waiting), dtype=np.int8)
        columns = ObjectColumns(waiting["bbox"], category, waiting["area"], is_crowd)
        examples, counts, parts = [], [], []
        run = slice(0, 0)  # objects of the plain images that follow one another
        for index in range(first, last):
            image = self._images[index]
            missing = self._find.missing
            image_path = found_image(image, self._find, self._report)
            if image_path is None:
                self.left_out.append(image)
                continue
            begin, end = borders[index - first : index - first + 2]
            if self._source.with_masks or not self._annotations.is_plain[index]:
                own = self._looked_at(image, waiting[begin:end])
                parts += [columns[run], own]
                run = slice(0, 0)
                count = len(own)
            else:
                if begin != run.stop:
                    parts.append(columns[run])
                    run = slice(begin, begin)
                run = slice(run.start, end)
                count = end - begin
            if count or self._source.keep_empty:
                example = {"image_id": image.pop("id"), "image_path": image_path, **image}
                examples.append({**example, "is_found": self._find.missing == missing})
                counts.append(count)
        return examples, counts, [*parts, columns[run]]

    def _looked_at(self, image: Mapping[str, Any], waiting: np.ndarray) -> ObjectColumns:
        spans = zip(waiting["start"].tolist(), waiting["length"].tolist(), strict=True)
        entries = [read_entry(self._file, start, length) for start, length in spans]
        record = coco_record(image, entries, self._categories, self._report, self._source.with_masks)
        return ObjectColumns.of_objects(record["objects"], self._numbers)
