"""Masks of any number of labels in any number of images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from ..image_processing_glipv2 import ImageSource
from .detector import Detector


def segment_labels(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text_labels: Sequence[str] | Sequence[Sequence[str]],
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
        text_labels: labels to look for in all images, or a list of labels for each image.
        threshold: the lowest score that is returned.
        options: further ones of [`DetectorOptions`]: those of [`detect_labels`], `mask_threshold` and `return_rle`.

    Yields:
        For each image {"scores" `(n,)` in falling order, "labels" `(n,)`, "text_labels" (n names), "boxes" `(n, 4)`
        xyxy in pixels of the image, "masks": n run lengths, or boolean `(n, height, width)`}, on the CPU.

    Raises:
        TypeError, ValueError: as [`Detector.segment`].
    """
    return Detector(model, processor).segment(images, text_labels, threshold=threshold, **options)


__all__ = ["segment_labels"]
