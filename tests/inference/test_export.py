"""`torch.export` and `torch.compile` of the detection forward at a fixed size."""

import io

import pytest
import torch
from torch import nn

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForObjectDetection

RESULTS = ("logits", "centerness", "box_deltas", "pred_boxes")


class Detector(nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, model: GLIPv2ForObjectDetection):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask, input_ids, attention_mask):
        output = self.model(
            pixel_values=pixel_values, pixel_mask=pixel_mask, input_ids=input_ids, attention_mask=attention_mask
        )
        return tuple(output[name] for name in RESULTS)


def detector() -> Detector:
    torch.manual_seed(0)
    # One block of everything: tracing takes its time.
    config = tiny_config(num_fusion_layers=1)
    config.backbone_config.depths = [1, 1, 1, 1]
    config.text_config.num_hidden_layers = 1
    return Detector(GLIPv2ForObjectDetection(config).eval())


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    return tuple(tiny_inputs().values())


@pytest.fixture(scope="module")
def expected(inputs) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return detector()(*inputs)


def assert_same(results, expected):
    for name, one, other in zip(RESULTS, results, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_export(inputs, expected):
    exported = torch.export.export(detector(), inputs)
    assert_same(exported.module()(*inputs), expected)
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    # The standard operator, which other runtimes know, and no loops over chunks.
    assert any("deform_conv2d" in name for name in operators)
    assert not any("embedding_bag" in name for name in operators)

    saved = io.BytesIO()
    torch.export.save(exported, saved)
    saved.seek(0)
    assert_same(torch.export.load(saved).module()(*inputs), expected)
    # The values of another image and text are not baked in.
    other = tuple(tiny_inputs(seed=1).values())
    assert_same(exported.module()(*other), detector()(*other))


@torch.no_grad()
def test_compiled_whole(inputs, expected):
    """One graph without breaks; tracing alone, as a compiler need not be installed."""
    compiled = torch.compile(detector(), backend="eager", fullgraph=True)
    assert_same(compiled(*inputs), expected)


def test_compiled_gradients():
    """Of a block of the tower, which is ours."""
    layer = detector().model.model.layers[0].train()
    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(1, 32, side, side + 1, generator=generator) for side in (8, 4))
    text, mask = torch.randn(1, 5, 32, generator=generator), torch.ones(1, 5, dtype=torch.bool)
    gradients = []
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        new_text, *new_maps = call(text, *maps, text_mask=mask)
        loss = sum(level.square().mean() for level in new_maps) + new_text.sin().mean()
        gradients.append(torch.autograd.grad(loss, list(layer.parameters())))
    for (name, _), one, other in zip(layer.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
