"""What the pipelines share: the stock class for other models, a detector, checked keywords, a progress bar."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import Pipeline

from ..inference.batching import PreparedImage, Progress
from ..inference.detector import Detector
from ..inference.model_checks import check_model
from ..inference.options import check_names
from ..processing_glipv2 import GLIPv2Processor


def is_glipv2(model: Any) -> bool:
    """Whether a model is a GLIPv2 of whatever class."""
    return getattr(getattr(model, "config", None), "model_type", None) == "glipv2"


def pipeline_detector(pipeline: Pipeline, head: str) -> Detector:
    """
    The detector of a pipeline's model, with the parts that the pipeline was made of.

    Raises:
        TypeError, ValueError: for a model without the head, as [`check_model`].
    """
    check_model(pipeline.model, head)
    processor = pipeline.processor
    if processor is None:
        limit = pipeline.model.config.max_text_length
        processor = GLIPv2Processor(pipeline.image_processor, pipeline.tokenizer, max_text_length=limit)
    return Detector(pipeline.model, processor)


def check_keywords(pipeline: Pipeline, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises TypeError for a keyword that the pipeline does not take, with the nearest one that it does."""
    check_names(list(names), known, f"`{type(pipeline).__name__}`")


def picked(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The entries of `values` with these names."""
    return {name: values[name] for name in names if name in values}


def prepared_items(model_inputs: Mapping[str, Any], asked: str) -> list[PreparedImage]:
    """
    The images of one item of a pipeline, or of a batch of the data loader, which holds a list of every entry.

    Args:
        model_inputs: "images", "target_sizes" and what is asked, each a list of one for an item.
        asked: the name of the entry that is asked.
    """
    columns = [model_inputs["images"], model_inputs["target_sizes"], model_inputs[asked]]
    if isinstance(columns[0][0], list):
        columns = [[value for (value,) in column] for column in columns]
    return [
        PreparedImage(image["pixel_values"], image["pixel_mask"], tuple(size), what)
        for image, size, what in zip(*columns, strict=True)
    ]


def with_progress(call: Callable[[Any], Any], inputs: Any, progress: bool | None) -> Any:
    """`call(inputs)`, with a bar over the images of a list where asked for."""
    if not progress or not isinstance(inputs, list):
        return call(inputs)
    results = []
    with Progress(True, len(inputs)) as bar:
        for result in call(one for one in inputs):
            results.append(result)
            bar.update()
    return results


__all__ = ["check_keywords", "is_glipv2", "picked", "pipeline_detector", "prepared_items", "with_progress"]
