"""Detection examples in an Arrow file that is mapped into memory, read one by one."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

# Masks are kept as they were in the json: polygons or run lengths.
_SCHEMA = {
    "image_id": "string",  # as json: a number or a string
    "image_path": "binary",  # UTF-8, in which a json may have halves of characters
    "is_found": "bool",
    "width": "int64",
    "height": "int64",
}


@dataclass
class ObjectColumns:
    """
    Objects of one image or of several.

    Attributes:
        bbox (`np.ndarray` of shape `(n, 4)`): float64, x, y, width, height in pixels.
        category (`np.ndarray` of shape `(n,)`): int32, the number of the class name.
        area (`np.ndarray` of shape `(n,)`): float64, in square pixels.
        iscrowd (`np.ndarray` of shape `(n,)`): int8, 0 or 1.
        segmentation (`list[str]`, *optional*): each as json, where masks are kept.
    """

    bbox: np.ndarray
    category: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    segmentation: list[str] | None = None

    def __len__(self) -> int:
        return len(self.area)

    def __getitem__(self, part: slice) -> "ObjectColumns":
        return ObjectColumns(self.bbox[part], self.category[part], self.area[part], self.iscrowd[part])

    @classmethod
    def of_objects(cls, objects: Mapping[str, Sequence[Any]], numbers: Mapping[str, int]) -> "ObjectColumns":
        """The `objects` of an example, with the numbers of class names."""
        masks = objects.get("segmentation")
        return cls(
            np.array(objects["bbox"], dtype=np.float64).reshape(-1, 4),
            np.array([numbers[name] for name in objects["category"]], dtype=np.int32),
            np.array(objects["area"], dtype=np.float64),
            np.array(objects["iscrowd"], dtype=np.int8),
            None if masks is None else [json.dumps(mask) for mask in masks],
        )


class RecordWriter:
    """
    Writes examples to an Arrow file, block by block; to be used in a `with` statement.

    Args:
        path (`Path`): the file.
        with_masks (`bool`): write the `segmentation` of objects.
    """

    def __init__(self, path: Path, with_masks: bool):
        import pyarrow as pa

        objects: dict[str, Any] = {
            "bbox": pa.list_(pa.float64(), 4),
            "category": pa.int32(),
            "area": pa.float64(),
            "iscrowd": pa.int8(),
        }
        if with_masks:
            objects["segmentation"] = pa.string()
        self._objects = objects
        fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in _SCHEMA.items()]
        fields += [pa.field(name, pa.large_list(kind)) for name, kind in objects.items()]
        self._writer = pa.ipc.new_file(str(path), pa.schema(fields))
        self.examples = self.objects = 0

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(
        self, examples: Sequence[Mapping[str, Any]], counts: Sequence[int], parts: Sequence[ObjectColumns]
    ) -> None:
        """
        One block.

        Args:
            examples (`Sequence[Mapping]`): with image_id, image_path, is_found, width and height.
            counts (`Sequence[int]`): how many objects each has.
            parts (`Sequence[ObjectColumns]`): the objects, in order.
        """
        import pyarrow as pa

        columns = {name: [example[name] for example in examples] for name in _SCHEMA}
        columns["image_id"] = [json.dumps(image_id) for image_id in columns["image_id"]]
        columns["image_path"] = [path.encode("utf-8", "surrogatepass") for path in columns["image_path"]]
        arrays = [pa.array(columns[name], pa.type_for_alias(kind)) for name, kind in _SCHEMA.items()]
        offsets = pa.array([0, *accumulate(counts)], pa.int64())
        for name, kind in self._objects.items():
            if name == "segmentation":
                values = pa.array([mask for part in parts for mask in part.segmentation or ()], kind)
            elif name == "bbox":
                boxes = np.concatenate([np.empty((0, 4)), *(part.bbox for part in parts)])
                values = pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4)
            else:
                empty = np.empty(0, dtype=kind.to_pandas_dtype())
                values = pa.array(np.concatenate([empty, *(getattr(part, name) for part in parts)]))
            arrays.append(pa.LargeListArray.from_arrays(offsets, values))
        self._writer.write_batch(pa.record_batch(arrays, names=[*_SCHEMA, *self._objects]))
        self.examples += len(examples)
        self.objects += sum(counts)


class ArrowRecords(Sequence):
    """
    Records of `ImageDataset` in a file of `RecordWriter`. Copies in other processes share its memory.

    Args:
        path (`Path`): the file.
        names (`Sequence[str]`): class names by number.
        with_masks (`bool`): give the `segmentation` of objects.
        boxes_on (`str`): as for `load_coco`.

    Raises:
        OSError, ValueError: when the file is no whole Arrow file of this kind.
    """

    def __init__(self, path: Path, names: Sequence[str], with_masks: bool, boxes_on: str):
        self.path = path
        self.names = list(names)
        self.with_masks = with_masks
        self.boxes_on = boxes_on
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        columns = [*_SCHEMA, "bbox", "category", "area", "iscrowd", *(["segmentation"] if self.with_masks else [])]
        if reader.schema.names != columns:
            raise ValueError(f"{self.path} has the columns {reader.schema.names}; expected {columns}.")
        self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches)]
        self._columns: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)} records")
        columns, row = self._at(position)
        first, last = columns["offsets"][row : row + 2].tolist()
        objects = {
            "bbox": columns["bbox"][first:last].tolist(),
            "category": [self.names[number] for number in columns["category"][first:last].tolist()],
            "area": columns["area"][first:last].tolist(),
            "iscrowd": columns["iscrowd"][first:last].tolist(),
        }
        if self.with_masks:
            objects["segmentation"] = [json.loads(mask) for mask in columns["segmentation"][first:last].to_pylist()]
        record = {
            "image_id": json.loads(columns["image_id"][row].as_py()),
            "width": columns["width"][row].item(),
            "height": columns["height"][row].item(),
            "objects": objects,
            "kind": "detection",
            "image_path": _decoded(columns["image_path"][row]),
        }
        return record if self.boxes_on == "auto" else {**record, "boxes_on": self.boxes_on}

    def image_path(self, index: int) -> str:
        """The path of an image, without the rest of its record."""
        columns, row = self._at(index)
        return _decoded(columns["image_path"][row])

    def iterate_annotations(self) -> Iterator[tuple[str, list[str], np.ndarray]]:
        """See the function of this name in `data.dataset`; boxes are arrays of shape `(n, 4)`."""
        for start, batch in zip(self._starts, self._batches, strict=False):
            columns, _ = self._at(start)
            paths = batch.column("image_path").to_pylist()
            offsets = columns["offsets"].tolist()
            names = [self.names[number] for number in columns["category"][offsets[0] : offsets[-1]].tolist()]
            for row, path in enumerate(paths):
                first, last = offsets[row : row + 2]
                own = names[first - offsets[0] : last - offsets[0]]
                yield path.decode("utf-8", "surrogatepass"), own, columns["bbox"][first:last]

    def is_found(self) -> np.ndarray:
        """For each record, whether its image existed when the file was written."""
        found = [batch.column("is_found").to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate([np.empty(0, dtype=bool), *found])

    def _at(self, index: int) -> tuple[dict[str, Any], int]:
        """The columns of the block that a record is in, and its row there."""
        number = bisect_right(self._starts, index) - 1
        if number not in self._columns:
            batch = self._batches[number]
            lists = {name: batch.column(name) for name in batch.schema.names[len(_SCHEMA) :]}
            self._columns[number] = {
                "image_id": batch.column("image_id"),
                "image_path": batch.column("image_path"),
                "width": batch.column("width").to_numpy(),
                "height": batch.column("height").to_numpy(),
                "offsets": lists["bbox"].offsets.to_numpy(),
                "bbox": lists["bbox"].values.values.to_numpy().reshape(-1, 4),
                **{name: lists[name].values.to_numpy() for name in ("category", "area", "iscrowd")},
                **({"segmentation": lists["segmentation"].values} if self.with_masks else {}),
            }
        return self._columns[number], index - self._starts[number]


def _decoded(path: Any) -> str:
    return path.as_py().decode("utf-8", "surrogatepass")
