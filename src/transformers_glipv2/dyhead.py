"""
The dynamic head of the tower: deformable convolution over neighbouring levels, and the dynamic ReLU.

From "Dynamic Head: Unifying Object Detection Heads with Attentions" (Dai et al., CVPR 2021), "Deformable ConvNets v2"
(Zhu et al., CVPR 2019) and "Dynamic ReLU" (Chen et al., ECCV 2020), as GLIP put them together.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d
from transformers import initialization as init

from .configuration_glipv2 import GLIPv2Config

TAPS = 9
# Locations sampled at a time on the CPU: their taps should stay in the cache until they are multiplied.
ROWS_PER_CHUNK = 1024


def modulated_deform_conv2d(
    feature_map: torch.Tensor,
    offsets: torch.Tensor,
    modulation: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
) -> torch.Tensor:
    """
    3x3 convolution, padding 1, whose taps are moved by `offsets` and weighted by `modulation`.

    Half precision is computed in float32: it could not tell positions of large maps apart.

    Args:
        feature_map: `(batch, channels, height, width)`.
        offsets: `(batch, 18, out_height, out_width)`, y and x of each tap in turn, in pixels of `feature_map`.
        modulation: `(batch, 9, out_height, out_width)`.
        weight: `(out_channels, channels, 3, 3)`.
        bias: `(out_channels,)`.
        stride: pixels of `feature_map` between two outputs.

    Returns:
        `(batch, out_channels, out_height, out_width)`.
    """
    tensors = (feature_map, offsets, weight, bias, modulation)
    if use_sampling(*tensors):
        return sampled_deform_conv2d(feature_map, offsets, modulation, weight, bias, stride)
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    x, offsets, weight, bias, modulation = (tensor.to(dtype) for tensor in tensors)
    output = deform_conv2d(x, offsets, weight, bias, stride=stride, padding=1, mask=modulation)
    return output.to(feature_map.dtype)


def use_sampling(*tensors: torch.Tensor) -> bool:
    """Whether `sampled_deform_conv2d` is the faster way: on the CPU, when nothing is differentiated or exported."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return tensors[0].device.type == "cpu"


def sampled_deform_conv2d(
    feature_map: torch.Tensor,
    offsets: torch.Tensor,
    modulation: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
) -> torch.Tensor:
    """
    As `modulated_deform_conv2d`, with one embedding bag over the pixels and one matrix product.

    A tap is a weighted sum of four pixels, so all taps are bags of four rows of the map; three times faster on the
    CPU than an operator that gathers channel by channel.
    """
    batch, channels, height, width = feature_map.shape
    out_height, out_width = offsets.shape[-2:]
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    # A border of zeros, so that taps beyond the edge need no case of their own.
    pixels = F.pad(feature_map.permute(0, 2, 3, 1).to(dtype), (0, 0, 1, 2, 1, 2)).reshape(-1, channels)
    rows, row_weights = bilinear_rows(offsets.to(dtype), modulation.to(dtype), height, width, stride)
    matrix = weight.to(dtype).permute(2, 3, 1, 0).reshape(TAPS * channels, -1)
    output = pixels.new_empty(batch * out_height * out_width, matrix.shape[1])
    for start in range(0, output.shape[0], ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        taps = F.embedding_bag(
            rows[chunk].flatten(0, 1), pixels, per_sample_weights=row_weights[chunk].flatten(0, 1), mode="sum"
        )
        torch.addmm(bias.to(dtype), taps.view(-1, TAPS * channels), matrix, out=output[chunk])
    output = output.view(batch, out_height, out_width, -1).permute(0, 3, 1, 2)
    return output.to(feature_map.dtype)


def bilinear_rows(
    offsets: torch.Tensor, modulation: torch.Tensor, height: int, width: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The four pixels around each tap, and their weights.

    Args:
        offsets, modulation, stride: as in `modulated_deform_conv2d`.
        height, width: of the map.

    Returns:
        Row numbers and weights, each `(batch * out_height * out_width, 9, 4)`. Rows number the pixels of the whole
        batch after padding each map by one pixel above and to the left and two below and to the right.
    """
    batch, _, out_height, out_width = offsets.shape
    offsets = offsets.permute(0, 2, 3, 1).unflatten(-1, (TAPS, 2))
    modulation = modulation.permute(0, 2, 3, 1)
    tap = torch.arange(TAPS, device=offsets.device)
    y = torch.arange(out_height, device=offsets.device)[:, None, None] * stride - 1 + tap // 3
    x = torch.arange(out_width, device=offsets.device)[:, None] * stride - 1 + tap % 3
    y = (offsets[..., 0] + y).clamp(-1, height)
    x = (offsets[..., 1] + x).clamp(-1, width)
    top, left = y.floor(), x.floor()
    below, right = y - top, x - left
    lower, upper = below * modulation, (1 - below) * modulation
    weights = torch.stack([upper * (1 - right), upper * right, lower * (1 - right), lower * right], dim=-1)

    padded_height, padded_width = height + 3, width + 3
    picture = torch.arange(batch, device=offsets.device).view(-1, 1, 1, 1) * (padded_height * padded_width)
    # Clamped again because a NaN has no place of its own.
    row = (top.int() + 1).clamp(0, height + 1) * padded_width + (left.int() + 1).clamp(0, width + 1) + picture
    rows = torch.stack([row, row + 1, row + padded_width, row + padded_width + 1], dim=-1)
    return rows.view(-1, TAPS, 4), weights.view(-1, TAPS, 4)


class GLIPv2DeformConv(nn.Module):
    """Weights of `modulated_deform_conv2d`."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(TAPS * channels), 1 / math.sqrt(TAPS * channels))

    def forward(
        self, feature_map: torch.Tensor, offsets: torch.Tensor, modulation: torch.Tensor, stride: int = 1
    ) -> torch.Tensor:
        """As `modulated_deform_conv2d`."""
        return modulated_deform_conv2d(feature_map, offsets, modulation, self.weight, self.bias, stride)


class GLIPv2DyConvBranch(nn.Module):
    """Deformable convolution and group normalisation of one of the three neighbouring levels."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.conv = GLIPv2DeformConv(config.d_model)
        self.norm = nn.GroupNorm(config.group_norm_groups, config.d_model, eps=config.layer_norm_eps)

    def forward(
        self, feature_map: torch.Tensor, offsets: torch.Tensor, modulation: torch.Tensor, stride: int = 1
    ) -> torch.Tensor:
        """As `modulated_deform_conv2d`."""
        return self.norm(self.conv(feature_map, offsets, modulation, stride))


class GLIPv2DynamicReLU(nn.Module):
    """max(a1 x + b1, a2 x + b2), where the four coefficients of each channel come from the whole map."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, 4 * channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` to the same."""
        hidden = self.expand(F.relu(self.reduce(feature_map.mean((2, 3)))))
        slope_1, bias_1, slope_2, bias_2 = (h_sigmoid(hidden) - 0.5)[:, :, None, None].chunk(4, dim=1)
        return torch.maximum(feature_map * (2 * slope_1 + 1) + bias_1, feature_map * (2 * slope_2) + bias_2)


class GLIPv2DyConv(nn.Module):
    """
    One dynamic convolution: each level mixes itself, the finer and the coarser level, and weighs the three.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.offset_mode = config.dyconv_offset_mode
        self.offset = nn.Conv2d(config.d_model, 3 * TAPS, 3, padding=1)
        self.branches = nn.ModuleDict({name: GLIPv2DyConvBranch(config) for name in ("coarser", "same", "finer")})
        self.branch_attention = nn.Conv2d(config.d_model, 1, 1)
        self.activation = GLIPv2DynamicReLU(config.d_model)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """
        Args:
            feature_maps: `(batch, d_model, H_l, W_l)` each, the finest first.

        Returns:
            The new maps, in the same shapes.
        """
        return tuple(self._convolve_level(feature_maps, level) for level in range(len(feature_maps)))

    def _convolve_level(self, feature_maps: tuple[torch.Tensor, ...], level: int) -> torch.Tensor:
        current = feature_maps[level]
        offsets_and_masks = self.offset(current)
        offsets = offsets_and_masks[:, : 2 * TAPS]
        modulation = offsets_and_masks[:, 2 * TAPS :].sigmoid()

        neighbours = [("same", current, 1)]
        if level > 0:
            neighbours.append(("finer", feature_maps[level - 1], 2))
        if level < len(feature_maps) - 1:
            neighbours.append(("coarser", feature_maps[level + 1], 1))
        mixed = None
        for name, neighbour, stride in neighbours:
            height, width = ((side - 1) // stride + 1 for side in neighbour.shape[-2:])
            branch_offsets, branch_modulation = self._fit(offsets, modulation, height, width)
            branch = self.branches[name](neighbour, branch_offsets, branch_modulation, stride)
            branch = resize(branch, *current.shape[-2:])
            strength = h_sigmoid(F.relu(self.branch_attention(branch.mean((2, 3), keepdim=True))))
            branch = branch * strength
            mixed = branch if mixed is None else mixed + branch
        return self.activation(mixed / len(neighbours))

    def _fit(
        self, offsets: torch.Tensor, modulation: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Offsets and masks of the current level for a branch that gives `height` by `width`."""
        rows, columns = offsets.shape[-2:]
        if (rows, columns) == (height, width):
            return offsets, modulation
        if self.offset_mode == "released" and height * width <= rows * columns:
            # The kernel of the original reads the larger map with the strides of the smaller output, and released
            # weights were trained so.
            offsets = offsets.flatten(1)[:, : 2 * TAPS * height * width].unflatten(1, (2 * TAPS, height, width))
            modulation = modulation.flatten(1)[:, : TAPS * height * width].unflatten(1, (TAPS, height, width))
            return offsets, modulation
        # An offset keeps its length in the picture.
        scale = offsets.new_tensor([height / rows, width / columns]).repeat(TAPS)[:, None, None]
        return resize(offsets, height, width) * scale, resize(modulation, height, width)


def resize(feature_map: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear, corner pixels on corner pixels, where the size differs."""
    if feature_map.shape[-2:] == (height, width):
        return feature_map
    return F.interpolate(feature_map, size=(height, width), mode="bilinear", align_corners=True)


def h_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Piecewise linear sigmoid in [0, 1]."""
    return F.relu6(x + 3) / 6


def init_dyconv(module: GLIPv2DyConv, config: GLIPv2Config):
    """
    Sets the initial weights of a dynamic convolution as the original does; weights already loaded are left alone.

    Args:
        module: the dynamic convolution.
        config: its configuration.
    """
    for layer in (module.offset, module.activation.reduce, module.activation.expand):
        # PyTorch's own default.
        bound = 1 / math.sqrt(layer.weight[0].numel())
        init.uniform_(layer.weight, -bound, bound)
        init.uniform_(layer.bias, -bound, bound)
    bound = 1 / math.sqrt(TAPS * config.d_model)
    for branch in module.branches.values():
        init.uniform_(branch.conv.weight, -bound, bound)
        init.zeros_(branch.conv.bias)
        init.ones_(branch.norm.weight)
        init.zeros_(branch.norm.bias)
    init.normal_(module.branch_attention.weight, std=0.01)
    init.zeros_(module.branch_attention.bias)
