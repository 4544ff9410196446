"""Answers and captions of images with the boxes of what they name; each image is encoded once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from ..image_processing_glipv2 import ImageSource
from .detector import Detector
from .text_results import decode_captions, plain_phrases, top_answers


def answer_and_ground(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    questions: str | Sequence[str],
    top_k: int = 5,
    boxes_per_phrase: int = 1,
    threshold: float = 0.05,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Answers questions about images and finds what the questions name, in the same forward pass.

    Args:
        model: `GLIPv2ForVisualQuestionAnswering`, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
        questions: one for all images, or one for each image.
        top_k: answers of a question at most.
        boxes_per_phrase: boxes of a phrase at most.
        threshold: the lowest score of a box that is returned.
        options: `pre_nms_threshold`, `nms_threshold`, `batch_size`, `size`, `progress` of [`DetectorOptions`].

    Returns:
        For each image {"answers": as [`top_answers`], "phrases": as `processor.post_process_phrase_grounding`};
        boxes are xyxy in pixels of the given image.

    Raises:
        TypeError, ValueError: for an empty or too long question, another number of questions than images, an option
            out of range, or a model without an answer head.
    """
    options = {"boxes_per_phrase": boxes_per_phrase, "threshold": threshold, **options}
    return Detector(model, processor).answer(images, questions, top_k, **options)


def caption_and_ground(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text: str | Sequence[str] = "",
    generate_kwargs: Mapping[str, Any] | None = None,
    boxes_per_phrase: int = 1,
    threshold: float = 0.05,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Describes images and finds what the noun phrases of the descriptions name.

    The backbone runs once an image; then the caption is generated, and its tokens go through the fused tower once.

    Args:
        model: `GLIPv2ForConditionalGeneration`, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
        text: how captions begin: for all images, or for each one; empty for no beginning.
        generate_kwargs: arguments of `model.generate`; by default beam search with 5 beams and 40 new tokens at most.
        boxes_per_phrase, threshold, options: as in [`answer_and_ground`].

    Returns:
        For each image {"caption": str, "phrases": a list of {"phrase", "span", "scores", "boxes"}}; spans are
        characters [start, end) of the caption, boxes xyxy in pixels of the given image.

    Raises:
        TypeError, ValueError: for another number of beginnings than images, one that fills the whole text, an option
            out of range, or a model without a caption head.
    """
    options = {"boxes_per_phrase": boxes_per_phrase, "threshold": threshold, **options}
    return Detector(model, processor).caption(images, text, generate_kwargs, **options)


__all__ = ["answer_and_ground", "caption_and_ground", "decode_captions", "plain_phrases", "top_answers"]
