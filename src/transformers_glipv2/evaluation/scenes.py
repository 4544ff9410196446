"""The composite test as a COCO benchmark: every image is asked for its own labels."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers_glipv2.boxes import inclusive_xyxy_to_coco
from transformers_glipv2.data.masks import encode_mask

Row = Mapping[str, Any]


def evaluate_rows(
    rows: Iterable[Row], detect: Callable[[Row], Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Asks a model for the labels of each row and writes down what is there and what it found, in COCO's format.

    Args:
        rows: of kind "detection", in any number; each is read once.
        detect: gives a row's {"scores" `(n,)`, "labels" `(n,)` (indices of the row's `labels`), "boxes" `(n, 4)` x1,
            y1, x2, y2 in pixels}, and maybe "masks", n run lengths.

    Returns:
        Annotations and predictions, as `evaluate_coco` takes them. Categories are all labels of all rows, numbered in
        the order they come in.
    """
    categories: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image_id, row in enumerate(rows, start=1):
        width, height = row["image"].size
        images.append({"id": image_id, "file_name": str(row["image_id"]), "width": width, "height": height})
        ids = [categories.setdefault(label, len(categories) + 1) for label in row["labels"]]
        objects = row["objects"]
        segmentations = objects.get("segmentation") or [None] * len(objects["bbox"])
        for box, name, mask in zip(objects["bbox"], objects["category"], segmentations, strict=True):
            entry = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": categories[name],
                "bbox": list(box),
                "area": box[2] * box[3] if mask is None else float(mask.sum()),
                "iscrowd": 0,
            }
            annotations.append(entry if mask is None else {**entry, "segmentation": encode_mask(mask)})
        found = detect(row)
        boxes = inclusive_xyxy_to_coco(found["boxes"].float()).tolist()
        for index, (score, label) in enumerate(zip(found["scores"].tolist(), found["labels"].tolist(), strict=True)):
            entry = {"image_id": image_id, "category_id": ids[label], "bbox": boxes[index], "score": score}
            predictions.append(entry | {"segmentation": found["masks"][index]} if "masks" in found else entry)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    return content, predictions
