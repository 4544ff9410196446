"""A small detector whose scores differ from place to place and word to word, its processor, and an image."""

import numpy as np
import PIL.Image
import torch

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2ImageProcessor, GLIPv2Processor

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


def tiny_processor() -> GLIPv2Processor:
    return GLIPv2Processor(GLIPv2ImageProcessor(size=SIZE), tiny_tokenizer(), max_text_length=64)
