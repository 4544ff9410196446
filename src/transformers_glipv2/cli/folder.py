"""Labelling of many images: where they come from, and the files that hold the labels."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from transformers_glipv2.data.files import replaced_file
from transformers_glipv2.data.hub import image_source
from transformers_glipv2.images.image_io import open_image

ROWS_PER_GROUP = 1000


class HubImages:
    """
    The images of a data set that `datasets.load_dataset` takes.

    Args:
        name (`str`): Hub id or folder.
        split (`str`), column (`str`): of the data set.

    Attributes:
        names (`list[str]`): `SPLIT/INDEX`.
    """

    def __init__(self, name: str, split: str, column: str):
        import datasets

        # Images are decoded when they are asked for, so that a broken one is a failure of its own.
        self.examples = datasets.load_dataset(name, split=split).select_columns([column])
        self.examples = self.examples.cast_column(column, datasets.Image(decode=False))
        self.column = column
        self.names = [f"{split}/{index}" for index in range(len(self.examples))]

    def open(self, index: int) -> Image.Image:
        """An image as RGB, upright."""
        return open_image(image_source(self.examples[index][self.column]))


def coco_file(examples: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    """
    A COCO instances file with a score for each annotation, or a COCO captions file.

    Args:
        examples (`Iterable[Mapping]`): "image", "width", "height", and "scores", "labels", "boxes" (inclusive xyxy in
            pixels) and "masks" (counts of COCO run lengths), or "caption".
        labels (`Sequence[str]`): the categories, whose ids begin at 1.
    """
    category_ids = {label: index for index, label in enumerate(labels, start=1)}
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": label} for label, index in category_ids.items()],
    }
    for image_id, example in enumerate(examples, start=1):
        size = {"width": example["width"], "height": example["height"]}
        content["images"].append({"id": image_id, "file_name": example["image"], **size})
        if "caption" in example:
            content["annotations"].append({"id": image_id, "image_id": image_id, "caption": example["caption"]})
            continue
        for index, (score, label, (x1, y1, x2, y2)) in enumerate(
            zip(example["scores"], example["labels"], example["boxes"], strict=True)
        ):
            width, height = max(x2 - x1 + 1, 0.0), max(y2 - y1 + 1, 0.0)
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": score,
            }
            if "masks" in example:
                entry["segmentation"] = {
                    "size": [example["height"], example["width"]],
                    "counts": example["masks"][index],
                }
            content["annotations"].append(entry)
    return content


def write_parquet(path: Path, examples: Iterable[Mapping[str, Any]], task: str) -> None:
    """
    One row for each image, a thousand in memory at a time; the file is there as a whole or not at all.

    Args:
        path (`Path`): to write.
        examples (`Iterable[Mapping]`): as for [`coco_file`].
        task (`str`): "boxes", "masks" or "captions".
    """
    fields = {"image": pa.string(), "width": pa.int32(), "height": pa.int32()}
    if task == "captions":
        fields["caption"] = pa.string()
    else:
        fields |= {"scores": pa.list_(pa.float32()), "labels": pa.list_(pa.string())}
        fields |= {"boxes": pa.list_(pa.list_(pa.float32()))}
    if task == "masks":
        fields["masks"] = pa.list_(pa.string())
    schema = pa.schema(fields)
    with replaced_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        group: list[Mapping[str, Any]] = []
        for example in examples:
            group.append(example)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
