"""Vocabularies as tokens of prompts."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..prompts import label_map, prompt_tokens, split_labels

# Fast tokenizers keep the settings of the last call and fail when two threads change them at once.
TOKENIZER_LOCK = threading.Lock()


@dataclass(frozen=True)
class EncodedPrompt:
    """
    Some labels of a vocabulary as tokens of one sentence.

    Attributes:
        input_ids (`list[int]`): special tokens included.
        label_map (`torch.BoolTensor` of shape `(labels, tokens)`): the tokens of each label.
        indices (`list[int]`): each label's index in the vocabulary.
    """

    input_ids: list[int]
    label_map: Tensor
    indices: list[int]


def encode_labels(
    labels: Sequence[str], tokenizer: Callable[..., Any], max_tokens: int, labels_per_prompt: int | None = None
) -> list[EncodedPrompt]:
    """
    A vocabulary of any length in as few prompts as hold it; safe to call from several threads.

    Args:
        labels: names to look for.
        tokenizer: a fast tokenizer.
        max_tokens: of a prompt, special tokens included.
        labels_per_prompt: labels of a prompt at most.

    Raises:
        TypeError, ValueError: as [`prompts.split_labels`] and [`prompts.prompt_tokens`].
    """
    encoded = []
    with TOKENIZER_LOCK:
        for prompt in split_labels(labels, tokenizer, max_tokens, labels_per_prompt):
            tokens, num_tokens = prompt_tokens(prompt, tokenizer)
            input_ids = tokenizer(prompt.text, truncation=False, padding=False)["input_ids"]
            encoded.append(EncodedPrompt(input_ids, label_map(tokens, torch.ones(num_tokens)), prompt.indices))
    return encoded


def max_prompt_tokens(model: PreTrainedModel, tokenizer: Any) -> int:
    """Tokens of a prompt at most: the smaller of the model's and the tokenizer's limit."""
    return min(model.config.max_text_length, tokenizer.model_max_length)


__all__ = ["TOKENIZER_LOCK", "EncodedPrompt", "encode_labels", "max_prompt_tokens"]
