"""`pipeline("visual-question-answering")`, on request with the boxes of what the question names."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoModelForVisualQuestionAnswering, Pipeline, pipelines
from transformers.pipelines import PIPELINE_REGISTRY

from ..inference.language import plain_phrases, top_answers

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
            boxes: how many a phrase has at most, and the lowest score before centerness.
        timeout (`float`, *optional*): seconds to wait for an address.

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
            raise ValueError(f"There are {len(questions)} questions for {len(image)} images; pass one for each.")
        pairs = [{"image": one, "question": text} for one, text in zip(image, questions, strict=True)]
        return super().__call__(pairs, **kwargs)

    def preprocess(self, inputs: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        if not isinstance(inputs, Mapping) or not {"image", "question"} <= inputs.keys():
            got = f"a dict of {sorted(inputs)}" if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                'Pass an image and a `question`, or for each image a dict with "image" and "question"; got ' + got
            )
        image = self.processor.image_processor.open_image(inputs["image"], timeout)
        # Lists, so that images of different sizes can travel in one batch of the data loader.
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


def register() -> None:
    """Makes `pipeline("visual-question-answering")`, which transformers 5 dropped, known again."""
    # transformers refuses the names of tasks that it removed before it looks at those that are registered.
    getattr(pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            GLIPv2VisualQuestionAnsweringPipeline,
            pt_model=AutoModelForVisualQuestionAnswering,
            type="multimodal",
        )


__all__ = ["GLIPv2VisualQuestionAnsweringPipeline", "register"]
