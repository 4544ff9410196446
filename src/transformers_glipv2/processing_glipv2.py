"""Pictures and texts to the model's inputs, and the model's outputs to boxes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from .boxes import clip_boxes, coco_to_inclusive_xyxy, denormalize_boxes, normalize_boxes
from .detections import PRE_NMS_TOP_N, label_scores, scale_boxes, select_detections
from .image_processing_glipv2 import Picture, flatten_pictures, picture_size
from .noun_phrases import find_noun_phrases
from .prompts import (
    Span,
    check_labels,
    check_spans,
    join_labels,
    label_map,
    label_prompt,
    positive_map,
    prompt_tokens,
    spans_to_tokens,
)

logger = logging.get_logger(__name__)

Text = str | Sequence[str] | Sequence[Sequence[str]]


# Text ----------------------------------------------------------------------------------------------------------------


def is_list(value: Any) -> bool:
    """A list or tuple, which a string is not."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_sentence(sentence: str, name: str) -> None:
    """Raises TypeError or ValueError unless `sentence` is a string with at least one word."""
    if not isinstance(sentence, str):
        raise TypeError(f"`{name}` must be a string, got {type(sentence).__name__} {sentence!r}.")
    if not sentence.strip():
        raise ValueError(f"`{name}` is {sentence!r}; pass a sentence or labels with at least one word.")


def arrange_text(text: Text, num_images: int | None) -> tuple[list[str], list[list[Span]] | None]:
    """
    One sentence for each picture, from any form of text.

    Args:
        text: a sentence for all pictures; a sentence for each picture; labels of the only picture; one list of labels
            for all pictures, `[labels]`; or a list of labels for each picture.
        num_images: pictures that go with the text; `None` without pictures, when each entry is a text of its own.

    Returns:
        The sentences, and for labels the characters [start, end) of each label in its sentence (else `None`).

    Raises:
        TypeError: for other types.
        ValueError: for no text, an empty text or label, or another number of texts than pictures.
    """
    if isinstance(text, str):
        check_sentence(text, "text")
        return [text] * (1 if num_images is None else num_images), None
    if not is_list(text):
        raise TypeError(
            f"`text` must be a sentence, a list of sentences, or a list of labels for each picture, got "
            f"{type(text).__name__} {text!r}."
        )
    if not text:
        raise ValueError("`text` is empty; pass a sentence, or at least one label, for each picture.")
    if any(is_list(entry) for entry in text):
        for index, entry in enumerate(text):
            check_labels(entry, f"text[{index}]")
        if num_images is not None and len(text) not in (1, num_images):
            raise ValueError(
                f"`text` has {len(text)} lists of labels for {num_images} pictures; pass one list for each picture, "
                "or `[labels]` to look for the same labels in all of them."
            )
        repeats = num_images if num_images is not None and len(text) == 1 else 1
        sentences, spans = zip(*(join_labels(entry) for entry in text), strict=True)
        return list(sentences) * repeats, list(spans) * repeats
    if num_images == 1 and len(text) > 1:
        check_labels(text, "text")
        sentence, spans = join_labels(text)
        return [sentence], [spans]
    for index, sentence in enumerate(text):
        check_sentence(sentence, f"text[{index}]")
    if num_images is not None and len(text) != num_images:
        raise ValueError(
            f"`text` has {len(text)} sentences for {num_images} pictures; pass one for each picture, one string for "
            "all, or `[labels]` to look for the same labels in all of them."
        )
    return list(text), None


# Annotations ---------------------------------------------------------------------------------------------------------


def encode_annotation(
    annotation: Mapping[str, Any],
    image_size: tuple[int, int],
    text: str,
    label_spans: Sequence[Span] | None,
    offsets: Sequence[Sequence[int]],
    name: str = "annotation",
) -> dict[str, Any]:
    """
    What one picture teaches, as the model takes it in `labels`.

    Boxes get inclusive corners and are clipped to the picture before they are normalised. The original multiplies the
    corners by resized size / original size, so as fractions they are the same for every resized size.

    Args:
        annotation: "boxes" `(n, 4)` x, y, width, height in pixels of the picture; "spans", for each box a list of
            characters [start, end) (an empty list: no words), or where the text is a list of labels "labels", the
            index of each box's label; optionally "class_names", a name a box, and "masks" `(n, height, width)`.
        image_size: (height, width) of the picture before resizing.
        text: the picture's sentence.
        label_spans: characters of each label of the sentence.
        offsets: characters of each token of the batch's row.
        name: of the annotation in error messages.

    Returns:
        "boxes" `(n, 4)` centre x, centre y, width, height as fractions; "positive_map" `(n, tokens)`; "class_names";
        "masks" boolean `(n, height, width)` of the picture before resizing, or `None`.

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
            "size of the picture before resizing."
        )
    for index, own in enumerate(spans):
        check_spans(own, text, f"{name}['spans'][{index}]")
    tokens = spans_to_tokens(spans, offsets)
    end = max((stop for _, stop in offsets), default=0)
    lost = [index for index, own in enumerate(spans) if own and min(start for start, _ in own) >= end]
    if lost:
        logger.warning(
            f"`{name}`: the words of {len(lost)} boxes lie beyond the end of the truncated text ({end} characters); "
            "they teach no word. Drop these boxes or shorten the text."
        )
    boxes_xyxy = clip_boxes(coco_to_inclusive_xyxy(boxes), *image_size)
    return {
        "boxes": normalize_boxes(boxes_xyxy, torch.tensor(image_size)),
        "positive_map": positive_map(tokens, len(offsets)),
        "class_names": None if class_names is None else list(class_names),
        "masks": masks,
    }


def _spans_of_labels(
    annotation: Mapping[str, Any], label_spans: Sequence[Span] | None, text: str, name: str
) -> tuple[list[list[Span]], list[str]]:
    """Spans and names of boxes that say which label of the picture's list they show."""
    if label_spans is None or "labels" not in annotation:
        raise ValueError(
            f'`{name}` says not what its boxes show: pass "spans" (characters of the text), or "labels" (indices) '
            "where the text is a list of labels."
        )
    indices = torch.as_tensor(annotation["labels"]).flatten().tolist()
    for index in indices:
        if not isinstance(index, int) or not 0 <= index < len(label_spans):
            raise ValueError(
                f"`{name}['labels']` holds {index!r}; expected an index of the picture's {len(label_spans)} labels."
            )
    spans = [label_spans[index] for index in indices]
    return [[span] for span in spans], [text[start:end] for start, end in spans]


# Outputs -------------------------------------------------------------------------------------------------------------


def check_outputs(outputs: Any) -> None:
    """Raises TypeError unless `outputs` has what post-processing reads."""
    needed = ("logits", "centerness", "pred_boxes", "level_shapes", "image_sizes")
    missing = [name for name in needed if getattr(outputs, name, None) is None]
    if missing:
        raise TypeError(
            f"`outputs` ({type(outputs).__name__}) has no {', '.join(missing)}; pass what a GLIPv2 model that "
            "detects gives with `return_dict=True`."
        )


def check_limits(threshold: float, nms_threshold: float, max_detections: int, name: str = "max_detections") -> None:
    """Raises ValueError for thresholds outside [0, 1] and for no detections at all."""
    for key, value in (("threshold", threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{key}` must be in [0, 1], got {value}.")
    if max_detections < 1:
        raise ValueError(f"`{name}` must be at least 1, got {max_detections}.")


def check_target_sizes(
    target_sizes: Any, image_sizes: torch.Tensor, keeps_aspect: bool
) -> list[tuple[float, float]] | None:
    """
    Args:
        target_sizes: (height, width) of each picture, as a list of pairs or a tensor `(batch, 2)`, or `None`.
        image_sizes: `(batch, 2)` height and width of the resized pictures.
        keeps_aspect: whether resizing kept the aspect ratio, so that a swapped height and width can be told.

    Returns:
        The sizes as a list of pairs, or `None`.

    Raises:
        TypeError, ValueError: for a wrong form or number, a size that is not positive, or (width, height).
    """
    if target_sizes is None:
        return None
    if isinstance(target_sizes, torch.Tensor):
        target_sizes = target_sizes.tolist()
    if not is_list(target_sizes):
        raise TypeError(
            f"`target_sizes` must be a list of (height, width) or a tensor (batch, 2), got "
            f"{type(target_sizes).__name__}."
        )
    target_sizes = list(target_sizes)
    if len(target_sizes) != len(image_sizes):
        raise ValueError(
            f"`target_sizes` has {len(target_sizes)} entries for {len(image_sizes)} pictures; pass one (height, "
            "width) for each."
        )
    sizes = []
    for index, (size, resized) in enumerate(zip(target_sizes, image_sizes.tolist(), strict=True)):
        size = size.tolist() if isinstance(size, torch.Tensor) else size
        if not is_list(size) or len(size) != 2:
            raise ValueError(f"`target_sizes[{index}]` is {size!r}; pass a pair (height, width) in pixels.")
        height, width = (float(side) for side in size)
        if not (0 < height < math.inf and 0 < width < math.inf):
            raise ValueError(
                f"`target_sizes[{index}]` is {list(size)}; height and width in pixels must be above 0 and finite."
            )
        # The aspect ratio is kept up to rounding; only a difference that swapping mends is taken for a slip.
        if keeps_aspect:
            ratio = math.log(resized[0] / resized[1])
            stays, swapped = (abs(ratio - turn * math.log(height / width)) for turn in (1, -1))
            if stays > 0.1 and swapped < 0.2 * stays:
                raise ValueError(
                    f"`target_sizes[{index}]` is {list(size)}, but the resized picture is {resized[0]} high and "
                    f"{resized[1]} wide; pass (height, width), for a PIL picture `(image.height, image.width)`."
                )
        sizes.append((height, width))
    return sizes


def per_picture(values: Any, num_images: int, is_entry: Callable[[Any], bool], name: str) -> list[Any]:
    """One entry for each picture: `values` itself, or an entry (or a list of one) repeated for all pictures."""
    if is_entry(values):
        return [values] * num_images
    if not is_list(values):
        raise TypeError(f"`{name}` must be a list with an entry for each picture, got {type(values).__name__}.")
    if len(values) not in (1, num_images) or not len(values):
        raise ValueError(f"`{name}` has {len(values)} entries for {num_images} pictures; pass one for each.")
    return list(values) * (num_images if len(values) == 1 else 1)


# The processor -------------------------------------------------------------------------------------------------------


class GLIPv2Processor(ProcessorMixin):
    r"""
    Prepares pictures and texts, and reads boxes off the model's outputs.

    Args:
        image_processor (`GLIPv2ImageProcessor`): prepares pictures.
        tokenizer (`PreTrainedTokenizerFast`): a fast tokenizer; words are found by its offsets.
        max_text_length (`int`, *optional*, defaults to 256): tokens of a text at most, special tokens included.

    Example:
        >>> inputs = processor(images=image, text=[["cat", "remote control"]])
        >>> outputs = model(**inputs)
        >>> processor.post_process_grounded_object_detection(
        ...     outputs, text_labels=[["cat", "remote control"]], target_sizes=[(image.height, image.width)]
        ... )
    """

    text_kwargs = {"padding": True, "return_token_type_ids": False}

    def __init__(self, image_processor, tokenizer, max_text_length=256):
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(
                f"`tokenizer` must be a fast one (words are found by its offsets), got {type(tokenizer).__name__}."
            )
        if not isinstance(max_text_length, int) or max_text_length < 3:
            raise ValueError(f"`max_text_length` must be an integer of at least 3, got {max_text_length!r}.")
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length

    @property
    def max_tokens(self) -> int:
        """Tokens of a text at most, special tokens included: the smaller of our limit and the tokenizer's."""
        return min(self.max_text_length, self.tokenizer.model_max_length)

    def __call__(
        self,
        images: Picture | Sequence[Picture] | None = None,
        text: Text | None = None,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        r"""
        Args:
            images: one picture or several: PIL pictures, arrays, tensors, paths or addresses.
            text: a sentence for all pictures; a sentence for each picture; for one picture a list of labels;
                `[labels]` for the same labels in all pictures; or a list of labels for each picture.
            annotations: for training, one dict (or `None`, nothing is known) for each picture: see
                [`encode_annotation`].
            return_tensors: `"pt"`; annotations need it.
            kwargs: further arguments of the image processor (`size`, ...) and the tokenizer (`truncation`, ...).

        Returns:
            `BatchFeature`: "pixel_values" and "pixel_mask" (with pictures), "input_ids" and "attention_mask" (with
            text), padded to the longest text, and with annotations "labels", one dict (or `None`) for each picture.

        Raises:
            TypeError: for wrong types.
            ValueError: for no text or an empty one, another number of texts or annotations than pictures, a text that
                is longer than `max_tokens` (with annotations a long sentence is cut instead), a bad annotation.
        """
        if images is None and text is None:
            raise ValueError("Pass `images`, `text`, or both.")
        images = None if images is None else flatten_pictures(images)
        num_images = None if images is None else len(images)
        sentences, label_spans = (None, None) if text is None else arrange_text(text, num_images)
        if annotations is not None:
            annotations = self._check_annotations(annotations, num_images, sentences, return_tensors)
        text_kwargs = {name: kwargs.pop(name) for name in ("truncation", "max_length") if name in kwargs}
        text_kwargs |= kwargs.pop("text_kwargs", {})
        max_length = text_kwargs.pop("max_length", None) or self.max_tokens
        # A sentence that teaches may lose its end; a label may never vanish.
        text_kwargs.setdefault("truncation", annotations is not None and label_spans is None)
        if text_kwargs["truncation"]:
            text_kwargs["max_length"] = max_length
        text_kwargs["return_offsets_mapping"] = annotations is not None
        inputs = super().__call__(
            images=images, text=sentences, text_kwargs=text_kwargs, return_tensors=return_tensors, **kwargs
        )
        if sentences is not None:
            self._check_lengths(inputs, sentences, label_spans, max_length)
        if annotations is not None:
            offsets = inputs.pop("offset_mapping").tolist()
            inputs["labels"] = [
                None
                if annotation is None
                else encode_annotation(
                    annotation,
                    picture_size(images[index]),
                    sentences[index],
                    None if label_spans is None else label_spans[index],
                    offsets[index],
                    f"annotations[{index}]",
                )
                for index, annotation in enumerate(annotations)
            ]
        return inputs

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Pictures in a flat list, texts as one sentence for each."""
        images = None if images is None else flatten_pictures(images)
        if text is not None:
            text, _ = arrange_text(text, None if images is None else len(images))
        return images, text, videos, audio

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        text_labels: Sequence[str] | Sequence[Sequence[str]],
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.05,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        pre_nms_top_n: int = PRE_NMS_TOP_N,
    ) -> list[dict[str, Any]]:
        """
        Boxes of labels, as the original finds them; see [`select_detections`].

        Args:
            outputs (`GLIPv2ObjectDetectionOutput`): of a model that detects.
            text_labels: the labels that the model was asked for, in order: a list for each picture, or one for all.
            target_sizes: (height, width) of each picture, to have boxes in its pixels; without it they are in pixels
                of the resized picture.
            threshold: on the score of a label before centerness.
            nms_threshold: IoU above which the weaker of two boxes of a label goes.
            max_detections: boxes of a picture at most; ties at the cut all stay.
            pre_nms_top_n: pairs of location and label that each level of the pyramid keeps before suppression.

        Returns:
            `list[dict]`, one for each picture: "scores" `(n,)` in falling order, "labels" `(n,)` long, indices of the
            picture's labels, "text_labels", `n` strings, "boxes" `(n, 4)` x1, y1, x2, y2 in pixels (a box is
            `x2 - x1 + 1` wide in the resized picture).

        Raises:
            TypeError: for wrong types.
            ValueError: for no or empty labels, labels that are not those of the outputs, wrong sizes, limits out of
                range.
        """
        check_outputs(outputs)
        check_limits(threshold, nms_threshold, max_detections)
        num_images = len(outputs.logits)
        sizes = check_target_sizes(target_sizes, outputs.image_sizes, self._keeps_aspect)
        labels = per_picture(
            text_labels,
            num_images,
            lambda value: is_list(value) and bool(value) and isinstance(value[0], str),
            "text_labels",
        )
        level_sizes = outputs.level_shapes.prod(1).tolist()
        known: dict[tuple[str, ...], tuple[list[list[int]], int]] = {}
        results = []
        for index, own in enumerate(labels):
            check_labels(own, f"text_labels[{index}]")
            if tuple(own) not in known:
                known[tuple(own)] = prompt_tokens(label_prompt(own), self.tokenizer)
            named = self._label_map(outputs, index, *known[tuple(own)])
            scores, found, boxes = select_detections(
                label_scores(outputs.logits[index], named),
                outputs.centerness[index],
                denormalize_boxes(outputs.pred_boxes[index], outputs.image_sizes[index]),
                level_sizes,
                threshold,
                nms_threshold,
                max_detections,
                pre_nms_top_n,
            )
            if sizes is not None:
                boxes = scale_boxes(boxes, outputs.image_sizes[index], sizes[index])
            text = [own[label] for label in found.tolist()]
            results.append({"scores": scores, "labels": found, "text_labels": text, "boxes": boxes})
        return results

    def post_process_phrase_grounding(
        self,
        outputs: Any,
        text: str | Sequence[str],
        phrases: Sequence[Any] | None = None,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        top_k: int = 10,
        threshold: float = 0.0,
        nms_threshold: float = 0.6,
    ) -> list[list[dict[str, Any]]]:
        """
        The best boxes of each phrase of a sentence.

        Equal phrases at different places are different phrases, and each has a ranking of its own, so that recall at
        k can be measured.

        Args:
            outputs (`GLIPv2ObjectDetectionOutput`): of a model that detects.
            text: the sentence that the model was given: one for each picture, or one for all.
            phrases: for each picture characters [start, end) of its phrases; where `text` is one sentence, those of
                that sentence. By default the noun phrases, see [`find_noun_phrases`].
            target_sizes: (height, width) of each picture, to have boxes in its pixels; without it they are in pixels
                of the resized picture.
            top_k: boxes of a phrase at most; ties at the cut all stay.
            threshold: on the score of a phrase (the mean over its tokens) before centerness.
            nms_threshold: IoU above which the weaker of two boxes of a phrase goes.

        Returns:
            `list[list[dict]]`: for each picture, for each phrase in the order given: "phrase" (`str`), "span",
            "scores" `(n,)` in falling order, "boxes" `(n, 4)` x1, y1, x2, y2 in pixels.

        Raises:
            TypeError: for wrong types.
            ValueError: for an empty text, a text that is not that of the outputs, a span out of the text or without
                words, wrong sizes, limits out of range.
        """
        check_outputs(outputs)
        check_limits(threshold, nms_threshold, top_k, "top_k")
        num_images = len(outputs.logits)
        sizes = check_target_sizes(target_sizes, outputs.image_sizes, self._keeps_aspect)
        if phrases is not None:
            phrases = (
                [phrases] * num_images
                if isinstance(text, str)
                else per_picture(phrases, num_images, lambda value: False, "phrases")
            )
        sentences = per_picture(text, num_images, lambda value: isinstance(value, str), "text")
        level_sizes = outputs.level_shapes.prod(1).tolist()
        results = []
        for index, sentence in enumerate(sentences):
            check_sentence(sentence, f"text[{index}]")
            spans = find_noun_phrases(sentence) if phrases is None else phrases[index]
            named = self._phrase_map(outputs, index, sentence, spans)
            boxes = denormalize_boxes(outputs.pred_boxes[index], outputs.image_sizes[index])
            found = []
            scores = label_scores(outputs.logits[index], named)
            for span, own_scores in zip(spans, scores.split(1, dim=1) if spans else (), strict=True):
                kept_scores, _, kept = select_detections(
                    own_scores, outputs.centerness[index], boxes, level_sizes, threshold, nms_threshold, top_k
                )
                if sizes is not None:
                    kept = scale_boxes(kept, outputs.image_sizes[index], sizes[index])
                start, end = span
                found.append(
                    {"phrase": sentence[start:end], "span": (start, end), "scores": kept_scores, "boxes": kept}
                )
            results.append(found)
        return results

    @property
    def _keeps_aspect(self) -> bool:
        """Whether the image processor resizes by the short side, not to a fixed height and width."""
        size = self.image_processor.size
        return bool(size.get("shortest_edge") if isinstance(size, Mapping) else getattr(size, "shortest_edge", None))

    def _phrase_map(self, outputs: Any, index: int, sentence: str, spans: Sequence[Span]) -> torch.Tensor:
        """Boolean `(phrases, tokens)` for one picture."""
        if not is_list(spans):
            raise TypeError(f"`phrases[{index}]` must be a list of character spans, got {type(spans).__name__}.")
        check_spans(spans, sentence, f"phrases[{index}]")
        encoded = self.tokenizer(sentence, return_offsets_mapping=True, truncation=False, padding=False)
        tokens = spans_to_tokens([[span] for span in spans], encoded["offset_mapping"])
        for span, own in zip(spans, tokens, strict=True):
            if not own:
                raise ValueError(
                    f"`phrases[{index}]` has the span {list(span)}, {sentence[span[0] : span[1]]!r}, in which the "
                    "tokenizer finds no word; drop it."
                )
        return self._label_map(outputs, index, tokens, len(encoded["input_ids"]))

    @staticmethod
    def _label_map(outputs: Any, index: int, tokens: list[list[int]], num_tokens: int) -> torch.Tensor:
        """Boolean `(labels, tokens)` for one picture, after a check that the text is the one that the model saw."""
        logits, mask = outputs.logits, getattr(outputs, "attention_mask", None)
        mask = logits.new_ones(logits.shape[-1], dtype=torch.long) if mask is None else mask[index]
        given = int(mask.sum())
        if given != num_tokens:
            raise ValueError(
                f"The text of picture {index} has {num_tokens} tokens, but the model was given {given}; pass the same "
                "labels in the same order (or the same sentence) as to the processor."
            )
        return label_map(tokens, mask)

    @staticmethod
    def _check_annotations(
        annotations: Any, num_images: int | None, sentences: list[str] | None, return_tensors: str | None
    ) -> list[Mapping[str, Any] | None]:
        if num_images is None or sentences is None:
            raise ValueError("`annotations` belong to pictures and texts; pass `images` and `text` with them.")
        if return_tensors != "pt":
            raise ValueError(f'`annotations` need `return_tensors="pt"`, got {return_tensors!r}.')
        annotations = [annotations] if isinstance(annotations, Mapping) else list(annotations)
        if len(annotations) != num_images:
            raise ValueError(
                f"`annotations` has {len(annotations)} entries for {num_images} pictures; pass one for each (None "
                "where nothing is known)."
            )
        return annotations

    @staticmethod
    def _check_lengths(
        inputs: BatchFeature, sentences: list[str], label_spans: list[list[Span]] | None, max_length: int
    ) -> None:
        for index, mask in enumerate(inputs["attention_mask"]):
            length = int(sum(mask))
            if length <= max_length:
                continue
            if label_spans is None:
                remedy = "Shorten it, split it, or pass `truncation=True` to lose its end."
            else:
                remedy = (
                    f"Split its {len(label_spans[index])} labels over several prompts with `prompts.split_labels`."
                )
            start = sentences[index][:60]
            raise ValueError(
                f"The text of picture {index} has {length} tokens, at most {max_length} fit: {start!r}... {remedy}"
            )


__all__ = ["GLIPv2Processor"]
