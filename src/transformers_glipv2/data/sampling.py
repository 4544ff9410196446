"""Detection examples become sentences: class names sampled, shuffled and joined, spans kept."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers_glipv2.data.schema import category_name
from transformers_glipv2.prompts import Span, join_labels


@dataclass
class GroundedText:
    """
    A sentence and the parts of it that refer to each box of an image.

    Attributes:
        text (`str`): the sentence.
        kept (`list[int]`): indices of the example's objects that stay, in order.
        spans (`list[list[tuple[int, int]]]`): character spans [start, end) of each kept object.
        class_names (`list[str]` or `None`): the class of each kept object; `None` for sentences that are no lists of
            classes, whose words say nothing about other images.
        maskable (`list[tuple[int, int]]` or `None`): characters that masked language modelling may mask; `None` means
            all. In a list of classes only the names that have a box can be predicted from the image.
        labels (`list[str]` or `None`), label_spans (`list[tuple[int, int]]`): every class that the sentence lists,
            present or not, and its characters; `None` for other sentences.
    """

    text: str
    kept: list[int] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)
    class_names: list[str] | None = None
    maskable: list[Span] | None = None
    labels: list[str] | None = None
    label_spans: list[Span] = field(default_factory=list)


class DetectionSampler:
    """
    Turns detection examples into `GroundedText`, anew each time.

    As in the original's pre-training, an image's own classes (positives) meet sampled absent ones (negatives): with
    `full_probability` as many negatives as allowed, else a uniform number from 1 up. All of it is shuffled, so that
    order says nothing.

    Args:
        max_negatives (`int`, *optional*, defaults to 85): absent classes at most.
        full_probability (`float`, *optional*, defaults to 0.5): how often all allowed negatives are taken.
        separator (`str`, *optional*, defaults to `". "`): between class names.
        prefix (`str`, *optional*): before the first name, as the original's "object detection : ".
        shuffle (`bool`, *optional*, defaults to `True`): `False` keeps the order of the example's labels.
        max_tokens (`int`, *optional*, defaults to 254): tokens of the sentence, special tokens not counted.
        count_tokens (`Callable[[str], int]`, *optional*): tokens of a text, without special tokens; see
            `token_counter`. Without it nothing is cut.
        clean (`Callable[[Sequence[str]], Sequence[str]]`, *optional*): gives the classes of an example as the sentence
            has them, for example `transformers_glipv2.prompts.clean_labels`.

    Raises:
        ValueError: when a number is out of range.
    """

    def __init__(
        self,
        max_negatives: int = 85,
        full_probability: float = 0.5,
        separator: str = ". ",
        prefix: str = "",
        shuffle: bool = True,
        max_tokens: int = 254,
        count_tokens: Callable[[str], int] | None = None,
        clean: Callable[[Sequence[str]], Sequence[str]] | None = None,
    ):
        if max_negatives < 0 or max_tokens < 1:
            raise ValueError(
                f"`max_negatives` must be >= 0 and `max_tokens` >= 1, got {max_negatives} and {max_tokens}."
            )
        if not 0 <= full_probability <= 1:
            raise ValueError(f"`full_probability` must be in [0, 1], got {full_probability}.")
        self.max_negatives = max_negatives
        self.full_probability = full_probability
        self.separator = separator
        self.prefix = prefix
        self.shuffle = shuffle
        self.max_tokens = max_tokens
        self.count_tokens = count_tokens
        self.clean = clean
        self._last: tuple[list[str], dict[str, str]] = ([], {})

    def __call__(self, example: Mapping[str, Any], rng: random.Random) -> GroundedText:
        """
        A sentence for an example.

        Args:
            example (`Mapping`): an example of kind "detection"; no image is needed.
            rng (`random.Random`): the only source of chance.

        Returns:
            `GroundedText`: objects whose class does not fit `max_tokens` are not in `kept`.
        """
        labels = example["labels"]
        written = self._written(labels)
        categories: list[Any] = [
            category_name(category, labels) for category in example["objects"].get("category", ())
        ]
        names = [written.get(category, category) for category in categories]
        positives = list(dict.fromkeys(names))
        negatives = self._sample_negatives(example, written, set(positives), rng)
        if self.shuffle:
            # Who is cut when room is short must not depend on the file's order.
            rng.shuffle(positives)
        chosen = self._fitting(positives + negatives)
        if self.shuffle:
            rng.shuffle(chosen)
        else:
            order = {written[label]: index for index, label in enumerate(labels)}
            chosen.sort(key=order.__getitem__)
        text, spans = join_labels(chosen, self.separator, self.prefix)
        span_of = dict(zip(chosen, spans, strict=True))
        kept = [index for index, name in enumerate(names) if name in span_of]
        present = set(positives)
        return GroundedText(
            text=text,
            kept=kept,
            spans=[[span_of[names[index]]] for index in kept],
            class_names=[names[index] for index in kept],
            maskable=[span for name, span in zip(chosen, spans, strict=True) if name in present],
            labels=chosen,
            label_spans=spans,
        )

    def _written(self, labels: Sequence[str]) -> dict[str, str]:
        """Each label as the sentence has it; most examples of a data set have the same labels."""
        labels = list(labels)
        if labels != self._last[0]:
            names = labels if self.clean is None else self.clean(labels)
            self._last = labels, dict(zip(labels, names, strict=True))
        return self._last[1]

    def _sample_negatives(
        self, example: Mapping[str, Any], written: Mapping[str, str], positives: set[str], rng: random.Random
    ) -> list[str]:
        known_absent = example.get("negative_labels")
        pool = example["labels"] if known_absent is None else known_absent
        pool = dict.fromkeys(written.get(name, name) for name in pool)
        pool = [name for name in pool if name not in positives]
        allowed = min(self.max_negatives, len(pool))
        all_allowed = rng.random() < self.full_probability or not allowed
        return rng.sample(pool, allowed if all_allowed else rng.randint(1, allowed))

    def _fitting(self, names: list[str]) -> list[str]:
        """The names, in order, that fit the limit; a name that is too long is passed over, not the ones after it."""
        if self.count_tokens is None:
            return names
        chosen: list[str] = []
        room = self.max_tokens - (self.count_tokens(self.prefix) if self.prefix else 0)
        separator_tokens = self.count_tokens(self.separator)
        for name in names:
            cost = self.count_tokens(name) + (separator_tokens if chosen else 0)
            if cost <= room:
                chosen.append(name)
                room -= cost
        return chosen


def token_counter(tokenizer: Callable[..., Any]) -> Callable[[str], int]:
    """
    Counts tokens without special ones and remembers, since class names come again and again.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        `Callable[[str], int]`: picklable, for data loader workers.
    """
    return _TokenCounter(tokenizer)


class _TokenCounter:
    def __init__(self, tokenizer: Callable[..., Any]):
        self.tokenizer = tokenizer
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self.known:
            self.known[text] = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self.known[text]


def grounded_sentence(example: Mapping[str, Any]) -> GroundedText:
    """
    The sentence of a grounding, caption or vqa example as it stands.

    Args:
        example (`Mapping`): objects without `tokens_positive` get no span: none of the words refers to them.

    Returns:
        `GroundedText`: every object is kept; every word may be masked.
    """
    text = example["question"] if example["kind"] == "vqa" else example["text"]
    objects = example.get("objects") or {}
    count = len(objects.get("bbox", ()))
    spans = objects.get("tokens_positive", [[] for _ in range(count)])
    return GroundedText(text=text, kept=list(range(count)), spans=[[tuple(span) for span in box] for box in spans])


def greenlight_map(
    offsets: Sequence[Sequence[int]],
    spans: Sequence[Sequence[int]] | None,
    special_tokens: Sequence[int] | None = None,
) -> list[bool]:
    """
    Which tokens masked language modelling may mask and predict.

    Args:
        offsets (`Sequence` of pairs): characters [start, end) of each token; (0, 0) for special tokens and padding.
        spans (`Sequence` of pairs, *optional*): characters that may be masked; `None` means all.
        special_tokens (`Sequence[int]`, *optional*): 1 for special tokens and padding.

    Returns:
        `list[bool]`: one flag a token; special tokens, padding and tokens that are partly outside are `False`.
    """
    special = special_tokens if special_tokens is not None else [start == end for start, end in offsets]
    return [
        not is_special
        and end > start
        and (spans is None or any(span[0] <= start and end <= span[1] for span in spans))
        for (start, end), is_special in zip(offsets, special, strict=True)
    ]
