"""What the boxes of a picture teach: annotations in pixels and characters to the `labels` of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.utils import logging

from .boxes import clip_boxes, coco_to_inclusive_xyxy, normalize_boxes
from .prompts import Span, check_spans, positive_map, spans_to_tokens

logger = logging.get_logger(__name__)


def encode_annotation(
    annotation: Mapping[str, Any],
    image_size: tuple[int, int],
    text: str,
    label_spans: Sequence[Span] | None,
    offsets: Sequence[Sequence[int]],
    name: str = "annotation",
) -> dict[str, Any]:
    """
    What one picture teaches, as the model takes it in `labels`.

    Boxes get inclusive corners and are clipped to the picture before they are normalised. The original multiplies the
    corners by resized size / original size, so as fractions they are the same for every resized size.

    Args:
        annotation: "boxes" `(n, 4)` x, y, width, height in pixels of the picture; "spans", for each box a list of
            characters [start, end) (an empty list: no words), or where the text is a list of labels "labels", the
            index of each box's label; optionally "class_names", a name a box, and "masks" `(n, height, width)`.
        image_size: (height, width) of the picture before resizing.
        text: the picture's sentence.
        label_spans: characters of each label of the sentence.
        offsets: characters of each token of the batch's row.
        name: of the annotation in error messages.

    Returns:
        "boxes" `(n, 4)` centre x, centre y, width, height as fractions; "positive_map" `(n, tokens)`; "class_names";
        "masks" boolean `(n, height, width)` of the picture before resizing, or `None`.

    Raises:
        TypeError, ValueError: name the entry that is wrong.
    """
    if not isinstance(annotation, Mapping):
        raise TypeError(f"`{name}` must be a dict or None, got {type(annotation).__name__}.")
    if "boxes" not in annotation:
        raise ValueError(f'`{name}` has no "boxes" (its keys are {sorted(annotation)}); pass xywh boxes in pixels.')
    boxes = torch.as_tensor(annotation["boxes"], dtype=torch.float32)
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"`{name}['boxes']` must have shape (n, 4), got {tuple(boxes.shape)}.")
    class_names = annotation.get("class_names")
    spans = annotation.get("spans")
    if spans is None:
        spans, class_names = _spans_of_labels(annotation, label_spans, text, name)
    masks = annotation.get("masks")
    masks = None if masks is None else torch.as_tensor(masks).bool()
    for key, values in (("spans", spans), ("class_names", class_names), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"`{name}` has {len(boxes)} boxes but {len(values)} {key}; pass one for each box.")
    if masks is not None and tuple(masks.shape[1:]) != tuple(image_size):
        raise ValueError(
            f"`{name}['masks']` has shape {tuple(masks.shape)}; expected (n, {image_size[0]}, {image_size[1]}), the "
            "size of the picture before resizing."
        )
    for index, own in enumerate(spans):
        check_spans(own, text, f"{name}['spans'][{index}]")
    tokens = spans_to_tokens(spans, offsets)
    end = max((stop for _, stop in offsets), default=0)
    lost = [index for index, own in enumerate(spans) if own and min(start for start, _ in own) >= end]
    if lost:
        logger.warning(
            f"`{name}`: the words of {len(lost)} boxes lie beyond the end of the truncated text ({end} characters); "
            "they teach no word. Drop these boxes or shorten the text."
        )
    boxes_xyxy = clip_boxes(coco_to_inclusive_xyxy(boxes), *image_size)
    return {
        "boxes": normalize_boxes(boxes_xyxy, torch.tensor(image_size)),
        "positive_map": positive_map(tokens, len(offsets)),
        "class_names": None if class_names is None else list(class_names),
        "masks": masks,
    }


def _spans_of_labels(
    annotation: Mapping[str, Any], label_spans: Sequence[Span] | None, text: str, name: str
) -> tuple[list[list[Span]], list[str]]:
    """Spans and names of boxes that say which label of the picture's list they show."""
    if label_spans is None or "labels" not in annotation:
        raise ValueError(
            f'`{name}` says not what its boxes show: pass "spans" (characters of the text), or "labels" (indices) '
            "where the text is a list of labels."
        )
    indices = torch.as_tensor(annotation["labels"]).flatten().tolist()
    for index in indices:
        if not isinstance(index, int) or not 0 <= index < len(label_spans):
            raise ValueError(
                f"`{name}['labels']` holds {index!r}; expected an index of the picture's {len(label_spans)} labels."
            )
    spans = [label_spans[index] for index in indices]
    return [[span] for span in spans], [text[start:end] for start, end in spans]
