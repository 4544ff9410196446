"""Chunks of locations change nothing."""

import pytest
import torch

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.backbones import chunked_mlp
from transformers_glipv2.backbones.chunked_mlp import GLIPv2ChunkedSwinMLP, SwinMLP, chunk_mlps


@pytest.fixture
def model() -> GLIPv2ForObjectDetection:
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config()).eval()


def test_every_mlp_of_the_backbone_is_chunked(model):
    mlps = [module for module in model.model.backbone.modules() if isinstance(module, SwinMLP)]
    assert len(mlps) == 5
    assert {type(module) for module in mlps} == {GLIPv2ChunkedSwinMLP}
    names = list(model.state_dict())
    chunk_mlps(model.model.backbone)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_size_of_chunk_gives_the_same(size, model, monkeypatch):
    inputs = tiny_inputs()
    with torch.no_grad():
        whole = model(**inputs)
        monkeypatch.setattr(chunked_mlp, "LOCATIONS_PER_CHUNK", size)
        chunked = model(**inputs)
    torch.testing.assert_close(chunked.logits, whole.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(chunked.logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)
