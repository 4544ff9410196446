"""Detection with any number of labels, and grounding of sentences, over images that are encoded once."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput, logging

from ..image_processing_glipv2 import ImageSource, flatten_images, get_image_size
from ..post_processing import check_limits, image_detections, merge_detections
from ..prompts import check_labels, is_list, label_map, prompt_tokens, split_labels

logger = logging.get_logger(__name__)

# A progress bar shows from so many forward passes of the fusion on.
LONG = 10
# Fast tokenizers keep the settings of the last call and fail when two threads change them at once.
_TOKENIZER_LOCK = threading.Lock()


# Prompts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedPrompt:
    """
    Some labels of a vocabulary as tokens of one sentence.

    Attributes:
        input_ids (`list[int]`): special tokens included.
        label_map (`torch.BoolTensor` of shape `(labels, tokens)`): the tokens of each label.
        indices (`list[int]`): each label's place in the vocabulary.
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
    with _TOKENIZER_LOCK:
        for prompt in split_labels(labels, tokenizer, max_tokens, labels_per_prompt):
            tokens, num_tokens = prompt_tokens(prompt, tokenizer)
            input_ids = tokenizer(prompt.text, truncation=False, padding=False)["input_ids"]
            encoded.append(EncodedPrompt(input_ids, label_map(tokens, torch.ones(num_tokens)), prompt.indices))
    return encoded


def pad_prompts(prompts: Sequence[EncodedPrompt], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `(prompts, tokens)`, padded on the right to the longest."""
    length = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_token_id)
    attention_mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, : len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
        attention_mask[index, : len(prompt.input_ids)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def max_prompt_tokens(model: PreTrainedModel, tokenizer: Any) -> int:
    """Tokens of a prompt at most: the smaller of the model's and the tokenizer's limit."""
    return min(model.config.max_text_length, tokenizer.model_max_length)


# One image ---------------------------------------------------------------------------------------------------------


def detect_prompts(
    model: PreTrainedModel,
    image_features: ModelOutput,
    prompts: Sequence[EncodedPrompt],
    pad_token_id: int,
    target_size: tuple[float, float],
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    prompts_per_batch: int = 1,
    on_batch: Callable[[], Any] | None = None,
) -> dict[str, Tensor]:
    """
    The boxes of one image for all its prompts.

    Args:
        model: `GLIPv2ForObjectDetection` or another model with its outputs.
        image_features: of this image alone, from `model.get_image_features`.
        prompts: as `encode_labels` gives them.
        pad_token_id: of the tokenizer.
        target_size: (height, width) in pixels to measure boxes in.
        threshold, nms_threshold, max_detections: as in [`image_detections`].
        prompts_per_batch: prompts of one forward pass.
        on_batch: called after each forward pass.

    Returns:
        "scores" `(n,)` in falling order, "labels" `(n,)` (indices of the vocabulary), "boxes" `(n, 4)` xyxy in pixels;
        on the CPU.
    """
    results = []
    for start in range(0, len(prompts), prompts_per_batch):
        batch = prompts[start : start + prompts_per_batch]
        outputs = model(image_features=image_features, **pad_prompts(batch, pad_token_id, model.device))
        for index, prompt in enumerate(batch):
            found = image_detections(
                outputs, index, prompt.label_map, target_size, threshold, nms_threshold, max_detections
            )
            results.append({name: value.cpu() for name, value in found.items()})
        if on_batch is not None:
            on_batch()
    return merge_detections(results, [prompt.indices for prompt in prompts], max_detections)


def features_of_image(image_features: ModelOutput, index: int) -> ModelOutput:
    """One image's part of what `model.get_image_features` gives for a batch; nothing is copied."""
    return type(image_features)(
        feature_maps=tuple(level[index : index + 1] for level in image_features.feature_maps),
        image_sizes=image_features.image_sizes[index : index + 1],
    )


# Many images -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def detect_labels(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text_labels: Sequence[str] | Sequence[Sequence[str]],
    threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    labels_per_prompt: int | None = None,
    prompts_per_batch: int | None = None,
    batch_size: int = 1,
    size: Mapping[str, int] | None = None,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """
    Detects any number of labels in any number of images.

    Labels that do not fit one prompt go to further prompts over the same features of the image, which the backbone
    makes once; results merge under the labels' own indices. The model's text cache (`config.text_cache_size` batches
    of prompts) keeps the words' features from image to image. Memory is bounded by `batch_size` images and
    `prompts_per_batch` prompts; images are read as they are needed. Safe to call from several threads.

    Args:
        model: `GLIPv2ForObjectDetection` or another model with its outputs, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
            Files are turned upright, the pixels of image objects taken as they lie.
        text_labels: labels to look for in all images, or a list of labels for each image.
        threshold: on the label's score before centerness; equal is dropped.
        nms_threshold: IoU above which a box of the same label is suppressed.
        max_detections: boxes of an image at most, over all labels; ties at the cut all stay.
        labels_per_prompt: labels of a prompt at most; by default as many as fit `max_text_length`.
        prompts_per_batch: prompts of one forward pass; by default 1 on a CPU, where more only cost memory, else 8.
        batch_size: images that the backbone encodes together. Unless `config.mask_padded_pixels`, the padding of
            images of different size takes part as in the original, so that results depend a little on the batch.
        size: of the resized images, in place of the image processor's own.
        progress: show a progress bar; by default from 10 forward passes on.

    Returns:
        For each image {"scores" `(n,)` in falling order, "labels" `(n,)` (indices of its `text_labels`),
        "text_labels" (a list of n names), "boxes" `(n, 4)` xyxy in pixels of the given image}, on the CPU.

    Raises:
        TypeError, ValueError: for no labels, an empty one, one that is longer than a prompt, another number of lists
            of labels than images, or a bad image.

    Example:
        >>> results = detect_labels(model, processor, images=["street.jpg"], text_labels=lvis_names)
    """
    check_limits(threshold, nms_threshold, max_detections)
    for name, value in (("batch_size", batch_size), ("prompts_per_batch", prompts_per_batch)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if prompts_per_batch is None:
        prompts_per_batch = 1 if model.device.type == "cpu" else 8
    _warn_in_training(model)
    images = _single_images(images)
    labels_of = _labels_per_image(text_labels, len(images) if isinstance(images, list) else None)
    max_tokens = min(processor.max_tokens, max_prompt_tokens(model, processor.tokenizer))
    encode = _once_per_value(lambda labels: encode_labels(labels, processor.tokenizer, max_tokens, labels_per_prompt))
    results: list[dict[str, Any]] = []
    with _Progress(progress, _count_batches(images, labels_of, encode, prompts_per_batch)) as bar:
        for group in _batches(images, batch_size):
            group = flatten_images(group)
            all_labels = [labels_of(len(results) + offset) for offset in range(len(group))]
            prompts = [encode(tuple(labels)) for labels in all_labels]  # wrong labels fail before the backbone runs
            features = _encode_images(model, processor, group, size)
            for index, (image, labels) in enumerate(zip(group, all_labels, strict=True)):
                found = detect_prompts(
                    model,
                    features_of_image(features, index),
                    prompts[index],
                    processor.tokenizer.pad_token_id,
                    get_image_size(image),
                    threshold,
                    nms_threshold,
                    max_detections,
                    prompts_per_batch,
                    bar.update,
                )
                found["text_labels"] = [labels[label] for label in found["labels"].tolist()]
                results.append(found)
    return results


@torch.no_grad()
def ground_phrases(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    sentences: str | Sequence[str],
    phrases: Sequence[Any] | None = None,
    batch_size: int = 1,
    size: Mapping[str, int] | None = None,
    progress: bool | None = None,
    **post_processing: Any,
) -> list[list[dict[str, Any]]]:
    """
    Finds what the phrases of sentences name. Safe to call from several threads.

    Args:
        model: `GLIPv2ForObjectDetection` or another model with its outputs, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: as in [`detect_labels`].
        sentences: one for all images, or one for each image.
        phrases: for each image characters [start, end) of its phrases; where `sentences` is one string, those of
            that string. By default the noun phrases.
        batch_size, size, progress: as in [`detect_labels`].
        post_processing: further arguments of `processor.post_process_phrase_grounding`, such as `top_k`.

    Returns:
        For each image a list of {"phrase", "span", "scores", "boxes"}, boxes xyxy in pixels of the given image.

    Raises:
        TypeError, ValueError: for an empty or too long sentence, or another number of sentences or phrases than
            images.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    _warn_in_training(model)
    images = list(_single_images(images))
    if isinstance(sentences, str):
        sentences = [sentences] * len(images)
        phrases = None if phrases is None else [phrases] * len(images)
    for name, values in (("sentences", sentences), ("phrases", phrases)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(images)} images; pass one for each.")
    results: list[list[dict[str, Any]]] = []
    with _Progress(progress, -(-len(images) // batch_size)) as bar:
        for group in _batches(images, batch_size):
            group, part = flatten_images(group), slice(len(results), len(results) + len(group))
            with _TOKENIZER_LOCK:
                texts = processor(text=sentences[part], return_tensors="pt").to(model.device)
            features = _encode_images(model, processor, group, size)
            outputs = model(image_features=features, **texts)
            with _TOKENIZER_LOCK:
                results += processor.post_process_phrase_grounding(
                    outputs,
                    text=sentences[part],
                    phrases=None if phrases is None else phrases[part],
                    target_sizes=[get_image_size(image) for image in group],
                    **post_processing,
                )
            bar.update()
    return results


# Helpers -------------------------------------------------------------------------------------------------------------


class _Progress:
    """A tqdm bar that shows itself only where the work is long; `total` is `None` where it is unknown."""

    def __init__(self, progress: bool | None, total: int | None):
        show = (total is None or total >= LONG) if progress is None else progress
        self.bar = tqdm(total=total, desc="detecting", unit="forward", disable=not show)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.update()


def _encode_images(
    model: PreTrainedModel, processor: ProcessorMixin, images: list[ImageSource], size: Mapping[str, int] | None
) -> ModelOutput:
    options = {} if size is None else {"size": dict(size)}
    inputs: BatchFeature = processor.image_processor(images, return_tensors="pt", **options)
    return model.get_image_features(inputs["pixel_values"].to(model.device), inputs["pixel_mask"].to(model.device))


def _single_images(images: Any) -> list[ImageSource] | Iterable[ImageSource]:
    """One image each; files stay unread. Iterables other than lists are left to be consumed."""
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("`images` is empty; pass at least one image.")
        return list(images)
    if isinstance(images, str) or not isinstance(images, Iterable) or hasattr(images, "ndim"):
        # One image, or an array of several.
        return [images] if isinstance(images, str) else flatten_images(images)
    return images


def _labels_per_image(text_labels: Any, num_images: int | None) -> Callable[[int], Sequence[str]]:
    """The labels of the image at an index."""
    if not (is_list(text_labels) and text_labels and all(is_list(labels) for labels in text_labels)):
        check_labels(text_labels, "text_labels")
        return lambda index: text_labels
    if num_images is not None and num_images != len(text_labels):
        raise ValueError(
            f"`text_labels` has {len(text_labels)} lists of labels for {num_images} images; pass one list for "
            "each, or one flat list for all."
        )
    for index, labels in enumerate(text_labels):
        check_labels(labels, f"text_labels[{index}]")

    def labels_of(index: int) -> Sequence[str]:
        if index >= len(text_labels):
            raise ValueError(f"`text_labels` has {len(text_labels)} lists of labels, but there are more images.")
        return text_labels[index]

    return labels_of


def _once_per_value(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Remembers the last result, so that a vocabulary shared by all images is split once."""
    last: list[Any] = [None, None]

    def remembered(value: Any) -> Any:
        if last[0] != value:
            last[:] = [value, function(value)]
        return last[1]

    return remembered


def _count_batches(
    images: list[ImageSource] | Iterable[ImageSource],
    labels_of: Callable[[int], Sequence[str]],
    encode: Callable[[Any], list[EncodedPrompt]],
    prompts_per_batch: int,
) -> int | None:
    """Forward passes of all images; `None` where their number is unknown."""
    if not isinstance(images, list):
        return None
    return sum(-(-len(encode(tuple(labels_of(index)))) // prompts_per_batch) for index in range(len(images)))


def _batches(images: Iterable[ImageSource], batch_size: int) -> Iterator[list[ImageSource]]:
    batch: list[ImageSource] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _warn_in_training(model: PreTrainedModel) -> None:
    if model.training:
        logger.warning_once("The model is in training mode, so boxes are random; call `model.eval()` first.")


__all__ = ["EncodedPrompt", "detect_labels", "detect_prompts", "encode_labels", "ground_phrases"]
