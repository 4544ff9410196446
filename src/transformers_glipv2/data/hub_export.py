"""Examples of the schema as a `datasets.Dataset`, which `push_to_hub` publishes and `data/hub.py` reads back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import ImageDataset, ImageStream
from transformers_glipv2.data.masks import decode_mask, encode_mask
from transformers_glipv2.images.image_io import image_size

if TYPE_CHECKING:
    import datasets

# Arrow wants examples in handfuls: small enough to keep Python's copies out of the way.
_CHUNK = 1000


def import_datasets() -> ModuleType:
    """The library `datasets`; raises ImportError with the remedy where it is missing."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'Hugging Face data sets need the library `datasets`: pip install "transformers-glipv2[train]".'
        ) from error
    return datasets


def to_hf_dataset(
    dataset: ImageDataset | ImageStream,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    A data set of the library `datasets`, for its `map`, `push_to_hub` and the like.

    Args:
        dataset (`ImageDataset` or `ImageStream`): of any loader. No image is opened but to draw masks of examples
            without a size.

    Returns:
        `datasets.Dataset`: with an `Image` column, for detection the usual `objects` of bbox (x, y, width, height in
        pixels) and category, and one column for every other field, `None` where an example has none. Categories are a
        `ClassLabel` of the data set's class names (classes of one name are one), masks COCO run lengths of the
        image's size, ids strings where the id of some example is one. For an `ImageStream` a
        `datasets.IterableDataset` of its examples.

    Raises:
        ImportError: when `datasets` is not installed.
        ValueError: when a field is of a type that Arrow has no column for.
    """
    datasets = import_datasets()
    if isinstance(dataset, ImageStream):
        return datasets.IterableDataset.from_generator(_iterate, gen_kwargs={"stream": dataset})
    class_names = list(dict.fromkeys(dataset.class_names)) if dataset.class_names is not None else None
    features = _features(datasets, dataset.records, class_names)
    chunks, examples = [], []
    for record in tqdm(dataset.records, desc="to datasets", unit=" examples", delay=5, leave=False):
        examples.append(_encode(record, features, class_names))
        if len(examples) == _CHUNK:
            chunks.append(datasets.Dataset.from_list(examples, features=features))
            examples = []
    if examples or not chunks:
        chunks.append(datasets.Dataset.from_list(examples, features=features))
    return datasets.concatenate_datasets(chunks)


def _iterate(stream: ImageStream) -> Iterator[dict[str, Any]]:
    yield from stream


def _features(
    datasets: ModuleType, records: Iterable[Mapping[str, Any]], class_names: list[str] | None
) -> "datasets.Features":
    fields: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for record in records:
        for field, value in record.items():
            # A later example may show the type: of an empty list, or of ids that are strings.
            if field not in ("objects", "image_path") and _tells_more(fields.get(field), value):
                fields[field] = value
        for column, values in (record.get("objects") or {}).items():
            for value in values:
                if _tells_more(columns.get(column), value):
                    columns[column] = value
            columns.setdefault(column, None)
    features = {"image": datasets.Image()}
    features |= {field: _feature(datasets, field, value) for field, value in fields.items()}
    if columns:
        features["objects"] = {
            column: datasets.List(_object_feature(datasets, column, value, class_names))
            for column, value in columns.items()
        }
    return datasets.Features(features)


def _tells_more(known: Any, value: Any) -> bool:
    return value is not None and (known is None or known == [] or (isinstance(value, str) and isinstance(known, int)))


def _object_feature(datasets: ModuleType, column: str, example: Any, class_names: list[str] | None) -> Any:
    if column == "bbox":
        return datasets.List(datasets.Value("float64"))
    if column == "category":
        return datasets.ClassLabel(names=class_names) if class_names is not None else datasets.Value("string")
    if column == "tokens_positive":
        return datasets.List(datasets.List(datasets.Value("int64")))
    if column == "segmentation":
        return {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
    return _feature(datasets, column, example)


def _feature(datasets: ModuleType, name: str, example: Any) -> Any:
    # Nothing but None in every example: any type will do.
    if example is None:
        return datasets.Value("string")
    for kind, arrow in ((bool, "bool"), (int, "int64"), (float, "float64"), (str, "string")):
        if isinstance(example, kind):
            return datasets.Value(arrow)
    if isinstance(example, list):
        return datasets.List(_feature(datasets, name, example[0] if example else None))
    raise ValueError(f"the field {name!r} holds a {type(example).__name__}, which Arrow has no column for.")


def _encode(record: Mapping[str, Any], features: Mapping[str, Any], class_names: list[str] | None) -> dict[str, Any]:
    example = {field: record.get(field) for field in features}
    source = record["image_path"]
    source = source() if callable(source) else source
    example["image"] = features["image"].encode_example(source)
    if features["image_id"].dtype == "string":
        example["image_id"] = str(record["image_id"])
    if record.get("objects") is not None:
        count = len(record["objects"]["bbox"])
        objects = {column: list(record["objects"].get(column, [None] * count)) for column in features["objects"]}
        if class_names is not None and "category" in objects:
            positions = {name: position for position, name in enumerate(class_names)}
            objects["category"] = [positions.get(name) for name in objects["category"]]
        if "segmentation" in objects:
            objects["segmentation"] = _run_lengths(objects["segmentation"], record, source)
        example["objects"] = objects
    return example


def _run_lengths(segmentations: Sequence[Any], record: Mapping[str, Any], source: Any) -> list[dict[str, Any] | None]:
    if all(segmentation is None for segmentation in segmentations):
        return list(segmentations)
    width, height = record.get("width"), record.get("height")
    if not width or not height:
        width, height = image_size(source)
    masks = [decode_mask(segmentation, height, width) for segmentation in segmentations]
    return [None if mask is None else encode_mask(mask) for mask in masks]
