"""
Adding classes to a fine-tuned model: the images of the new classes may also show the known ones, which nobody drew.

Asked for both, a model would learn that the known classes are not there. So the start finds them before training, and
what it finds counts as drawn (pseudo boxes, as section 4.2 of GLIP has them for captions).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.ops import box_iou
from transformers import PreTrainedModel
from transformers.utils import logging

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.inference.detector import Detector

logger = logging.get_logger(__name__)

# Boxes of the start that are believed, and their overlap with a drawn box above which they are that object.
MIN_SCORE, SAME_OBJECT = 0.5, 0.5


@torch.no_grad()
def label_known_classes(
    model: PreTrainedModel,
    processor: Any,
    dataset: ImageDataset,
    labels: Sequence[str],
    new_labels: Sequence[str],
    min_score: float = MIN_SCORE,
) -> ImageDataset:
    """
    The examples of new classes with the boxes of known classes that a model finds in them.

    Args:
        model (`GLIPv2ForObjectDetection`): fine-tuned for the known classes; its mode stays as it is.
        processor (`GLIPv2Processor`).
        dataset (`ImageDataset`): detection examples of the new classes.
        labels (`Sequence[str]`): all classes, the known ones first.
        new_labels (`Sequence[str]`): those of the data set, as `class_names` but cleaned.
        min_score (`float`, *optional*, defaults to 0.5): of a box that is believed.

    Returns:
        `ImageDataset`: its `class_names` are `labels`.
    """
    known = [label for label in labels if label not in new_labels]
    names = dict(zip(dataset.class_names or [], new_labels, strict=True))
    was_training = model.training
    detector = Detector(model.eval(), processor, threshold=min_score, progress=False)
    records, added = [], 0
    for index, record in enumerate(dataset.records):
        example = dataset.read(index)
        if example is None:
            continue
        objects = {column: list(values) for column, values in example["objects"].items()}
        objects["category"] = [names.get(name, name) for name in objects["category"]]
        if known:
            (found,) = detector.detect(example["image"], known)
            own = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]]).reshape(-1, 4)
            overlaps = box_iou(found["boxes"], own).amax(1) if len(own) else torch.zeros(len(found["boxes"]))
            for name, box, overlap in zip(found["text_labels"], found["boxes"].tolist(), overlaps, strict=True):
                if overlap <= SAME_OBJECT:
                    x1, y1, x2, y2 = box
                    new = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category": name, "area": (x2 - x1) * (y2 - y1)}
                    for column, values in objects.items():
                        values.append({"iscrowd": 0, **new}.get(column))
                    added += 1
        size = {"width": example["image"].width, "height": example["image"].height}
        records.append({**record, **size, "objects": objects, "boxes_on": "upright"})
    model.train(was_training)
    logger.warning(f"found {added} objects of {', '.join(known) or 'no known class'} in {len(records)} images")
    return ImageDataset(records, list(labels), dataset.report)
