"""What benchmarks need beside the `Detector`: published prompts, several scales, mirrored images, votes of boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from transformers_glipv2.boxes import batched_nms_inclusive
from transformers_glipv2.data.dataset import open_for_annotations
from transformers_glipv2.inference.detector import Detector, EncodedPrompt, max_prompt_tokens
from transformers_glipv2.post_processing import cut_at
from transformers_glipv2.prompts import spans_to_tokens

# Boxes of the same label that overlap a kept one by so much vote on where it is.
VOTE_THRESHOLD = 0.66


def open_annotated_image(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """
    An image as RGB that may be a resized copy of the annotated one: boxes are measured in the annotations' size.

    Args:
        path (`str` or `Path`): the file.
        size (`tuple[int, int]`): width and height in pixels that the annotations say.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is of another shape.
    """
    image = open_for_annotations(path, size)
    width, height = (own / annotated for own, annotated in zip(image.size, size, strict=True))
    # Rounding moves a side of a resized copy by up to a pixel.
    if abs(width / height - 1) > 1 / min(size) + 1 / min(image.size):
        raise ValueError(f"{path} is {image.size} (width, height), its annotations are for {size}.")
    return image


def encode_sentence(
    text: str, spans: Sequence[Sequence[int]], indices: Sequence[int], model: Any, tokenizer: Any
) -> EncodedPrompt:
    """
    A prompt with words around its labels, which the labels' scores do not read.

    Args:
        text (`str`): the whole prompt.
        spans (`Sequence[Sequence[int]]`): characters [start, end) of each label in it.
        indices (`Sequence[int]`): each label's index in the vocabulary.
        model, tokenizer: for their limits.

    Raises:
        ValueError: when the text is too long or a span has no token.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=False, padding=False)
    limit = max_prompt_tokens(model, tokenizer)
    if len(encoded["input_ids"]) > limit:
        raise ValueError(f"the prompt has {len(encoded['input_ids'])} tokens, the model takes {limit}: {text[:80]!r}.")
    tokens = spans_to_tokens([[span] for span in spans], encoded["offset_mapping"])
    empty = next((span for span, own in zip(spans, tokens, strict=True) if not own), None)
    if empty is not None:
        raise ValueError(f"the label {text[slice(*empty)]!r} of the prompt {text[:80]!r} has no token.")
    label_map = torch.zeros(len(tokens), len(encoded["input_ids"]), dtype=torch.bool)
    for row, own in zip(label_map, tokens, strict=True):
        row[own] = True
    return EncodedPrompt(encoded["input_ids"], label_map, list(indices))


def detect_augmented(
    detector: Detector,
    images: Sequence[Image.Image],
    prompts: Sequence[EncodedPrompt],
    sizes: Sequence[Mapping[str, int]],
    flip: bool = True,
    target_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """
    Detection at several scales, mirrored and not, with merged boxes.

    Args:
        detector (`Detector`): its `nms_threshold` and `max_detections` are those of the merged boxes too.
        images (`Sequence[Image.Image]`): RGB.
        prompts (`Sequence[EncodedPrompt]`): of the vocabulary.
        sizes (`Sequence[Mapping]`): {"shortest_edge", "longest_edge"} in px, one a scale.
        flip (`bool`, *optional*, defaults to `True`): also mirrored.
        target_sizes (`Sequence[tuple[int, int]]`, *optional*): (height, width) to measure boxes in; by default the
            images' own.

    Returns:
        `list[dict]`: for each image "scores", "labels" and "boxes", as of `Detector.run_prompts`.

    Raises:
        ValueError: for no sizes.
    """
    if not sizes:
        raise ValueError("test-time augmentation needs at least one size.")
    images = list(images)
    target_sizes = target_sizes or [(image.height, image.width) for image in images]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    found: list[list[dict[str, Tensor]]] = [[] for _ in images]
    for size in sizes:
        options: dict[str, Any] = {"target_sizes": target_sizes, "size": size, "progress": False}
        for own, result in zip(found, detector.run_prompts(images, prompts, **options), strict=True):
            own.append(result)
        if flip:
            results = detector.run_prompts(mirrored, prompts, **options)
            for own, result, (_, width) in zip(found, results, target_sizes, strict=True):
                own.append({**result, "boxes": mirror_boxes(result["boxes"], width)})
    limits = detector.options
    return [vote_boxes(results, limits.nms_threshold, limits.max_detections) for results in found]


def mirror_boxes(boxes_xyxy: Tensor, width: int) -> Tensor:
    """Boxes `(n, 4)` of a mirrored image of that width in the image itself; inclusive corners in pixels."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - 1 - x2, y1, width - 1 - x1, y2), dim=-1)


def vote_boxes(
    results: Sequence[Mapping[str, Tensor]],
    nms_threshold: float = 0.6,
    max_detections: int | None = 100,
    vote_threshold: float = VOTE_THRESHOLD,
) -> dict[str, Tensor]:
    """
    Several results for one image as one: suppression, then each box that stays moves to the mean, weighted by score,
    of all boxes of its label that overlap it (Gidaris and Komodakis, ICCV 2015).

    Args:
        results (`Sequence[Mapping]`): "scores" `(n,)`, "labels" `(n,)`, "boxes" `(n, 4)` xyxy in pixels.
        nms_threshold (`float`, *optional*, defaults to 0.6): IoU above which a box of the same label goes.
        max_detections (`int`, *optional*, defaults to 100): boxes at most, ties at the cut all stay; `None`: all.
        vote_threshold (`float`, *optional*, defaults to 0.66): IoU from which a box votes.

    Returns:
        `dict`: as the results, in falling order of score; scores are those of the boxes that stay.
    """
    scores, labels, boxes = (torch.cat([result[name] for result in results]) for name in ("scores", "labels", "boxes"))
    kept = batched_nms_inclusive(boxes, scores, labels, nms_threshold)
    if max_detections is not None:
        kept = kept[cut_at(scores[kept], max_detections)]
    # Of inclusive corners: a box from pixel 3 to pixel 3 is one pixel wide.
    open_boxes = boxes.double() + boxes.new_tensor((0, 0, 1, 1))
    weights = (box_iou(open_boxes[kept], open_boxes) >= vote_threshold) & (labels[kept][:, None] == labels[None])
    weights = weights * scores.double()
    moved = (weights @ boxes.double() / weights.sum(1, keepdim=True).clamp(min=1e-12)).to(boxes.dtype)
    return {"scores": scores[kept], "labels": labels[kept], "boxes": moved}


def coco_entries(image_id: int, result: Mapping[str, Any], category_ids: Sequence[Any]) -> list[dict[str, Any]]:
    """
    A result as entries of a COCO result file.

    Args:
        image_id (`int`): of the image.
        result (`Mapping`): as of `Detector`.
        category_ids (`Sequence[int]`): of each label of the vocabulary.

    Returns:
        `list[dict]`: image_id, category_id, score, bbox (x, y, width, height in pixels) and, where there are masks,
        segmentation.
    """
    entries = []
    for index, (score, label, (x1, y1, x2, y2)) in enumerate(
        zip(result["scores"].tolist(), result["labels"].tolist(), result["boxes"].tolist(), strict=True)
    ):
        entry = {
            "image_id": image_id,
            "category_id": category_ids[label],
            # Corners are inclusive; decoded boxes can be narrower than nothing.
            "bbox": [x1, y1, max(x2 - x1 + 1, 0.0), max(y2 - y1 + 1, 0.0)],
            "score": score,
        }
        if "masks" in result:
            entry["segmentation"] = result["masks"][index]
        entries.append(entry)
    return entries
