"""Faster layers give what those of the other libraries give."""

import pytest
import torch
from timm.layers import FrozenBatchNormAct2d
from transformers.models.swin.modeling_swin import SwinLayer

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.backbones import faster_layers
from transformers_glipv2.backbones.faster_layers import GLIPv2ChunkedSwinMLP, SwinMLP, use_faster_layers


@pytest.fixture
def model() -> GLIPv2ForObjectDetection:
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config()).eval()


def test_every_mlp_of_the_backbone_is_chunked(model):
    mlps = [module for module in model.model.backbone.modules() if isinstance(module, SwinMLP)]
    assert len(mlps) == 5
    assert {type(module) for module in mlps} == {GLIPv2ChunkedSwinMLP}
    names = list(model.state_dict())
    use_faster_layers(model.model.backbone)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_size_of_chunk_gives_the_same(size, model, monkeypatch):
    inputs = tiny_inputs()
    with torch.no_grad():
        whole = model(**inputs)
        monkeypatch.setattr(faster_layers, "LOCATIONS_PER_CHUNK", size)
        chunked = model(**inputs)
    torch.testing.assert_close(chunked.logits, whole.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(chunked.logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(7, 7), (14, 21), (28, 7)])
@pytest.mark.parametrize("shift", [0, 3])
def test_masks_of_shifted_windows_are_those_of_transformers(size, shift, model):
    layer = next(one for one in model.model.backbone.modules() if isinstance(one, SwinLayer))
    layer.window_size, layer.shift_size = 7, shift
    args = (*size, torch.float32, torch.device("cpu"))
    expected = SwinLayer.get_attn_mask(layer, *args)
    mask = layer.get_attn_mask(*args)
    if expected is None:
        assert mask is None
    else:
        assert torch.equal(mask, expected)


def test_frozen_batch_norms_give_what_those_of_timm_give():
    norm = FrozenBatchNormAct2d(6, eps=1e-3)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    backbone = GLIPv2ForObjectDetection.from_pretrained("hub_upload/glipv2-nano").model.backbone
    norms = [one for one in backbone.modules() if isinstance(one, FrozenBatchNormAct2d)]
    assert norms
    inputs = torch.randn(2, 6, 5, 7)
    expected = norm(inputs.clone())
    norm.__class__ = type(norms[0])
    assert type(norm) is not FrozenBatchNormAct2d
    torch.testing.assert_close(norm(inputs.clone()), expected, atol=1e-6, rtol=1e-5)
