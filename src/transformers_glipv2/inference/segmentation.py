"""Masks of any number of labels in any number of images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput

from ..image_processing_glipv2 import ImageSource, flatten_images, get_image_size
from ..layers.paste_masks import instance_masks
from ..post_processing import check_limits, cut_at, image_detections, merge_detections, scale_boxes
from ..prompts import check_labels
from .detector import EncodedPrompt, encode_labels, max_prompt_tokens, pad_prompts


def segment_prompts(
    model: PreTrainedModel,
    image_features: ModelOutput,
    prompts: Sequence[EncodedPrompt],
    pad_token_id: int,
    target_size: tuple[float, float],
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
) -> dict[str, Tensor]:
    """
    The boxes of one image for all its prompts, each with the logits of its mask.

    Args:
        model: `GLIPv2ForInstanceSegmentation`.
        image_features: of this image alone, from `model.get_image_features`.
        prompts: as `encode_labels` gives them.
        pad_token_id: of the tokenizer.
        target_size: (height, width) in pixels to measure boxes in.
        threshold, nms_threshold, max_detections: as in [`image_detections`].

    Returns:
        "scores" `(n,)` in falling order, "labels" `(n,)` (indices of the vocabulary), "boxes" `(n, 4)` xyxy in pixels,
        "mask_logits" `(n, side, side)`; on the CPU.
    """
    results, scores = [], torch.zeros(0)
    for prompt in prompts:
        outputs = model(image_features=image_features, **pad_prompts([prompt], pad_token_id, model.device))
        found = image_detections(outputs, 0, prompt.label_map, None, threshold, nms_threshold, max_detections)
        # Masks cost more than boxes, so only what may stay among the best of all prompts gets one.
        scores = torch.cat([scores, found["scores"].cpu()])
        stays = cut_at(scores, max_detections)[len(scores) - len(found["scores"]) :]
        found = {name: value[stays.to(value.device)] for name, value in found.items()}
        words = prompt.label_map[found["labels"].cpu()]
        (found["mask_logits"],) = model.predict_masks(outputs, [found["boxes"]], [words])
        found["boxes"] = scale_boxes(found["boxes"], image_features.image_sizes[0], target_size)
        results.append({name: value.cpu() for name, value in found.items()})
    return merge_detections(results, [prompt.indices for prompt in prompts], max_detections)


@torch.no_grad()
def segment_labels(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text_labels: Sequence[str],
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    labels_per_prompt: int | None = None,
    mask_threshold: float = 0.5,
    return_rle: bool = True,
) -> Iterator[dict[str, Any]]:
    """
    Segments any number of labels in any number of images, one image at a time as results are asked for.

    Args:
        model: `GLIPv2ForInstanceSegmentation`, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
        text_labels: labels to look for in all images; those that do not fit one prompt go to further ones.
        threshold, nms_threshold, max_detections, labels_per_prompt: as in [`detect_labels`].
        mask_threshold: on the probability of a pixel; equal is outside the mask.
        return_rle: COCO's run lengths in place of arrays.

    Yields:
        For each image {"scores" `(n,)` in falling order, "labels" `(n,)`, "text_labels" (n names), "boxes" `(n, 4)`
        xyxy in pixels of the image, "masks": n run lengths, or boolean `(n, height, width)`}, on the CPU.

    Raises:
        TypeError, ValueError: for no labels, an empty one, one longer than a prompt, or limits out of range.
    """
    check_labels(text_labels, "text_labels")
    check_limits(threshold, nms_threshold, max_detections)
    max_tokens = min(processor.max_tokens, max_prompt_tokens(model, processor.tokenizer))
    prompts = encode_labels(text_labels, processor.tokenizer, max_tokens, labels_per_prompt)
    several = isinstance(images, Iterable) and not isinstance(images, str) and not hasattr(images, "ndim")
    for image in images if several else [images]:
        (image,) = flatten_images(image)
        inputs = processor.image_processor(image, return_tensors="pt").to(model.device)
        features = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
        size = get_image_size(image)
        found = segment_prompts(
            model,
            features,
            prompts,
            processor.tokenizer.pad_token_id,
            size,
            threshold,
            nms_threshold,
            max_detections,
        )
        masks = instance_masks(found.pop("mask_logits"), found["boxes"], size, mask_threshold, return_rle)
        names = [text_labels[label] for label in found["labels"].tolist()]
        yield {**found, "text_labels": names, "masks": masks}
