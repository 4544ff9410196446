"""`pipeline("zero-shot-object-detection")` with one forward pass for all labels of an image."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import ZeroShotObjectDetectionPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..inference.batching import PreparedImage, prepare_image
from ..inference.model_checks import default_labels
from ..inference.options import DetectorOptions
from ..post_processing import check_count
from ..prompts import check_labels
from .pipeline_parts import check_keywords, is_glipv2, picked, pipeline_detector, prepared_items, with_progress

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


def has_own_labels(inputs: Any) -> bool:
    """Whether the inputs of a pipeline are dicts with "candidate_labels", or come one by one and may be."""
    if isinstance(inputs, list | tuple):
        return any(has_own_labels(one) for one in inputs)
    return isinstance(inputs, Mapping) or not isinstance(inputs, str | Path | Image.Image)


class GLIPv2ZeroShotObjectDetectionPipeline(ZeroShotObjectDetectionPipeline):
    """
    Transformers' zero-shot object detection, with the same calls and results, but GLIPv2 reads all labels of an image
    in one prompt (or as few as hold them) instead of one a label. Scores are those of the labels side by side, as
    [`detect_labels`] gives them. With another model than a GLIPv2 this makes an instance of the stock class.

    Arguments of the call beside those of the stock class:
        pre_nms_threshold, nms_threshold, agnostic_nms, max_detections, labels_per_prompt, prompts_per_batch, size: see
            [`DetectorOptions`].
        batch_size (`int`, *optional*, defaults to 1): images of one size go through the network together.
        progress (`bool`, *optional*): show a bar over the images of a list.

    Without `candidate_labels` a fine-tuned model looks for its own classes (`config.labels`).

    `threshold` (0.1 by default) is the lowest score that is returned; `top_k` cuts further. Files and image objects
    are turned upright (EXIF), as the stock class does. A keyword that is not known is refused.

    Example:
        >>> detector = pipeline("zero-shot-object-detection", model=folder)
        >>> detector("street.jpg", candidate_labels=["person", "traffic light"])
        [{'score': 0.83, 'label': 'person', 'box': {'xmin': 10, 'ymin': 20, 'xmax': 90, 'ymax': 310}}, ...]
    """

    head = "detection_head"
    # Keywords that choose boxes, where the model runs: scores of thousands of labels are too many to carry about.
    find_keywords = (
        "threshold",
        "pre_nms_threshold",
        "nms_threshold",
        "agnostic_nms",
        "max_detections",
        "prompts_per_batch",
    )
    preprocess_keywords = ("timeout", "labels_per_prompt", "size")
    postprocess_keywords: tuple[str, ...] = ("top_k",)

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any):
        if model is not None and not is_glipv2(model):
            return ZeroShotObjectDetectionPipeline(*args, model=model, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.detector = pipeline_detector(self, self.head)

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Models registered from outside transformers are not in its list of names."""

    def __call__(self, image: Any, candidate_labels: Any = None, progress: bool | None = None, **kwargs: Any) -> Any:
        """As the stock class; a list of images may also hold paths and addresses."""
        if "text_queries" in kwargs:
            candidate_labels = kwargs.pop("text_queries")
        if candidate_labels is None and not has_own_labels(image):
            candidate_labels = default_labels(self.model)
        if candidate_labels is not None and isinstance(image, list | tuple):
            image, candidate_labels = pair_labels(image, candidate_labels), None
        call = super().__call__
        return with_progress(lambda inputs: call(inputs, candidate_labels, **kwargs), image, progress)

    def _sanitize_parameters(self, **kwargs):
        known = (*self.find_keywords, *self.preprocess_keywords, *self.postprocess_keywords)
        check_keywords(self, kwargs, known)
        forward = picked(kwargs, self.find_keywords)
        options = picked(kwargs, (*self.find_keywords, "labels_per_prompt", "size", "mask_threshold", "return_rle"))
        DetectorOptions().updated(options)
        if kwargs.get("top_k") is not None:
            check_count(kwargs["top_k"], "top_k")
        return picked(kwargs, self.preprocess_keywords), forward, picked(kwargs, self.postprocess_keywords)

    def preprocess(
        self,
        inputs: Mapping[str, Any],
        timeout: float | None = None,
        labels_per_prompt: int | None = None,
        size: Mapping[str, int] | None = None,
    ) -> Iterator[dict[str, Any]]:
        if not isinstance(inputs, Mapping) or not {"image", "candidate_labels"} <= inputs.keys():
            got = f"a dict of {sorted(inputs)}" if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                "Pass an image and `candidate_labels=[...]`, or for each image a dict with "
                f'"image" and "candidate_labels"; got {got}.'
            )
        labels = split_candidate_labels(inputs["candidate_labels"])
        prompts = self.detector.encode(labels, labels_per_prompt)
        image = self.image_processor.open_image(inputs["image"], timeout)
        prepared = prepare_image(self.detector.processor, image, size)
        # Lists, so that images of different sizes can travel in one batch of the data loader.
        yield {
            "images": [{"pixel_values": prepared.pixel_values, "pixel_mask": prepared.pixel_mask}],
            "target_sizes": [prepared.target_size],
            "prompts": [prompts],
            "labels": [labels],
            "is_last": True,
        }

    def _forward(self, model_inputs: dict[str, Any], threshold: float = 0.1, **options: Any) -> dict[str, Any]:
        settings = self.detector.options.updated({"threshold": threshold, **options})
        masks = self.head == "mask_head"
        prepared = prepared_items(model_inputs, "prompts")

        def respond(features: Any, batch: list[PreparedImage]) -> list[dict[str, Any]]:
            return self.detector.find(features, batch, settings, masks)

        found = [
            {**result, "size": image.target_size}
            for image, result in zip(prepared, self.detector.respond_all(prepared, respond), strict=True)
        ]
        is_last = model_inputs["is_last"]
        detections = [[result] for result in found] if isinstance(is_last, list) else found
        return {"labels": model_inputs["labels"], "detections": detections, "is_last": is_last}

    def postprocess(self, model_outputs: Sequence[dict[str, Any]], top_k: int | None = None) -> list[dict[str, Any]]:
        results = []
        for output in model_outputs:
            (labels,), (found,) = output["labels"], output["detections"]
            for score, label, box in zip(
                found["scores"].tolist(), found["labels"].tolist(), found["boxes"], strict=True
            ):
                results.append({"score": score, "label": labels[label], "box": self._get_bounding_box(box)})
        return results[:top_k]


def register() -> None:
    """Makes `pipeline("zero-shot-object-detection")` build our class for GLIPv2, and the stock class for others."""
    # `register_pipeline` would warn of the overwriting, and forget the task's default model.
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**task, "impl": GLIPv2ZeroShotObjectDetectionPipeline}


__all__ = ["GLIPv2ZeroShotObjectDetectionPipeline", "register", "split_candidate_labels"]
