"""The first block of the tower, and the anchors, equal the original code's."""

import pytest
import torch
from safetensors.torch import load_file

from transformers_glipv2 import GLIPv2Config
from transformers_glipv2.boxes import anchor_grid
from transformers_glipv2.layers.feature_maps import flatten_levels, split_levels
from transformers_glipv2.modeling_glipv2 import GLIPv2TowerLayer

LEVELS = ("P3", "P4", "P5", "P6", "P7")
# Original name -> ours; longer names come before their prefixes.
NAMES = {
    "0.b_attn.attn.values_v_proj": "fusion.vision_value",
    "0.b_attn.attn.values_l_proj": "fusion.text_value",
    "0.b_attn.attn.out_v_proj": "fusion.vision_out",
    "0.b_attn.attn.out_l_proj": "fusion.text_out",
    "0.b_attn.attn.v_proj": "fusion.vision_query",
    "0.b_attn.attn.l_proj": "fusion.text_key",
    "0.b_attn.layer_norm_v": "fusion.vision_norm",
    "0.b_attn.layer_norm_l": "fusion.text_norm",
    "0.b_attn.gamma_v": "fusion.vision_gamma",
    "0.b_attn.gamma_l": "fusion.text_gamma",
    "1.attention.self": "text_layer.attention",
    "1.attention.output.dense": "text_layer.attention.output",
    "1.attention.output.LayerNorm": "text_layer.attention_norm",
    "1.intermediate.dense": "text_layer.intermediate",
    "1.output.dense": "text_layer.output",
    "1.output.LayerNorm": "text_layer.output_norm",
    "2.AttnConv.1": "dyconv.branch_attention",
    "2.DyConv.0": "dyconv.branches.coarser",
    "2.DyConv.1": "dyconv.branches.same",
    "2.DyConv.2": "dyconv.branches.finer",
    "2.offset": "dyconv.offset",
    "2.relu.fc.0": "dyconv.activation.reduce",
    "2.relu.fc.2": "dyconv.activation.expand",
}


@pytest.fixture(scope="module")
def golden(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "forward.safetensors")


@pytest.fixture(scope="module")
def layer(reference_dir) -> GLIPv2TowerLayer:
    config = GLIPv2Config(
        d_model=64,
        num_fusion_layers=2,
        fusion_embed_dim=128,
        fusion_num_heads=8,
        text_config={
            "model_type": "bert",
            "vocab_size": 258,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        },
    )
    prefix = "module.rpn.head.dyhead_tower."
    weights = {}
    for name, tensor in load_file(reference_dir / "state.safetensors").items():
        for theirs, ours in NAMES.items():
            if name.startswith(prefix + theirs):
                rest = name.removeprefix(prefix + theirs)
                weights[ours + rest.replace(".bn.", ".norm.")] = tensor
                break
    layer = GLIPv2TowerLayer(config).eval()
    layer.load_state_dict(weights)
    return layer


def maps_of(golden: dict[str, torch.Tensor], prefix: str) -> tuple[torch.Tensor, ...]:
    return tuple(golden[f"{prefix}.{level}"] for level in LEVELS)


def assert_maps_close(maps, expected):
    for level, one, other in zip(LEVELS, maps, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0, msg=lambda text, level=level: f"{level}: {text}")


@torch.no_grad()
def test_fusion(layer, golden):
    maps = maps_of(golden, "fpn")
    mask = golden["input.attention_mask"].bool()
    vision, text, _ = layer.fusion(flatten_levels(maps), golden["bert.hidden"], mask)
    shapes = [tuple(feature_map.shape[-2:]) for feature_map in maps]
    assert_maps_close(split_levels(vision, shapes), maps_of(golden, "tower.0.VLFuse.visual"))
    torch.testing.assert_close(text, golden["tower.0.VLFuse.lang.hidden"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_fused_text_layer(layer, golden):
    mask = golden["input.attention_mask"].bool()[:, None, None, :]
    text = layer.text_layer(golden["tower.0.VLFuse.lang.hidden"], mask)
    torch.testing.assert_close(text, golden["tower.1.BertEncoderLayer.lang.hidden"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_dynamic_convolution(layer, golden):
    maps = layer.dyconv(maps_of(golden, "tower.0.VLFuse.visual"))
    assert_maps_close(maps, maps_of(golden, "tower.2.DyConv.visual"))


def test_anchors(golden):
    config = GLIPv2Config()
    shapes = [tuple(golden[f"fpn.{level}"].shape[-2:]) for level in LEVELS]
    anchors = anchor_grid(shapes, config.anchor_strides, config.anchor_sizes)
    torch.testing.assert_close(anchors, torch.cat(maps_of(golden, "anchors")).to(anchors.dtype), atol=0, rtol=0)
