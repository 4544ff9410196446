"""
Text to character spans to tokens: prompts from labels, positive maps, long vocabularies in several prompts.

A *span* is a pair [start, end) of characters of a text. An *offset* is the span of one token as a fast tokenizer gives
it with `return_offsets_mapping=True`; special tokens and padding have the empty offset (0, 0). Tokens are found from
offsets alone, never by searching for words in the text, so that equal words in two labels stay apart.
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import logging

from .boxes import clip_boxes, coco_to_inclusive_xyxy, normalize_boxes

logger = logging.get_logger(__name__)

Span = tuple[int, int]
# A sentence, a sentence for each image (or labels of one image), labels for each image.
Text = str | Sequence[str] | Sequence[Sequence[str]]

# Between two labels, as in the original's evaluation. Its demo puts " . " after every label, the last one too.
LABEL_SEPARATOR = ". "
# Where a span begins or ends on white space, the original tries this many characters further inwards for a token.
MAX_SHIFT = 2


def clean_labels(names: Sequence[str]) -> list[str]:
    """
    The class names of a data set as prompts have them, in training and in evaluation: see [`clean_label`].

    A name that would be empty, or equal to another one, stays as it is, and a warning names it. Names that are equal
    as they are cannot be told apart.

    Args:
        names (`Sequence[str]`): all classes, for example `["traffic_light", "crane_(bird)", "crane_(machine)"]`.

    Returns:
        `list[str]`: one for each, in order: `["traffic light", "crane_(bird)", "crane_(machine)"]`.
    """
    own = [name.strip() for name in names]
    written = [clean_label(name).strip() or name for name in own]
    while True:
        counts = Counter(name.lower() for name in written)
        # A name that goes back to its own form may meet another one.
        equal = [index for index, name in enumerate(written) if counts[name.lower()] > 1 and name != own[index]]
        if not equal:
            break
        for index in equal:
            written[index] = own[index]
    kept = [name for name, form in zip(own, written, strict=True) if form == name != clean_label(name).strip()]
    if kept:
        _warn_of_names("Class names that would be equal to others, or empty, without brackets and `_` stay", kept)
    twice = [name for name in dict.fromkeys(written) if counts[name.lower()] > 1]
    if twice:
        _warn_of_names("Class names that are given more than once are one class to the model", twice)
    return written


def _warn_of_names(what: str, names: Sequence[str]) -> None:
    logger.warning_once(f"{what}: {', '.join(map(repr, names[:10]))}{', ...' if len(names) > 10 else ''}.")


def clean_label(label: str) -> str:
    """
    A class name of a data set as the original writes it in prompts; for all names of a data set use [`clean_labels`].

    Args:
        label (`str`): for example `"stingray_(fish)"` (LVIS style).

    Returns:
        `str`: without what stands in brackets (from the first to the last), `_` replaced by a space, and each double
        space by one. White space at the ends stays, as in the original: `"stingray "`.
    """
    return re.sub(r"\(.*\)", "", label).replace("_", " ").replace("  ", " ")


def join_labels(labels: Sequence[str], separator: str = LABEL_SEPARATOR, prefix: str = "") -> tuple[str, list[Span]]:
    """
    A sentence that lists labels.

    Args:
        labels (`Sequence[str]`): the names, in order.
        separator (`str`, *optional*, defaults to `". "`): between two names; none follows the last.
        prefix (`str`, *optional*): before the first name.

    Returns:
        `tuple[str, list[tuple[int, int]]]`: the sentence and the characters [start, end) of each label in it.
    """
    text, spans = prefix, []
    for index, label in enumerate(labels):
        text += separator if index else ""
        spans.append((len(text), len(text) + len(label)))
        text += label
    return text, spans


def is_list(value: Any) -> bool:
    """A list or tuple, which a string is not."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_labels(labels: Sequence[str], name: str = "labels") -> None:
    """Raises TypeError or ValueError, naming the entry, unless `labels` is a non-empty list of non-empty strings."""
    if not is_list(labels):
        raise TypeError(
            f"`{name}` must be a list of strings, got {type(labels).__name__} {labels!r}; put one label in a list."
        )
    if not labels:
        raise ValueError(f"`{name}` is empty; pass at least one label to look for.")
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise TypeError(f"`{name}[{index}]` must be a string, got {type(label).__name__} {label!r}.")
        if not label.strip():
            raise ValueError(f"`{name}[{index}]` is {label!r}; every label needs at least one word. Drop it.")


def check_spans(spans: Sequence[Sequence[int]], text: str, name: str = "spans") -> None:
    """Raises TypeError or ValueError, naming the entry, unless all `spans` are [start, end) inside `text`."""
    for index, span in enumerate(spans):
        if not is_list(span) or len(span) != 2:
            raise TypeError(f"`{name}[{index}]` must be a pair of characters [start, end), got {span!r}.")
        if not all(isinstance(end, int) for end in span):
            raise TypeError(f"`{name}[{index}]` must hold two integers, got {span!r}.")
        if not 0 <= span[0] < span[1] <= len(text):
            raise ValueError(
                f"`{name}[{index}]` is {list(span)}; expected 0 <= start < end <= {len(text)}, the length of {text!r}."
            )


# Characters to tokens ------------------------------------------------------------------------------------------------


class TokenFinder:
    """
    Finds the token of a character.

    Args:
        offsets (`Sequence` of pairs): characters [start, end) of each token, in order; empty for special tokens.
    """

    def __init__(self, offsets: Sequence[Sequence[int]]):
        tokens = [(start, end, index) for index, (start, end) in enumerate(offsets) if end > start]
        self.starts = [start for start, _, _ in tokens]
        self.ends = [end for _, end, _ in tokens]
        self.indices = [index for _, _, index in tokens]

    def first(self, character: int) -> int | None:
        """The first token that holds the character, or `None` (white space, out of the text, cut off)."""
        last = self._last_position(character)
        # Byte-level tokenizers give one character several tokens with equal offsets.
        return None if last is None else self.indices[bisect_left(self.starts, self.starts[last])]

    def last(self, character: int) -> int | None:
        """The last token that holds the character, or `None`."""
        last = self._last_position(character)
        return None if last is None else self.indices[last]

    def _last_position(self, character: int) -> int | None:
        position = bisect_right(self.starts, character) - 1
        return position if position >= 0 and character < self.ends[position] else None

    def tokens(self, span: Sequence[int]) -> range:
        """
        The tokens of a span by the original's rule.

        Where the first character has no token the next two are tried, where the last has none the two before it. When
        that fails too the span has no token.

        Args:
            span: characters [start, end).

        Returns:
            `range` of token indices; empty where there is none.
        """
        start, end = span
        first = self._first_found(self.first, range(start, start + MAX_SHIFT + 1))
        last = self._first_found(self.last, range(end - 1, end - MAX_SHIFT - 2, -1))
        return range(0) if first is None or last is None else range(first, last + 1)

    @staticmethod
    def _first_found(find: Callable[[int], int | None], characters: range) -> int | None:
        return next((token for token in map(find, characters) if token is not None), None)


def spans_to_tokens(spans: Sequence[Sequence[Sequence[int]]], offsets: Sequence[Sequence[int]]) -> list[list[int]]:
    """
    The tokens of labels or phrases, each of one or more spans.

    Args:
        spans (`Sequence` of `Sequence` of pairs): for each its spans [start, end) of characters.
        offsets (`Sequence` of pairs): characters of each token.

    Returns:
        `list[list[int]]`: for each its tokens in order, each once; empty where no span meets a token.
    """
    finder = TokenFinder(offsets)
    return [sorted({token for span in own for token in finder.tokens(span)}) for own in spans]


def positive_map(tokens: Sequence[Sequence[int]], num_tokens: int) -> torch.Tensor:
    """
    The targets T of grounding: for each box an equal fraction on each of its tokens.

    Args:
        tokens (`Sequence[Sequence[int]]`): the tokens of each of n boxes, as `spans_to_tokens` gives them.
        num_tokens (`int`): width of the map.

    Returns:
        `torch.FloatTensor` of shape `(n, num_tokens)`: rows of ones divided by (their sum + 1e-6), as in the original;
        zeros for boxes without tokens.
    """
    targets = torch.zeros(len(tokens), num_tokens)
    for row, own in zip(targets, tokens, strict=True):
        row[list(own)] = 1.0
    return targets / (targets.sum(-1, keepdim=True) + 1e-6)


def label_map(tokens: Sequence[Sequence[int]], attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Which tokens of a padded text belong to each label or phrase.

    Args:
        tokens (`Sequence[Sequence[int]]`): the tokens of each of n labels, counted in the text without padding.
        attention_mask (`torch.Tensor` of shape `(num_tokens,)`): 1 for the text, 0 for padding, on either side.

    Returns:
        `torch.BoolTensor` of shape `(n, num_tokens)`, on the mask's device.
    """
    positions = attention_mask.nonzero().flatten().tolist()
    named = torch.zeros(len(tokens), len(attention_mask), dtype=torch.bool)
    for row, own in zip(named, tokens, strict=True):
        row[[positions[token] for token in own]] = True
    return named.to(attention_mask.device)


# Prompts from labels -------------------------------------------------------------------------------------------------


@dataclass
class LabelPrompt:
    """
    Labels in one sentence.

    Attributes:
        text (`str`): the labels joined by ". ".
        spans (`list[tuple[int, int]]`): characters [start, end) of each label.
        indices (`list[int]`): each label's index in the list that was split.
    """

    text: str
    spans: list[Span] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)


def label_prompt(labels: Sequence[str]) -> LabelPrompt:
    """All labels in one prompt of any length; see `split_labels` for long vocabularies."""
    check_labels(labels)
    text, spans = join_labels(labels)
    return LabelPrompt(text, spans, list(range(len(labels))))


def count_tokens(texts: Sequence[str], tokenizer: Any, special: bool) -> list[int]:
    """Tokens of each text, with or without the special ones that stand around a text. Nothing is cut."""
    encoded = tokenizer(
        list(texts), add_special_tokens=special, truncation=False, padding=False, return_attention_mask=False
    )
    return [len(ids) for ids in encoded["input_ids"]]


def check_known_labels(labels: Sequence[str], tokenizer: Any) -> None:
    """
    Refuses labels that are all the same to the model, since each of their tokens is the unknown one (`[UNK]`), and
    warns of those that are partly unknown.

    Args:
        labels (`Sequence[str]`): any strings.
        tokenizer: a transformers tokenizer.

    Raises:
        ValueError: names all labels without a known token.
    """
    unknown_id = tokenizer.unk_token_id
    if unknown_id is None:
        return
    labels = list(dict.fromkeys(labels))
    encoded = tokenizer(labels, add_special_tokens=False, truncation=False, padding=False, return_attention_mask=False)
    tokens = dict(zip(labels, encoded["input_ids"], strict=True))
    unknown = [label for label, ids in tokens.items() if ids and all(token == unknown_id for token in ids)]
    if unknown:
        raise ValueError(
            f"The tokenizer knows no part of {len(unknown)} labels: {', '.join(map(repr, unknown[:10]))}"
            f"{', ...' if len(unknown) > 10 else ''}. The model could not tell them apart; write them with "
            "letters and words that the tokenizer knows, or leave them out."
        )
    partly = [label for label, ids in tokens.items() if unknown_id in ids]
    if partly:
        _warn_of_names(f"The tokenizer knows only a part of {len(partly)} labels", partly)


def split_labels(
    labels: Sequence[str],
    tokenizer: Any,
    max_tokens: int,
    labels_per_prompt: int | None = None,
) -> list[LabelPrompt]:
    """
    Labels in as few prompts as hold them, in order.

    Args:
        labels (`Sequence[str]`): any number; equal ones stay apart.
        tokenizer: a transformers tokenizer.
        max_tokens (`int`): tokens of a prompt at most, special tokens included.
        labels_per_prompt (`int`, *optional*): labels of a prompt at most.

    Returns:
        `list[LabelPrompt]`: together they hold every label once.

    Raises:
        ValueError: without labels, for an empty label, for one that is longer than a prompt may be, and for labels
            that the tokenizer does not know.
    """
    check_labels(labels)
    if labels_per_prompt is not None and labels_per_prompt < 1:
        raise ValueError(f"`labels_per_prompt` must be at least 1, got {labels_per_prompt}.")
    check_known_labels(labels, tokenizer)
    lengths = count_tokens(labels, tokenizer, special=False)
    (separator,) = count_tokens([LABEL_SEPARATOR], tokenizer, special=False)
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    for index, length in enumerate(lengths):
        if length > room:
            raise ValueError(
                f"`labels[{index}]` is {labels[index]!r}, {length} tokens long, but a prompt holds {room} "
                f"(`max_tokens` {max_tokens} less special tokens). Shorten the label."
            )
    prompts: list[LabelPrompt] = []
    start = 0
    while start < len(labels):
        stop, length = start + 1, lengths[start]
        limit = len(labels) if labels_per_prompt is None else min(len(labels), start + labels_per_prompt)
        while stop < limit and length + separator + lengths[stop] <= room:
            length += separator + lengths[stop]
            stop += 1
        text, spans = join_labels(labels[start:stop])
        # Some tokenizers write a word at the start of a text and after a space differently, so lengths may not add up.
        while count_tokens([text], tokenizer, special=True)[0] > max_tokens and stop > start + 1:
            stop -= 1
            text, spans = join_labels(labels[start:stop])
        prompts.append(LabelPrompt(text, spans, list(range(start, stop))))
        start = stop
    return prompts


def prompt_tokens(prompt: LabelPrompt, tokenizer: Any) -> tuple[list[list[int]], int]:
    """
    The tokens of the labels of a prompt.

    Args:
        prompt (`LabelPrompt`): labels in a sentence.
        tokenizer: a fast transformers tokenizer.

    Returns:
        `tuple[list[list[int]], int]`: the tokens of each label, counted from the first (special) token, and how many
        tokens the prompt has, special ones included.

    Raises:
        ValueError: for a label of which the tokenizer leaves nothing.
    """
    encoded = tokenizer(prompt.text, return_offsets_mapping=True, truncation=False, padding=False)
    tokens = spans_to_tokens([[span] for span in prompt.spans], encoded["offset_mapping"])
    for own, (start, end) in zip(tokens, prompt.spans, strict=True):
        if not own:
            raise ValueError(
                f"The tokenizer finds no word in the label {prompt.text[start:end]!r}; write it with letters it knows."
            )
    return tokens, len(encoded["input_ids"])


# Labels for training -------------------------------------------------------------------------------------------------


def class_id(name: str) -> int:
    """
    A number for a class name, so that labels hold tensors only: the same in every process, odd, below 2^62. Capitals
    and outer spaces do not count.
    """
    digest = hashlib.blake2b(name.strip().lower().encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 2) | 1


def class_ids(names: Sequence[str | None]) -> torch.Tensor:
    """`class_id` of each name, 0 where there is none (`None`): `(n,)`."""
    return torch.tensor([0 if name is None else class_id(name) for name in names], dtype=torch.long)


# Texts of a batch ----------------------------------------------------------------------------------------------------


def check_sentence(sentence: str, name: str) -> None:
    """Raises TypeError or ValueError unless `sentence` is a string with at least one word."""
    if not isinstance(sentence, str):
        raise TypeError(f"`{name}` must be a string, got {type(sentence).__name__} {sentence!r}.")
    if not sentence.strip():
        raise ValueError(f"`{name}` is {sentence!r}; pass a sentence or labels with at least one word.")


def arrange_text(text: Text, num_images: int | None) -> tuple[list[str], list[list[Span]] | None]:
    """
    One sentence for each image, from any form of text.

    Args:
        text: a sentence for all images; a sentence for each image; labels of the only image; one list of labels
            for all images, `[labels]`; or a list of labels for each image.
        num_images: images that go with the text; `None` without images, when each entry is a text of its own.

    Returns:
        The sentences, and for labels the characters [start, end) of each label in its sentence (else `None`).

    Raises:
        TypeError: for other types.
        ValueError: for no text, an empty text or label, or another number of texts than images.
    """
    if isinstance(text, str):
        check_sentence(text, "text")
        return [text] * (1 if num_images is None else num_images), None
    if not is_list(text):
        raise TypeError(
            f"`text` must be a sentence, a list of sentences, or a list of labels for each image, got "
            f"{type(text).__name__} {text!r}."
        )
    if not text:
        raise ValueError("`text` is empty; pass a sentence, or at least one label, for each image.")
    if any(is_list(entry) for entry in text):
        for index, entry in enumerate(text):
            check_labels(entry, f"text[{index}]")
        if num_images is not None and len(text) not in (1, num_images):
            raise ValueError(
                f"`text` has {len(text)} lists of labels for {num_images} images; pass one list for each image, "
                "or `[labels]` to look for the same labels in all of them."
            )
        repeats = num_images if num_images is not None and len(text) == 1 else 1
        sentences, spans = zip(*(join_labels(entry) for entry in text), strict=True)
        return list(sentences) * repeats, list(spans) * repeats
    entries: Any = text
    if num_images == 1 and len(entries) > 1:
        check_labels(entries, "text")
        prompt, label_spans = join_labels(entries)
        return [prompt], [label_spans]
    for index, entry in enumerate(entries):
        check_sentence(entry, f"text[{index}]")
    if num_images is not None and len(text) != num_images:
        raise ValueError(
            f"`text` has {len(text)} sentences for {num_images} images; pass one for each image, one string for "
            "all, or `[labels]` to look for the same labels in all of them."
        )
    return list(entries), None


def encode_annotation(
    annotation: Mapping[str, Any],
    image_size: tuple[int, int],
    text: str,
    label_spans: Sequence[Span] | None,
    offsets: Sequence[Sequence[int]],
    name: str = "annotation",
) -> dict[str, torch.Tensor]:
    """
    The labels of one image, as the model takes them in training.

    Boxes get inclusive corners and are clipped to the image before they are normalised. The original multiplies the
    corners by resized size / original size, so as fractions they are the same for every resized size.

    Args:
        annotation: "boxes" `(n, 4)` x, y, width, height in pixels of the image; "spans", for each box a list of
            characters [start, end) (an empty list: no token), or where the text is a list of labels "labels", the
            index of each box's label; optionally "class_names", a name a box, and "masks" `(n, height, width)`.
        image_size: (height, width) of the image before resizing.
        text: the image's sentence.
        label_spans: characters of each label of the sentence.
        offsets: characters of each token of the text as it is in the batch.
        name: of the annotation in error messages.

    Returns:
        Tensors only: "boxes" `(n, 4)` centre x, centre y, width, height in [0, 1] of the image; "positive_map"
        `(n, tokens)`; where the classes are known "class_ids" `(n,)`, see [`class_id`]; where there are masks "masks",
        boolean `(n, height, width)` of the image before resizing.

    Raises:
        TypeError, ValueError: name the entry that is wrong.
    """
    if not isinstance(annotation, Mapping):
        raise TypeError(f"`{name}` must be a dict or None, got {type(annotation).__name__}.")
    if "boxes" not in annotation:
        raise ValueError(f'`{name}` has no "boxes" (its keys are {sorted(annotation)}); pass xywh boxes in pixels.')
    boxes = torch.as_tensor(annotation["boxes"], dtype=torch.float32)
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"`{name}['boxes']` must have shape (n, 4), got {tuple(boxes.shape)}.")
    class_names = annotation.get("class_names")
    spans = annotation.get("spans")
    if spans is None:
        spans, class_names = _spans_of_labels(annotation, label_spans, text, name)
    masks = annotation.get("masks")
    masks = None if masks is None else torch.as_tensor(masks).bool()
    for key, values in (("spans", spans), ("class_names", class_names), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"`{name}` has {len(boxes)} boxes but {len(values)} {key}; pass one for each box.")
    if masks is not None and tuple(masks.shape[1:]) != tuple(image_size):
        raise ValueError(
            f"`{name}['masks']` has shape {tuple(masks.shape)}; expected (n, {image_size[0]}, {image_size[1]}), the "
            "size of the image before resizing."
        )
    for index, own in enumerate(spans):
        check_spans(own, text, f"{name}['spans'][{index}]")
    tokens = spans_to_tokens(spans, offsets)
    end = max((stop for _, stop in offsets), default=0)
    lost = [index for index, own in enumerate(spans) if own and min(start for start, _ in own) >= end]
    if lost:
        logger.warning(
            f"`{name}`: the words of {len(lost)} boxes were cut off with the end of the text, after {end} characters. "
            "These boxes are trained without a label; drop them or shorten the text."
        )
    boxes_xyxy = clip_boxes(coco_to_inclusive_xyxy(boxes), *image_size)
    encoded = {
        "boxes": normalize_boxes(boxes_xyxy, torch.tensor(image_size)),
        "positive_map": positive_map(tokens, len(offsets)),
    }
    if class_names is not None:
        encoded["class_ids"] = class_ids(class_names)
    if masks is not None:
        encoded["masks"] = masks
    return encoded


def _spans_of_labels(
    annotation: Mapping[str, Any], label_spans: Sequence[Span] | None, text: str, name: str
) -> tuple[list[list[Span]], list[str]]:
    """Spans and class names of boxes whose labels are given as indices of the image's list."""
    if label_spans is None or "labels" not in annotation:
        raise ValueError(
            f'`{name}` does not say what its boxes show: pass "spans" (characters of the text), or "labels" (indices) '
            "where the text is a list of labels."
        )
    indices = torch.as_tensor(annotation["labels"]).flatten().tolist()
    for index in indices:
        if not isinstance(index, int) or not 0 <= index < len(label_spans):
            raise ValueError(
                f"`{name}['labels']` holds {index!r}; expected an index of the image's {len(label_spans)} labels."
            )
    spans = [label_spans[index] for index in indices]
    return [[span] for span in spans], [text[start:end] for start, end in spans]
