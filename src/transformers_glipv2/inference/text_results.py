"""Answers, captions and phrases as they are returned."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from ..post_processing import check_count, check_finite, fetch


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
    found = answer_logits.float().sigmoid().topk(min(top_k, answer_logits.shape[1]))
    finite, scores, indices = fetch([answer_logits.isfinite().all(), *found])
    check_finite(bool(finite), "answer_logits")
    return [
        [{"score": score, "answer": id2label[index]} for score, index in zip(*pair, strict=True)]
        for pair in zip(scores.tolist(), indices.tolist(), strict=True)
    ]


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


__all__ = ["decode_captions", "fitting_part", "plain_phrases", "top_answers"]
