"""Training of captions: scores while a model trains, and baselines."""

import re
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from transformers_glipv2.evaluation.captions import evaluate_captions, ptb_tokenize
from transformers_glipv2.inference.options import check_batch_size
from transformers_glipv2.training.collators import Examples
from transformers_glipv2.training.evaluation import (
    AblatedImages,
    gather_in_order,
    make_detector,
    own_examples,
    whole_weights,
)


class CaptionEvaluator:
    """
    Scores of generated captions, over all processes.

    Args:
        accelerator (`Accelerator`): deals the examples to the processes.
        processor (`GLIPv2Processor`).
        examples (`Sequence[Mapping]`): of kind "caption"; `captions`, or `text` alone, are the references.
        prefix (`str`, *optional*): how captions begin, which counts as part of them.
        num_beams (`int`, *optional*, defaults to 1): of beam search; 1 is greedy.
        max_new_tokens (`int`, *optional*, defaults to 40).
        with_images (`bool`, *optional*, defaults to `True`): `False` ablates them.
        progress (`bool`, *optional*, defaults to `True`): show bars.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): see `make_detector`.

    Returns (when called with a prepared model in eval mode):
        `dict[str, float]`: CIDEr and Bleu_1 to Bleu_4, times 100; the same on every process. Texts are split as the
            official tokenizer does where Java is installed, else at everything that is no letter or digit. The
            captions are kept in `captions`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        examples: Examples,
        prefix: str = "",
        num_beams: int = 1,
        max_new_tokens: int = 40,
        with_images: bool = True,
        progress: bool = True,
        batch_size: int | str = "auto",
    ):
        check_batch_size(batch_size)
        self.accelerator = accelerator
        self.processor = processor
        self.examples = examples
        self.prefix = prefix
        self.generation = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "do_sample": False}
        self.with_images = with_images
        self.progress = progress and accelerator.is_main_process
        self.batch_size = batch_size
        self.captions: list[str] = []

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        detector = make_detector(self.accelerator, self.processor, model, self.batch_size)
        if not self.with_images:
            detector.network = AblatedImages(detector.model)
        # No process waits for the others' captions: each has all weights.
        write = partial(detector.write_captions, generate_kwargs={**self.generation, "synced_gpus": False})
        indices: list[int] = []

        def images() -> Iterator[Any]:
            for index, example in own_examples(self.accelerator, self.examples, self.progress):
                indices.append(index)
                yield example["image"]

        with whole_weights(detector.model), self.accelerator.autocast():
            captions = list(detector.results(images(), lambda index: self.prefix, detector.options, write))
        self.captions = gather_in_order(zip(indices, captions, strict=True))
        return caption_scores(self.examples, self.captions)


def caption_scores(examples: Examples, captions: Sequence[str]) -> dict[str, float]:
    """CIDEr and BLEU, times 100, of one caption an example; see `CaptionEvaluator`."""
    references, split = _split_all(examples, captions)
    return _split_caption_scores(references, split, ("BLEU", "CIDEr"))


def best_constant_caption(examples: Examples) -> str:
    """
    The reference that, given to every example, scores best by CIDEr: a baseline that needs no model.

    Args:
        examples: as of `CaptionEvaluator`; the first reference of each is tried.
    """
    candidates = sorted({example["text"] for example in examples})
    references, split = _split_all(examples, candidates)
    scores = [
        _split_caption_scores(references, [caption] * len(examples), ("CIDEr",))["CIDEr"]
        for caption in tqdm(split, desc="constant captions", leave=False)
    ]
    return candidates[scores.index(max(scores))]


def _split_all(examples: Examples, captions: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The references of each example and the captions, split in one go: the tokenizer takes a second to start."""
    references = [example.get("captions", [example["text"]]) for example in examples]
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
