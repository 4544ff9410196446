"""The pipelines, one file a task."""

from transformers_glipv2.pipelines import (
    image_text_to_text,
    visual_question_answering,
    zero_shot_instance_segmentation,
    zero_shot_object_detection,
)


def register_pipelines() -> None:
    """Makes the pipelines known to transformers; calling it again changes nothing."""
    for module in (
        zero_shot_object_detection,
        zero_shot_instance_segmentation,
        visual_question_answering,
        image_text_to_text,
    ):
        module.register()
