"""`pipeline("visual-question-answering")`, on request with the boxes of what the question names."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoModelForVisualQuestionAnswering, Pipeline, pipelines
from transformers.pipelines import PIPELINE_REGISTRY

from ..inference.batching import PreparedImage, prepare_image
from ..inference.options import SHARED_OPTIONS, DetectorOptions, check_switch
from ..inference.text_results import plain_phrases
from ..post_processing import check_count
from ..prompts import check_sentence
from .pipeline_parts import check_keywords, picked, pipeline_detector, prepared_items, with_progress

TASK = "visual-question-answering"


class GLIPv2VisualQuestionAnsweringPipeline(Pipeline):
    """
    Answers questions about images.

    Arguments of the call:
        image: an image or a list of them (paths, addresses, PIL images); or a dict {"image", "question"}, or a
            list, generator or data set of such dicts.
        question (`str` or `list[str]`): for all images, or one for each.
        top_k (`int`, *optional*, defaults to 5): answers of a question at most.
        ground (`bool`, *optional*, defaults to `False`): also give boxes of the noun phrases of the question, from the
            same forward pass.
        boxes_per_phrase (`int`, *optional*, defaults to 1), threshold (`float`, *optional*, defaults to 0.05): of the
            boxes: how many a phrase has at most, and the lowest score that is returned.
        pre_nms_threshold, nms_threshold, size: see [`DetectorOptions`].
        batch_size (`int`, *optional*, defaults to 1): images of one size go through the network together.
        timeout (`float`, *optional*): seconds to wait for an address.
        progress (`bool`, *optional*): show a bar over the images of a list.

    Results: for each image a list of {"score", "answer"} in falling order; with `ground` a dict {"answers": that
    list, "phrases": a list of {"phrase", "span", "boxes"}}, see [`plain_phrases`]. Files and image objects are
    turned upright (EXIF). Images are not padded to each other, so answers do not depend on the batch.

    Example:
        >>> ask = pipeline("visual-question-answering", model=folder)
        >>> ask("street.jpg", "what color is the car?", top_k=1)
        [{'score': 0.83, 'answer': 'red'}]
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    answer_keywords = (
        "top_k",
        "ground",
        "boxes_per_phrase",
        "threshold",
        "pre_nms_threshold",
        "nms_threshold",
    )
    preprocess_keywords = ("timeout", "size")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.detector = pipeline_detector(self, "answer_head")

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_keywords(self, kwargs, (*self.answer_keywords, *self.preprocess_keywords))
        DetectorOptions().updated(picked(kwargs, SHARED_OPTIONS))
        for name in ("top_k", "boxes_per_phrase"):
            if name in kwargs:
                check_count(kwargs[name], name)
        if "ground" in kwargs:
            check_switch(kwargs["ground"], "ground")
        return picked(kwargs, self.preprocess_keywords), picked(kwargs, self.answer_keywords), {}

    def __call__(
        self, image: Any, question: str | list[str] | None = None, progress: bool | None = None, **kwargs: Any
    ) -> Any:
        call = super().__call__
        inputs = image if question is None else pair_questions(image, question)
        return with_progress(lambda pairs: call(pairs, **kwargs), inputs, progress)

    def preprocess(
        self, inputs: Mapping[str, Any], timeout: float | None = None, size: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        if not isinstance(inputs, Mapping) or not {"image", "question"} <= inputs.keys():
            got = f"a dict of {sorted(inputs)}" if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                'Pass an image and a `question`, or for each image a dict with "image" and "question"; got ' + got
            )
        check_sentence(inputs["question"], "question")
        image = self.processor.image_processor.open_image(inputs["image"], timeout)
        prepared = prepare_image(self.processor, image, size)
        # Lists, so that images of different sizes can travel in one batch of the data loader.
        return {
            "images": [{"pixel_values": prepared.pixel_values, "pixel_mask": prepared.pixel_mask}],
            "questions": [inputs["question"]],
            "target_sizes": [prepared.target_size],
        }

    def _forward(
        self,
        model_inputs: dict[str, Any],
        top_k: int = 5,
        ground: bool = False,
        boxes_per_phrase: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        detector = self.detector
        limits = detector.phrase_limits(detector.options.updated(options), boxes_per_phrase) if ground else None

        def respond(features: Any, batch: list[PreparedImage]) -> list[dict[str, Any]]:
            return detector.answer_batch(features, batch, top_k, limits)

        results = detector.respond_all(prepared_items(model_inputs, "questions"), respond)
        results = [
            {"answers": result["answers"], "phrases": plain_phrases(result["phrases"])}
            if ground
            else result["answers"]
            for result in results
        ]
        in_batch = isinstance(model_inputs["questions"][0], list)
        return {"results": [[result] for result in results] if in_batch else results}

    def postprocess(self, model_outputs: dict[str, Any]) -> Any:
        (result,) = model_outputs["results"]
        return result


def pair_questions(image: Any, question: Any) -> Any:
    """
    Images and questions in the form that the pipeline takes one by one: a dict, or a list of them.

    Raises:
        TypeError: for a question that is no string.
        ValueError: for another number of questions than images.
    """
    several = isinstance(image, list | tuple)
    if isinstance(question, str) and not several:
        return {"image": image, "question": question}
    if not isinstance(question, str | list | tuple):
        raise TypeError(f"`question` must be a string or a list of them, got {type(question).__name__} {question!r}.")
    images = image if several else [image] * len(question)
    questions = [question] * len(images) if isinstance(question, str) else question
    if len(questions) != len(images):
        raise ValueError(f"There are {len(questions)} questions for {len(images)} images; pass one for each.")
    return [{"image": one, "question": text} for one, text in zip(images, questions, strict=True)]


def register() -> None:
    """Makes `pipeline("visual-question-answering")`, which transformers 5 dropped, known again."""
    # transformers refuses the names of tasks that it removed before it checks those that are registered.
    getattr(pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            GLIPv2VisualQuestionAnsweringPipeline,
            pt_model=AutoModelForVisualQuestionAnswering,
            type="multimodal",
        )


__all__ = ["GLIPv2VisualQuestionAnsweringPipeline", "register"]
