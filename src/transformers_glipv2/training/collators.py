"""Collators that add the targets of answers and captions to the batches of a `GroundingCollator`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from transformers_glipv2.data.answers import answer_targets

Examples = Sequence[Mapping[str, Any]]
Collate = Callable[[Examples], dict[str, Any]]


class AnswerCollator:
    """
    Adds soft targets of the answers to batches of questions.

    Args:
        collate (`GroundingCollator`): makes the rest of a batch.
        answers (`Sequence[str]`): the vocabulary.
        with_images (`bool`, *optional*, defaults to `True`): `False` ablates the images, for a baseline without them.

    Returns (when called with a list of examples):
        `dict`: what `collate` gives, and `answer_labels` of shape `(batch, answers)`: NaN for examples of other kinds.
    """

    def __init__(self, collate: Collate, answers: Sequence[str], with_images: bool = True):
        self.collate = collate
        self.answer_ids = {answer: index for index, answer in enumerate(answers)}
        self.with_images = with_images

    def __call__(self, examples: Examples) -> dict[str, Any]:
        batch = self.collate(examples)
        batch["answer_labels"] = answer_targets([example.get("answers", ()) for example in examples], self.answer_ids)
        batch["answer_labels"][[example["kind"] != "vqa" for example in examples]] = math.nan
        return batch if self.with_images else ablate_images(batch)


class CaptionCollator:
    """
    Makes the tokens of a batch's texts the targets.

    Args:
        collate (`GroundingCollator`): makes the batch.
        with_images (`bool`, *optional*, defaults to `True`): `False` ablates the images, for a baseline without them.

    Returns (when called with a list of examples):
        `dict`: what `collate` gives, but `labels` of shape `(batch, tokens)`: the ids of the text, -100 at padding
        and in examples of other kinds.
    """

    def __init__(self, collate: Collate, with_images: bool = True):
        self.collate = collate
        self.with_images = with_images

    def __call__(self, examples: Examples) -> dict[str, Any]:
        batch = self.collate(examples)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"][[example["kind"] != "caption" for example in examples]] = -100
        return batch if self.with_images else ablate_images(batch)


class JointCollator:
    """
    Adds the targets of answers and captions to batches of pre-training.

    Args:
        collate (`GroundingCollator`): makes the rest of a batch. Tokens that it masks in questions are restored: a
            question can only be answered when it can be read.
        answers (`Sequence[str]`): the vocabulary.

    Returns (when called with a list of examples):
        `dict`: what `collate` gives, `answer_labels` as [`AnswerCollator`], and `caption_labels` of shape
        `(batch, tokens)`: the ids of captions, -100 at padding and in examples of other kinds.
    """

    def __init__(self, collate: Collate, answers: Sequence[str]):
        self.collate = AnswerCollator(collate, answers)

    def __call__(self, examples: Examples) -> dict[str, Any]:
        batch = self.collate(examples)
        tokens = batch["input_ids"]
        if "mlm_labels" in batch:
            masked = batch["mlm_labels"]
            tokens = torch.where(masked == -100, tokens, masked)
            is_question = torch.tensor([example["kind"] == "vqa" for example in examples])
            batch["input_ids"] = torch.where(is_question[:, None], tokens, batch["input_ids"])
            batch["mlm_labels"] = masked.masked_fill(is_question[:, None], -100)
        is_caption = torch.tensor([example["kind"] == "caption" for example in examples])
        is_target = is_caption[:, None] & batch["attention_mask"].bool()
        batch["caption_labels"] = tokens.masked_fill(~is_target, -100)
        return batch


def ablate_images(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with every pixel at the mean colour (0 after normalisation); sizes and masks stay."""
    return {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}
