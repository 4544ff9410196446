"""A small detector whose scores differ from place to place and word to word, its processor, and an image."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import (
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForObjectDetection,
    GLIPv2ImageProcessor,
    GLIPv2Processor,
    answer_config,
)
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining

LABELS = ["person", "traffic light", "teddy bear", "dining table"]
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def natural_image(height: int = 90, width: int = 130) -> PIL.Image.Image:
    """A smooth colour image with one edge."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
    pixels[:, width // 2 :] = 255 - pixels[:, width // 2 :]
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def tiny_detector() -> GLIPv2ForObjectDetection:
    """In evaluation mode; an untrained head would give all places and words the same low score."""
    torch.manual_seed(0)
    model = GLIPv2ForObjectDetection(tiny_config()).eval()
    with torch.no_grad():
        model.detection_head.bias.zero_()
        model.detection_head.text_bias.normal_()
        model.detection_head.token_projection.weight.normal_(std=0.5)
        model.detection_head.box_predictor.weight.normal_(std=0.3)
    return model


def save_tiny_heads(folder: Path) -> None:
    """Two checkpoints with processors: `folder/model` answers and captions, `folder/masks` segments; both detect."""
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.3, score_threshold_before_nms=0.0, **answer_config(["yes", "no", "red"]))
    detector = tiny_detector()
    for name, model_class in (("model", GLIPv2ForJointTraining), ("masks", GLIPv2ForInstanceSegmentation)):
        model = model_class(config).eval()
        model.load_state_dict(detector.state_dict(), strict=False)
        if name == "model":
            model.set_special_tokens(tiny_tokenizer())
        model.save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)


def tiny_processor() -> GLIPv2Processor:
    return GLIPv2Processor(GLIPv2ImageProcessor(size=SIZE), tiny_tokenizer(), max_text_length=64)
