"""Answers and captions of images with the boxes of what their words name; each image is encoded once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import ModelOutput

from ..image_processing_glipv2 import ImageSource, flatten_images, get_image_size
from .detector import _TOKENIZER_LOCK, _batches, _encode_images, _Progress, _single_images, _warn_in_training


def top_answers(answer_logits: Tensor, id2label: Mapping[int, str], top_k: int = 5) -> list[list[dict[str, Any]]]:
    """
    The best answers of each question.

    Args:
        answer_logits: `(batch, answers)`, before the sigmoid.
        id2label: the answers, `config.id2label`.
        top_k: answers of a question at most.

    Returns:
        For each question {"score" in [0, 1], "answer"}, in falling order.

    Raises:
        ValueError: when `top_k` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
    scores, indices = answer_logits.float().sigmoid().topk(min(top_k, answer_logits.shape[1]))
    return [
        [{"score": score, "answer": id2label[index]} for score, index in zip(*row, strict=True)]
        for row in zip(scores.tolist(), indices.tolist(), strict=True)
    ]


@torch.no_grad()
def answer_and_ground(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    questions: str | Sequence[str],
    top_k: int = 5,
    batch_size: int = 1,
    size: Mapping[str, int] | None = None,
    progress: bool | None = None,
    boxes_per_phrase: int = 1,
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
) -> list[dict[str, Any]]:
    """
    Answers questions about images and finds what the questions name, in the same forward pass.

    Args:
        model: `GLIPv2ForVisualQuestionAnswering`, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several: PIL images, arrays, tensors, paths or addresses.
        questions: one for all images, or one for each image.
        top_k: answers of a question at most.
        batch_size, size, progress: as in [`detect_labels`].
        boxes_per_phrase, threshold, nms_threshold: `top_k` and the others of
            `processor.post_process_phrase_grounding`.

    Returns:
        For each image {"answers": as [`top_answers`], "phrases": as `processor.post_process_phrase_grounding`};
        boxes are xyxy in pixels of the given image.

    Raises:
        TypeError, ValueError: for an empty or too long question, or another number of questions than images.
    """
    options = {"top_k": boxes_per_phrase, "threshold": threshold, "nms_threshold": nms_threshold}
    _warn_in_training(model)
    images = list(_single_images(images))
    questions = _one_each(questions, len(images), "questions")
    results: list[dict[str, Any]] = []
    with _Progress(progress, -(-len(images) // batch_size)) as bar:
        for group in _batches(images, batch_size):
            group, part = flatten_images(group), questions[len(results) : len(results) + len(group)]
            with _TOKENIZER_LOCK:
                texts = processor(text=part, return_tensors="pt").to(model.device)
            features = _encode_images(model, processor, group, size)
            outputs = model(image_features=features, **texts)
            answers = top_answers(outputs.answer_logits, model.config.id2label, top_k)
            phrases = _phrases(processor, outputs, part, [get_image_size(one) for one in group], options)
            results += [
                {"answers": own_answers, "phrases": own_phrases}
                for own_answers, own_phrases in zip(answers, phrases, strict=True)
            ]
            bar.update()
    return results


def decode_captions(tokens: Tensor, tokenizer: Any) -> list[str]:
    """Generated tokens `(batch, tokens)` as texts, without special tokens and without spaces before punctuation."""
    lines = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    return [line.strip() for line in lines]


def fitting_part(text: str, processor: ProcessorMixin) -> str:
    """
    The beginning of a text that fits the model. A generated text can be read as more tokens than it was written as.

    Args:
        text: of any length.
        processor: `GLIPv2Processor`.
    """
    tokens = processor.tokenizer(
        text, truncation=True, max_length=processor.max_tokens, return_offsets_mapping=True, padding=False
    )
    whole = processor.tokenizer(text, truncation=False, padding=False)
    if len(tokens["input_ids"]) == len(whole["input_ids"]):
        return text
    return text[: max(end for _, end in tokens["offset_mapping"])]


@torch.no_grad()
def caption_and_ground(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text: str | Sequence[str] = "",
    generate_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    size: Mapping[str, int] | None = None,
    progress: bool | None = None,
    boxes_per_phrase: int = 1,
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
) -> list[dict[str, Any]]:
    """
    Describes images and finds what the noun phrases of the descriptions name.

    The backbone runs once an image; then the caption is generated, and its words go through the fused tower once.

    Args:
        model: `GLIPv2ForConditionalGeneration`, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several: PIL images, arrays, tensors, paths or addresses.
        text: how captions begin: for all images, or for each one; empty for no beginning.
        generate_kwargs: arguments of `model.generate`; by default beam search with 5 beams and 40 words at most.
        batch_size, size, progress: as in [`detect_labels`].
        boxes_per_phrase, threshold, nms_threshold: as in [`answer_and_ground`].

    Returns:
        For each image {"caption": str, "phrases": a list of {"phrase", "span", "scores", "boxes"}}; spans are
        characters [start, end) of the caption, boxes xyxy in pixels of the given image.

    Raises:
        TypeError, ValueError: for another number of beginnings than images, or one that fills the whole text.
    """
    _warn_in_training(model)
    images = list(_single_images(images))
    beginnings = _one_each(text, len(images), "text")
    options = {"top_k": boxes_per_phrase, "threshold": threshold, "nms_threshold": nms_threshold}
    generate_kwargs = {"num_beams": 5, "max_new_tokens": 40} if generate_kwargs is None else generate_kwargs
    results: list[dict[str, Any]] = []
    with _Progress(progress, -(-len(images) // batch_size)) as bar:
        for group in _batches(images, batch_size):
            group, part = flatten_images(group), beginnings[len(results) : len(results) + len(group)]
            features = _encode_images(model, processor, group, size)
            with _TOKENIZER_LOCK:
                # Not the processor, which refuses empty texts.
                prefix = processor.tokenizer(part, padding=True, return_tensors="pt", return_token_type_ids=False).to(
                    model.device
                )
            tokens = model.generate(image_features=features, **prefix, **generate_kwargs)
            sizes = [get_image_size(image) for image in group]
            with _TOKENIZER_LOCK:
                captions = decode_captions(tokens, processor.tokenizer)
            results += ground_captions(model, processor, features, captions, sizes, options)
            bar.update()
    return results


def ground_captions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image_features: ModelOutput,
    captions: list[str],
    target_sizes: list[tuple[int, int]],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """
    The second half of [`caption_and_ground`], for captions that are there; an empty one has no phrases.

    Args:
        model, processor: as there.
        image_features: of the images, from `model.get_image_features`.
        captions: one an image.
        target_sizes: (height, width) of each image.
        options: arguments of `processor.post_process_phrase_grounding`.
    """
    results: list[dict[str, Any]] = [{"caption": caption, "phrases": []} for caption in captions]
    told = [index for index, caption in enumerate(captions) if caption]
    if told:
        with _TOKENIZER_LOCK:
            sentences = [fitting_part(captions[index], processor) for index in told]
        features = type(image_features)(
            feature_maps=tuple(level[told] for level in image_features.feature_maps),
            image_sizes=image_features.image_sizes[told],
        )
        with _TOKENIZER_LOCK:
            texts = processor(text=sentences, return_tensors="pt").to(model.device)
        outputs = model.ground(image_features=features, **texts)
        phrases = _phrases(processor, outputs, sentences, [target_sizes[index] for index in told], options)
        for index, own in zip(told, phrases, strict=True):
            results[index]["phrases"] = own
    return results


def _phrases(
    processor: ProcessorMixin,
    outputs: ModelOutput,
    sentences: Sequence[str],
    target_sizes: Sequence[tuple[int, int]],
    options: Mapping[str, Any],
) -> list[list[dict[str, Any]]]:
    with _TOKENIZER_LOCK:
        return processor.post_process_phrase_grounding(
            outputs,
            text=list(sentences),
            target_sizes=target_sizes,
            **options,
        )


def _one_each(texts: str | Sequence[str], count: int, name: str) -> list[str]:
    texts = [texts] * count if isinstance(texts, str) else list(texts)
    if len(texts) != count:
        raise ValueError(f"`{name}` has {len(texts)} entries for {count} images; pass one for each.")
    return texts


def plain_phrases(phrases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Grounded phrases as pipelines give them.

    Args:
        phrases: of one image, as `processor.post_process_phrase_grounding` gives them.

    Returns:
        {"phrase", "span", "boxes": a list of {"score", "box": {"xmin", "ymin", "xmax", "ymax"}}} for each phrase;
        whole pixels.
    """
    names = ("xmin", "ymin", "xmax", "ymax")
    return [
        {
            "phrase": phrase["phrase"],
            "span": phrase["span"],
            "boxes": [
                {"score": score, "box": dict(zip(names, box, strict=True))}
                for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].int().tolist(), strict=True)
            ],
        }
        for phrase in phrases
    ]


__all__ = ["answer_and_ground", "caption_and_ground", "decode_captions", "ground_captions", "top_answers"]
