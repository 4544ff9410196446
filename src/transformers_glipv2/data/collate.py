"""Collates examples of the schema into inputs of the model."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from transformers_glipv2.data.masking import mask_tokens
from transformers_glipv2.data.masks import stack_masks
from transformers_glipv2.data.sampling import (
    DetectionSampler,
    GroundedText,
    greenlight_map,
    grounded_sentence,
    token_counter,
)
from transformers_glipv2.data.seeding import derive_random, derive_seed
from transformers_glipv2.prompts import class_ids, positive_map, spans_to_tokens

logger = logging.get_logger(__name__)


class GroundingCollator:
    """
    Collates examples of any kind for training.

    Every choice (augmentation, class names, masked tokens, size) is drawn for one example from a stream that depends
    on `seed` and the example's `sample_index` alone (`MixtureDataset` numbers its samples). So a batch comes out the
    same in whatever worker or process, and a resumed run goes on exactly. Examples without one are numbered as they
    come; then `state_dict` and `load_state_dict` carry the count over (without data loader workers, which keep counts
    of their own).

    Args:
        processor (`GLIPv2Processor`): called with images, text, annotations and, with `sizes`, size.
        sampler (`Callable`, *optional*): turns detection examples into sentences, as [`DetectionSampler`]; by default
            one that fits the processor's text length.
        augment (`Callable[[dict, random.Random], dict]`, *optional*): example to example; see `data/augment.py`.
        sizes (`Sequence[int]`, *optional*): shortest edges in pixels to choose from; without it the processor's own.
        max_size (`int`, *optional*): the longest edge that goes with `sizes`; the processor's own by default.
        size_period (`int`, *optional*, defaults to 1): so many consecutive samples share a size; make it the global
            batch size, so that a batch is of one size and the same on any number of processes.
        mlm_probability (`float`, *optional*, defaults to 0.0): of a token to be masked; above 0 gives `mlm_labels`.
        with_masks (`bool`, *optional*, defaults to `False`): give masks, all False for objects that have none.
        max_text_length (`int`, *optional*): tokens of a text at most, special tokens included; by default the
            processor's `max_tokens`.
        seed (`int`, *optional*, defaults to 0).

    Returns (when called with a list of examples):
        `dict`: what the processor gives (pixel_values, pixel_mask, input_ids, attention_mask, labels), and
        `mlm_labels` of shape `(batch, tokens)` with `mlm_probability`. `labels` of an example without `objects` (a
        caption whose boxes are unknown, not absent) is `None`; those of a detection example also hold
        "prompt_class_ids" `(k,)`, every class that its sentence lists, and "prompt_map" `(k, tokens)`, which L_inter
        needs.
    """

    def __init__(
        self,
        processor: Any,
        sampler: Callable[[Mapping[str, Any], random.Random], GroundedText] | None = None,
        augment: Callable[[dict[str, Any], random.Random], dict[str, Any]] | None = None,
        sizes: Sequence[int] | None = None,
        max_size: int | None = None,
        size_period: int = 1,
        mlm_probability: float = 0.0,
        with_masks: bool = False,
        max_text_length: int | None = None,
        seed: int = 0,
    ):
        if not 0 <= mlm_probability < 1:
            raise ValueError(f"`mlm_probability` must be in [0, 1), got {mlm_probability}.")
        if size_period < 1:
            raise ValueError(f"`size_period` must be at least 1, got {size_period}.")
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_text_length = processor.max_tokens if max_text_length is None else max_text_length
        if sampler is None:
            specials = self.tokenizer.num_special_tokens_to_add()
            sampler = DetectionSampler(
                max_tokens=self.max_text_length - specials, count_tokens=token_counter(self.tokenizer)
            )
        self.sampler = sampler
        self.augment = augment
        self.sizes = list(sizes) if sizes else None
        self.max_size = max_size
        self.size_period = size_period
        self.mlm_probability = mlm_probability
        self.with_masks = with_masks
        self.seed = seed
        self.count = 0
        self.cut_off = 0

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sample_indices = [self._number(example) for example in examples]
        examples = [
            self._augmented(example, sample_index)
            for example, sample_index in zip(examples, sample_indices, strict=True)
        ]
        texts = [
            self._grounded(example, sample_index)
            for example, sample_index in zip(examples, sample_indices, strict=True)
        ]
        tokens = [self._tokens(text.text) for text in texts]
        for example, text, token in zip(examples, texts, tokens, strict=True):
            self._drop_cut_off(example, text, token["offset_mapping"])
        batch = dict(
            self.processor(
                images=[example["image"] for example in examples],
                text=[text.text for text in texts],
                annotations=[self._annotation(example, text) for example, text in zip(examples, texts, strict=True)],
                truncation=True,
                max_length=self.max_text_length,
                return_tensors="pt",
                **self._size_arguments(sample_indices[0]),
            )
        )
        batch["labels"] = [
            labels | encode_listed_classes(text, token["offset_mapping"], mask)
            if example.get("objects") is not None
            else None
            for example, labels, text, token, mask in zip(
                examples, batch["labels"], texts, tokens, batch["attention_mask"], strict=True
            )
        ]
        if self.mlm_probability:
            self._mask_tokens(batch, texts, tokens, sample_indices)
        return batch

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs to go on exactly."""
        return {"seed": self.seed, "count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.seed, self.count = state["seed"], state["count"]

    def _number(self, example: Mapping[str, Any]) -> int | str:
        if "sample_index" in example:
            return example["sample_index"]
        self.count += 1
        worker = torch.utils.data.get_worker_info()
        return self.count - 1 if worker is None else f"{worker.id}/{self.count - 1}"

    def _augmented(self, example: Mapping[str, Any], sample_index: int | str) -> dict[str, Any]:
        if self.augment is None:
            return dict(example)
        return self.augment(dict(example), derive_random(self.seed, "augment", sample_index))

    def _grounded(self, example: Mapping[str, Any], sample_index: int | str) -> GroundedText:
        if example["kind"] == "detection":
            return self.sampler(example, derive_random(self.seed, "sentence", sample_index))
        return grounded_sentence(example)

    def _tokens(self, text: str) -> dict[str, Any]:
        return self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_text_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )

    def _drop_cut_off(self, example: Mapping[str, Any], text: GroundedText, offsets: Sequence[Sequence[int]]) -> None:
        """Leave out boxes whose tokens were cut off with the end of the text: their class is not in it."""
        end = max((stop for _, stop in offsets), default=0)
        lost = [index for index, spans in enumerate(text.spans) if spans and all(span[0] >= end for span in spans)]
        if not lost:
            return
        if not self.cut_off:
            logger.warning(
                f"image {example['image_id']!r}: {len(lost)} boxes left out, their words are beyond the "
                f"{self.max_text_length} tokens of a text. Further ones are counted in `cut_off`."
            )
        self.cut_off += len(lost)
        for index in reversed(lost):
            del text.kept[index], text.spans[index]
            if text.class_names is not None:
                del text.class_names[index]

    def _annotation(self, example: Mapping[str, Any], text: GroundedText) -> dict[str, Any]:
        objects = example.get("objects") or {"bbox": []}
        boxes = [objects["bbox"][index] for index in text.kept]
        annotation: dict[str, Any] = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "spans": text.spans,
            "class_names": text.class_names,
        }
        if self.with_masks:
            width, height = example["image"].size
            segmentations = objects.get("segmentation") or [None] * len(objects["bbox"])
            masks = stack_masks([segmentations[index] for index in text.kept], height, width)
            annotation["masks"] = torch.from_numpy(np.ascontiguousarray(masks))
        return annotation

    def _size_arguments(self, sample_index: int | str) -> dict[str, Any]:
        if self.sizes is None:
            return {}
        period = sample_index // self.size_period if isinstance(sample_index, int) else sample_index
        shortest = derive_random(self.seed, "size", period).choice(self.sizes)
        longest = self.max_size or self.processor.image_processor.size["longest_edge"]
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}}

    def _mask_tokens(
        self,
        batch: dict[str, Any],
        texts: Sequence[GroundedText],
        tokens: Sequence[Mapping[str, Any]],
        sample_indices: Sequence[int | str],
    ) -> None:
        batch["input_ids"] = batch["input_ids"].clone()
        batch["mlm_labels"] = torch.full_like(batch["input_ids"], -100)
        for index, (text, token, sample_index) in enumerate(zip(texts, tokens, sample_indices, strict=True)):
            count = len(token["input_ids"])
            flags = greenlight_map(token["offset_mapping"], text.maskable, token["special_tokens_mask"])
            # Whatever side the processor pads on, the attended tokens are the text.
            positions = batch["attention_mask"][index].bool().nonzero().flatten()[:count]
            batch["input_ids"][index, positions], batch["mlm_labels"][index, positions] = mask_tokens(
                batch["input_ids"][index, positions],
                torch.tensor(flags[: len(positions)]),
                self.tokenizer.mask_token_id,
                len(self.tokenizer),
                torch.Generator().manual_seed(derive_seed(self.seed, "words", sample_index)),
                self.mlm_probability,
            )


def encode_listed_classes(
    text: GroundedText, offsets: Sequence[Sequence[int]], attention_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    Every class that a sentence lists and its tokens, whether the image has it or not: from them L_inter knows which
    tokens of other images a region matches.

    Args:
        text (`GroundedText`): a sentence.
        offsets (`Sequence` of pairs): characters [start, end) of each token, without padding.
        attention_mask (`torch.Tensor` of shape `(tokens,)`): 1 at those tokens, 0 at padding.

    Returns:
        `dict`: "prompt_class_ids" `(k,)`, see `prompts.class_id`, and "prompt_map" `(k, tokens)`, above 0 at the
        tokens of each; empty for sentences that do not list classes.
    """
    if text.labels is None:
        return {}
    own = positive_map(spans_to_tokens([[span] for span in text.label_spans], offsets), len(offsets))
    # Whatever side the processor pads on, the attended tokens are the text.
    padded = torch.zeros(len(own), len(attention_mask))
    padded[:, attention_mask.bool()] = own
    return {"prompt_class_ids": class_ids(text.labels), "prompt_map": padded}
