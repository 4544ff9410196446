"""The `Detector`: boxes and masks of any number of labels, boxes of phrases, answers and captions."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput, logging

from ..boxes import to_device
from ..image_processing_glipv2 import ImageSource
from ..layers.paste_masks import instance_masks
from ..modeling_glipv2 import GLIPv2ForObjectDetection
from ..post_processing import (
    Limits,
    batch_detections,
    check_count,
    check_finite,
    cut_at,
    first_indices,
    merge_detections,
    scale_boxes,
)
from ..processing_glipv2 import GLIPv2Processor
from .batch_size import AutoBatchSize
from .batching import (
    PreparedImage,
    Progress,
    group_by_shape,
    in_order,
    labels_for,
    one_ahead,
    one_each,
    prepare_images,
    select_images,
    sentences_for,
    single_images,
    stack_images,
)
from .compiled_network import CompiledNetwork
from .encoded_prompts import TOKENIZER_LOCK, EncodedPrompt, encode_labels, max_prompt_tokens
from .model_checks import check_model, default_labels
from .onnx_backend import OnnxNetwork, check_backend
from .options import LABEL_OPTIONS, MASK_OPTIONS, SHARED_OPTIONS, DetectorOptions
from .text_features import TextFeatureCache
from .text_results import decode_captions, fitting_part, top_answers

logger = logging.get_logger(__name__)

# Prompts whose text features a detector keeps, 100 MB of the largest ones.
TEXT_CACHE_SIZE = 128
# Boxes that each prompt keeps where the boxes of an image have no limit.
PER_PROMPT = 300

# The detector --------------------------------------------------------------------------------------------------------


class Detector:
    """
    Inference with a model and its processor. The pipelines, `detect_labels`, `segment_labels`, `ground_phrases`,
    `answer_and_ground`, `caption_and_ground` and evaluation all use it.

    The images of a batch go through the network together, grouped by their size, and each is encoded once however many
    prompts its labels need. Text features are kept from call to call, the last 128 prompts, and made anew when the
    text encoder's weights, dtype, device, adapters or autocast change. Images are read as they are needed, on a GPU by
    threads ahead of it; memory is bounded by `batch_size`. Safe to use from several threads.

    Args:
        model: `GLIPv2ForObjectDetection` or another model with its outputs, in evaluation mode.
        processor (`GLIPv2Processor`).
        backend: `"torch"`, or `"onnx"` to compute boxes with ONNX Runtime on the CPU, which needs the extra `export`;
            the first time for a model's weights it exports them, see [`OnnxNetwork`].
        compile: compile the image encoder and the fused tower (`torch.compile`; on a GPU also CUDA graphs), or options
            of `torch.compile`. Images, prompts and batches are padded to a few sizes, for each of which the first call
            takes a minute or so; the wider padding can change scores a little. Worth it for many images.
        options: fields of [`DetectorOptions`], the defaults of all calls.

    Raises:
        TypeError: for a model without boxes, or an unknown option.
        ValueError: when a head was not in the checkpoint, weights are not finite, or an option is out of range.

    Example:
        >>> detector = Detector(model, processor, threshold=0.3, batch_size=8)
        >>> results = detector.detect(images, ["person", "traffic light"])
    """

    # Where the package is installed, it also knows released checkpoints by name; see `resolve_model`.
    resolve_source: Callable[[Any], str] = staticmethod(os.fspath)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        model_class: type[PreTrainedModel] = GLIPv2ForObjectDetection,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> "Detector":
        """
        A detector of a folder, a Hub id, or a released checkpoint by name, such as `"glip-tiny"`.

        Args:
            source: folder, Hub id or name.
            model_class: the class to load, such as `GLIPv2ForInstanceSegmentation` for masks.
            device: where the model goes; the CPU by default.
            options: `backend`, and fields of [`DetectorOptions`], the defaults of all calls.

        Raises:
            OSError, ValueError: as `from_pretrained` of the class and [`resolve_model`] do.
        """
        folder = cls.resolve_source(source)
        model = model_class.from_pretrained(folder).eval()
        return cls(model if device is None else model.to(device), GLIPv2Processor.from_pretrained(folder), **options)

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        backend: str = "torch",
        compile: bool | Mapping[str, Any] = False,
        **options: Any,
    ):
        check_backend(backend)
        if compile and backend != "torch":
            raise ValueError(f'`compile` goes with `backend="torch"`, not with {backend!r}; pass one of them.')
        check_model(model)
        self.model = model
        self.processor = processor
        self.options = DetectorOptions().updated(options)
        # What gives image features and boxes.
        self.network: Any = OnnxNetwork(model) if backend == "onnx" else model
        if compile:
            compile_options = compile if isinstance(compile, Mapping) else None
            self.network = CompiledNetwork(model, processor.image_processor.usual_edges(), compile_options)
        self.auto_batch_size = AutoBatchSize()
        self.text_features = TextFeatureCache(TEXT_CACHE_SIZE)

    # Calls -----------------------------------------------------------------------------------------------------------

    def detect(
        self, images: ImageSource | Iterable[ImageSource], text_labels: Any = None, **options: Any
    ) -> list[dict]:
        """
        Boxes of any number of labels in any number of images.

        Args:
            images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
                Files are turned upright, the pixels of image objects are taken as they are.
            text_labels: labels to look for in all images, or a list of labels for each image; by default the classes
                that the model was fine-tuned for, `config.labels`. Labels that do not fit one prompt go to further
                ones. A label that is listed twice is answered under its first index.
            options: of [`DetectorOptions`], for this call.

        Returns:
            For each image {"scores" `(n,)` in falling order, "labels" `(n,)` (indices of its `text_labels`),
            "text_labels" (a list of n names), "boxes" `(n, 4)` xyxy in pixels of the image}, on the CPU.

        Raises:
            TypeError, ValueError: for no labels, an empty one, one that is longer than a prompt, another number of
                lists of labels than images, a bad image or option, or a network whose results are not finite.
        """
        return list(self.stream(images, text_labels, **options))

    def stream(
        self, images: ImageSource | Iterable[ImageSource], text_labels: Any = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """As [`Detector.detect`], one result at a time; the arguments are checked at the call."""
        return self._find(images, text_labels, self.options.updated(options, LABEL_OPTIONS, "detection"), masks=False)

    def segment(
        self, images: ImageSource | Iterable[ImageSource], text_labels: Any = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """
        As [`Detector.stream`], each result with "masks": n run lengths (see `return_rle`), or boolean `(n, height,
        width)`, in the size of the image.

        Raises:
            TypeError, ValueError: also for a model without a mask head, at the call.
        """
        check_model(self.model, "mask_head")
        return self._find(images, text_labels, self.options.updated(options, MASK_OPTIONS, "segmentation"), masks=True)

    def run_prompts(
        self,
        images: ImageSource | Iterable[ImageSource],
        prompts: Sequence[EncodedPrompt],
        target_sizes: Sequence[tuple[int, int]] | None = None,
        masks: bool = False,
        **options: Any,
    ) -> Iterator[dict[str, Any]]:
        """
        As [`Detector.stream`], of prompts that are encoded already.

        Args:
            images: as there.
            prompts: of all images; of `encode_labels`, or with words around the labels.
            target_sizes: (height, width) to measure each image's boxes and masks in; by default the image's own.
            masks: also "masks", as in [`Detector.segment`].
            options: as there.

        Yields:
            As there, without "text_labels".
        """
        check_model(self.model, "mask_head" if masks else "detection_head")
        settings = self.options.updated(options, MASK_OPTIONS if masks else LABEL_OPTIONS, "detection")
        images = single_images(images)
        sizes = (lambda index: None) if target_sizes is None else one_each(target_sizes, images, "target_sizes")
        total = len(images) * len(prompts) if isinstance(images, list) else None
        return self._stream_detections(images, lambda index: list(prompts), sizes, None, settings, masks, total)

    def ground(
        self,
        images: ImageSource | Iterable[ImageSource],
        sentences: str | Sequence[str],
        phrases: Sequence[Any] | None = None,
        top_k: int = 10,
        **options: Any,
    ) -> list[list[dict[str, Any]]]:
        """
        Finds what the phrases of sentences name.

        Args:
            images: as in [`Detector.detect`].
            sentences: one for all images, or one for each image.
            phrases: for each image characters [start, end) of its phrases; where `sentences` is one string, those of
                that string. By default the noun phrases.
            top_k: boxes of a phrase at most; ties at the cut all stay.
            options: of [`DetectorOptions`], for this call.

        Returns:
            For each image a list of {"phrase", "span", "scores" `(n,)` in falling order, "boxes" `(n, 4)` xyxy in
            pixels of the image}.

        Raises:
            TypeError, ValueError: for an empty or too long sentence, or another number of sentences or phrases than
                images.
        """
        settings = self.options.updated(options, SHARED_OPTIONS, "grounding")
        limits = self.phrase_limits(settings, top_k)
        images = single_images(images)
        sentence_of = sentences_for(images, sentences, "sentences")
        if phrases is None:
            spans_of = None
        elif isinstance(sentences, str):
            spans_of = lambda index: phrases  # noqa: E731
        else:
            spans_of = one_each(phrases, images, "phrases")

        def respond(features: ModelOutput, batch: list[PreparedImage]) -> list[Any]:
            texts, spans = zip(*(image.asked for image in batch), strict=True)
            outputs = self._read_texts(self._find_boxes, features, list(texts))
            return self.phrases(outputs, list(texts), [one.target_size for one in batch], limits, spans)

        def asked(index: int) -> tuple[str, Any]:
            return sentence_of(index), None if spans_of is None else spans_of(index)

        return self._with_progress(images, asked, settings, respond)

    def answer(
        self,
        images: ImageSource | Iterable[ImageSource],
        questions: str | Sequence[str],
        top_k: int = 5,
        boxes_per_phrase: int = 1,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """
        Answers questions about images and finds what the questions name, in the same forward pass.

        Args:
            images: as in [`Detector.detect`].
            questions: one for all images, or one for each image.
            top_k: answers of a question at most.
            boxes_per_phrase: boxes of a phrase at most; ties at the cut all stay.
            options: of [`DetectorOptions`], for this call.

        Returns:
            For each image {"answers": as [`top_answers`], "phrases": as [`Detector.ground`]}.

        Raises:
            TypeError, ValueError: for an empty or too long question, another number of questions than images, an
                option out of range, or a model without an answer head.
        """
        check_model(self.model, "answer_head")
        check_count(top_k, "top_k")
        settings = self.options.updated(options, SHARED_OPTIONS, "answering")
        limits = self.phrase_limits(settings, boxes_per_phrase, "boxes_per_phrase")
        images = single_images(images)
        question_of = sentences_for(images, questions, "questions")

        def respond(features: ModelOutput, batch: list[PreparedImage]) -> list[dict[str, Any]]:
            return self.answer_batch(features, batch, top_k, limits)

        return self._with_progress(images, question_of, settings, respond)

    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        text: str | Sequence[str] = "",
        generate_kwargs: Mapping[str, Any] | None = None,
        boxes_per_phrase: int = 1,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """
        Describes images and finds what the noun phrases of the descriptions name.

        The backbone runs once an image; then the caption is generated, and its tokens go through the fused tower once.

        Args:
            images: as in [`Detector.detect`].
            text: how captions begin: for all images, or for each one; empty for no beginning.
            generate_kwargs: arguments of `model.generate`; by default beam search with 5 beams and 40 new tokens at
                most.
            boxes_per_phrase: boxes of a phrase at most; ties at the cut all stay.
            options: of [`DetectorOptions`], for this call.

        Returns:
            For each image {"caption": str, "phrases": as [`Detector.ground`]}; spans are characters [start, end) of
            the caption.

        Raises:
            TypeError, ValueError: for another number of beginnings than images, one that fills the whole text, an
                option out of range, or a model without a caption head.
        """
        check_model(self.model, "caption_head")
        settings = self.options.updated(options, SHARED_OPTIONS, "captioning")
        limits = self.phrase_limits(settings, boxes_per_phrase, "boxes_per_phrase")
        images = single_images(images)
        beginning_of = sentences_for(images, text, "text", empty=True)
        generation = {"num_beams": 5, "max_new_tokens": 40} if generate_kwargs is None else generate_kwargs

        def respond(features: ModelOutput, batch: list[PreparedImage]) -> list[dict[str, Any]]:
            return self.caption_batch(features, batch, generation, limits)

        return self._with_progress(images, beginning_of, settings, respond)

    # Parts -----------------------------------------------------------------------------------------------------------

    def encode(self, text_labels: Sequence[str], labels_per_prompt: int | None = None) -> list[EncodedPrompt]:
        """The labels in as few prompts as hold them, each once, under their first indices."""
        max_tokens = min(self.processor.max_tokens, max_prompt_tokens(self.model, self.processor.tokenizer))
        first = first_indices(text_labels, "text_labels")
        encoded = encode_labels(
            [text_labels[index] for index in first], self.processor.tokenizer, max_tokens, labels_per_prompt
        )
        return [
            EncodedPrompt(prompt.input_ids, prompt.label_map, [first[index] for index in prompt.indices])
            for prompt in encoded
        ]

    @torch.no_grad()
    def results(
        self,
        images: Iterable[ImageSource],
        asked: Callable[[int], Any],
        options: DetectorOptions,
        respond: Callable[[ModelOutput, list[PreparedImage]], list[Any]],
        target_size: Callable[[int], tuple[int, int] | None] = lambda index: None,
    ) -> Iterator[Any]:
        """
        What `respond` makes of batches of images of one size and their features, in the order of the images.

        Args:
            images: read as needed.
            asked: what is asked of the image at an index.
            options: `batch_size`, `num_workers` and `size` are read.
            respond: from `model.get_image_features` and the prepared images to a result for each.
            target_size: (height, width) to measure the image at an index in, or `None`.
        """
        self._begin()
        pin = self.model.device.type == "cuda"
        num_workers = options.num_workers
        if num_workers is None:
            single = isinstance(images, list) and len(images) == 1
            num_workers = 0 if self.model.device.type == "cpu" or single else min(8, os.cpu_count() or 1)

        def prepared() -> Iterator[PreparedImage]:
            opened = prepare_images(self.processor, images, options.size, num_workers)
            for index, image in enumerate(opened):
                image.asked = asked(index)
                image.target_size = target_size(index) or image.target_size
                yield image

        def batches() -> Iterator[tuple[list[int], list[PreparedImage], tuple[Tensor, Tensor]]]:
            most = self._auto_images if options.batch_size == "auto" else options.batch_size
            for indices, batch in group_by_shape(prepared(), most):
                yield indices, batch, stack_images(batch, pin)

        answer = self._respond_as_fits if options.batch_size == "auto" else self._respond
        yield from in_order(
            (indices, answer(*stacked, batch, respond))
            for indices, batch, stacked in (one_ahead(batches()) if num_workers else batches())
        )

    @torch.no_grad()
    def respond_all(
        self, prepared: Sequence[PreparedImage], respond: Callable[[ModelOutput, list[PreparedImage]], list[Any]]
    ) -> list[Any]:
        """As [`Detector.results`], for images that are prepared: all of them at once, by size."""
        self._begin()
        return list(
            in_order(
                (indices, self._respond(*stack_images(batch, self.model.device.type == "cuda"), batch, respond))
                for indices, batch in group_by_shape(prepared, max(len(prepared), 1))
            )
        )

    def text_inputs(self, sentences: list[str]) -> dict[str, Tensor]:
        """The model's inputs of sentences, padded to the longest; on the CPU."""
        with TOKENIZER_LOCK:
            return dict(self.processor(text=sentences, return_tensors="pt"))

    def phrase_limits(self, options: DetectorOptions, top_k: int, name: str = "top_k") -> dict[str, Any]:
        """Arguments of `processor.post_process_phrase_grounding`; `name` is what `top_k` is called, for errors."""
        check_count(top_k, name)
        return {
            "top_k": top_k,
            "threshold": options.threshold,
            "nms_threshold": options.nms_threshold,
            "pre_nms_threshold": self.pre_nms_threshold(options),
        }

    def pre_nms_threshold(self, options: DetectorOptions) -> float:
        """That of the options; where it is `None`, that of the model's configuration."""
        if options.pre_nms_threshold is None:
            return self.model.config.score_threshold_before_nms
        return options.pre_nms_threshold

    def phrases(
        self,
        outputs: ModelOutput,
        sentences: list[str],
        target_sizes: list[tuple[int, int]],
        limits: dict[str, Any],
        spans: Sequence[Any] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The boxes of the sentences' phrases: of the given spans, or of their noun phrases."""
        given = None if spans is None or spans[0] is None else list(spans)
        with TOKENIZER_LOCK:
            return self.processor.post_process_phrase_grounding(
                outputs, text=sentences, phrases=given, target_sizes=target_sizes, **limits
            )

    def find(
        self,
        features: ModelOutput,
        batch: list[PreparedImage],
        options: DetectorOptions,
        masks: bool = False,
        on_forward: Callable[[int], Any] = lambda count: None,
    ) -> list[dict[str, Any]]:
        """
        The boxes of a batch of images for all prompts of each.

        Args:
            features: of the batch.
            batch: images of one size, whose `asked` are lists of [`EncodedPrompt`].
            options: as of the call.
            masks: also "mask_logits".
            on_forward: called after each forward pass with the number of its prompts.

        Returns:
            For each image "scores" `(n,)` in falling order, "labels" `(n,)` (indices of the vocabulary), "boxes"
            `(n, 4)` xyxy in pixels of its target size, and with `masks` "mask_logits" `(n, side, side)`; on the CPU.
        """
        at_once = options.prompts_per_batch or (1 if self.model.device.type == "cpu" else 8)
        found: list[list[dict[str, Tensor]]] = [[] for _ in batch]
        for start in range(0, max(len(image.asked) for image in batch), at_once):
            pairs = [
                (index, prompt) for index, image in enumerate(batch) for prompt in image.asked[start : start + at_once]
            ]
            outputs = self._forward(features, pairs, len(batch))
            results = self._boxes(outputs, pairs, options)
            if masks:
                self._add_masks(outputs, pairs, results, found, options)
            for (index, _), result in zip(pairs, results, strict=True):
                result["boxes"] = scale_boxes(result["boxes"], batch[index].image_size, batch[index].target_size)
                found[index].append(result)
            on_forward(len(pairs))
        suppress = options.nms_threshold if options.agnostic_nms else None
        return [
            merge_detections(results, [prompt.indices for prompt in image.asked], options.max_detections, suppress)
            for image, results in zip(batch, found, strict=True)
        ]

    def answer_batch(
        self,
        features: ModelOutput,
        batch: list[PreparedImage],
        top_k: int,
        limits: dict[str, Any] | None,
    ) -> list[dict[str, Any]]:
        """
        Answers for images of one size, whose `asked` are questions.

        Args:
            features: of the batch, from `model.get_image_features`.
            batch: the images.
            top_k: answers of a question at most.
            limits: of `Detector.phrase_limits`; `None` leaves phrases out.

        Returns:
            For each image {"answers", and with `limits` "phrases"}, from one forward pass.
        """
        questions = [image.asked for image in batch]
        outputs = self._read_texts(self.model, features, questions)
        answers = top_answers(outputs.answer_logits, self.model.config.id2label, top_k)
        if limits is None:
            return [{"answers": own} for own in answers]
        phrases = self.phrases(outputs, questions, [image.target_size for image in batch], limits)
        return [{"answers": own, "phrases": found} for own, found in zip(answers, phrases, strict=True)]

    def caption_batch(
        self,
        features: ModelOutput,
        batch: list[PreparedImage],
        generate_kwargs: Mapping[str, Any],
        limits: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """
        Captions of images of one size, whose `asked` are how captions begin.

        Args:
            features: of the batch, from `model.get_image_features`.
            batch: the images.
            generate_kwargs: arguments of `model.generate`.
            limits: of `Detector.phrase_limits`.

        Returns:
            For each image {"caption", "phrases"}.
        """
        captions = self.write_captions(features, batch, generate_kwargs)
        return self.ground_captions(features, captions, [image.target_size for image in batch], limits)

    def write_captions(
        self, features: ModelOutput, batch: list[PreparedImage], generate_kwargs: Mapping[str, Any]
    ) -> list[str]:
        """As [`Detector.caption_batch`], the captions alone."""
        tokenizer = self.processor.tokenizer
        with TOKENIZER_LOCK:
            # Not the processor, which refuses empty texts.
            beginnings = tokenizer(
                [image.asked for image in batch], padding=True, return_tensors="pt", return_token_type_ids=False
            ).to(self.model.device)
        tokens = self.model.generate(image_features=features, **beginnings, **generate_kwargs)
        if len(tokens) != len(batch):
            raise ValueError("There is one caption an image; leave `num_return_sequences` at 1.")
        with TOKENIZER_LOCK:
            return decode_captions(tokens, tokenizer)

    def ground_captions(
        self,
        image_features: ModelOutput,
        captions: list[str],
        target_sizes: list[tuple[int, int]],
        limits: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """
        The boxes of the noun phrases of captions; an empty one has no phrases.

        Args:
            image_features: of the images, from `model.get_image_features`.
            captions: one an image.
            target_sizes: (height, width) of each image.
            limits: of `Detector.phrase_limits`.

        Returns:
            For each image {"caption", "phrases"}.
        """
        results: list[dict[str, Any]] = [{"caption": caption, "phrases": []} for caption in captions]
        described = [index for index, caption in enumerate(captions) if caption]
        if described:
            with TOKENIZER_LOCK:
                sentences = [fitting_part(captions[index], self.processor) for index in described]
            features = select_images(image_features, described)
            outputs = self._read_texts(self._find_boxes, features, sentences)
            phrases = self.phrases(outputs, sentences, [target_sizes[index] for index in described], limits)
            for index, own in zip(described, phrases, strict=True):
                results[index]["phrases"] = own
        return results

    # Inside ----------------------------------------------------------------------------------------------------------

    def _auto_images(self, height: int, width: int) -> int:
        return self.auto_batch_size.images(height, width, self.model.device)

    def _respond(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor,
        batch: list[PreparedImage],
        respond: Callable[[ModelOutput, list[PreparedImage]], list[Any]],
    ) -> list[Any]:
        """What `respond` makes of images of one size, of their features and `batch`."""
        device = self.model.device
        features = self.network.get_image_features(to_device(pixel_values, device), to_device(pixel_mask, device))
        return respond(features, batch)

    def _respond_as_fits(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor,
        batch: list[PreparedImage],
        respond: Callable[[ModelOutput, list[PreparedImage]], list[Any]],
    ) -> list[Any]:
        """As [`Detector._respond`]; images that do not fit into memory together are cut into halves."""
        try:
            results = self._respond(pixel_values, pixel_mask, batch, respond)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            self.auto_batch_size.worked(pixel_mask.numel())
            return results
        # Outside of `except`, whose error holds what the failed pass has allocated.
        self.auto_batch_size.failed(pixel_mask.numel())
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        parts = [slice(0, half), slice(half, None)]
        return [
            result
            for part in parts
            for result in self._respond_as_fits(pixel_values[part], pixel_mask[part], batch[part], respond)
        ]

    def _with_progress(
        self,
        images: Any,
        asked: Callable[[int], Any],
        options: DetectorOptions,
        respond: Callable[[ModelOutput, list[PreparedImage]], list[Any]],
    ) -> list[Any]:
        """[`Detector.results`] as a list, with a bar over the images."""
        results = []
        with Progress(options.progress, len(images) if isinstance(images, list) else None) as bar:
            for result in self.results(images, asked, options, respond):
                results.append(result)
                bar.update()
        return results

    def _find(self, images: Any, text_labels: Any, options: DetectorOptions, masks: bool) -> Iterator[dict[str, Any]]:
        images = single_images(images)
        if text_labels is None:
            text_labels = default_labels(self.model)
        labels_of, lists = labels_for(images, text_labels)
        # Wrong labels fail here, before the first image is read.
        encoded = {labels: self.encode(labels, options.labels_per_prompt) for labels in dict.fromkeys(lists)}
        total = None
        if isinstance(images, list):
            total = sum(len(encoded[labels_of(index)]) for index in range(len(images)))

        def prompts_of(index: int) -> list[EncodedPrompt]:
            return encoded[labels_of(index)]

        return self._stream_detections(images, prompts_of, lambda index: None, labels_of, options, masks, total)

    def _stream_detections(
        self,
        images: Any,
        prompts_of: Callable[[int], list[EncodedPrompt]],
        target_size: Callable[[int], tuple[int, int] | None],
        labels_of: Callable[[int], Sequence[str]] | None,
        options: DetectorOptions,
        masks: bool,
        total: int | None,
    ) -> Iterator[dict[str, Any]]:
        with Progress(options.progress, total, "prompt") as bar:

            def respond(features: ModelOutput, batch: list[PreparedImage]) -> list[dict[str, Any]]:
                results = self.find(features, batch, options, masks, bar.update)
                if masks:
                    for image, result in zip(batch, results, strict=True):
                        result["masks"] = instance_masks(
                            result.pop("mask_logits"),
                            result["boxes"],
                            image.target_size,
                            options.mask_threshold,
                            options.return_rle,
                        )
                return results

            for index, result in enumerate(self.results(images, prompts_of, options, respond, target_size)):
                if labels_of is not None:
                    labels = labels_of(index)
                    result["text_labels"] = [labels[label] for label in result["labels"].tolist()]
                yield result

    def _forward(self, features: ModelOutput, pairs: list[tuple[int, EncodedPrompt]], num_images: int) -> ModelOutput:
        """The model on pairs of an image of the batch and a prompt."""
        indices, prompts = [index for index, _ in pairs], [prompt for _, prompt in pairs]
        if indices == list(range(num_images)) and all(prompt is prompts[0] for prompt in prompts):
            prompts = prompts[:1]  # the model expands either side
        elif num_images > 1:
            features = select_images(features, indices)
        return self._find_boxes(image_features=features, **self._prompt_inputs(prompts))

    def _read_texts(
        self, forward: Callable[..., ModelOutput], features: ModelOutput, sentences: list[str]
    ) -> ModelOutput:
        """What `forward` gives for a sentence an image; texts stay on the CPU, where post-processing reads them."""
        texts = self.text_inputs(sentences)
        moved = {name: to_device(value, self.model.device) for name, value in texts.items()}
        outputs = forward(image_features=features, **moved)
        for name in ("input_ids", "attention_mask"):
            outputs[name] = texts[name]
        return outputs

    @property
    def _find_boxes(self) -> Callable[..., ModelOutput]:
        # `forward` of a captioning model gives tokens, and its `ground` the boxes.
        return getattr(self.network, "ground", self.network)

    def _prompt_inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        """Text features of prompts, padded on the right to the longest, kept from call to call."""
        device = self.model.device

        def encode(ids: tuple[int, ...]) -> Tensor:
            input_ids = to_device([ids], device)
            features = self.model.get_text_features(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
            return features if isinstance(features, Tensor) else features[0]

        keys = [tuple(prompt.input_ids) for prompt in prompts]
        kept = self.text_features.get_or_encode(keys, self._text_encoder, encode)
        length = max(len(key) for key in keys)
        features = kept[0].new_zeros(len(keys), length, kept[0].shape[-1])
        attention_mask = torch.zeros(len(keys), length, dtype=torch.long)
        for row, (key, own) in enumerate(zip(keys, kept, strict=True)):
            features[row, : len(key)] = own[0]
            attention_mask[row, : len(key)] = 1
        return {"text_features": features, "attention_mask": to_device(attention_mask, device)}

    @property
    def _text_encoder(self) -> Any:
        # Wrappers (of adapters, of compilation) put the model below further modules.
        return next(part.text_encoder for part in self.model.modules() if "text_encoder" in part._modules)

    def _boxes(
        self, outputs: ModelOutput, pairs: list[tuple[int, EncodedPrompt]], options: DetectorOptions
    ) -> list[dict[str, Tensor]]:
        """Boxes of each pair, in pixels of the resized image, on the CPU."""
        limits = Limits(
            options.threshold,
            options.nms_threshold,
            options.max_detections or PER_PROMPT,
            pre_nms_threshold=self.pre_nms_threshold(options),
            agnostic_nms=options.agnostic_nms,
        )
        return batch_detections(outputs, [prompt.label_map for _, prompt in pairs], limits=limits)

    def _add_masks(
        self,
        outputs: ModelOutput,
        pairs: list[tuple[int, EncodedPrompt]],
        results: list[dict[str, Tensor]],
        found: list[list[dict[str, Tensor]]],
        options: DetectorOptions,
    ) -> None:
        """Adds "mask_logits" to the results of each pair, and drops boxes that cannot stay in the image's result."""
        positive_maps = []
        scores = [torch.cat([torch.zeros(0), *(result["scores"] for result in own)]) for own in found]
        for row, (index, prompt) in enumerate(pairs):
            # Masks cost more than boxes, so only what may stay among the best of all prompts gets one.
            scores[index] = torch.cat([scores[index], results[row]["scores"]])
            earlier = len(scores[index]) - len(results[row]["scores"])
            stays = cut_at(scores[index], options.max_detections)[earlier:]
            results[row] = {name: value[stays] for name, value in results[row].items()}
            named = torch.zeros(len(results[row]["labels"]), outputs.logits.shape[2], dtype=torch.bool)
            named[:, : prompt.label_map.shape[1]] = prompt.label_map[results[row]["labels"]]
            positive_maps.append(named)
        logits = self.model.predict_masks(outputs, [result["boxes"] for result in results], positive_maps)
        together = torch.cat(logits).cpu()
        check_finite(bool(together.isfinite().all()), "mask_logits")
        for result, own in zip(results, together.split([len(own) for own in logits]), strict=True):
            result["mask_logits"] = own

    def _begin(self) -> None:
        """What each call looks at once, before its first batch."""
        self.text_features.forget_changed(self._text_encoder)
        if self.model.training:
            logger.warning_once("The model is in training mode, so boxes are random; call `model.eval()` first.")


# Functions -----------------------------------------------------------------------------------------------------------


def detect_labels(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    threshold: float = 0.05,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Detects any number of labels in any number of images: [`Detector.detect`] for one call.

    Args:
        model: `GLIPv2ForObjectDetection` or another model with its outputs, in evaluation mode.
        processor: `GLIPv2Processor`.
        images: one image or several (also from a generator): PIL images, arrays, tensors, paths or addresses.
        text_labels: labels to look for in all images, or a list of labels for each image; by default
            `model.config.labels`, the classes that it was fine-tuned for.
        threshold: the lowest score that is returned.
        options: further ones of [`DetectorOptions`]: `pre_nms_threshold`, `nms_threshold`, `agnostic_nms`,
            `max_detections`, `labels_per_prompt`, `prompts_per_batch`, `batch_size`, `num_workers`, `size`,
            `progress`.

    Returns:
        For each image {"scores" `(n,)` in falling order, "labels" `(n,)` (indices of its `text_labels`),
        "text_labels" (a list of n names), "boxes" `(n, 4)` xyxy in pixels of the given image}, on the CPU.

    Raises:
        TypeError, ValueError: as [`Detector.detect`].

    Example:
        >>> results = detect_labels(model, processor, images=["street.jpg"], text_labels=lvis_names)
    """
    return Detector(model, processor).detect(images, text_labels, threshold=threshold, **options)


def ground_phrases(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageSource | Iterable[ImageSource],
    sentences: str | Sequence[str],
    phrases: Sequence[Any] | None = None,
    top_k: int = 10,
    threshold: float = 0.05,
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """
    Finds what the phrases of sentences name: [`Detector.ground`] for one call.

    Args:
        model, processor, images: as in [`detect_labels`].
        sentences: one for all images, or one for each image.
        phrases: for each image characters [start, end) of its phrases; where `sentences` is one string, those of
            that string. By default the noun phrases.
        top_k: boxes of a phrase at most.
        threshold: the lowest score that is returned. With 0, and `pre_nms_threshold=0`, every phrase gets `top_k`.
        options: `pre_nms_threshold`, `nms_threshold`, `batch_size`, `num_workers`, `size`, `progress` of
            [`DetectorOptions`].

    Returns:
        For each image a list of {"phrase", "span", "scores", "boxes"}, boxes xyxy in pixels of the given image.

    Raises:
        TypeError, ValueError: as [`Detector.ground`].
    """
    return Detector(model, processor).ground(images, sentences, phrases, top_k, threshold=threshold, **options)


__all__ = ["Detector", "EncodedPrompt", "detect_labels", "encode_labels", "ground_phrases", "max_prompt_tokens"]
