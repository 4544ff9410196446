"""`pipeline("image-text-to-text")`: captions, on request with the boxes of their noun phrases."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from transformers import BatchFeature, ImageTextToTextPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..inference.batching import PreparedImage
from ..inference.options import SHARED_OPTIONS, DetectorOptions, check_switch
from ..inference.text_results import decode_captions, plain_phrases
from ..post_processing import check_count
from .pipeline_parts import check_keywords, is_glipv2, picked, pipeline_detector

TASK = "image-text-to-text"
_IMAGES = (str, os.PathLike, PIL.Image.Image)
_OWN = ("ground", "boxes_per_phrase", "threshold", "pre_nms_threshold", "nms_threshold")
# What the stock class takes by name; anything else it would pass on to a processor.
_STOCK = tuple(
    name
    for name, parameter in inspect.signature(ImageTextToTextPipeline._sanitize_parameters).parameters.items()
    if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
)


class GLIPv2ImageTextToTextPipeline(ImageTextToTextPipeline):
    """
    Transformers' pipeline from images and texts to texts, with the same calls and results, for GLIPv2: the text is how
    the caption begins, and may be left out. With another model this makes an instance of the stock class.

    Arguments of the call beside those of the stock class:
        ground (`bool`, *optional*, defaults to `False`): each result also has "phrases", boxes of the noun phrases of
            the whole caption in pixels of the image, see [`plain_phrases`]; spans are characters of its "caption".
        boxes_per_phrase (`int`, *optional*, defaults to 1), threshold (`float`, *optional*, defaults to 0.05): of the
            boxes: how many a phrase has at most, and the lowest score that is returned.
        pre_nms_threshold, nms_threshold, size: see [`DetectorOptions`].

    Images of one size in a call go through the network together. A keyword that is not known is refused; arguments of
    `generate` go into `generate_kwargs`.

    Example:
        >>> describe = pipeline("image-text-to-text", model=folder)
        >>> describe("street.jpg", text="an image of", generate_kwargs={"num_beams": 5})
        [{'input_text': 'an image of', 'generated_text': 'an image of a red car and two dogs'}]
    """

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any):
        if model is not None and not is_glipv2(model):
            return ImageTextToTextPipeline(*args, model=model, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.detector = pipeline_detector(self, "caption_head")

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Models registered from outside transformers are not in its list of names."""

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_keywords(self, kwargs, (*_STOCK, *_OWN, "size"))
        DetectorOptions().updated(picked(kwargs, SHARED_OPTIONS))
        if "boxes_per_phrase" in kwargs:
            check_count(kwargs["boxes_per_phrase"], "boxes_per_phrase")
        if "ground" in kwargs:
            check_switch(kwargs["ground"], "ground")
        preprocess, forward, postprocess = super()._sanitize_parameters(**picked(kwargs, _STOCK))
        return {**preprocess, **picked(kwargs, ["size"])}, {**forward, **picked(kwargs, _OWN)}, postprocess

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        single = images if isinstance(images, list | tuple) else [images]
        if text is None and all(isinstance(one, _IMAGES) for one in single):
            text = [""] * len(images) if isinstance(images, list | tuple) else ""
        return super().__call__(images, text, **kwargs)

    def preprocess(
        self,
        inputs: Any = None,
        timeout: float | None = None,
        size: Mapping[str, int] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if not isinstance(inputs, Mapping) or not {"images", "text"} <= inputs.keys():
            raise ValueError(
                "Pass `images` to describe and, if you like, as `text` how their captions begin; no chats."
            )
        several = isinstance(inputs["images"], list | tuple)
        sources = inputs["images"] if several else [inputs["images"]]
        images = [self.processor.image_processor.open_image(image, timeout) for image in sources]
        texts = [inputs["text"]] * len(images) if isinstance(inputs["text"], str) else inputs["text"]
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`text` must be a string, or a list of them, got {inputs['text']!r}.")
        if len(texts) != len(images):
            raise ValueError(f"There are {len(texts)} texts for {len(images)} images; pass one for each.")
        # The processor refuses empty texts, which are no beginning here.
        prefix = self.tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
        options = {**(processor_kwargs or {}), **({} if size is None else {"size": dict(size)})}
        pixels = [self.processor.image_processor(image, return_tensors="pt", **options) for image in images]
        return BatchFeature(
            {
                **prefix,
                "text": inputs["text"],
                "images": [dict(one) for one in pixels],
                "target_sizes": [(image.height, image.width) for image in images],
            }
        )

    def _forward(
        self,
        model_inputs: Any,
        generate_kwargs: dict[str, Any] | None = None,
        ground: bool = False,
        boxes_per_phrase: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        detector = self.detector
        sizes, images = model_inputs.pop("target_sizes"), model_inputs.pop("images")
        text, ids = model_inputs.pop("text"), model_inputs.pop("input_ids")
        mask = model_inputs.pop("attention_mask")
        prepared = [
            PreparedImage(image["pixel_values"], image["pixel_mask"], tuple(size), index)
            for index, (image, size) in enumerate(zip(images, sizes, strict=True))
        ]
        limits = detector.phrase_limits(detector.options.updated(options), boxes_per_phrase) if ground else None
        stock = super()._forward

        def respond(features: Any, batch: list[PreparedImage]) -> list[tuple[torch.Tensor, Any]]:
            own = [image.asked for image in batch]
            inputs = {"input_ids": ids[own], "attention_mask": mask[own], "image_features": features, "text": text}
            tokens = stock(inputs, generate_kwargs)["generated_sequence"]
            if limits is None:
                return list(zip(tokens, [None] * len(own), strict=True))
            if tokens.ndim != 2 or len(tokens) != len(own):
                raise ValueError(
                    "Captions are grounded one an image; leave `num_return_sequences` at 1, or `ground` out."
                )
            captions = decode_captions(tokens, self.tokenizer)
            found = detector.ground_captions(features, captions, [one.target_size for one in batch], limits)
            return list(zip(tokens, found, strict=True))

        sequences, found = zip(*detector.respond_all(prepared, respond), strict=True)
        outputs = {"generated_sequence": self._padded(sequences), "prompt_text": text, "input_ids": ids}
        if ground:
            outputs["grounded"] = [{**result, "phrases": plain_phrases(result["phrases"])} for result in found]
        return outputs

    def _padded(self, sequences: Sequence[torch.Tensor]) -> torch.Tensor:
        """The captions of all images, each `(tokens,)` or `(captions, tokens)`, in one tensor."""
        length = max(tokens.shape[-1] for tokens in sequences)
        padding = self.tokenizer.pad_token_id
        return torch.stack([F.pad(tokens, (0, length - tokens.shape[-1]), value=padding) for tokens in sequences])

    def postprocess(self, model_outputs: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        records = super().postprocess(model_outputs, **kwargs)
        grounded = model_outputs.get("grounded")
        if grounded is None:
            return records
        return [{**record, **result} for record, result in zip(records, grounded, strict=True)]


def register() -> None:
    """Makes `pipeline("image-text-to-text")` build our class for GLIPv2, and the stock class for others."""
    # `register_pipeline` would warn of the overwriting, and forget the task's default model.
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**task, "impl": GLIPv2ImageTextToTextPipeline}


__all__ = ["GLIPv2ImageTextToTextPipeline", "register"]
