"""Answers and captions of images with the boxes of what their words name; each image is encoded once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput

from ..image_processing_glipv2 import ImageSource
from ..post_processing import check_count, check_finite
from .batching import PreparedImage, Progress, select_images, single_images
from .detector import TOKENIZER_LOCK, Detector, sentences_for
from .model_checks import check_model
from .options import SHARED_OPTIONS


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
        TypeError, ValueError: when `top_k` is no whole number of at least 1, or `answer_logits` are not finite.
    """
    check_count(top_k, "top_k")
    check_finite(answer_logits, "answer_logits")
    scores, indices = answer_logits.float().sigmoid().topk(min(top_k, answer_logits.shape[1]))
    return [
        [{"score": score, "answer": id2label[index]} for score, index in zip(*pair, strict=True)]
        for pair in zip(scores.tolist(), indices.tolist(), strict=True)
    ]


# Answers -------------------------------------------------------------------------------------------------------------


def answer_batch(
    detector: Detector,
    features: ModelOutput,
    batch: list[PreparedImage],
    top_k: int,
    limits: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """
    Answers for images of one size, whose `asked` are questions.

    Args:
        detector: of `GLIPv2ForVisualQuestionAnswering`.
        features: of the batch, from `model.get_image_features`.
        batch: the images.
        top_k: answers of a question at most.
        limits: of `Detector.phrase_limits`; `None` leaves phrases out.

    Returns:
        For each image {"answers", and with `limits` "phrases"}, from one forward pass.
    """
    questions = [image.asked for image in batch]
    outputs = detector.model(image_features=features, **detector.text_inputs(questions))
    answers = top_answers(outputs.answer_logits, detector.model.config.id2label, top_k)
    if limits is None:
        return [{"answers": own} for own in answers]
    phrases = detector.phrases(outputs, questions, [image.target_size for image in batch], limits)
    return [{"answers": own, "phrases": found} for own, found in zip(answers, phrases, strict=True)]


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
    check_model(model, "answer_head")
    check_count(top_k, "top_k")
    check_count(boxes_per_phrase, "boxes_per_phrase")
    detector = Detector(model, processor)
    settings = detector.options.updated({"threshold": threshold, **options}, SHARED_OPTIONS, "answer_and_ground")
    limits = detector.phrase_limits(settings, boxes_per_phrase)
    images = single_images(images)
    question_of = sentences_for(images, questions, "questions")
    with Progress(settings.progress, len(images) if isinstance(images, list) else None) as bar:

        def respond(features: ModelOutput, batch: list[PreparedImage]) -> list[dict[str, Any]]:
            answers = answer_batch(detector, features, batch, top_k, limits)
            bar.update(len(batch))
            return answers

        return list(detector.results(images, question_of, settings, respond))


# Captions ------------------------------------------------------------------------------------------------------------


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


def caption_batch(
    detector: Detector,
    features: ModelOutput,
    batch: list[PreparedImage],
    generate_kwargs: Mapping[str, Any],
    limits: dict[str, Any],
) -> list[dict[str, Any]]:
    """
    Captions of images of one size, whose `asked` are how captions begin.

    Args:
        detector: of `GLIPv2ForConditionalGeneration`.
        features: of the batch, from `model.get_image_features`.
        batch: the images.
        generate_kwargs: arguments of `model.generate`.
        limits: of `Detector.phrase_limits`.

    Returns:
        For each image {"caption", "phrases"}.
    """
    tokenizer = detector.processor.tokenizer
    with TOKENIZER_LOCK:
        # Not the processor, which refuses empty texts.
        beginnings = tokenizer(
            [image.asked for image in batch], padding=True, return_tensors="pt", return_token_type_ids=False
        ).to(detector.model.device)
    tokens = detector.model.generate(image_features=features, **beginnings, **generate_kwargs)
    if len(tokens) != len(batch):
        raise ValueError("Captions are grounded one an image; leave `num_return_sequences` at 1.")
    with TOKENIZER_LOCK:
        captions = decode_captions(tokens, tokenizer)
    return ground_captions(detector, features, captions, [image.target_size for image in batch], limits)


def ground_captions(
    detector: Detector,
    image_features: ModelOutput,
    captions: list[str],
    target_sizes: list[tuple[int, int]],
    limits: dict[str, Any],
) -> list[dict[str, Any]]:
    """
    The boxes of the noun phrases of captions; an empty one has no phrases.

    Args:
        detector: of `GLIPv2ForConditionalGeneration`.
        image_features: of the images, from `model.get_image_features`.
        captions: one an image.
        target_sizes: (height, width) of each image.
        limits: of `Detector.phrase_limits`.

    Returns:
        For each image {"caption", "phrases"}.
    """
    results: list[dict[str, Any]] = [{"caption": caption, "phrases": []} for caption in captions]
    described = [index for index, caption in enumerate(captions) if caption]
    if described:
        with TOKENIZER_LOCK:
            sentences = [fitting_part(captions[index], detector.processor) for index in described]
        features = select_images(image_features, described)
        outputs = detector.model.ground(image_features=features, **detector.text_inputs(sentences))
        phrases = detector.phrases(outputs, sentences, [target_sizes[index] for index in described], limits)
        for index, own in zip(described, phrases, strict=True):
            results[index]["phrases"] = own
    return results


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

    The backbone runs once an image; then the caption is generated, and its words go through the fused tower once.

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
    check_model(model, "caption_head")
    check_count(boxes_per_phrase, "boxes_per_phrase")
    detector = Detector(model, processor)
    settings = detector.options.updated({"threshold": threshold, **options}, SHARED_OPTIONS, "caption_and_ground")
    limits = detector.phrase_limits(settings, boxes_per_phrase)
    images = single_images(images)
    beginning_of = sentences_for(images, text, "text", empty=True)
    generate_kwargs = {"num_beams": 5, "max_new_tokens": 40} if generate_kwargs is None else generate_kwargs
    with Progress(settings.progress, len(images) if isinstance(images, list) else None) as bar:

        def respond(features: ModelOutput, batch: list[PreparedImage]) -> list[dict[str, Any]]:
            captions = caption_batch(detector, features, batch, generate_kwargs, limits)
            bar.update(len(batch))
            return captions

        return list(detector.results(images, beginning_of, settings, respond))


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


__all__ = [
    "answer_and_ground",
    "answer_batch",
    "caption_and_ground",
    "decode_captions",
    "ground_captions",
    "plain_phrases",
    "top_answers",
]
