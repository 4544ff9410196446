"""
The dynamic head of the tower: deformable convolution over neighbouring levels, and the dynamic ReLU.

From "Dynamic Head: Unifying Object Detection Heads with Attentions" (Dai et al., CVPR 2021), "Deformable ConvNets v2"
(Zhu et al., CVPR 2019) and "Dynamic ReLU" (Chen et al., ECCV 2020), as GLIP put them together.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torchvision.ops import deform_conv2d
from transformers import initialization as init

from ..configuration_glipv2 import GLIPv2Config

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
    if use_sampling(feature_map):
        return sampled_deform_conv2d(feature_map, offsets, modulation, weight, bias, stride)
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    x, offsets, weight, bias, modulation = (
        tensor.to(dtype) for tensor in (feature_map, offsets, weight, bias, modulation)
    )
    output = deform_conv2d(x, offsets, weight, bias, stride=stride, padding=1, mask=modulation)
    return output.to(feature_map.dtype)


def use_sampling(feature_map: torch.Tensor) -> bool:
    """Whether `sampled_deform_conv2d` is the faster way: on the CPU, unless the operator itself is exported."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return False
    return feature_map.device.type == "cpu"


def sampled_deform_conv2d(
    feature_map: torch.Tensor,
    offsets: torch.Tensor,
    modulation: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
) -> torch.Tensor:
    """
    As `modulated_deform_conv2d`, with embedding bags over the pixels and one matrix product.

    A tap is a weighted sum of four pixels, so all taps are bags of four rows of the map. On the CPU three times faster
    than an operator that gathers channel by channel, and six times with its gradients.
    """
    batch, _, height, width = feature_map.shape
    out_height, out_width = offsets.shape[-2:]
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    # Autocast would undo the promotion.
    with torch.autocast(feature_map.device.type, enabled=False):
        # A border of zeros, so that taps beyond the edge need no case of their own.
        pixels = F.pad(feature_map.permute(0, 2, 3, 1).to(dtype), (0, 0, 2, 2, 2, 2)).flatten(0, 2)
        rows, row_weights = bilinear_rows(offsets.to(dtype), modulation.to(dtype), height, width, stride)
        matrix = weight.to(dtype).permute(0, 2, 3, 1).flatten(1)
        if torch.compiler.is_compiling():
            # Chunks would be unrolled into hundreds of nodes.
            output = F.linear(sum_rows(pixels, rows, row_weights), matrix, bias.to(dtype))
        else:
            output = SampledConvolution.apply(pixels, rows, row_weights, matrix, bias.to(dtype))
    output = output.unflatten(0, (batch, out_height, out_width)).permute(0, 3, 1, 2)
    return output.to(feature_map.dtype)


class SampledConvolution(torch.autograd.Function):
    """
    Weighted sums of pixels, then a matrix product; neither direction keeps the sums, which would take gigabytes.

    Args of `apply`:
        pixels: `(pixels, channels)`.
        rows, row_weights: `(outputs, taps, 4)`, which pixels make up each tap (int32) and how much of each.
        matrix: `(out_channels, taps * channels)`.
        bias: `(out_channels,)`.

    Returns:
        `(outputs, out_channels)`.
    """

    @staticmethod
    def forward(ctx, pixels, rows, row_weights, matrix, bias):
        ctx.save_for_backward(pixels, rows, row_weights, matrix)
        output = pixels.new_empty(rows.shape[0], matrix.shape[0])
        for start in range(0, rows.shape[0], ROWS_PER_CHUNK):
            chunk = slice(start, start + ROWS_PER_CHUNK)
            taps = sum_rows(pixels, rows[chunk], row_weights[chunk])
            torch.addmm(bias, taps, matrix.T, out=output[chunk])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        pixels, rows, row_weights, matrix = ctx.saved_tensors
        outputs, taps, corners = rows.shape
        grad_matrix = torch.zeros_like(matrix)
        for start in range(0, outputs, ROWS_PER_CHUNK):
            chunk = slice(start, start + ROWS_PER_CHUNK)
            grad_matrix.addmm_(grad_output[chunk].T, sum_rows(pixels, rows[chunk], row_weights[chunk]))
        grad_taps = (grad_output @ matrix).view(outputs * taps, pixels.shape[1])
        # Sorted by pixel, what flows back to one pixel is again a bag: of the taps that read it.
        rows = rows.flatten()
        order = rows.argsort()
        grad_pixels = F.embedding_bag(
            order.int() // corners,
            grad_taps,
            bag_starts(rows, pixels.shape[0]),
            per_sample_weights=row_weights.flatten()[order],
            mode="sum",
        )
        bags = torch.arange(outputs * taps, dtype=rows.dtype, device=rows.device).repeat_interleave(corners)
        starts = torch.arange(0, len(rows), corners, dtype=rows.dtype, device=rows.device)
        grad_row_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_taps, pixels, rows, starts, bags, 0
        )
        return grad_pixels, None, grad_row_weights.view_as(row_weights), grad_matrix, grad_output.sum(0)


def sum_rows(pixels: torch.Tensor, rows: torch.Tensor, row_weights: torch.Tensor) -> torch.Tensor:
    """Sums over the last axis of `rows`, `(outputs, taps, 4)`: the taps, `(outputs, taps * channels)`."""
    taps = F.embedding_bag(rows.flatten(0, 1), pixels, per_sample_weights=row_weights.flatten(0, 1), mode="sum")
    return taps.view(rows.shape[0], rows.shape[1] * pixels.shape[1])


def bag_starts(rows: torch.Tensor, num_pixels: int) -> torch.Tensor:
    """Where each pixel's entries start once `rows` are sorted: int32 `(num_pixels,)`."""
    counts = torch.bincount(rows, minlength=num_pixels)
    return (counts.cumsum(0) - counts).to(rows.dtype)


def bilinear_rows(
    offsets: torch.Tensor, modulation: torch.Tensor, height: int, width: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The four pixels around each tap, and their weights.

    Args:
        offsets, modulation, stride: as in `modulated_deform_conv2d`.
        height, width: of the map.

    Returns:
        Row numbers (int32) and weights, each `(batch * out_height * out_width, 9, 4)`. Rows number the pixels of the
        whole batch after padding each map by two pixels on every side.
    """
    batch, _, out_height, out_width = offsets.shape
    offsets = offsets.permute(0, 2, 3, 1).contiguous().unflatten(-1, (TAPS, 2))
    modulation = modulation.permute(0, 2, 3, 1).contiguous().unsqueeze(-1)
    # Taps start on whole pixels, so the offset alone says how far between two pixels a sample is.
    floor = offsets.detach().floor()
    fraction = offsets - floor
    both = torch.stack([1 - fraction, fraction], dim=-1)
    weights = (both[..., 0, :, None] * both[..., 1, None, :]).flatten(-2) * modulation

    padded_height, padded_width = height + 4, width + 4
    tap = torch.arange(TAPS, device=offsets.device)
    y = torch.arange(out_height, device=offsets.device)[:, None, None] * stride + 1 + tap // 3
    x = torch.arange(out_width, device=offsets.device)[:, None] * stride + 1 + tap % 3
    # Samples beyond the border read its zeros; a NaN has no position, and its weight is NaN anyway.
    top = (floor[..., 0] + y).nan_to_num(0.0).clamp(0, height + 2).int()
    left = (floor[..., 1] + x).nan_to_num(0.0).clamp(0, width + 2).int()
    image = torch.arange(batch, device=offsets.device, dtype=torch.int32) * (padded_height * padded_width)
    first = top * padded_width + left + image.view(-1, 1, 1, 1)
    corners = torch.tensor([0, 1, padded_width, padded_width + 1], device=offsets.device, dtype=torch.int32)
    rows = first.unsqueeze(-1) + corners
    return rows.flatten(0, 2), weights.flatten(0, 2)


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
        return torch.maximum(
            torch.addcmul(bias_1, feature_map, 2 * slope_1 + 1), torch.addcmul(bias_2, feature_map, 2 * slope_2)
        )


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
            strength = h_sigmoid(F.relu(self.branch_attention(branch.mean((2, 3), keepdim=True)))) / len(neighbours)
            mixed = branch * strength if mixed is None else torch.addcmul(mixed, branch, strength)
        return self.activation(mixed)

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
        # An offset keeps its length in the image.
        y, x = resize(offsets, height, width).unflatten(1, (TAPS, 2)).unbind(2)
        scaled = torch.stack([y * (height / rows), x * (width / columns)], dim=2)
        return scaled.flatten(1, 2), resize(modulation, height, width)


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
