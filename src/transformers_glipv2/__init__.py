"""GLIPv2 for Hugging Face transformers."""

import importlib
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForInstanceSegmentation,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)

from .configuration_glipv2 import GLIPv2Config
from .image_processing_glipv2 import GLIPv2ImageProcessor
from .image_processing_pil_glipv2 import GLIPv2ImageProcessorPil
from .inference.detector import Detector, detect_labels, ground_phrases
from .inference.language import answer_and_ground, caption_and_ground
from .inference.segmentation import segment_labels
from .modeling_glipv2 import GLIPv2ForObjectDetection, GLIPv2Model, GLIPv2PreTrainedModel
from .modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from .modeling_glipv2_pretraining import GLIPv2ForMaskedLM, GLIPv2ForPreTraining
from .modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from .modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config
from .pipelines import register_pipelines
from .pipelines.image_text_to_text import GLIPv2ImageTextToTextPipeline
from .pipelines.visual_question_answering import GLIPv2VisualQuestionAnsweringPipeline
from .pipelines.zero_shot_instance_segmentation import GLIPv2ZeroShotInstanceSegmentationPipeline
from .pipelines.zero_shot_object_detection import GLIPv2ZeroShotObjectDetectionPipeline
from .processing_glipv2 import GLIPv2Processor

AutoConfig.register("glipv2", GLIPv2Config, exist_ok=True)
AutoModel.register(GLIPv2Config, GLIPv2Model, exist_ok=True)
AutoModelForZeroShotObjectDetection.register(GLIPv2Config, GLIPv2ForObjectDetection, exist_ok=True)
AutoModelForPreTraining.register(GLIPv2Config, GLIPv2ForPreTraining, exist_ok=True)
AutoModelForMaskedLM.register(GLIPv2Config, GLIPv2ForMaskedLM, exist_ok=True)
AutoModelForInstanceSegmentation.register(GLIPv2Config, GLIPv2ForInstanceSegmentation, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(GLIPv2Config, GLIPv2ForVisualQuestionAnswering, exist_ok=True)
AutoModelForImageTextToText.register(GLIPv2Config, GLIPv2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(GLIPv2Config, GLIPv2Processor, exist_ok=True)
AutoImageProcessor.register(
    GLIPv2Config,
    image_processor_classes={"torchvision": GLIPv2ImageProcessor, "pil": GLIPv2ImageProcessorPil},
    exist_ok=True,
)
register_pipelines()

# Imported when they are first used: model code does not depend on them.
_LATE = {
    "load_pretrained": ".conversion.released",
    "resolve_model": ".conversion.released",
    "to_supervision": ".data.formats.results",
    "write_results": ".data.formats.results",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name], __name__), name)


Detector.resolve_source = staticmethod(lambda source: __getattr__("resolve_model")(source))

__all__ = [
    "Detector",
    "GLIPv2Config",
    "GLIPv2ForConditionalGeneration",
    "GLIPv2ForInstanceSegmentation",
    "GLIPv2ForMaskedLM",
    "GLIPv2ForObjectDetection",
    "GLIPv2ForPreTraining",
    "GLIPv2ForVisualQuestionAnswering",
    "GLIPv2ImageProcessor",
    "GLIPv2ImageProcessorPil",
    "GLIPv2ImageTextToTextPipeline",
    "GLIPv2Model",
    "GLIPv2PreTrainedModel",
    "GLIPv2Processor",
    "GLIPv2VisualQuestionAnsweringPipeline",
    "GLIPv2ZeroShotInstanceSegmentationPipeline",
    "GLIPv2ZeroShotObjectDetectionPipeline",
    "answer_and_ground",
    "answer_config",
    "caption_and_ground",
    "detect_labels",
    "ground_phrases",
    "load_pretrained",
    "resolve_model",
    "segment_labels",
    "to_supervision",
    "write_results",
]
