"""`pipeline("visual-question-answering")` and `pipeline("image-text-to-text")`, on request with the boxes of words."""

import os
from collections.abc import Mapping
from typing import Any

import PIL.Image
from transformers import (
    AutoModelForVisualQuestionAnswering,
    BatchFeature,
    ImageTextToTextPipeline,
    Pipeline,
    pipelines,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .grounded_language import decode_captions, ground_captions, top_answers
from .image_processing_glipv2 import open_picture

VQA_TASK = "visual-question-answering"
CAPTIONING_TASK = "image-text-to-text"
_PICTURES = (str, os.PathLike, PIL.Image.Image)


def plain_phrases(phrases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Grounded phrases as pipelines give them.

    Args:
        phrases: of one picture, as `processor.post_process_phrase_grounding` gives them.

    Returns:
        {"phrase", "span", "boxes": a list of {"score", "box": {"xmin", "ymin", "xmax", "ymax"}}} for each phrase;
        whole pixels.
    """
    names = ("xmin", "ymin", "xmax", "ymax")
    return [
        {
            "phrase": phrase["phrase"],
            "span": phrase["span"],
            "boxes": [
                {"score": score, "box": dict(zip(names, box, strict=True))}
                for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].int().tolist(), strict=True)
            ],
        }
        for phrase in phrases
    ]


class GLIPv2VisualQuestionAnsweringPipeline(Pipeline):
    """
    Answers questions about pictures.

    Arguments of the call:
        image: a picture or a list of them (paths, addresses, PIL pictures); or a dict {"image", "question"}, or a
            list, generator or data set of such dicts.
        question (`str` or `list[str]`): for all pictures, or one for each.
        top_k (`int`, *optional*, defaults to 5): answers of a question at most.
        ground (`bool`, *optional*, defaults to `False`): also give boxes of the noun phrases of the question, from the
            same forward pass.
        boxes_per_phrase (`int`, *optional*, defaults to 1), threshold (`float`, *optional*, defaults to 0.05): of the
            boxes: how many a phrase has at most, and the lowest score before centerness.
        timeout (`float`, *optional*): seconds to wait for an address.

    Results: for each picture a list of {"score", "answer"} in falling order; with `ground` a dict {"answers": that
    list, "phrases": a list of {"phrase", "span", "boxes"}}, see [`plain_phrases`]. Files and picture objects are
    turned upright (EXIF). Pictures are not padded to each other, so answers do not depend on the batch.

    Example:
        >>> ask = pipeline("visual-question-answering", model=folder)
        >>> ask("street.jpg", "what color is the car?", top_k=1)
        [{'score': 0.83, 'answer': 'red'}]
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "answer_head"):
            raise TypeError(
                f"{type(self.model).__name__} answers no questions; load the model with "
                "`GLIPv2ForVisualQuestionAnswering.from_pretrained`."
            )

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        ground: bool | None = None,
        boxes_per_phrase: int | None = None,
        threshold: float | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {"top_k": top_k, "ground": ground, "boxes_per_phrase": boxes_per_phrase, "threshold": threshold}
        forward = {name: value for name, value in forward.items() if value is not None}
        return {} if timeout is None else {"timeout": timeout}, forward, {}

    def __call__(self, image: Any, question: str | list[str] | None = None, **kwargs: Any) -> Any:
        if question is None:
            return super().__call__(image, **kwargs)
        if not isinstance(image, list | tuple):
            if isinstance(question, str):
                return super().__call__({"image": image, "question": question}, **kwargs)
            image = [image] * len(question)
        questions = [question] * len(image) if isinstance(question, str) else question
        if len(questions) != len(image):
            raise ValueError(f"There are {len(questions)} questions for {len(image)} pictures; pass one for each.")
        pairs = [{"image": one, "question": text} for one, text in zip(image, questions, strict=True)]
        return super().__call__(pairs, **kwargs)

    def preprocess(self, inputs: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        if not isinstance(inputs, Mapping) or not {"image", "question"} <= inputs.keys():
            got = f"a dict of {sorted(inputs)}" if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                'Pass a picture and a `question`, or for each picture a dict with "image" and "question"; got ' + got
            )
        image = open_picture(inputs["image"], timeout=timeout)
        # Lists, so that pictures of different sizes can travel in one batch of the data loader.
        return {
            "inputs": [dict(self.processor(images=image, text=[inputs["question"]], return_tensors="pt"))],
            "questions": [inputs["question"]],
            "target_sizes": [(image.height, image.width)],
        }

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        questions = model_inputs["questions"]
        if isinstance(questions[0], str):
            return {"results": [self._answer(model_inputs, **options)]}
        items = [{name: values[index] for name, values in model_inputs.items()} for index in range(len(questions))]
        return {"results": [[self._answer(item, **options)] for item in items]}

    def _answer(
        self,
        item: dict[str, Any],
        top_k: int = 5,
        ground: bool = False,
        boxes_per_phrase: int = 1,
        threshold: float = 0.05,
    ) -> Any:
        outputs = self.model(**item["inputs"][0])
        (answers,) = top_answers(outputs.answer_logits, self.model.config.id2label, top_k)
        if not ground:
            return answers
        (phrases,) = self.processor.post_process_phrase_grounding(
            outputs,
            text=item["questions"],
            target_sizes=item["target_sizes"],
            top_k=boxes_per_phrase,
            threshold=threshold,
        )
        return {"answers": answers, "phrases": plain_phrases(phrases)}

    def postprocess(self, model_outputs: dict[str, Any]) -> Any:
        (result,) = model_outputs["results"]
        return result


class GLIPv2ImageTextToTextPipeline(ImageTextToTextPipeline):
    """
    Transformers' pipeline from pictures and texts to texts, with the same calls and results. For GLIPv2 the text is
    how the caption begins, and may be left out. Other models run as in the stock class.

    Arguments of the call beside those of the stock class:
        ground (`bool`, *optional*, defaults to `False`): each result also has "phrases", boxes of the noun phrases of
            the whole caption in pixels of the picture, see [`plain_phrases`]; spans are characters of its "caption".
        boxes_per_phrase (`int`, *optional*, defaults to 1), threshold (`float`, *optional*, defaults to 0.05): of the
            boxes.

    Example:
        >>> describe = pipeline("image-text-to-text", model=folder)
        >>> describe("street.jpg", text="a picture of", generate_kwargs={"num_beams": 5})
        [{'input_text': 'a picture of', 'generated_text': 'a picture of a red car and two dogs'}]
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
        pictures = images if isinstance(images, list | tuple) else [images]
        if self.is_glipv2 and text is None and all(isinstance(one, _PICTURES) for one in pictures):
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
        images = [open_picture(image, timeout) for image in (inputs["images"] if several else [inputs["images"]])]
        texts = [inputs["text"]] * len(images) if isinstance(inputs["text"], str) else list(inputs["text"])
        if len(texts) != len(images):
            raise ValueError(f"There are {len(texts)} texts for {len(images)} pictures; pass one for each.")
        # The processor refuses empty texts, which are no beginning here.
        prefix = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        pictures = self.processor.image_processor(
            images, return_tensors="pt", **(kwargs.get("processor_kwargs") or {})
        )
        sizes = [(image.height, image.width) for image in images]
        return BatchFeature({**pictures, **prefix, "text": inputs["text"], "target_sizes": sizes})

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
            raise ValueError(
                "Captions are grounded one a picture; leave `num_return_sequences` at 1, or `ground` out."
            )
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


def register_understanding_pipelines() -> None:
    """
    Makes `pipeline("visual-question-answering")`, which transformers 5 dropped, known again, and lets
    `pipeline("image-text-to-text")` build our class, which runs other models as the stock class.
    """
    # transformers refuses the names of tasks that it removed before it looks at those that are registered.
    getattr(pipelines, "REMOVED_TASKS", {}).pop(VQA_TASK, None)
    if VQA_TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            VQA_TASK,
            GLIPv2VisualQuestionAnsweringPipeline,
            pt_model=AutoModelForVisualQuestionAnswering,
            type="multimodal",
        )
    # `register_pipeline` would warn of the overwriting, and forget the task's default model.
    task = PIPELINE_REGISTRY.supported_tasks[CAPTIONING_TASK]
    PIPELINE_REGISTRY.supported_tasks[CAPTIONING_TASK] = {**task, "impl": GLIPv2ImageTextToTextPipeline}


__all__ = [
    "GLIPv2ImageTextToTextPipeline",
    "GLIPv2VisualQuestionAnsweringPipeline",
    "register_understanding_pipelines",
]
