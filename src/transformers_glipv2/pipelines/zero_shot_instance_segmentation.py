"""`pipeline("zero-shot-instance-segmentation")`: boxes and masks of any number of labels."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import AutoModelForInstanceSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

from ..layers.paste_masks import encode_region, paste_regions
from .zero_shot_object_detection import GLIPv2ZeroShotObjectDetectionPipeline

TASK = "zero-shot-instance-segmentation"


class GLIPv2ZeroShotInstanceSegmentationPipeline(GLIPv2ZeroShotObjectDetectionPipeline):
    """
    Finds and segments what a list of labels names: called as zero-shot object detection, each result with a mask.

    Arguments of the call beside those of [`GLIPv2ZeroShotObjectDetectionPipeline`]:
        mask_threshold (`float`, *optional*, defaults to 0.5): on the probability of a pixel.
        return_rle (`bool`, *optional*, defaults to `False`): give masks as COCO's run lengths {"size": [height,
            width], "counts": str} in place of images; needs far less memory for many masks of large images.

    Results: for each image a list of {"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}, "mask"}, the mask a
    `PIL.Image.Image` of mode "L" and the size of the image, 255 inside and 0 outside.

    Example:
        >>> segmenter = pipeline("zero-shot-instance-segmentation", model=folder)
        >>> segmenter("street.jpg", candidate_labels=["person", "traffic light"])
        [{'score': 0.83, 'label': 'person', 'box': {...}, 'mask': <PIL.Image.Image image mode=L size=640x480>}, ...]
    """

    head = "mask_head"
    postprocess_keywords = ("top_k", "mask_threshold", "return_rle")

    def __new__(cls, *args: Any, **kwargs: Any):
        # No stock class has this task.
        return object.__new__(cls)

    def postprocess(
        self,
        model_outputs: Sequence[dict[str, Any]],
        top_k: int | None = None,
        mask_threshold: float = 0.5,
        return_rle: bool = False,
    ) -> list[dict[str, Any]]:
        results = super().postprocess(model_outputs, top_k=top_k)
        ((found,),) = (output["detections"] for output in model_outputs)
        count, size = len(results), tuple(found["size"])
        regions = paste_regions(found["mask_logits"][:count], found["boxes"][:count], size, mask_threshold)
        for result, (region, top, left) in zip(results, regions, strict=True):
            if return_rle:
                result["mask"] = encode_region(region.numpy(), top, left, size)
            else:
                result["mask"] = Image.new("L", size[::-1])
                result["mask"].paste(Image.fromarray(region.numpy()), (left, top))
        return results


def register() -> None:
    """Makes `pipeline("zero-shot-instance-segmentation")` known to transformers."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            GLIPv2ZeroShotInstanceSegmentationPipeline,
            pt_model=AutoModelForInstanceSegmentation,
            type="multimodal",
        )


__all__ = ["GLIPv2ZeroShotInstanceSegmentationPipeline", "register"]
