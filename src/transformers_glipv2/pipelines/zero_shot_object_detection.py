"""`pipeline("zero-shot-object-detection")` with one forward pass for all labels of an image."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import ZeroShotObjectDetectionPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..inference.detector import detect_prompts, encode_labels, max_prompt_tokens
from ..post_processing import check_limits
from ..prompts import check_labels

TASK = "zero-shot-object-detection"


def split_candidate_labels(candidate_labels: Any) -> list[str]:
    """
    Labels as a list; a string is split at commas, without the white space around them.

    Raises:
        TypeError, ValueError: for no labels, an empty one, or another type.
    """
    if isinstance(candidate_labels, str):
        candidate_labels = [label.strip() for label in candidate_labels.split(",")]
    check_labels(candidate_labels, "candidate_labels")
    return list(candidate_labels)


def pair_labels(images: Sequence[Any], candidate_labels: Any) -> list[dict[str, Any]]:
    """
    Each image with its labels, in the form that the pipeline takes one by one.

    Args:
        images: images, paths or addresses.
        candidate_labels: labels that all images share (a list of them, or one string), or a list of labels each.

    Raises:
        TypeError: when the labels are neither a string nor a list.
        ValueError: when there are lists of labels for another number of images.
    """
    if not isinstance(candidate_labels, str | Sequence):
        raise TypeError(
            f"`candidate_labels` must be a list of labels, not {type(candidate_labels).__name__}; write "
            '`candidate_labels=["cat", "dog"]`.'
        )
    if isinstance(candidate_labels, str) or all(isinstance(label, str) for label in candidate_labels):
        candidate_labels = [candidate_labels] * len(images)
    if len(candidate_labels) != len(images):
        raise ValueError(
            f"`candidate_labels` has lists of labels for {len(candidate_labels)} images, but there are "
            f"{len(images)}; give one list for each, or one flat list for all."
        )
    return [
        {"image": image, "candidate_labels": labels} for image, labels in zip(images, candidate_labels, strict=True)
    ]


class GLIPv2ZeroShotObjectDetectionPipeline(ZeroShotObjectDetectionPipeline):
    """
    Transformers' zero-shot object detection, with the same calls and results, but GLIPv2 reads all labels of an image
    in one prompt (or as few as hold them) instead of one a label. Scores are those of the labels side by side, as
    [`detect_labels`] gives them. Other models run as in the stock class.

    Arguments of the call beside those of the stock class:
        nms_threshold (`float`, *optional*, defaults to 0.6): IoU above which a box of the same label is suppressed.
        max_detections (`int`, *optional*, defaults to 100): boxes of an image at most; `top_k` cuts further.
        labels_per_prompt (`int`, *optional*): labels of a prompt at most.

    `threshold` (0.1 by default) is on the label's score before centerness, as in the original. Files and image
    objects are turned upright (EXIF), as the stock class does.

    Example:
        >>> detector = pipeline("zero-shot-object-detection", model=folder)
        >>> detector("street.jpg", candidate_labels=["person", "traffic light"])
        [{'score': 0.83, 'label': 'person', 'box': {'xmin': 10, 'ymin': 20, 'xmax': 90, 'ymax': 310}}, ...]
    """

    @property
    def is_glipv2(self) -> bool:
        return self.model.config.model_type == "glipv2"

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Models registered from outside transformers are not in its list of names."""
        if not self.is_glipv2:
            super().check_model_type(supported_models)

    def __call__(self, image: Any, candidate_labels: Any = None, **kwargs: Any) -> list[Any]:
        """As the stock class; a list of images may also hold paths and addresses."""
        if self.is_glipv2 and candidate_labels is not None and isinstance(image, list | tuple):
            image, candidate_labels = pair_labels(image, candidate_labels), None
        return super().__call__(image, candidate_labels, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if not self.is_glipv2:
            return preprocess, forward, postprocess
        if "labels_per_prompt" in kwargs:
            preprocess["labels_per_prompt"] = kwargs["labels_per_prompt"]
        # Boxes are chosen where the model runs: scores of thousands of labels are too many to carry about.
        forward |= {name: kwargs[name] for name in ("nms_threshold", "max_detections") if name in kwargs}
        if "threshold" in postprocess:
            forward["threshold"] = postprocess.pop("threshold")
        return preprocess, forward, postprocess

    def preprocess(
        self, inputs: Mapping[str, Any], timeout: float | None = None, labels_per_prompt: int | None = None
    ) -> Iterator[dict[str, Any]]:
        if not self.is_glipv2:
            yield from super().preprocess(inputs, timeout=timeout)
            return
        if not isinstance(inputs, Mapping) or not {"image", "candidate_labels"} <= inputs.keys():
            got = f"a dict of {sorted(inputs)}" if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                "Pass an image and `candidate_labels=[...]`, or for each image a dict with "
                f'"image" and "candidate_labels"; got {got}.'
            )
        image = self.image_processor.open_image(inputs["image"], timeout)
        labels = split_candidate_labels(inputs["candidate_labels"])
        max_tokens = max_prompt_tokens(self.model, self.tokenizer)
        # Lists, so that images of different sizes can travel in one batch of the data loader.
        yield {
            "images": [dict(self.image_processor(image, return_tensors="pt"))],
            "prompts": [encode_labels(labels, self.tokenizer, max_tokens, labels_per_prompt)],
            "labels": [labels],
            "target_sizes": [(image.height, image.width)],
            "is_last": True,
        }

    def _forward(
        self,
        model_inputs: dict[str, Any],
        threshold: float = 0.1,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> dict[str, Any]:
        if not self.is_glipv2:
            return super()._forward(model_inputs)
        check_limits(threshold, nms_threshold, max_detections)
        is_last = model_inputs["is_last"]
        if not isinstance(is_last, list):
            found = self._detect(model_inputs, threshold, nms_threshold, max_detections)
            return {"labels": model_inputs["labels"], "detections": found, "is_last": is_last}
        # A batch of the data loader. Images are not padded to each other, so an image's boxes do not depend on it.
        items = [{name: values[index] for name, values in model_inputs.items()} for index in range(len(is_last))]
        found = [self._detect(item, threshold, nms_threshold, max_detections) for item in items]
        return {"labels": model_inputs["labels"], "detections": found, "is_last": is_last}

    def _detect(self, item: dict[str, Any], threshold: float, nms_threshold: float, max_detections: int) -> list[Any]:
        """One image, encoded once, with all its prompts."""
        (image,), (prompts,), (target_size,) = item["images"], item["prompts"], item["target_sizes"]
        features = self.model.get_image_features(image["pixel_values"], image["pixel_mask"])
        return [
            detect_prompts(
                self.model,
                features,
                prompts,
                self.tokenizer.pad_token_id,
                target_size,
                threshold,
                nms_threshold,
                max_detections,
            )
        ]

    def postprocess(
        self, model_outputs: Sequence[dict[str, Any]], top_k: int | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        if not self.is_glipv2:
            return super().postprocess(model_outputs, top_k=top_k, **kwargs)
        results = []
        for output in model_outputs:
            (labels,), (found,) = output["labels"], output["detections"]
            for score, label, box in zip(
                found["scores"].tolist(), found["labels"].tolist(), found["boxes"], strict=True
            ):
                results.append({"score": score, "label": labels[label], "box": self._get_bounding_box(box)})
        return results[:top_k] if top_k else results


def register() -> None:
    """Makes `pipeline("zero-shot-object-detection")` build our class, which runs other models as the stock class."""
    # `register_pipeline` would warn of the overwriting, and forget the task's default model.
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**task, "impl": GLIPv2ZeroShotObjectDetectionPipeline}


__all__ = ["GLIPv2ZeroShotObjectDetectionPipeline", "register", "split_candidate_labels"]
