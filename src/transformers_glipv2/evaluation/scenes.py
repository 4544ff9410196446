"""The composite test as a COCO benchmark: every image is asked for its own labels."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers_glipv2.boxes import inclusive_xyxy_to_coco
from transformers_glipv2.data.masks import encode_mask

Example = Mapping[str, Any]


def evaluate_examples(
    examples: Iterable[Example], detect: Callable[[Example], Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Asks a model for the labels of each example and writes down what is there and what it found, in COCO's format.

    Args:
        examples: of kind "detection", in any number; each is read once.
        detect: gives an example's {"scores" `(n,)`, "labels" `(n,)` (indices of the example's `labels`), "boxes" `(n,
            4)` x1, y1, x2, y2 in pixels}, and maybe "masks", n run lengths.

    Returns:
        Annotations and predictions, as `evaluate_coco` takes them. Categories are all labels of all examples, numbered
        in the order they come in.
    """
    categories: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image_id, example in enumerate(examples, start=1):
        width, height = example["image"].size
        images.append({"id": image_id, "file_name": str(example["image_id"]), "width": width, "height": height})
        ids = [categories.setdefault(label, len(categories) + 1) for label in example["labels"]]
        objects = example["objects"]
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
        found = detect(example)
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
