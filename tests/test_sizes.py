"""The named sizes: what they hold, and that each can be trained, saved and loaded."""

import copy

import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection

from tests.tiny import tiny_inputs
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection
from transformers_glipv2.configuration_glipv2 import SIZES

# Parameters in millions: all, backbone, text encoder.
PARAMETERS = {
    "tiny": (231.8, 27.5, 108.9),
    "base": (232.1, 86.9, 63.3),
    "large": (430.4, 195.2, 108.9),
    "huge": (1102.9, 638.1, 248.5),
}


def reduced(size: str) -> GLIPv2Config:
    """The widths of a size with one block a stage, one fusion, two text layers and few words."""
    fields = copy.deepcopy(SIZES[size])
    backbone = {**fields["backbone_config"], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}
    text = {**fields.get("text_config", {"model_type": "bert"}), "num_hidden_layers": 2, "vocab_size": 128}
    return GLIPv2Config(**{**fields, "backbone_config": backbone, "text_config": text, "num_fusion_layers": 1})


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters(size):
    with torch.device("meta"):
        model = GLIPv2ForObjectDetection(GLIPv2Config.from_size(size))
    counts = (millions(model), millions(model.model.backbone), millions(model.model.text_encoder))
    assert counts == pytest.approx(PARAMETERS[size], abs=0.1)


@pytest.mark.parametrize("size", ["base", "huge"])
def test_a_step_of_training_then_saving_and_loading(size, tmp_path):
    torch.manual_seed(0)
    model = GLIPv2ForObjectDetection(reduced(size)).train()
    inputs = tiny_inputs()
    output = model(**inputs)
    loss = output.logits.sigmoid().mean() + output.centerness.square().mean() + output.box_deltas.square().mean()
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # transformers' Swin has a last norm that backbones never apply.
    assert all("swin.layernorm" in name for name in without)
    torch.optim.SGD(model.parameters(), lr=1e-2).step()

    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path)
    assert type(loaded.model.backbone) is type(model.model.backbone)
    assert type(loaded.model.text_encoder) is type(model.model.text_encoder)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs).logits, model(**inputs).logits)
