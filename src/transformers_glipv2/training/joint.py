"""Pre-training with answers and captions beside it: every loss over one set of shared weights, on one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from transformers_glipv2.training.vqa import AnswerCollator, Collate


class JointCollator:
    """
    Adds what answers and captions learn to batches of pre-training.

    Args:
        collate (`GroundingCollator`): makes the rest of a batch. Words that it hides in questions are shown again:
            who shall answer must know what was asked.
        answers (`Sequence[str]`): the vocabulary.

    Returns (when called with a list of rows):
        `dict`: what `collate` gives, `answer_labels` as [`AnswerCollator`], and `caption_labels` of shape
        `(batch, tokens)`: the ids of captions, -100 at padding and in rows of other kinds.
    """

    def __init__(self, collate: Collate, answers: Sequence[str]):
        self.collate = AnswerCollator(collate, answers)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collate(rows)
        words = batch["input_ids"]
        if "mlm_labels" in batch:
            hidden = batch["mlm_labels"]
            words = torch.where(hidden == -100, words, hidden)
            asked = torch.tensor([row["kind"] == "vqa" for row in rows])
            batch["input_ids"] = torch.where(asked[:, None], words, batch["input_ids"])
            batch["mlm_labels"] = hidden.masked_fill(asked[:, None], -100)
        told = torch.tensor([row["kind"] == "caption" for row in rows])[:, None] & batch["attention_mask"].bool()
        batch["caption_labels"] = words.masked_fill(~told, -100)
        return batch
