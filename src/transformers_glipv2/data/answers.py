"""The answers that a question-answering head can give, and what a question's annotators make of each of them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from transformers_glipv2.data.answer_text import normalize_answer
from transformers_glipv2.data.files import read_json, write_text

# Target by the number of annotators (of ten) who gave the answer; more than four count as four.
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)


def build_answer_vocabulary(
    answers: Iterable[str], min_count: int = 9, normalize: Callable[[str], str] = normalize_answer
) -> list[str]:
    """
    The answers worth learning.

    Args:
        answers (`Iterable[str]`): the majority answer of every question (`record["answer"]` of `load_vqa`). Of VQA
            v2's train and val questions 3,129 are left.
        min_count (`int`, *optional*, defaults to 9): questions that an answer must be the majority's of.
        normalize (`Callable[[str], str]`, *optional*): what makes answers equal; as the VQA accuracy does by default.

    Returns:
        `list[str]`: normalised, the most frequent first, equally frequent ones by alphabet.

    Raises:
        ValueError: when `min_count` is below 1, or no answer is left.
    """
    if min_count < 1:
        raise ValueError(f"`min_count` must be at least 1, got {min_count}.")
    counts = Counter(normalize(answer) for answer in answers)
    counts.pop("", None)
    kept = [answer for answer, count in counts.items() if count >= min_count]
    if not kept:
        raise ValueError(
            f"none of {len(counts)} different answers comes {min_count} times; lower `min_count` or give more answers."
        )
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


def soft_scores(
    answers: Sequence[str], answer_ids: Mapping[str, int], normalize: Callable[[str], str] = normalize_answer
) -> dict[int, float]:
    """
    The target of each answer of the vocabulary that an annotator gave: 0.3, 0.6, 0.9 for one, two, three, else 1.

    Args:
        answers (`Sequence[str]`): the annotators', ten in VQA v2.
        answer_ids (`Mapping[str, int]`): positions of the vocabulary's answers.
        normalize (`Callable[[str], str]`, *optional*): as the vocabulary was built with.

    Returns:
        `dict[int, float]`: by position; empty where no answer is in the vocabulary.
    """
    counts = Counter(normalize(answer) for answer in answers)
    return {
        answer_ids[answer]: SOFT_SCORES[min(count, len(SOFT_SCORES) - 1)]
        for answer, count in counts.items()
        if answer in answer_ids
    }


def answer_targets(
    answers: Sequence[Sequence[str]],
    answer_ids: Mapping[str, int],
    normalize: Callable[[str], str] = normalize_answer,
) -> torch.Tensor:
    """
    Soft targets of a batch of questions.

    Args:
        answers (`Sequence[Sequence[str]]`): the annotators' of each question.
        answer_ids (`Mapping[str, int]`), normalize (`Callable[[str], str]`, *optional*): as for `soft_scores`.

    Returns:
        `torch.Tensor` of shape `(batch, len(answer_ids))`, float32 in [0, 1]; a row of zeros is the target "none of
        these".
    """
    targets = torch.zeros(len(answers), len(answer_ids))
    for row, annotators in enumerate(answers):
        for position, score in soft_scores(annotators, answer_ids, normalize).items():
            targets[row, position] = score
    return targets


def save_answer_vocabulary(vocabulary: Sequence[str], path: str | Path) -> None:
    """Write a vocabulary as a json list, whole or not at all."""
    write_text(path, json.dumps(list(vocabulary), ensure_ascii=False, indent=0) + "\n")


def load_answer_vocabulary(path: str | Path) -> list[str]:
    """
    Read what `save_answer_vocabulary` wrote, or any json list of answers.

    Raises:
        ValueError: when the file holds something else, or an answer twice.
    """
    vocabulary = read_json(path)
    if not isinstance(vocabulary, list) or not all(isinstance(answer, str) for answer in vocabulary):
        raise ValueError(f"{path} is not a vocabulary: expected a json list of strings.")
    twice = [answer for answer, count in Counter(vocabulary).items() if count > 1]
    if twice:
        raise ValueError(f"the vocabulary {path} lists {twice[0]!r} and {len(twice) - 1} others twice; remove them.")
    return vocabulary
