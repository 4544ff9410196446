"""Masks of any number of labels in any number of images, and of what a phrase refers to."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..image_processing_glipv2 import ImageSource
from .detector import Detector
from .model_checks import check_model


def segment_labels(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    threshold: float = 0.05,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """
    Segments any number of labels in any number of images, as results are asked for: [`Detector.segment`] for one call.
    The arguments are checked at the call.

    Args:
        model: `GLIPv2ForInstanceSegmentation`, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
        text_labels: labels to look for in all images, or a list of labels for each image; by default
            `model.config.labels`, the classes that it was fine-tuned for.
        threshold: the lowest score that is returned.
        options: further ones of [`DetectorOptions`]: those of [`detect_labels`], `mask_threshold` and `return_rle`.

    Yields:
        For each image {"scores" `(n,)` in falling order, "labels" `(n,)`, "text_labels" (n names), "boxes" `(n, 4)`
        xyxy in pixels of the image, "masks": n run lengths, or boolean `(n, height, width)`}, on the CPU.

    Raises:
        TypeError, ValueError: as [`Detector.segment`].
    """
    return Detector(model, processor).segment(images, text_labels, threshold=threshold, **options)


@torch.no_grad()
def segment_phrase(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: PIL.Image.Image,
    phrase: str,
    threshold: float = 0.05,
    mask_threshold: float = 0.5,
) -> dict[str, Any] | None:
    """
    Segments what a phrase refers to in an image: one mask of all its parts (referring segmentation).

    Args:
        model: `GLIPv2ForInstanceSegmentation`, in evaluation mode.
        processor: `GLIPv2Processor`.
        image: RGB.
        phrase: such as "the red cup left of the bottle".
        threshold: the lowest score of a box whose mask is part of the result.
        mask_threshold: the lowest probability of a pixel.

    Returns:
        {"score": float, "box" `(4,)` around all parts, xyxy in pixels of the image, "mask" boolean `(height, width)`},
        on the CPU, or `None` where no box has the score.

    Raises:
        TypeError, ValueError: for a model without a mask head, or an empty or too long phrase.
    """
    check_model(model, "mask_head")
    inputs = processor(images=image, text=phrase).to(model.device)
    ((found,),) = processor.post_process_referring_segmentation(
        model(**inputs),
        phrase,
        target_sizes=[(image.height, image.width)],
        threshold=threshold,
        mask_threshold=mask_threshold,
    )
    if not len(found["boxes"]):
        return None
    box = torch.cat([found["boxes"][:, :2].amin(0), found["boxes"][:, 2:].amax(0)])
    return {"score": found["scores"][0].item(), "box": box.cpu(), "mask": found["mask"].cpu()}


__all__ = ["segment_labels", "segment_phrase"]
