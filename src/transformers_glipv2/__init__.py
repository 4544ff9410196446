"""GLIPv2 for Hugging Face transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotObjectDetection

from .configuration_glipv2 import GLIPv2Config
from .modeling_glipv2 import GLIPv2ForObjectDetection, GLIPv2Model, GLIPv2PreTrainedModel

AutoConfig.register("glipv2", GLIPv2Config, exist_ok=True)
AutoModel.register(GLIPv2Config, GLIPv2Model, exist_ok=True)
AutoModelForZeroShotObjectDetection.register(GLIPv2Config, GLIPv2ForObjectDetection, exist_ok=True)

__all__ = ["GLIPv2Config", "GLIPv2ForObjectDetection", "GLIPv2Model", "GLIPv2PreTrainedModel"]
