"""Deformable convolution against plain loops, and the rules of the dynamic convolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from tests.tiny import tiny_config
from transformers_glipv2.layers import dyhead
from transformers_glipv2.layers.dyhead import (
    GLIPv2DyConv,
    GLIPv2DynamicReLU,
    modulated_deform_conv2d,
    sampled_deform_conv2d,
)

NAMES = ("feature_map", "offsets", "modulation", "weight", "bias")


def bilinear(plane: torch.Tensor, y: float, x: float) -> float:
    """The value of a `(height, width)` plane between its pixels, zero outside."""
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column].item()
    return value


def expected_deform_conv2d(feature_map, offsets, modulation, weight, bias, stride):
    """The definition, tap by tap."""
    batch, channels = feature_map.shape[:2]
    height, width = offsets.shape[-2:]
    output = torch.zeros(batch, weight.shape[0], height, width, dtype=torch.float64)
    for image in range(batch):
        for row in range(height):
            for column in range(width):
                output[image, :, row, column] = bias
                for tap in range(9):
                    dy, dx = offsets[image, 2 * tap : 2 * tap + 2, row, column].tolist()
                    y, x = row * stride - 1 + tap // 3 + dy, column * stride - 1 + tap % 3 + dx
                    for channel in range(channels):
                        sample = bilinear(feature_map[image, channel], y, x) * modulation[image, tap, row, column]
                        output[image, :, row, column] += weight[:, channel, tap // 3, tap % 3] * sample
    return output


def deform_inputs(batch=2, channels=3, out_channels=2, height=5, width=4, stride=1, spread=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return [
        random(batch, channels, height, width),
        spread * random(batch, 18, out_height, out_width),
        random(batch, 9, out_height, out_width).sigmoid(),
        random(out_channels, channels, 3, 3),
        random(out_channels),
    ]


@pytest.mark.parametrize(("height", "width"), [(5, 4), (1, 1), (3, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_forms_equal_plain_loops(height, width, stride):
    inputs = deform_inputs(height=height, width=width, stride=stride)
    expected = expected_deform_conv2d(*inputs, stride)
    feature_map, offsets, modulation, weight, bias = inputs
    torch.testing.assert_close(sampled_deform_conv2d(*inputs, stride), expected)
    operator = deform_conv2d(feature_map, offsets, weight, bias, stride=stride, padding=1, mask=modulation)
    torch.testing.assert_close(operator, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_equal_finite_differences(stride):
    inputs = [tensor.requires_grad_() for tensor in deform_inputs(batch=1, height=4, width=3, stride=stride)]
    assert torch.autograd.gradcheck(lambda *tensors: sampled_deform_conv2d(*tensors, stride), inputs)


def test_gradients_equal_the_operators(monkeypatch):
    # Several chunks, the last one short.
    monkeypatch.setitem(dyhead.OUTPUTS_PER_CHUNK, "cpu", 16)
    inputs = [tensor.requires_grad_() for tensor in deform_inputs(height=9, width=7)]
    feature_map, offsets, modulation, weight, bias = inputs
    forms = (
        sampled_deform_conv2d(*inputs),
        deform_conv2d(feature_map, offsets, weight, bias, padding=1, mask=modulation),
    )
    direction = torch.randn(forms[0].shape, dtype=torch.float64)
    sampled, operator = (torch.autograd.grad(form, inputs, direction) for form in forms)
    for name, one, other in zip(NAMES, sampled, operator, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_samples_far_outside_are_zero():
    feature_map, offsets, modulation, weight, bias = deform_inputs()
    for far in (-1e9, -7.0, 7.0, 1e9):
        output = sampled_deform_conv2d(feature_map, torch.full_like(offsets, far), modulation, weight, bias)
        torch.testing.assert_close(output, bias.view(1, -1, 1, 1).expand_as(output))


def test_an_undefined_offset_touches_its_own_output_only():
    inputs = deform_inputs(batch=1)
    expected = sampled_deform_conv2d(*inputs)
    inputs[1][0, 0, 2, 1] = float("nan")
    output = sampled_deform_conv2d(*inputs)
    assert output[0, :, 2, 1].isnan().all()
    output[0, :, 2, 1] = expected[0, :, 2, 1]
    torch.testing.assert_close(output, expected)


def test_empty_batch():
    inputs = [tensor.requires_grad_() for tensor in deform_inputs(batch=0)]
    output = sampled_deform_conv2d(*inputs)
    assert output.shape == (0, 2, 5, 4)
    output.sum().backward()
    assert inputs[3].grad.abs().sum() == 0


@pytest.mark.parametrize("form", [modulated_deform_conv2d, sampled_deform_conv2d])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, form):
    inputs = [tensor.to(dtype) for tensor in deform_inputs(dtype=torch.float32)]
    output = form(*inputs)
    assert output.dtype == dtype
    torch.testing.assert_close(output, form(*(tensor.float() for tensor in inputs)).to(dtype))


def test_autocast_leaves_float32():
    inputs = deform_inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sampled_deform_conv2d(*inputs)
    torch.testing.assert_close(output, sampled_deform_conv2d(*inputs), rtol=0, atol=0)


# The dynamic convolution ---------------------------------------------------------------------------------------------


def pyramid(channels=32, height=12, width=10, batch=1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2), ((height + 3) // 4, (width + 3) // 4)]
    return tuple(torch.randn(batch, channels, *size, generator=generator) for size in sizes)


def test_released_offsets_are_read_with_the_strides_of_the_output():
    dyconv = GLIPv2DyConv(tiny_config())
    offsets = torch.arange(18 * 6 * 4.0).view(1, 18, 6, 4)
    modulation = torch.arange(9 * 6 * 4.0).view(1, 9, 6, 4)
    fitted_offsets, fitted_modulation = dyconv._fit(offsets, modulation, 3, 2)
    assert torch.equal(fitted_offsets.flatten(), torch.arange(18 * 3 * 2.0))
    assert torch.equal(fitted_modulation.flatten(), torch.arange(9 * 3 * 2.0))


def test_resized_offsets_keep_their_length_in_the_image():
    dyconv = GLIPv2DyConv(tiny_config(dyconv_offset_mode="resized"))
    offsets, modulation = torch.full((1, 18, 6, 4), 4.0), torch.full((1, 9, 6, 4), 0.5)
    fitted_offsets, fitted_modulation = dyconv._fit(offsets, modulation, 3, 2)
    torch.testing.assert_close(fitted_offsets, torch.full((1, 18, 3, 2), 2.0))
    torch.testing.assert_close(fitted_modulation, torch.full((1, 9, 3, 2), 0.5))


@pytest.mark.parametrize("mode", ["released", "resized"])
def test_each_level_sees_its_neighbours_only(mode):
    torch.manual_seed(0)
    dyconv = GLIPv2DyConv(tiny_config(dyconv_offset_mode=mode))
    maps = [feature_map.requires_grad_() for feature_map in pyramid()]
    output = dyconv(tuple(maps))
    assert [out.shape for out in output] == [feature_map.shape for feature_map in maps]
    finest = torch.autograd.grad(output[0].square().sum(), maps, retain_graph=True)
    assert finest[0].abs().sum() > 0
    assert finest[1].abs().sum() > 0
    assert finest[2].abs().sum() == 0
    coarsest = torch.autograd.grad(output[2].square().sum(), maps)
    assert coarsest[0].abs().sum() == 0


def test_images_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    dyconv = GLIPv2DyConv(tiny_config())
    maps = pyramid(batch=2)
    together = dyconv(maps)
    for image in range(2):
        alone = dyconv(tuple(feature_map[image : image + 1] for feature_map in maps))
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other[image : image + 1], atol=1e-5, rtol=1e-5)


def test_dynamic_relu_formula():
    torch.manual_seed(0)
    activation = GLIPv2DynamicReLU(8)
    means = torch.randn(2, 5, 8)
    hidden = activation.expand(F.relu(activation.reduce(means)))
    a1, b1, a2, b2 = (F.hardsigmoid(hidden) - 0.5).chunk(4, dim=-1)
    for one, expected in zip(activation(means), (2 * a1 + 1, b1, 2 * a2, b2), strict=True):
        torch.testing.assert_close(one, expected)


def plain_dyconv(dyconv: GLIPv2DyConv, maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Level by level and branch by branch, with the layers that the definition names."""
    results = []
    for level, current in enumerate(maps):
        both = dyconv.offset(current)
        offsets, modulation = both[:, :18], both[:, 18:].sigmoid()
        found = []
        for name, source, stride in (("same", level, 1), ("finer", level - 1, 2), ("coarser", level + 1, 1)):
            if source not in range(len(maps)):
                continue
            branch, neighbour = dyconv.branches[name], maps[source]
            shape = [(side - 1) // stride + 1 for side in neighbour.shape[-2:]]
            fitted = dyconv._fit(offsets, modulation, *shape)
            one = modulated_deform_conv2d(neighbour, *fitted, branch.conv.weight, branch.conv.bias, stride)
            one = F.group_norm(one, branch.norm.num_groups, branch.norm.weight, branch.norm.bias, branch.norm.eps)
            one = F.interpolate(one, current.shape[-2:], mode="bilinear", align_corners=True)
            strength = F.hardsigmoid(F.relu(dyconv.branch_attention(one.mean((2, 3), keepdim=True))))
            found.append(one * strength)
        mixed = sum(found) / len(found)
        a1, b1, a2, b2 = (one[:, :, None, None] for one in dyconv.activation(mixed.mean((2, 3))))
        results.append(torch.maximum(a1 * mixed + b1, a2 * mixed + b2))
    return results


@pytest.mark.parametrize("mode", ["released", "resized"])
@pytest.mark.parametrize("sampling", [True, False])
@pytest.mark.parametrize("shapes", [((12, 10), (6, 5), (3, 3)), ((13, 8), (5, 6), (2, 2), (1, 1))])
def test_all_levels_at_once_equal_one_by_one(mode, sampling, shapes, monkeypatch):
    """Also where a level is not half as large as the finer one."""
    monkeypatch.setattr(dyhead, "SAMPLING_DEVICES", {"cpu"} if sampling else set())
    torch.manual_seed(0)
    dyconv = GLIPv2DyConv(tiny_config(dyconv_offset_mode=mode)).double()
    for parameter in dyconv.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    maps = tuple(torch.randn(2, 32, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    inputs = [*maps, *dyconv.parameters()]
    outputs, expected = dyconv(maps), plain_dyconv(dyconv, maps)
    gradients = [torch.autograd.grad(sum(one.sin().sum() for one in form), inputs) for form in (outputs, expected)]
    torch.testing.assert_close(list(outputs), expected)
    torch.testing.assert_close(*gradients)
