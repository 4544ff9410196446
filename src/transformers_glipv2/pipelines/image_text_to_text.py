"""`pipeline("image-text-to-text")`: captions, on request with the boxes of their noun phrases."""

import os
from collections.abc import Mapping
from typing import Any

import PIL.Image
from transformers import BatchFeature, ImageTextToTextPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..inference.language import decode_captions, ground_captions, plain_phrases

TASK = "image-text-to-text"
_IMAGES = (str, os.PathLike, PIL.Image.Image)


class GLIPv2ImageTextToTextPipeline(ImageTextToTextPipeline):
    """
    Transformers' pipeline from images and texts to texts, with the same calls and results. For GLIPv2 the text is
    how the caption begins, and may be left out. Other models run as in the stock class.

    Arguments of the call beside those of the stock class:
        ground (`bool`, *optional*, defaults to `False`): each result also has "phrases", boxes of the noun phrases of
            the whole caption in pixels of the image, see [`plain_phrases`]; spans are characters of its "caption".
        boxes_per_phrase (`int`, *optional*, defaults to 1), threshold (`float`, *optional*, defaults to 0.05): of the
            boxes.

    Example:
        >>> describe = pipeline("image-text-to-text", model=folder)
        >>> describe("street.jpg", text="an image of", generate_kwargs={"num_beams": 5})
        [{'input_text': 'an image of', 'generated_text': 'an image of a red car and two dogs'}]
    """

    @property
    def is_glipv2(self) -> bool:
        return self.model.config.model_type == "glipv2"

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Models registered from outside transformers are not in its list of names."""
        if not self.is_glipv2:
            super().check_model_type(supported_models)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        own = {}
        if self.is_glipv2:
            names = ("ground", "boxes_per_phrase", "threshold")
            own = {name: kwargs.pop(name) for name in names if name in kwargs}
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, {**forward, **own}, postprocess

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        single = images if isinstance(images, list | tuple) else [images]
        if self.is_glipv2 and text is None and all(isinstance(one, _IMAGES) for one in single):
            text = [""] * len(images) if isinstance(images, list | tuple) else ""
        return super().__call__(images, text, **kwargs)

    def preprocess(self, inputs: Any = None, timeout: float | None = None, **kwargs: Any) -> Any:
        if not self.is_glipv2:
            return super().preprocess(inputs, timeout=timeout, **kwargs)
        if not isinstance(inputs, Mapping) or not {"images", "text"} <= inputs.keys():
            raise ValueError(
                "Pass `images` to describe and, if you like, as `text` how their captions begin; no chats."
            )
        several = isinstance(inputs["images"], list | tuple)
        sources = inputs["images"] if several else [inputs["images"]]
        images = [self.processor.image_processor.open_image(image, timeout) for image in sources]
        texts = [inputs["text"]] * len(images) if isinstance(inputs["text"], str) else list(inputs["text"])
        if len(texts) != len(images):
            raise ValueError(f"There are {len(texts)} texts for {len(images)} images; pass one for each.")
        # The processor refuses empty texts, which are no beginning here.
        prefix = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        pixels = self.processor.image_processor(images, return_tensors="pt", **(kwargs.get("processor_kwargs") or {}))
        sizes = [(image.height, image.width) for image in images]
        return BatchFeature({**pixels, **prefix, "text": inputs["text"], "target_sizes": sizes})

    def _forward(
        self,
        model_inputs: Any,
        generate_kwargs: dict[str, Any] | None = None,
        ground: bool = False,
        boxes_per_phrase: int = 1,
        threshold: float = 0.05,
    ) -> dict[str, Any]:
        if not self.is_glipv2:
            return super()._forward(model_inputs, generate_kwargs)
        sizes = model_inputs.pop("target_sizes")
        if not ground:
            return super()._forward(model_inputs, generate_kwargs)
        features = self.model.get_image_features(model_inputs.pop("pixel_values"), model_inputs.pop("pixel_mask"))
        outputs = super()._forward({**model_inputs, "image_features": features}, generate_kwargs)
        tokens = outputs["generated_sequence"]
        if tokens.ndim != 2 or len(tokens) != len(sizes):
            raise ValueError("Captions are grounded one an image; leave `num_return_sequences` at 1, or `ground` out.")
        captions = decode_captions(tokens, self.tokenizer)
        options = {"top_k": boxes_per_phrase, "threshold": threshold}
        found = ground_captions(self.model, self.processor, features, captions, sizes, options)
        outputs["grounded"] = [{**result, "phrases": plain_phrases(result["phrases"])} for result in found]
        return outputs

    def postprocess(self, model_outputs: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        records = super().postprocess(model_outputs, **kwargs)
        grounded = model_outputs.get("grounded")
        if grounded is None:
            return records
        return [{**record, **result} for record, result in zip(records, grounded, strict=True)]


def register() -> None:
    """Makes `pipeline("image-text-to-text")` build our class, which runs other models as the stock class."""
    # `register_pipeline` would warn of the overwriting, and forget the task's default model.
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**task, "impl": GLIPv2ImageTextToTextPipeline}


__all__ = ["GLIPv2ImageTextToTextPipeline", "register"]
