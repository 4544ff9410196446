"""Captioning: batches, scores while a model trains, and baselines."""

import re
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from tqdm.auto import tqdm

from transformers_glipv2.evaluation.captions import evaluate_captions, ptb_tokenize
from transformers_glipv2.inference.language import decode_captions
from transformers_glipv2.training.vqa import Collate, Rows, blank, own_rows


class CaptionCollator:
    """
    Makes the words of a batch's texts what is to be predicted.

    Args:
        collate (`GroundingCollator`): makes the batch.
        with_images (`bool`, *optional*, defaults to `True`): `False` blanks the images, for a baseline without.

    Returns (when called with a list of rows):
        `dict`: what `collate` gives, but `labels` of shape `(batch, tokens)`: the ids of the text, -100 at padding
        and in rows of other kinds.
    """

    def __init__(self, collate: Collate, with_images: bool = True):
        self.collate = collate
        self.with_images = with_images

    def __call__(self, rows: Rows) -> dict[str, Any]:
        batch = self.collate(rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"][[row["kind"] != "caption" for row in rows]] = -100
        return batch if self.with_images else blank(batch)


class CaptionEvaluator:
    """
    Scores of generated captions on rows, over all processes.

    Args:
        accelerator (`Accelerator`): shares out the rows.
        processor (`GLIPv2Processor`).
        rows (`Sequence[Mapping]`): of kind "caption"; `captions`, or `text` alone, are the references.
        prefix (`str`, *optional*): how captions begin, which counts as part of them.
        num_beams (`int`, *optional*, defaults to 1): of beam search; 1 is greedy.
        max_new_tokens (`int`, *optional*, defaults to 40).
        with_images (`bool`, *optional*, defaults to `True`): `False` blanks them.
        progress (`bool`, *optional*, defaults to `True`): show bars.

    Returns (when called with a prepared model in eval mode):
        `dict[str, float]`: CIDEr and Bleu_1 to Bleu_4, times 100; the same on every process. Texts are split as the
            official tokenizer does where Java is installed, else at everything that is no letter or digit. The
            captions are kept in `captions`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        rows: Rows,
        prefix: str = "",
        num_beams: int = 1,
        max_new_tokens: int = 40,
        with_images: bool = True,
        progress: bool = True,
    ):
        self.accelerator = accelerator
        self.processor = processor
        self.rows = rows
        self.prefix = prefix
        self.generation = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "do_sample": False}
        self.with_images = with_images
        self.progress = progress and accelerator.is_main_process
        self.captions: list[str] = []

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        if isinstance(model, FSDPModule):
            # Shards are gathered around `forward` alone, and generation starts from `generate`.
            register_fsdp_forward_method(model, "generate")
        own = model if isinstance(model, FSDPModule) else self.accelerator.unwrap_model(model)
        tokenizer, device = self.processor.tokenizer, self.accelerator.device
        prefix = tokenizer([self.prefix], return_tensors="pt", return_token_type_ids=False).to(device)
        found = []
        for index, row in own_rows(self.accelerator, self.rows, self.progress):
            inputs = dict(self.processor.image_processor([row["image"]], return_tensors="pt"))
            inputs = (inputs if self.with_images else blank(inputs)).items()
            with self.accelerator.autocast():
                images = {name: value.to(device) for name, value in inputs}
                tokens = own.generate(**images, **prefix, **self.generation)
            found.append((index, decode_captions(tokens, tokenizer)[0]))
        found = dict(gather_object(found))
        self.captions = [found[index] for index in range(len(self.rows))]
        return caption_scores(self.rows, self.captions)


def caption_scores(rows: Rows, captions: Sequence[str]) -> dict[str, float]:
    """CIDEr and BLEU, times 100, of one caption a row; see `CaptionEvaluator`."""
    references, split = _split_all(rows, captions)
    return _split_caption_scores(references, split, ("BLEU", "CIDEr"))


def best_constant_caption(rows: Rows) -> str:
    """
    The reference that, given to every row, scores best by CIDEr: what knowing the references alone is worth.

    Args:
        rows: as of `CaptionEvaluator`; the first reference of each is tried.
    """
    candidates = sorted({row["text"] for row in rows})
    references, split = _split_all(rows, candidates)
    scores = [
        _split_caption_scores(references, [caption] * len(rows), ("CIDEr",))["CIDEr"]
        for caption in tqdm(split, desc="constant captions", leave=False)
    ]
    return candidates[scores.index(max(scores))]


def _split_all(rows: Rows, captions: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The references of each row and the captions, split in one go: the tokenizer takes a second to start."""
    references = [row.get("captions", [row["text"]]) for row in rows]
    split = iter(_split([text for own in (*references, captions) for text in own]))
    *references, captions = [[next(split) for _ in own] for own in (*references, captions)]
    return references, captions


def _split(captions: Sequence[str]) -> list[str]:
    """Words in lower case, as the official tokenizer splits them where Java is installed."""
    if shutil.which("java") is None:
        return [plain_words(text) for text in captions]
    return [text for (text,) in ptb_tokenize({index: [text] for index, text in enumerate(captions)}).values()]


def _split_caption_scores(
    references: Sequence[Sequence[str]], captions: Sequence[str], metrics: Sequence[str]
) -> dict[str, float]:
    annotations = [{"image_id": index, "caption": text} for index, own in enumerate(references) for text in own]
    predictions = [{"image_id": index, "caption": text} for index, text in enumerate(captions)]
    scores = evaluate_captions({"annotations": annotations}, predictions, metrics, tokenize=False)
    return {name: 100 * float(value) for name, value in scores.items() if name != "per_image"}


def plain_words(text: str) -> str:
    """Lower case, single spaces, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
