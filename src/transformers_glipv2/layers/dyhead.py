"""
The dynamic head of the tower: deformable convolution over neighbouring levels, and the dynamic ReLU.

From "Dynamic Head: Unifying Object Detection Heads with Attentions" (Dai et al., CVPR 2021), "Deformable ConvNets v2"
(Zhu et al., CVPR 2019) and "Dynamic ReLU" (Chen et al., ECCV 2020), as GLIP put them together.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torchvision.ops import deform_conv2d
from transformers import initialization as init

from ..configuration_glipv2 import GLIPv2Config
from .feature_maps import FeatureMaps, flatten_levels, map_shapes, split_levels

TAPS = 9
# Outputs sampled at a time, by device: on the CPU their taps should stay in the cache until they are multiplied, on
# others they should fit into memory.
OUTPUTS_PER_CHUNK = {"cpu": 1024}
OUTPUTS_PER_CHUNK_ELSEWHERE = 1 << 17
# Devices where sampling with embedding bags is used in place of torchvision's operator; `benchmarks/deformable.py`
# measures both.
SAMPLING_DEVICES = {"cpu", "cuda"}


# Where the taps are --------------------------------------------------------------------------------------------------


class BranchOutput(NamedTuple):
    """
    What one deformable convolution of a pyramid reads and gives.

    Args:
        branch: whose weights are used.
        target: level that it is for.
        source: level that it reads.
        stride: pixels of the source between two outputs.
        shape: height and width of the output.
    """

    branch: str
    target: int
    source: int
    stride: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


def neighbour_outputs(level_shapes: list[tuple[int, int]]) -> list[BranchOutput]:
    """Each level reads itself, the finer and the coarser level; those of one branch are side by side."""
    levels = range(len(level_shapes))
    halves = [tuple((side - 1) // 2 + 1 for side in shape) for shape in level_shapes]
    return [
        *(BranchOutput("same", level, level, 1, level_shapes[level]) for level in levels),
        *(BranchOutput("finer", level, level - 1, 2, halves[level - 1]) for level in levels[1:]),
        *(BranchOutput("coarser", level, level + 1, 1, level_shapes[level + 1]) for level in levels[:-1]),
    ]


@dataclass
class SamplingGrid:
    """
    What depends on the sizes of maps alone, made once a forward pass for all layers; `outputs` counts the locations of
    all convolutions, one after the other.

    Args:
        level_shapes (`list` of `tuple[int, int]`):
            Height and width of each level's map.
        branch_outputs (`list` of `BranchOutput`):
            The convolutions.
        positions (`torch.FloatTensor` of shape `(outputs, 9, 2)`):
            y and x in pixels of the source, before offsets, of each tap.
        limits (`torch.FloatTensor` of shape `(outputs, 1, 1, 2)`):
            The last row and column of the source.
        widths, starts (`torch.FloatTensor` of shape `(outputs, 1, 1)`):
            Pixels in a row of the source, and the pixels before its first in the sequence of all levels.
        steps (`torch.FloatTensor` of shape `(2, 1)`):
            From the pixel before a position to that after it.
        segments (`torch.LongTensor` of shape `(outputs,)`):
            The convolution of each output.
        averages (`torch.FloatTensor` of shape `(convolutions, outputs)`):
            Times any values of the outputs, their means by convolution.
        targets (`torch.FloatTensor` of shape `(levels, convolutions)`):
            1 where a convolution is for a level.
        fractions (`torch.FloatTensor` of shape `(convolutions, 1)`):
            1 / convolutions of the same target.
        reads (`torch.LongTensor` of shape `(coarser outputs, 27)`, *optional*):
            From `released_reads`.
    """

    level_shapes: list[tuple[int, int]]
    branch_outputs: list[BranchOutput]
    positions: torch.Tensor
    limits: torch.Tensor
    widths: torch.Tensor
    starts: torch.Tensor
    steps: torch.Tensor
    segments: torch.Tensor
    averages: torch.Tensor
    targets: torch.Tensor
    fractions: torch.Tensor
    reads: torch.Tensor | None = None


def sampling_grid(
    level_shapes: list[tuple[int, int]],
    branch_outputs: list[BranchOutput],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    read_released: bool = False,
) -> SamplingGrid:
    """
    Args:
        level_shapes: height and width of each level's map.
        branch_outputs: the convolutions; those of a branch are side by side, in the order of their levels, and the
            coarser branch is the last.
        device: of the maps.
        dtype: of positions.
        read_released: also make `reads`.
    """

    outputs = sum(one.size for one in branch_outputs)
    shapes = torch.stack([numbers(sides, device) for sides in zip(*level_shapes, strict=True)], dim=-1)
    sizes = shapes.prod(1)
    runs = [list(run) for _, run in itertools.groupby(branch_outputs, key=lambda one: one.branch)]
    sources, targets = (
        torch.cat(
            [torch.arange(first, first + len(run), device=device) for first, run in zip(firsts, runs, strict=True)]
        )
        for firsts in ([run[0].source for run in runs], [run[0].target for run in runs])
    )
    strides = torch.cat([torch.full((len(run), 1), run[0].stride, device=device) for run in runs])
    # Of each convolution, and from there of each output.
    source_shapes = shapes.index_select(0, sources)
    output_shapes = (source_shapes - 1) // strides + 1
    counts = output_shapes.prod(1)
    ends = counts.cumsum(0)
    starts = sizes.cumsum(0) - sizes
    index = torch.arange(outputs, device=device)
    segments = (index[:, None] >= ends).sum(1)
    ranges = torch.stack([ends - counts, starts.index_select(0, sources)], dim=1)
    table = torch.cat([source_shapes, output_shapes, strides, ranges], dim=1)
    height, width, _, columns, stride, first, start = table.index_select(0, segments).unbind(1)
    index = index - first
    row = index // columns
    centres = torch.stack([row, index - row * columns], dim=-1) * stride[:, None]
    tap = torch.arange(TAPS, device=device)
    taps = torch.stack([tap // 3, tap % 3], dim=-1) - 1

    reads = None
    if read_released:
        coarser = sum(one.size for one in branch_outputs if one.branch == "coarser")
        own = torch.stack([counts, sizes.index_select(0, targets), starts.index_select(0, targets)], dim=1)
        of_outputs = own.index_select(0, segments[-coarser:]).split(1, dim=1)
        reads = released_reads(index[-coarser:, None], *of_outputs)
    members = segments == torch.arange(len(branch_outputs), device=device)[:, None]
    of_target = targets == torch.arange(len(level_shapes), device=device)[:, None]
    return SamplingGrid(
        level_shapes=level_shapes,
        branch_outputs=branch_outputs,
        positions=(centres[:, None] + taps).to(dtype),
        limits=(torch.stack([height, width], dim=-1) - 1).to(dtype)[:, None, None],
        widths=width.to(dtype)[:, None, None],
        starts=start.to(dtype)[:, None, None],
        steps=torch.arange(2, dtype=dtype, device=device)[:, None],
        segments=segments,
        averages=members / counts.to(dtype)[:, None],
        targets=of_target.to(dtype),
        fractions=1 / of_target.sum(1).to(dtype).index_select(0, targets)[:, None],
        reads=reads,
    )


def numbers(values: Iterable[int], device: torch.device) -> torch.Tensor:
    """A few Python numbers as a tensor, made where it is needed: a copy would make the device wait."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])


def released_reads(
    index: torch.Tensor, count: torch.Tensor, target_size: torch.Tensor, target_start: torch.Tensor
) -> torch.Tensor:
    """
    Where the offsets and masks of the coarser branch come from. The kernel of the original reads the larger map with
    the strides of the smaller output, and released weights were trained so.

    Args:
        index: long `(coarser outputs, 1)`, of an output among those of its convolution.
        count: outputs of the convolution, in the same shape.
        target_size, target_start: locations of the convolution's target, and those before it, in the same shape.

    Returns:
        long `(coarser outputs, 27)`: entries of the flattened `(locations, 27)` of all levels.
    """
    channel = torch.arange(3 * TAPS, device=index.device)
    # Offsets and masks are maps of their own.
    first = (channel >= 2 * TAPS) * (2 * TAPS)
    entry = torch.addcmul(index, channel - first, count)
    location = entry % target_size + target_start
    return torch.add(entry // target_size + first, location, alpha=3 * TAPS)


def bilinear_rows(
    offsets: torch.Tensor, modulation: torch.Tensor, grid: SamplingGrid
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The four pixels around each tap, and their weights.

    Args:
        offsets: `(batch, outputs, 18)`, y and x of each tap in turn, in pixels.
        modulation: `(batch, outputs, 9)`.
        grid: where the taps start.

    Returns:
        Row numbers (int32) and weights, each `(batch, outputs, 9, 4)`. Rows number the pixels of all levels of the
        first image, then of the second and so on.
    """
    offsets = offsets.unflatten(-1, (TAPS, 2))
    # Taps start on whole pixels, so the offset alone says how far between two pixels a sample is.
    floor = offsets.detach().floor()
    fraction = offsets - floor
    corners = (floor + grid.positions).unsqueeze(-2) + grid.steps
    # A NaN has no position, so these take the limit; its weight is NaN anyway.
    inside = torch.fmin(torch.fmax(corners, grid.steps[0]), grid.limits)
    # Beyond the border all is zero.
    parts = torch.stack([1 - fraction, fraction], dim=-2) * (inside == corners)
    y, x = inside.unbind(-1)
    of_y, of_x = parts.unbind(-1)
    weights = (of_y * modulation.unsqueeze(-1)).unsqueeze(-1) * of_x.unsqueeze(-2)
    rows = torch.addcmul((x + grid.starts).unsqueeze(-2), y.unsqueeze(-1), grid.widths.unsqueeze(-1)).int()
    if len(rows) > 1:
        pixels = sum(height * width for height, width in grid.level_shapes)
        images = torch.arange(len(rows), dtype=torch.int32, device=rows.device) * pixels
        rows = rows + images.view(-1, 1, 1, 1, 1)
    return rows.flatten(-2), weights.flatten(-2)


# Deformable convolution ----------------------------------------------------------------------------------------------


def modulated_deform_conv2d(
    feature_map: torch.Tensor,
    offsets: torch.Tensor,
    modulation: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
) -> torch.Tensor:
    """
    3x3 convolution, padding 1, whose taps are moved by `offsets` and weighted by `modulation`; by torchvision's
    operator, which has no half precision on all devices, so in float32.

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
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    x, offsets, weight, bias, modulation = (
        tensor.to(dtype) for tensor in (feature_map, offsets, weight, bias, modulation)
    )
    output = deform_conv2d(x, offsets, weight, bias, stride=stride, padding=1, mask=modulation)
    return output.to(feature_map.dtype)


def sampled_deform_conv2d(
    feature_map: torch.Tensor,
    offsets: torch.Tensor,
    modulation: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
) -> torch.Tensor:
    """As `modulated_deform_conv2d`, by `sample_convolutions`."""
    shape = (offsets.shape[-2], offsets.shape[-1])
    outputs = [BranchOutput("same", 0, 0, stride, shape)]
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    grid = sampling_grid(map_shapes((feature_map,)), outputs, feature_map.device, dtype)
    output = sample_convolutions(
        flatten_levels((feature_map,)),
        flatten_levels((offsets,)),
        flatten_levels((modulation,)),
        {"same": (weight, bias)},
        grid,
    )
    return split_levels(output.to(feature_map.dtype), [shape])[0]


def use_sampling(device: torch.device) -> bool:
    """
    Whether deformable convolutions are sampled by embedding bags rather than by torchvision's operator: on the devices
    of `SAMPLING_DEVICES`, unless the operator itself is exported.
    """
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return False
    return device.type in SAMPLING_DEVICES


def sample_convolutions(
    vision: torch.Tensor,
    offsets: torch.Tensor,
    modulation: torch.Tensor,
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]],
    grid: SamplingGrid,
) -> torch.Tensor:
    """
    All deformable convolutions of a pyramid: the pixels and weights of all taps at once, and one matrix product a
    branch.

    A tap is a weighted sum of four pixels, so all taps are bags of four rows of `vision`. On the CPU three times
    faster than an operator that gathers channel by channel, and six times with its gradients. Positions are float32 at
    least, as half precision could not tell those of large maps apart; on the CPU all of it is.

    Args:
        vision: `(batch, locations, channels)`, all levels.
        offsets: `(batch, outputs, 18)`, y and x of each tap in turn, in pixels.
        modulation: `(batch, outputs, 9)`.
        weights: weight `(out_channels, channels, 3, 3)` and bias `(out_channels,)` of each branch.
        grid: where the taps start.

    Returns:
        `(batch, outputs, out_channels)`, float32 at least.
    """
    device = vision.device.type
    wide = torch.promote_types(vision.dtype, torch.float32)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vision.dtype
    if device == "cpu":
        dtype = wide
    # Autocast would undo the promotion.
    with torch.autocast(device, enabled=False):
        rows, row_weights = bilinear_rows(offsets.to(wide), modulation.to(wide), grid)
        pixels, row_weights = vision.flatten(0, 1).to(dtype), row_weights.to(dtype)
        blocks, start = [], 0
        for branch, (weight, bias) in weights.items():
            end = start + sum(one.size for one in grid.branch_outputs if one.branch == branch)
            inputs = (
                pixels,
                rows[:, start:end].flatten(0, 1),
                row_weights[:, start:end].flatten(0, 1),
                weight.to(dtype).permute(0, 2, 3, 1).flatten(1),
                bias.to(dtype),
            )
            # Compiled, chunks would be unrolled into hundreds of nodes.
            block = convolve_rows(*inputs) if torch.compiler.is_compiling() else SampledConvolution.apply(*inputs)
            blocks.append(block.unflatten(0, (len(vision), end - start)))
            start = end
    return (torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]).to(wide)


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
        chunk_size = outputs_per_chunk(pixels)
        if len(rows) <= chunk_size:
            return convolve_rows(pixels, rows, row_weights, matrix, bias)
        output = pixels.new_empty(len(rows), len(matrix))
        for start in range(0, len(rows), chunk_size):
            chunk = slice(start, start + chunk_size)
            taps = sum_rows(pixels, rows[chunk], row_weights[chunk])
            torch.addmm(bias, taps, matrix.T, out=output[chunk])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        pixels, rows, row_weights, matrix = ctx.saved_tensors
        outputs, taps, corners = rows.shape
        grad_matrix = torch.zeros_like(matrix)
        for start in range(0, outputs, outputs_per_chunk(pixels)):
            chunk = slice(start, start + outputs_per_chunk(pixels))
            grad_matrix.addmm_(grad_output[chunk].T, sum_rows(pixels, rows[chunk], row_weights[chunk]))
        grad_taps = (grad_output @ matrix).view(outputs * taps, pixels.shape[1])
        # Sorted by pixel, what flows back to one pixel is again a bag: of the taps that read it.
        rows = rows.flatten()
        sorted_rows, order = rows.sort()
        grad_pixels = F.embedding_bag(
            order.int() // corners,
            grad_taps,
            bag_starts(sorted_rows, pixels.shape[0]),
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


def outputs_per_chunk(pixels: torch.Tensor) -> int:
    """Outputs that are sampled at a time."""
    return OUTPUTS_PER_CHUNK.get(pixels.device.type, OUTPUTS_PER_CHUNK_ELSEWHERE)


def convolve_rows(
    pixels: torch.Tensor, rows: torch.Tensor, row_weights: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As `SampledConvolution`, all outputs at once."""
    return F.linear(sum_rows(pixels, rows, row_weights), matrix, bias)


def bag_starts(rows: torch.Tensor, num_pixels: int) -> torch.Tensor:
    """Where each pixel's entries start in sorted `rows`: int32 `(num_pixels,)`."""
    pixels = torch.arange(num_pixels, dtype=rows.dtype, device=rows.device)
    return torch.searchsorted(rows, pixels, out_int32=True)


# Dynamic convolution -------------------------------------------------------------------------------------------------


class GLIPv2DeformConv(nn.Module):
    """Weights of a deformable convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(TAPS * channels), 1 / math.sqrt(TAPS * channels))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias; called rather than read, since offloaded weights are fetched at calls."""
        return self.weight, self.bias


class GLIPv2BranchNorm(nn.GroupNorm):
    """Weights of a group normalisation."""

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias, as of `GLIPv2DeformConv`."""
        return self.weight, self.bias


class GLIPv2DyConvBranch(nn.Module):
    """Weights of the deformable convolution and the group normalisation of one of the three neighbouring levels."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.conv = GLIPv2DeformConv(config.d_model)
        self.norm = GLIPv2BranchNorm(config.group_norm_groups, config.d_model, eps=config.layer_norm_eps)


class GLIPv2DynamicReLU(nn.Module):
    """The coefficients of max(a1 x + b1, a2 x + b2), which come from the whole map."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, 4 * channels)
        self.channels = channels

    def forward(self, means: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Means over maps, `(batch, levels, channels)`, to a1, b1, a2 and b2, each in the same shape."""
        hidden = F.hardsigmoid(self.expand(F.relu(self.reduce(means))))
        # All four are around 0 but for a1, which is around 1.
        slope_1, others = hidden.tensor_split([self.channels], dim=-1)
        bias_1, slope_2, bias_2 = (others - 0.5).chunk(3, dim=-1)
        return 2 * slope_1, bias_1, 2 * slope_2, bias_2


class GLIPv2DyConv(nn.Module):
    """
    One dynamic convolution: each level mixes itself, the finer and the coarser level, and weighs the three.

    The levels share their weights, so all of them are computed at once where that can be. Normalisation, the weights
    of the three and the dynamic ReLU are affine in each channel, and what they depend on are means; so they cost one
    pass over the maps for the means, and one that does all of them.

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

    def forward(self, feature_maps: FeatureMaps, grid: SamplingGrid | None = None) -> FeatureMaps:
        """
        Args:
            feature_maps: `(batch, d_model, H_l, W_l)` each, the finest first.
            grid: of these maps, from `neighbour_grid`, where it is made already.

        Returns:
            The new maps, in the same shapes.
        """
        if grid is None:
            grid = neighbour_grid(feature_maps, self.offset_mode)
        offsets, modulation = self._offsets(feature_maps, grid)
        if use_sampling(feature_maps[0].device):
            weights = {name: self.branches[name].conv() for name in ("same", "finer", "coarser")}
            outputs = sample_convolutions(flatten_levels(feature_maps), offsets, modulation, weights, grid)
        else:
            outputs = self._convolve_each(feature_maps, offsets, modulation, grid)
        levels = self._mix(outputs, grid)
        return tuple(
            level.to(feature_map.dtype).unflatten(1, shape).permute(0, 3, 1, 2)
            for level, shape, feature_map in zip(levels, grid.level_shapes, feature_maps, strict=True)
        )

    def _offsets(self, feature_maps: FeatureMaps, grid: SamplingGrid) -> tuple[torch.Tensor, torch.Tensor]:
        """Offsets and masks of all convolutions, `(batch, outputs, 18)` and `(batch, outputs, 9)`."""
        both = flatten_levels(tuple(self.offset(feature_map) for feature_map in feature_maps))
        sizes = [height * width for height, width in grid.level_shapes]
        if grid.reads is not None:
            reads = grid.reads.flatten().expand(len(both), -1)
            coarser = both.flatten(1).gather(1, reads).unflatten(1, grid.reads.shape)
            both = torch.cat([both, both[:, sizes[0] :], coarser], dim=1)
            return both[..., : 2 * TAPS], both[..., 2 * TAPS :].sigmoid()
        offsets, modulation = both[..., : 2 * TAPS], both[..., 2 * TAPS :].sigmoid()
        levels = list(zip(offsets.split(sizes, dim=1), modulation.split(sizes, dim=1), strict=True))
        fitted = [(offsets, modulation)]
        for output in grid.branch_outputs[len(sizes) :]:
            shape, own = grid.level_shapes[output.target], levels[output.target]
            if shape == output.shape:
                fitted.append(own)
                continue
            maps = [one.transpose(1, 2).unflatten(2, shape) for one in own]
            offset, mask = self._fit(maps[0], maps[1], *output.shape)
            fitted.append((offset.flatten(2).transpose(1, 2), mask.flatten(2).transpose(1, 2)))
        of_all = zip(*fitted, strict=True)
        return torch.cat(next(of_all), dim=1), torch.cat(next(of_all), dim=1)

    def _convolve_each(
        self, feature_maps: FeatureMaps, offsets: torch.Tensor, modulation: torch.Tensor, grid: SamplingGrid
    ) -> torch.Tensor:
        """As `sample_convolutions`, by torchvision's operator."""
        shapes = [output.shape for output in grid.branch_outputs]
        fitted = zip(grid.branch_outputs, split_levels(offsets, shapes), split_levels(modulation, shapes), strict=True)
        outputs = []
        for output, own_offsets, own_modulation in fitted:
            weight, bias = self.branches[output.branch].conv()
            source = feature_maps[output.source]
            outputs.append(modulated_deform_conv2d(source, own_offsets, own_modulation, weight, bias, output.stride))
        of_all = flatten_levels(tuple(outputs))
        return of_all.to(torch.promote_types(of_all.dtype, torch.float32))

    def _mix(self, outputs: torch.Tensor, grid: SamplingGrid) -> list[torch.Tensor]:
        """
        Args:
            outputs: of all convolutions, `(batch, outputs, d_model)`, float32 at least.
            grid: the convolutions.

        Returns:
            Each level, `(batch, locations, d_model)`.
        """
        convolutions = list(enumerate(grid.branch_outputs))
        # Autocast may hand over maps of another type than the weights'.
        dtype = self.branch_attention.weight.dtype
        with torch.autocast(outputs.device.type, enabled=False):
            means, scale, shift = self._normalise(outputs, grid)
            branches = list(outputs.split([output.size for _, output in convolutions], dim=1))
            resized_means = list(means.unbind(1))
            for index, output in convolutions:
                shape = grid.level_shapes[output.target]
                if shape != output.shape:
                    branch = branches[index].transpose(1, 2).unflatten(2, output.shape)
                    branches[index] = resize(branch, *shape).flatten(2).transpose(1, 2)
                    resized_means[index] = branches[index].mean(1)
            # Means of the normalised, resized branches, (batch, convolutions, d_model).
            pooled = torch.addcmul(shift, torch.stack(resized_means, dim=1), scale)
            strength = self.branch_attention(pooled.transpose(1, 2).unsqueeze(-1).to(dtype))
            strength = F.hardsigmoid(F.relu(strength[:, 0].to(pooled.dtype))) * grid.fractions.to(pooled.dtype)
            scale, both = (torch.cat([scale, shift, pooled], dim=-1) * strength).tensor_split(
                [scale.shape[-1]], dim=-1
            )
            shift, mean = (grid.targets.to(both.dtype).expand(len(both), -1, -1) @ both).chunk(2, dim=-1)
            slope_1, bias_1, slope_2, bias_2 = (
                one.to(pooled.dtype).unsqueeze(2) for one in self.activation(mean.to(dtype))
            )
            levels = []
            for level in range(len(grid.level_shapes)):
                mixed = shift[:, level, None]
                for index, output in convolutions:
                    if output.target == level:
                        mixed = torch.addcmul(mixed, branches[index], scale[:, index, None])
                levels.append(
                    torch.maximum(
                        torch.addcmul(bias_1[:, level], mixed, slope_1[:, level]),
                        torch.addcmul(bias_2[:, level], mixed, slope_2[:, level]),
                    )
                )
        return levels

    def _normalise(self, outputs: torch.Tensor, grid: SamplingGrid) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Group normalisation as an affine map: means over the locations of each convolution, scale and shift, each
        `(batch, convolutions, d_model)`.
        """
        averages = grid.averages.to(outputs.dtype).expand(len(outputs), -1, -1)
        means = averages @ outputs
        variances = averages @ (outputs - means.index_select(1, grid.segments)).square()
        norm = self.branches["same"].norm
        affine = {name: branch.norm() for name, branch in self.branches.items()}
        groups = (norm.num_groups, -1)
        by_group = means.unflatten(-1, groups)
        group_means = by_group.mean(-1, keepdim=True)
        group_variances = (variances.unflatten(-1, groups) + (by_group - group_means).square()).mean(-1, keepdim=True)
        weight, bias = (
            torch.stack(of_outputs).to(outputs.dtype)
            for of_outputs in zip(*(affine[output.branch] for output in grid.branch_outputs), strict=True)
        )
        scale = (group_variances + norm.eps).rsqrt() * weight.unflatten(-1, groups)
        shift = torch.addcmul(bias.unflatten(-1, groups), group_means, scale, value=-1)
        return means, scale.flatten(-2), shift.flatten(-2)

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


def neighbour_grid(feature_maps: FeatureMaps, offset_mode: str) -> SamplingGrid:
    """
    The grid of the dynamic convolutions over maps of these shapes.

    Args:
        feature_maps: any maps of these shapes.
        offset_mode: `config.dyconv_offset_mode`.
    """
    shapes, first = map_shapes(feature_maps), feature_maps[0]
    outputs, dtype = neighbour_outputs(shapes), torch.promote_types(first.dtype, torch.float32)
    # Unless each level is half as large as the finer one, outputs have sizes of their own.
    halves = all(one.shape == shapes[one.target] for one in outputs if one.branch == "finer")
    return sampling_grid(shapes, outputs, first.device, dtype, halves and offset_mode == "released")


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
