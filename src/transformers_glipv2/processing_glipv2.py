"""Images and texts to the model's inputs, and the model's outputs to boxes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .image_processing_glipv2 import ImageSource, get_image_size
from .layers.paste_masks import instance_masks, predict_mask_logits, referring_masks, strong_boxes
from .noun_phrases import check_chunker, find_noun_phrases
from .post_processing import (
    PRE_NMS_THRESHOLD,
    PRE_NMS_TOP_N,
    Limits,
    batch_detections,
    check_fraction,
    check_limits,
    check_outputs,
    check_target_sizes,
    fetch,
    first_indices,
    on_device_of,
)
from .prompts import (
    Span,
    Text,
    arrange_text,
    check_known_labels,
    check_labels,
    check_sentence,
    check_spans,
    encode_annotation,
    is_list,
    label_map,
    label_prompt,
    prompt_tokens,
    spans_to_tokens,
)


def per_image(values: Any, num_images: int, is_entry: Callable[[Any], bool], name: str) -> list[Any]:
    """One entry for each image: `values` itself, or an entry (or a list of one) repeated for all images."""
    if is_entry(values):
        return [values] * num_images
    if not is_list(values):
        raise TypeError(f"`{name}` must be a list with an entry for each image, got {type(values).__name__}.")
    if len(values) not in (1, num_images) or not len(values):
        raise ValueError(f"`{name}` has {len(values)} entries for {num_images} images; pass one for each.")
    return list(values) * (num_images if len(values) == 1 else 1)


# Ids `(tokens,)`, where they are known, and mask `(tokens,)` of one text, on the CPU.
SeenText = tuple[torch.Tensor | None, torch.Tensor]


def texts_of(outputs: Any) -> list[SeenText]:
    """The texts that a model was given, for each image; a GPU is waited for once."""
    logits, ids, mask = outputs.logits, getattr(outputs, "input_ids", None), getattr(outputs, "attention_mask", None)
    if mask is None:
        mask = logits.new_ones(logits.shape[0], logits.shape[2], dtype=torch.long)
    if ids is None:
        return [(None, own) for own in fetch([mask])[0]]
    return list(zip(*fetch([ids, mask]), strict=True))


class GLIPv2Processor(ProcessorMixin):
    r"""
    Prepares images and texts, and reads boxes off the model's outputs.

    Args:
        image_processor (`GLIPv2ImageProcessor`): prepares images.
        tokenizer (`PreTrainedTokenizerFast`): a fast tokenizer; the tokens of labels are found by its offsets.
        max_text_length (`int`, *optional*, defaults to 256): tokens of a text at most, special tokens included.
        phrase_chunker (`str`, *optional*, defaults to `"rules"`): what finds the noun phrases of a sentence whose
            phrases are not given, `"rules"` or `"spacy"`; see [`find_noun_phrases`].

    Example:
        >>> inputs = processor(images=image, text=[["cat", "remote control"]])
        >>> outputs = model(**inputs)
        >>> processor.post_process_grounded_object_detection(
        ...     outputs, text_labels=[["cat", "remote control"]], target_sizes=[(image.height, image.width)]
        ... )
    """

    text_kwargs = {"padding": True, "return_token_type_ids": False, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor, tokenizer, max_text_length=256, phrase_chunker="rules"):
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(
                f"`tokenizer` must be a fast one (labels are found by its offsets), got {type(tokenizer).__name__}."
            )
        if not isinstance(max_text_length, int) or max_text_length < 3:
            raise ValueError(f"`max_text_length` must be an integer of at least 3, got {max_text_length!r}.")
        check_chunker(phrase_chunker)
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length
        self.phrase_chunker = phrase_chunker

    @property
    def max_tokens(self) -> int:
        """Tokens of a text at most, special tokens included: the smaller of our limit and the tokenizer's."""
        return min(self.max_text_length, self.tokenizer.model_max_length)

    @property
    def model_input_names(self) -> list[str]:
        """What a call with images and text returns."""
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask"]

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource] | None = None,
        text: Text | None = None,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        **kwargs,
    ) -> BatchFeature:
        r"""
        Args:
            images: one image or several: PIL images, arrays, tensors, paths or URLs.
            text: a sentence for all images; a sentence for each image; for one image a list of labels;
                `[labels]` for the same labels in all images; or a list of labels for each image.
            annotations: for training, one dict (or `None`, nothing is known) for each image: see
                [`encode_annotation`].
            kwargs: further arguments of the image processor (`size`, ...) and the tokenizer (`truncation`,
                `max_length`, `padding`, ...), and `return_tensors`, `"pt"` by default; annotations need that.

        Returns:
            `BatchFeature`: "pixel_values" and "pixel_mask" (with images), "input_ids" and "attention_mask" (with
            text), padded to the longest text, and with annotations "labels", one dict (or `None`) for each image.

        Raises:
            TypeError: for wrong types.
            ValueError: for no text or an empty one, another number of texts or annotations than images, a text of
                more than `max_length` tokens, `max_tokens` by default (with annotations a long sentence is cut
                instead), labels that the tokenizer does not know, a bad annotation.
        """
        if images is None and text is None:
            raise ValueError("Pass `images`, `text`, or both.")
        if images is not None:
            images_kwargs = {**kwargs, **kwargs.get("images_kwargs", {})}
            images = self.image_processor.fetch_images(
                images, images_kwargs.get("allow_urls"), images_kwargs.get("allow_private_urls")
            )
        num_images = None if images is None else len(images)
        sentences, label_spans = (None, None) if text is None else arrange_text(text, num_images)
        if annotations is not None:
            annotations = self._check_annotations(
                annotations, num_images, sentences, kwargs.get("return_tensors", self.text_kwargs["return_tensors"])
            )
        if label_spans is not None:
            pairs = zip(sentences, label_spans, strict=True)
            check_known_labels([text[start:end] for text, own in pairs for start, end in own], self.tokenizer)
        text_kwargs = dict(kwargs.pop("text_kwargs", {}))
        # Names that were passed twice stay so, for transformers to refuse.
        names = {"truncation", "max_length", "padding"} & kwargs.keys() - text_kwargs.keys()
        text_kwargs |= {name: kwargs.pop(name) for name in names}
        max_length = self._max_length(text_kwargs.get("max_length"))
        # In training a sentence may lose its end; a label must never be lost.
        text_kwargs.setdefault("truncation", annotations is not None and label_spans is None)
        if text_kwargs["truncation"] or text_kwargs.get("padding") == "max_length":
            text_kwargs["max_length"] = max_length
        text_kwargs["return_offsets_mapping"] = annotations is not None
        inputs = super().__call__(images=images, text=sentences, text_kwargs=text_kwargs, **kwargs)
        if sentences is not None:
            self._check_lengths(inputs, sentences, label_spans, max_length)
        if annotations is not None:
            offsets = inputs.pop("offset_mapping").tolist()
            inputs["labels"] = [
                None
                if annotation is None
                else encode_annotation(
                    annotation,
                    get_image_size(images[index]),
                    sentences[index],
                    None if label_spans is None else label_spans[index],
                    offsets[index],
                    f"annotations[{index}]",
                )
                for index, annotation in enumerate(annotations)
            ]
        return inputs

    def _max_length(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_tokens
        if not isinstance(max_length, int) or max_length < 3:
            raise ValueError(f"`max_length` must be an integer of at least 3, got {max_length!r}.")
        return max_length

    def _merge_kwargs(self, *args, **kwargs):
        merged = super()._merge_kwargs(*args, **kwargs)
        text_kwargs = merged["text_kwargs"]
        # A tokenizer may bring a `max_length` of its own, of which it warns where nothing is cut or padded to it.
        if not text_kwargs.get("truncation") and text_kwargs.get("padding") != "max_length":
            text_kwargs.pop("max_length", None)
        return merged

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Images in a flat list, texts as one sentence for each."""
        images = None if images is None else self.image_processor.fetch_images(images)
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
        max_detections: int | None = 100,
        pre_nms_top_n: int = PRE_NMS_TOP_N,
        pre_nms_threshold: float = PRE_NMS_THRESHOLD,
        agnostic_nms: bool = False,
    ) -> list[dict[str, Any]]:
        """
        Boxes of labels, as the original finds them; see [`select_detections`].

        Args:
            outputs (`GLIPv2ObjectDetectionOutput`): of a model that detects.
            text_labels: the labels that the model was asked for, in order: a list for each image, or one for all. A
                label that is listed twice is answered under its first index.
            target_sizes: (height, width) of each image, to have boxes in its pixels; without it they are in pixels
                of the resized image.
            threshold: the lowest score that is returned; scores are the root of label score x centerness.
            nms_threshold: IoU above which the weaker of two boxes of a label goes.
            max_detections: boxes of an image at most; ties at the cut all stay; `None` for no limit.
            pre_nms_top_n: pairs of location and label that each level of the pyramid keeps before suppression.
            pre_nms_threshold: label scores (before centerness) above this make candidates, as in the original.
            agnostic_nms: suppress across labels, so that one object gets one label.

        Returns:
            `list[dict]`, one for each image: "scores" `(n,)` in falling order, "labels" `(n,)` long, indices of the
            image's labels, "text_labels", `n` strings, "boxes" `(n, 4)` x1, y1, x2, y2 in pixels (a box is
            `x2 - x1 + 1` wide in the resized image).

        Raises:
            TypeError: for wrong types.
            ValueError: for no or empty labels, labels that are not those of the outputs, wrong sizes, limits out of
                range, outputs that are not finite.
        """
        check_outputs(outputs)
        check_limits(threshold, nms_threshold, max_detections, pre_nms_threshold=pre_nms_threshold)
        limits = Limits(threshold, nms_threshold, max_detections, pre_nms_top_n, pre_nms_threshold, agnostic_nms)
        return on_device_of(outputs.logits, self._detections(outputs, text_labels, target_sizes, limits)[0])

    def post_process_phrase_grounding(
        self,
        outputs: Any,
        text: str | Sequence[str],
        phrases: Sequence[Any] | None = None,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        top_k: int = 10,
        threshold: float = 0.0,
        nms_threshold: float = 0.6,
        pre_nms_threshold: float = 0.0,
    ) -> list[list[dict[str, Any]]]:
        """
        The best boxes of each phrase of a sentence.

        Equal phrases at different characters are different phrases, and each has a ranking of its own. By default
        every location is a candidate and no score is too low, so that recall at k can be measured.

        Args:
            outputs (`GLIPv2ObjectDetectionOutput`): of a model that detects.
            text: the sentence that the model was given: one for each image, or one for all.
            phrases: for each image characters [start, end) of its phrases; where `text` is one sentence, those of
                that sentence. By default its noun phrases, as `phrase_chunker` finds them.
            target_sizes: (height, width) of each image, to have boxes in its pixels; without it they are in pixels
                of the resized image.
            top_k: boxes of a phrase at most; ties at the cut all stay.
            threshold: the lowest score that is returned: the root of phrase score (the mean over its tokens) x
                centerness.
            nms_threshold: IoU above which the weaker of two boxes of a phrase goes.
            pre_nms_threshold: phrase scores (before centerness) above this make candidates.

        Returns:
            `list[list[dict]]`: for each image, for each phrase in the order given: "phrase" (`str`), "span",
            "scores" `(n,)` in falling order, "boxes" `(n, 4)` x1, y1, x2, y2 in pixels.

        Raises:
            TypeError: for wrong types.
            ValueError: for an empty text, a text that is not that of the outputs, a span out of the text or without
                tokens, wrong sizes, limits out of range.
        """
        limits = (threshold, nms_threshold, top_k, pre_nms_threshold)
        found, _ = self._phrases(outputs, text, phrases, target_sizes, *limits)
        return [on_device_of(outputs.logits, own) for own in found]

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        text_labels: Sequence[str] | Sequence[Sequence[str]],
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.05,
        nms_threshold: float = 0.6,
        max_detections: int | None = 100,
        mask_threshold: float = 0.5,
        return_rle: bool = False,
        model: Any = None,
        pre_nms_threshold: float = PRE_NMS_THRESHOLD,
        agnostic_nms: bool = False,
    ) -> list[dict[str, Any]]:
        """
        Boxes of labels, and a mask in each.

        Args:
            outputs (`GLIPv2InstanceSegmentationOutput`): of `GLIPv2ForInstanceSegmentation`.
            text_labels, target_sizes, threshold, nms_threshold, max_detections, pre_nms_threshold, agnostic_nms: as in
                [`post_process_grounded_object_detection`]; masks have the target size too.
            mask_threshold: on the probability of a pixel; equal is outside the mask.
            return_rle: run lengths in place of arrays; 300 masks of 4000 x 3000 pixels are 3.6 GB as arrays.
            model: the model that gave `outputs`; needed only for copies of outputs (Accelerate makes them under mixed
                precision), which do not know it.

        Returns:
            As [`post_process_grounded_object_detection`], and "masks": boolean `(n, height, width)` on the CPU, or
            with `return_rle` a list of COCO's {"size": [height, width], "counts": str}.

        Raises:
            TypeError, ValueError: as there, for outputs without masks, or a threshold that is not a probability.
        """
        check_fraction(mask_threshold, "mask_threshold")
        check_outputs(outputs)
        check_limits(threshold, nms_threshold, max_detections, pre_nms_threshold=pre_nms_threshold)
        limits = Limits(
            threshold, nms_threshold, max_detections, pre_nms_threshold=pre_nms_threshold, agnostic_nms=agnostic_nms
        )
        results, maps = self._detections(outputs, text_labels, target_sizes, limits)
        positive_maps = [named[result["labels"]] for result, named in zip(results, maps, strict=True)]
        boxes = [result["boxes"] for result in results]
        logits, sizes = predict_mask_logits(outputs, boxes, positive_maps, target_sizes, model)
        masks = [
            instance_masks(own, result["boxes"], size, mask_threshold, return_rle)
            for result, own, size in zip(results, logits, sizes, strict=True)
        ]
        results = on_device_of(outputs.logits, results)
        return [{**result, "masks": own} for result, own in zip(results, masks, strict=True)]

    def post_process_referring_segmentation(
        self,
        outputs: Any,
        text: str | Sequence[str],
        phrases: Sequence[Any] | None = None,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.25,
        keep_best: bool = False,
        top_k: int = 20,
        nms_threshold: float = 0.6,
        mask_threshold: float = 0.5,
        model: Any = None,
        pre_nms_threshold: float = 0.0,
    ) -> list[list[dict[str, Any]]]:
        """
        One mask for each phrase: the union of all that it refers to, as PhraseCut asks for.

        Args:
            outputs (`GLIPv2InstanceSegmentationOutput`): of `GLIPv2ForInstanceSegmentation`.
            text, target_sizes, nms_threshold, pre_nms_threshold: as in [`post_process_phrase_grounding`]; masks have
                the target size.
            phrases: as there, but by default the whole text is the phrase.
            threshold: the lowest score of a box whose mask is part of the union.
            keep_best: always take the best box, for phrases that are known to refer to something.
            top_k: boxes of a phrase at most.
            mask_threshold: on the probability of a pixel; equal is outside the mask.
            model: as in [`post_process_instance_segmentation`].

        Returns:
            For each image, for each phrase "phrase", "span", "scores" `(n,)`, "boxes" `(n, 4)` of the parts, and
            "mask", boolean `(height, width)` on the CPU, empty where the phrase refers to nothing.

        Raises:
            TypeError, ValueError: as there, for outputs without masks, or a threshold that is not a probability.
        """
        check_limits(threshold, nms_threshold, top_k, "top_k", pre_nms_threshold)
        check_fraction(mask_threshold, "mask_threshold")
        sentences = per_image(text, len(outputs.logits), lambda value: isinstance(value, str), "text")
        if phrases is None:
            phrases = [[(0, len(sentence))] for sentence in sentences]
        elif isinstance(text, str):
            phrases = [phrases] * len(sentences)
        limits = (0.0, nms_threshold, top_k, pre_nms_threshold)
        results, maps = self._phrases(outputs, sentences, phrases, target_sizes, *limits)
        results = [[strong_boxes(phrase, threshold, keep_best) for phrase in found] for found in results]
        boxes, positive_maps = [], []
        for named, found in zip(maps, results, strict=True):
            counts = torch.tensor([len(phrase["boxes"]) for phrase in found], dtype=torch.long)
            positive_maps.append(named.repeat_interleave(counts, dim=0))
            boxes.append(torch.cat([torch.zeros(0, 4), *(phrase["boxes"] for phrase in found)]))
        logits, sizes = predict_mask_logits(outputs, boxes, positive_maps, target_sizes, model)
        found = [
            referring_masks(phrases, own, size, mask_threshold)
            for phrases, own, size in zip(results, logits, sizes, strict=True)
        ]
        # Masks stay on the CPU.
        return [
            [{**moved, "mask": one["mask"]} for moved, one in zip(on_device_of(outputs.logits, own), own, strict=True)]
            for own in found
        ]

    @property
    def _keeps_aspect(self) -> bool:
        """Whether the image processor resizes by the short side, not to a fixed height and width."""
        size = self.image_processor.size
        return bool(size.get("shortest_edge") if isinstance(size, Mapping) else getattr(size, "shortest_edge", None))

    def _detections(
        self, outputs: Any, text_labels: Any, target_sizes: Any, limits: Limits
    ) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
        """The boxes of labels, and for each image the tokens of its labels, `(labels, tokens)`; on the CPU."""
        sizes = check_target_sizes(target_sizes, len(outputs.logits))
        all_labels, maps = self._labels_and_maps(outputs, text_labels)
        firsts = [torch.tensor(first_indices(labels, "text_labels")) for labels in all_labels]
        used: dict[int, torch.Tensor] = {}
        for named, first in zip(maps, firsts, strict=True):
            used.setdefault(id(named), named[first])
        results: list[dict[str, Any]] = batch_detections(
            outputs, [used[id(named)] for named in maps], sizes, limits, keeps_aspect=self._keeps_aspect
        )
        for result, first, labels in zip(results, firsts, all_labels, strict=True):
            result["labels"] = first[result["labels"]]
            result["text_labels"] = [labels[label] for label in result["labels"].tolist()]
        return results, maps

    def _phrases(
        self,
        outputs: Any,
        text: Any,
        phrases: Sequence[Any] | None,
        target_sizes: Any,
        threshold: float,
        nms_threshold: float,
        top_k: int,
        pre_nms_threshold: float,
    ) -> tuple[list[list[dict[str, Any]]], list[torch.Tensor]]:
        """The boxes of phrases, and for each image the tokens of its phrases, `(phrases, tokens)`; on the CPU."""
        check_outputs(outputs)
        check_limits(threshold, nms_threshold, top_k, "top_k", pre_nms_threshold)
        num_images = len(outputs.logits)
        sizes = check_target_sizes(target_sizes, num_images)
        if phrases is not None:
            phrases = (
                [phrases] * num_images
                if isinstance(text, str)
                else per_image(phrases, num_images, lambda value: False, "phrases")
            )
        sentences = per_image(text, num_images, lambda value: isinstance(value, str), "text")
        seen = texts_of(outputs)
        spans, maps = [], []
        for index, sentence in enumerate(sentences):
            check_sentence(sentence, f"text[{index}]")
            spans.append(find_noun_phrases(sentence, self.phrase_chunker) if phrases is None else phrases[index])
            maps.append(self._phrase_map(seen[index], index, sentence, spans[-1]))
        limits = Limits(threshold, nms_threshold, top_k, pre_nms_threshold=pre_nms_threshold)
        found = iter(batch_detections(outputs, maps, sizes, limits, each_label=True, keeps_aspect=self._keeps_aspect))
        results: list[list[dict[str, Any]]] = []
        for sentence, own in zip(sentences, spans, strict=True):
            results.append([])
            for start, end in own:
                boxes = next(found)
                named = {"phrase": sentence[start:end], "span": (start, end)}
                results[-1].append({**named, "scores": boxes["scores"], "boxes": boxes["boxes"]})
        return results, maps

    def _labels_and_maps(self, outputs: Any, text_labels: Any) -> tuple[list[Sequence[str]], list[torch.Tensor]]:
        """Each image's labels and their tokens, boolean `(labels, tokens)`; one tensor for images of one text."""
        all_labels = per_image(
            text_labels,
            len(outputs.logits),
            lambda value: is_list(value) and bool(value) and isinstance(value[0], str),
            "text_labels",
        )
        known: dict[tuple[str, ...], tuple[list[list[int]], str]] = {}
        made: dict[Any, torch.Tensor] = {}
        maps = []
        for index, (labels, seen) in enumerate(zip(all_labels, texts_of(outputs), strict=True)):
            check_labels(labels, f"text_labels[{index}]")
            if tuple(labels) not in known:
                prompt = label_prompt(labels)
                known[tuple(labels)] = prompt_tokens(prompt, self.tokenizer)[0], prompt.text
            key = tuple(labels), *(None if part is None else tuple(part.tolist()) for part in seen)
            if key not in made:
                made[key] = self._label_map(seen, index, *known[tuple(labels)])
            maps.append(made[key])
        return all_labels, maps

    def _phrase_map(self, seen: SeenText, index: int, sentence: str, spans: Sequence[Span]) -> torch.Tensor:
        """Boolean `(phrases, tokens)` for one image."""
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
        return self._label_map(seen, index, tokens, sentence)

    def _label_map(self, seen: SeenText, index: int, tokens: list[list[int]], text: str) -> torch.Tensor:
        """
        Boolean `(labels, tokens)` for one image, after a check that the text is the one that the model saw; a full
        stop at its end makes no difference.
        """
        ids, mask = seen
        asked, with_stop = self.tokenizer([text, text + "."], truncation=False, padding=False)["input_ids"]
        given = None if ids is None else ids[mask.bool()].tolist()
        if given is not None and given in (asked, with_stop):
            return label_map(tokens, mask)
        remedy = "pass the same labels in the same order (or the same sentence) as to the processor."
        count = int(mask.sum())
        if count != len(asked):
            raise ValueError(
                f"The text of image {index} has {len(asked)} tokens, but the model was given {count}; {remedy}"
            )
        if given is not None:
            raise ValueError(f"The text of image {index} is not the one that the model was given; {remedy}")
        return label_map(tokens, mask)

    @staticmethod
    def _check_annotations(
        annotations: Any, num_images: int | None, sentences: list[str] | None, return_tensors: str | None
    ) -> list[Mapping[str, Any] | None]:
        if num_images is None or sentences is None:
            raise ValueError("`annotations` belong to images and texts; pass `images` and `text` with them.")
        if return_tensors != "pt":
            raise ValueError(f'`annotations` need `return_tensors="pt"`, got {return_tensors!r}.')
        annotations = [annotations] if isinstance(annotations, Mapping) else list(annotations)
        if len(annotations) != num_images:
            raise ValueError(
                f"`annotations` has {len(annotations)} entries for {num_images} images; pass one for each (None "
                "where nothing is known)."
            )
        return annotations

    @staticmethod
    def _check_lengths(
        inputs: BatchFeature, sentences: list[str], label_spans: list[list[Span]] | None, max_length: int
    ) -> None:
        for index, mask in enumerate(inputs["attention_mask"]):
            length = int(torch.as_tensor(mask).sum())
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
                f"The text of image {index} has {length} tokens, at most {max_length} fit: {start!r}... {remedy}"
            )


__all__ = ["GLIPv2Processor"]
