"""CoSwin: equal to the original at every size, and a backbone like any other."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoConfig

from transformers_glipv2.backbones.coswin import GLIPv2CoSwinBackbone, GLIPv2CoSwinConfig
from transformers_glipv2.conversion.convert_glip_checkpoint import backbone_fields
from transformers_glipv2.conversion.glip_original_names import translate


def small_config(**overrides) -> GLIPv2CoSwinConfig:
    fields = {"embed_dim": 12, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 4}
    return GLIPv2CoSwinConfig(**{**fields, "out_indices": [2, 3, 4], "drop_path_rate": 0.0, **overrides})


@pytest.fixture(scope="module")
def golden(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "coswin_forward.safetensors")


@pytest.fixture(scope="module")
def model(reference_dir) -> GLIPv2CoSwinBackbone:
    spec = json.loads((reference_dir / "coswin.json").read_text())["spec"]
    original = load_file(reference_dir / "coswin_state.safetensors")
    fields = backbone_fields(original)
    sizes = ("embed_dim", "depths", "num_heads", "window_size")
    assert {name: fields[name] for name in sizes} == {name: spec[name] for name in sizes}
    model = AutoBackbone.from_config(AutoConfig.for_model(**fields))
    translation = translate(original)
    assert not translation.unknown
    state = {name.removeprefix("model.backbone."): tensor for name, tensor in translation.state.items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.mark.parametrize("image", range(3))
@torch.no_grad()
def test_maps_equal_the_originals(model, golden, image):
    output = model(golden[f"input.{image}"], output_hidden_states=True)
    # The original counts its stages from 2, and its first one has no norm.
    torch.testing.assert_close(output.hidden_states[1], golden[f"out.{image}.stage2"], atol=1e-4, rtol=0)
    for stage, feature_map in zip((3, 4, 5), output.feature_maps, strict=True):
        torch.testing.assert_close(feature_map, golden[f"out.{image}.stage{stage}"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_sides_are_not_those_of_the_image():
    model = GLIPv2CoSwinBackbone(small_config()).eval()
    sides = [tuple(feature_map.shape[-2:]) for feature_map in model(torch.zeros(1, 3, 128, 160)).feature_maps]
    assert sides == [(17, 20), (9, 10), (5, 5)]


@torch.no_grad()
def test_one_gamma_weights_attention_and_mlp():
    torch.manual_seed(0)
    model = GLIPv2CoSwinBackbone(small_config(layer_scale_init_value=1e-4)).eval()
    gammas = [parameter for name, parameter in model.named_parameters() if name.endswith("gamma")]
    assert [len(gamma) for gamma in gammas] == [12, 12, 24, 48, 48, 96]
    assert all((gamma == 1e-4).all() for gamma in gammas)

    block, states = model.stages[0].blocks[0], torch.randn(1, 64, 12)
    for gamma in gammas:
        gamma.copy_(torch.rand_like(gamma))
    attended = attention_update(block, states, 8)
    expected = states + gammas[0] * attended
    expected = expected + gammas[0] * block.mlp(block.layernorm_after(expected))
    torch.testing.assert_close(block(states, (8, 8), always_partition=True)[0], expected)
    for gamma in gammas:
        gamma.zero_()
    torch.testing.assert_close(block(states, (8, 8), always_partition=True)[0], states)


def attention_update(block, states: torch.Tensor, side: int, window: int = 4) -> torch.Tensor:
    """What the attention of an unshifted block adds, window by window."""
    grid = block.layernorm_before(states).unflatten(1, (side, side))
    update = torch.zeros_like(grid)
    for row in range(0, side, window):
        for column in range(0, side, window):
            area = (slice(None), slice(row, row + window), slice(column, column + window))
            update[area] = block.attention(grid[area].flatten(1, 2))[0].unflatten(1, (window, window))
    return update.flatten(1, 2)


def test_save_and_load(tmp_path):
    model = GLIPv2CoSwinBackbone(small_config(layer_scale_init_value=1e-4)).eval()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_scale_init_value == 1e-4
    loaded, report = GLIPv2CoSwinBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pixels = torch.randn(1, 3, 61, 90)
    with torch.no_grad():
        for one, other in zip(model(pixels).feature_maps, loaded.eval()(pixels).feature_maps, strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_built_on_meta_it_is_initialised(tmp_path):
    model = GLIPv2CoSwinBackbone(small_config(layer_scale_init_value=1e-4))
    reference = model.stages[0].blocks[0].attention.relative_position_bias.relative_position_index
    model.save_pretrained(tmp_path)
    loaded = GLIPv2CoSwinBackbone.from_pretrained(tmp_path)
    index = loaded.stages[0].blocks[0].attention.relative_position_bias.relative_position_index
    assert torch.equal(index, reference)


def test_every_parameter_learns_with_and_without_checkpointing():
    torch.manual_seed(0)
    model = GLIPv2CoSwinBackbone(small_config(layer_scale_init_value=1e-1)).train()
    pixels = torch.randn(1, 3, 64, 64)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        sum(feature_map.square().sum() for feature_map in model(pixels).feature_maps).backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-4)
