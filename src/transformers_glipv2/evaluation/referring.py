"""Referring segmentation: masks of phrases, and their scores on examples that refer to one object."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_glipv2.boxes import box_iou_inclusive
from transformers_glipv2.data.masks import decode_mask
from transformers_glipv2.evaluation.phrasecut import mask_iou, mean_scores

# A phrase is found where its best box overlaps the true one by this much.
FOUND_IOU = 0.5


@torch.no_grad()
def segment_phrases(
    model: Any,
    processor: Any,
    image: Image.Image,
    phrases: Sequence[str],
    target_size: tuple[int, int] | None = None,
    threshold: float = 0.25,
    spans: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """
    A mask for each phrase, which is known to refer to something; the image is encoded once.

    Args:
        model: `GLIPv2ForInstanceSegmentation`, in evaluation mode.
        processor: `GLIPv2Processor`.
        image (`Image.Image`): RGB.
        phrases (`Sequence[str]`): each read alone.
        target_size (`tuple[int, int]`, *optional*): (height, width) of boxes and masks; by default the image's.
        threshold (`float`, *optional*, defaults to 0.25): boxes from this score on are part of a mask; the best one
            always is.
        spans (`Sequence[Sequence[int]]`, *optional*): for each phrase the characters [start, end) whose words score
            and fill boxes; by default all of it.

    Returns:
        `list[dict]`: for each phrase "scores" `(n,)` in falling order, "boxes" `(n, 4)` inclusive xyxy in pixels, n >=
        1, and "mask", boolean `(height, width)`; on the CPU.
    """
    target_size = target_size or (image.height, image.width)
    inputs = processor.image_processor([image], return_tensors="pt").to(model.device)
    features = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
    results = []
    for index, phrase in enumerate(phrases):
        ((found,),) = processor.post_process_referring_segmentation(
            model(image_features=features, **processor(text=[phrase], return_tensors="pt").to(model.device)),
            text=[phrase],
            phrases=[[spans[index] if spans is not None else (0, len(phrase))]],
            target_sizes=[target_size],
            threshold=threshold,
            keep_best=True,
            model=model,
        )
        results.append({name: found[name].cpu() for name in ("scores", "boxes", "mask")})
    return results


def evaluate_referring(
    examples: Iterable[Mapping[str, Any]], segment: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """
    PhraseCut's scores on examples whose text refers to some of their objects, and how many phrases are found at all.

    Args:
        examples: of kind "grounding" with `referents`, as `ReferringScenes` gives them; each is read once.
        segment: gives an example's "mask", boolean `(height, width)`, and "boxes" `(n, 4)` inclusive xyxy in pixels,
            the highest-scoring first.

    Returns:
        `dict`: "count", "mean_mask_iou", "cum_mask_iou", "mask_precision" {threshold: fraction with an IoU above it},
        and "found", the fraction of phrases whose highest-scoring box overlaps a referent's by 0.5 or more.

    Raises:
        ValueError: when an example refers to nothing or there are no examples.
    """
    scores, found = [], []
    for example in examples:
        width, height = example["image"].size
        objects, referents = example["objects"], example["referents"]
        if not referents:
            raise ValueError(f"the example {example['image_id']!r} refers to no object: {example['text']!r}.")
        masks: list[Any] = [decode_mask(objects["segmentation"][index], height, width) for index in referents]
        true = np.any(masks, axis=0)
        result = segment(example)
        iou, intersection, union = mask_iou(np.asarray(result["mask"]), true)
        scores.append({"mask_iou": iou, "intersection": intersection, "union": union})
        boxes = torch.tensor([objects["bbox"][index] for index in referents], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2] - 1
        found.append(bool((box_iou_inclusive(result["boxes"][:1].float(), boxes) >= FOUND_IOU).any()))
    if not scores:
        raise ValueError("there are no examples to score.")
    return {**mean_scores(scores), "found": sum(found) / len(found)}
