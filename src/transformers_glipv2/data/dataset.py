"""Rows of the schema whose pictures are opened when they are asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from transformers_glipv2.data.schema import BoxReport


class PictureDataset(Dataset):
    """
    A map-style data set over records: rows of the schema with an `image_path` in the place of the `image`.

    Args:
        records (`Sequence[Mapping]`): rows without `image`; `width` and `height`, where present, are checked against
            the picture.
        class_names (`list[str]`, *optional*): detection: every class of the data set; rows that have no `labels` of
            their own get it.
        report (`BoxReport`, *optional*): where unreadable pictures are counted; skipped by default.

    An unreadable picture under the policy "skip" is replaced by the next readable row, counted and told once; under
    "refuse" it raises. Rows carry their own `image_id`, so nothing is mistaken for something else.
    """

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
        raise ValueError(f"none of the {length} pictures can be read; the first failure: {self.report.summary()}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows in order, each readable one once."""
        for index in range(len(self)):
            row = self._read(index)
            if row is not None:
                yield row

    def select(self, indices: Sequence[int]) -> "PictureDataset":
        """The rows at these indices, in this order; an index may come several times."""
        return PictureDataset([self.records[index] for index in indices], self.class_names, self.report)

    def filter(self, keep: Callable[[Mapping[str, Any]], bool]) -> "PictureDataset":
        """The rows whose record (no picture is opened) passes."""
        return self.select([index for index, record in enumerate(self.records) if keep(record)])

    def to_hf(self) -> "datasets.Dataset":  # noqa: F821
        """The same rows as a `datasets.Dataset` with an `Image` column, for `map`, `push_to_hub` and the like."""
        from transformers_glipv2.data.hub import to_hf_dataset

        return to_hf_dataset(self)

    def _read(self, index: int) -> dict[str, Any] | None:
        record = dict(self.records[index])
        path = record.pop("image_path")
        if self.class_names is not None:
            record.setdefault("labels", self.class_names)
        size = (record["width"], record["height"]) if record.get("width") and record.get("height") else None
        try:
            image = open_picture(path, size)
        except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
            self.report.add("unreadable_picture", f"picture {record['image_id']!r} at {path}: {error}")
            self.report.warn_once()
            return None
        if size is not None and image.size != size:
            where = f"picture {record['image_id']!r} at {path} is {image.size}, its annotations say {size}"
            action = self.report.add("wrong_size", where)
            self.report.warn_once()
            if action == "skip":
                return None
        return {"image": image, **record}


def open_picture(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """
    A picture as RGB.

    Args:
        path (`str` or `Path`): the file.
        size (`tuple[int, int]`, *optional*): width and height that the annotations were made for. Where only the
            EXIF rotation makes the picture fit it, the rotation is applied; else pixels are left as stored.
    """
    with Image.open(path) as stored:
        image = stored
        if size is not None and stored.size != size and stored.size == size[::-1]:
            image = ImageOps.exif_transpose(stored)
        return image.convert("RGB")
