"""Detections as columns of one example for each image, as the folders under `metrics/` pass them to `evaluate`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import datasets


def rle_features() -> dict[str, Any]:
    """A COCO RLE as a feature of `datasets`."""
    return {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}


def detection_features(config_name: str, reference: Mapping[str, Any]) -> datasets.Features:
    """
    The features of a detection metric.

    Args:
        config_name (`str`): "default", "bbox" or "segm".
        reference (`Mapping`): further features of references.

    Raises:
        ValueError: for another configuration.
    """
    if config_name not in ("default", "bbox", "segm"):
        raise ValueError(f"the configuration is {config_name!r}; choose bbox or segm.")
    numbers = datasets.List(datasets.Value("float64"))
    objects = {"category_id": datasets.List(datasets.Value("int64")), "bbox": datasets.List(numbers)}
    if config_name == "segm":
        objects["segmentation"] = datasets.List(rle_features())
    image_id = {"image_id": datasets.Value("int64")}
    size = {"height": datasets.Value("int64"), "width": datasets.Value("int64")}
    return datasets.Features(
        {
            "predictions": {**image_id, **objects, "score": numbers},
            "references": {**image_id, **size, **objects, **reference},
        }
    )


def result_entries(examples: Iterable[Mapping[str, Any]], iou_type: str) -> Iterator[dict[str, Any]]:
    """Predictions as entries of a COCO result file."""
    field = "segmentation" if iou_type == "segm" else "bbox"
    for example in examples:
        for category_id, score, region in zip(example["category_id"], example["score"], example[field], strict=True):
            yield {"image_id": example["image_id"], "category_id": category_id, "score": score, field: region}


def coco_content(
    examples: Iterable[Mapping[str, Any]], categories: Iterable[Mapping[str, Any]] | None, iou_type: str
) -> dict[str, Any]:
    """References as the content of a COCO or LVIS file; without categories those of the objects."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    columns = ("category_id", "bbox", "area", "iscrowd", *(("segmentation",) if iou_type == "segm" else ()))
    for example in examples:
        images.append(
            {
                "id": example["image_id"],
                **{key: value for key, value in example.items() if key not in ("image_id", *columns)},
            }
        )
        present = [name for name in columns if name in example]
        for values in zip(*(example[name] for name in present), strict=True):
            entry = dict(zip(present, values, strict=True))
            annotations.append({"id": len(annotations) + 1, "image_id": example["image_id"], **entry})
    if categories is None:
        ids = sorted({entry["category_id"] for entry in annotations})
        categories = [{"id": category_id, "name": str(category_id)} for category_id in ids]
    return {"images": images, "annotations": annotations, "categories": list(categories)}
