"""Layers that torchao quantises: the same objects are found, and every head still answers."""

import copy

import pytest
import torch

from tests.every_class import CASES, build, loss_of, training_inputs
from tests.scripts import REPOSITORY
from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor, detect_labels

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
CONFIGS = {
    "weights": quantization.Int8WeightOnlyConfig,
    "weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}
NANO = REPOSITORY / "hub_upload" / "glipv2-nano"


@pytest.mark.parametrize("config", CONFIGS)
def test_an_int8_detector_finds_the_same_objects(config):
    model = GLIPv2ForObjectDetection.from_pretrained(NANO, dtype=torch.float32).eval()
    processor = GLIPv2Processor.from_pretrained(NANO)
    image = REPOSITORY / "docs" / "images" / "astronaut.jpg"
    (expected,) = detect_labels(model, processor, [str(image)], ["person", "face"], threshold=0.57)
    quantization.quantize_(model, CONFIGS[config]())
    (found,) = detect_labels(model, processor, [str(image)], ["person", "face"], threshold=0.57)
    assert found["text_labels"] == expected["text_labels"] == ["face", "person"]
    torch.testing.assert_close(found["scores"], expected["scores"], atol=0.05, rtol=0)
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=20, rtol=0)


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_class_runs_with_int8_weights(case):
    model = build(case).eval()
    inputs = training_inputs(case)
    with torch.no_grad():
        expected = loss_of(model, inputs)
        quantized = copy.deepcopy(model)
        quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
        loss = loss_of(quantized, inputs)
    torch.testing.assert_close(loss, expected, rtol=0.2, atol=0.05)
