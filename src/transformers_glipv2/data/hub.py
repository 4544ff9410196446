"""
Data sets of the Hugging Face Hub, and local parquet and image folders, as examples of the schema.

Read are the usual detection schema (an image, and `objects` of bbox and category, as `cppe-5` has it; also a list of
objects instead of columns), and what `to_hf_dataset` writes (any kind of example, by its column `kind`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from transformers_glipv2.data.dataset import ImageDataset, ImageStream, PackedRecords
from transformers_glipv2.data.hub_export import import_datasets
from transformers_glipv2.data.schema import KINDS, BoxReport, category_name, checked_objects, xyxy_to_xywh
from transformers_glipv2.images.image_download import download_image, is_url
from transformers_glipv2.images.image_io import image_size

if TYPE_CHECKING:
    import datasets

# Names that columns go by; the first that is there counts.
_NAMES = {
    "image": ("image", "img", "picture"),
    "image_id": ("image_id", "img_id", "id"),
    "width": ("width",),
    "height": ("height",),
    "objects": ("objects", "annotations"),
    "bbox": ("bbox", "boxes", "bboxes"),
    "category": ("category", "categories", "label", "labels", "category_id"),
}
_NEEDED = ("image", "objects", "bbox", "category")
_FORMATS = ("xywh", "xyxy")


def load_hub(
    path: str,
    split: str = "train",
    *,
    box_format: str = "xywh",
    columns: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    policy: str | Mapping[str, str] = "skip",
    streaming: bool = False,
    **load_arguments: Any,
) -> ImageDataset | ImageStream:
    """
    Examples of a data set of the Hub or a local folder.

    Args:
        path (`str`): as for `datasets.load_dataset`: a Hub id, a folder of parquet files or of images with
            `metadata.jsonl`, or "parquet" or "imagefolder" with `data_files` or `data_dir`.
        split (`str`, *optional*, defaults to `"train"`).
        box_format (`str`, *optional*, defaults to `"xywh"`): of bbox, in pixels: "xywh" or, as some data sets have it,
            "xyxy". Many boxes reported as leaving their images are a sign of the other one.
        columns (`Mapping[str, str]`, *optional*): the data set's name of a column by ours: image, image_id, width,
            height, objects, bbox, category. Usual names are found without it.
        class_names (`Sequence[str]`, *optional*): where the data set has no `ClassLabel`: the names that integer
            categories point into, or all names that may come.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        streaming (`bool`, *optional*, defaults to `False`): download and read while examples are asked for.
        load_arguments: go to `datasets.load_dataset`, for example `name`, `revision` or `data_files`.

    Returns:
        `ImageDataset` or `ImageStream`: see `from_hf_dataset`.

    Raises:
        ImportError: when `datasets` is not installed.
        ValueError: when the columns are not understood, or the policy refuses.
    """
    dataset = import_datasets().load_dataset(path, split=split, streaming=streaming, **load_arguments)
    return from_hf_dataset(
        dataset, box_format=box_format, columns=columns, class_names=class_names, policy=policy, name=path
    )


def from_hf_dataset(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    *,
    box_format: str = "xywh",
    columns: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    policy: str | Mapping[str, str] = "skip",
    name: str = "",
) -> ImageDataset | ImageStream:
    """
    A `datasets` data set as examples of the schema.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): one split.
        box_format, columns, class_names, policy: as for `load_hub`.
        name (`str`, *optional*): the data set, for messages.

    Returns:
        `ImageDataset` for a map-style data set: boxes are checked once, in a pass over all examples (which opens the
        heads of images where there is no width and height), images stay where they are until asked for.
        `ImageStream` for an iterable one. Where there is no column of ids, an example's number is its id.

    Raises:
        TypeError: when it is not one split.
        ValueError: when there are no examples, the columns are not understood, or the policy refuses.
    """
    datasets = import_datasets()
    if box_format not in _FORMATS:
        raise ValueError(f"`box_format` is {box_format!r}; choose one of {', '.join(_FORMATS)}.")
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(f"`dataset` is a {type(dataset).__name__}; pass one split, a Dataset or an IterableDataset.")
    report = BoxReport(policy, name)
    features = dataset.features
    for column, feature in (features or {}).items():
        # Undecoded, an unreadable image is a value like any other.
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"the data set {name} has no examples; is it the right split?")
    reader = _reader(datasets, first if features is None else features, dict(columns or {}), box_format, class_names)
    if isinstance(dataset, datasets.IterableDataset):
        reader.check_class_names(first)
        return ImageStream(StreamedRecords(dataset, reader), reader.class_names, report)
    if reader.class_names is None and reader.names_classes(first):
        reader.class_names = _all_names(dataset, reader)
    records = PackedRecords(_checked_records(dataset, reader, report))
    report.warn_once()
    return ImageDataset(_HubRecords(dataset, records, reader.columns["image"]), reader.class_names, report)


@dataclass
class _ExampleReader:
    """Turns an example of `datasets` into a record; `columns` are the data set's names by ours."""

    columns: dict[str, str]
    box_format: str
    is_ours: bool
    class_names: list[str] | None

    def names_classes(self, example: Mapping[str, Any]) -> bool:
        """Whether the classes of this example's data set must be known, and the example does not say them itself."""
        return (not self.is_ours or example["kind"] == "detection") and example.get("labels") is None

    def check_class_names(self, example: Mapping[str, Any]) -> None:
        if self.class_names is None and self.names_classes(example):
            raise ValueError(
                f"the column {self.columns.get('category')!r} does not tell which classes there are (it is no "
                "ClassLabel); pass `class_names`."
            )

    def record(self, example: Mapping[Any, Any], index: int, source: Any, report: BoxReport) -> dict[str, Any] | None:
        """Without `image_path`; `None` where the example is of no kind, or its image cannot be measured."""
        if self.is_ours:
            record = {field: value for field, value in example.items() if value is not None and field != "image"}
            if record.get("kind") not in KINDS:
                report.add("bad_entry", f"example {index} has the kind {record.get('kind')!r}")
                return None
        else:
            image_id = example.get(self.columns.get("image_id"))
            record = {"kind": "detection", "image_id": index if image_id is None else image_id}
            record["objects"] = example[self.columns["objects"]] or {}
        where = f"image {record['image_id']!r}, example {index}"
        width, height = (example.get(self.columns.get(side)) for side in ("width", "height"))
        size = (int(width), int(height)) if width and height else None
        if size is not None:
            record["width"], record["height"] = size
        if "objects" in record:
            objects = self._objects(record["objects"])
            if size is None:
                size = _stored_size(source, report, where) if objects["bbox"] else (0, 0)
            if size is None:
                return None
            labels = record.get("labels", self.class_names) if record["kind"] == "detection" else None
            record["objects"] = checked_objects(objects, *size, report, where, labels, record.get("text"))
        return record

    def _objects(self, objects: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Our columns, from columns or from a list of objects."""
        if isinstance(objects, Sequence):
            names = dict.fromkeys(name for entry in objects for name in entry)
            objects = {name: [entry.get(name) for entry in objects] for name in names}
        ours = {self.columns[name]: name for name in ("bbox", "category") if name in self.columns}
        columns = {ours.get(name, name): list(values) for name, values in objects.items() if values is not None}
        columns.setdefault("bbox", [])
        if self.is_ours:
            # What an example lacks, Arrow fills with None.
            columns = {name: v for name, v in columns.items() if not v or any(x is not None for x in v)}
        if not self.is_ours or "category" in columns:
            class_names = self.class_names or ()
            categories = columns.get("category", [])
            columns["category"] = [
                c if category_name(c, class_names) is None else category_name(c, class_names) for c in categories
            ]
        if self.box_format == "xyxy" and not self.is_ours:
            columns["bbox"] = [xyxy_to_xywh(box) for box in columns["bbox"]]
        return columns


class _HubRecords(Sequence):
    """Packed records, each with its image to be read from the data set."""

    def __init__(self, dataset: Any, records: PackedRecords, image: str):
        self.images = dataset.select_columns(image)
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        record = self.records[index]
        example = record.pop("hub_index")
        return {**record, "image_path": _HubImage(self.images, example)}


class _HubImage:
    """Reads one image when it is called."""

    def __init__(self, images: Any, example: int):
        self.images = images
        self.example = example

    def __call__(self) -> str | bytes | Image.Image:
        return image_source(next(iter(self.images[self.example].values())))


class StreamedRecords:
    """
    Starts passes for `ImageStream`, and reads parts of the data set for `LaneStream`; a class, so that it can be
    pickled.
    """

    splits_by_worker = True

    def __init__(self, dataset: Any, reader: _ExampleReader):
        self.dataset = dataset
        self.reader = reader

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __call__(self, report: BoxReport) -> Iterator[dict[str, Any]]:
        for index, example in enumerate(self.dataset):
            record = self.record(example, index, report)
            if record is not None:
                yield record

    def record(self, example: Mapping[str, Any], index: int, report: BoxReport) -> dict[str, Any] | None:
        """The record of an example of the data set, or `None` where it is left out."""
        source = partial(image_source, example[self.reader.columns["image"]])
        record = self.reader.record(example, index, source, report)
        return None if record is None else {**record, "image_path": source}


def _checked_records(dataset: Any, reader: _ExampleReader, report: BoxReport) -> Iterator[dict[str, Any]]:
    image = reader.columns["image"]
    images = dataset.select_columns(image)
    # With the sizes in columns of their own, the images' bytes are not even read.
    examples = dataset.remove_columns(image) if "width" in reader.columns and "height" in reader.columns else dataset
    for index, example in enumerate(examples):
        source = partial(image_source, example[image]) if image in example else _HubImage(images, index)
        record = reader.record(example, index, source, report)
        if record is not None:
            yield {**record, "hub_index": index}


def image_source(value: Any) -> str | bytes | Image.Image:
    """A path, bytes or image from what an undecoded `Image` column, or one of paths, holds."""
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise OSError("the example has no image")
    if isinstance(value, str) and is_url(value):
        return download_image(value)
    if isinstance(value, str) and "://" in value:
        # `datasets` brings fsspec, which knows hf:// and files inside of archives.
        import fsspec

        with fsspec.open(value, "rb") as file:
            return file.read()
    return value


def _stored_size(source: Any, report: BoxReport, where: str) -> tuple[int, int] | None:
    try:
        return image_size(source())
    except (OSError, ValueError) as error:
        report.add("unreadable_image", f"{where}: {error}")
        return None


def _all_names(dataset: Any, reader: _ExampleReader) -> list[str]:
    """The names that the examples' objects have, by alphabet, where no feature lists them."""
    names: set[Any] = set()
    for example in dataset.select_columns(reader.columns["objects"]):
        names.update(reader._objects(next(iter(example.values())) or {}).get("category", ()))
    names.discard(None)
    if not all(isinstance(name, str) for name in names):
        reader.check_class_names({"kind": "detection"})
    return sorted(names)


def _reader(
    datasets: Any,
    features: Mapping[str, Any],
    given: dict[str, str],
    box_format: str,
    class_names: Sequence[str] | None,
) -> _ExampleReader:
    unknown = [name for name in given if name not in _NAMES]
    if unknown:
        raise ValueError(f"`columns` names {unknown[0]!r}; what can be named: {', '.join(_NAMES)}.")
    outer = [name for name in _NAMES if name not in ("bbox", "category")]
    columns = _find(outer, features, given)
    # The feature of a list of objects, or the list itself where there are no features but a first example.
    inner: Any = features.get(columns["objects"], {}) if "objects" in columns else {}
    inner = getattr(inner, "feature", inner)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    inner = inner if isinstance(inner, Mapping) else {}
    columns |= _find(("bbox", "category"), inner, given)
    is_ours = "kind" in features
    missing = [name for name in (("image",) if is_ours else _NEEDED) if name not in columns]
    if missing:
        there = ", ".join(features) + (f" and, in objects, {', '.join(inner)}" if inner else "")
        raise ValueError(f"no column found for {', '.join(missing)} among {there}; name them in `columns`.")
    category = inner.get(columns.get("category"))
    category = getattr(category, "feature", category)
    if class_names is None and isinstance(category, datasets.ClassLabel):
        class_names = category.names
    return _ExampleReader(columns, box_format, is_ours, None if class_names is None else list(class_names))


def _find(names: Sequence[str], available: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name in names:
        if name in given and given[name] not in available:
            raise ValueError(
                f"`columns` says that {name} is {given[name]!r}; the columns are {', '.join(available) or 'none'}."
            )
        candidates = (given[name],) if name in given else _NAMES[name]
        present = [candidate for candidate in candidates if candidate in available]
        if present:
            found[name] = present[0]
    return found
