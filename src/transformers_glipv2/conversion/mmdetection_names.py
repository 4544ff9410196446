"""
Renames the tensors of mmdetection's GLIP (`configs/glip`) to those of microsoft/GLIP.

The networks are the same. mmdetection merges patches with `nn.Unfold`, whose channels are in another order.
"""

import re

import torch
from torch import Tensor

# mmdetection's name (a regular expression that matches the whole) -> the name in microsoft/GLIP.
_NAMES: list[tuple[str, str]] = [
    (r"backbone\.patch_embed\.projection\.(.+)", r"backbone.body.patch_embed.proj.\1"),
    (r"backbone\.patch_embed\.norm\.(.+)", r"backbone.body.patch_embed.norm.\1"),
    (r"backbone\.stages\.(\d+\.blocks\.\d+)\.attn\.w_msa\.(.+)", r"backbone.body.layers.\1.attn.\2"),
    (r"backbone\.stages\.(\d+\.blocks\.\d+)\.ffn\.layers\.0\.0\.(.+)", r"backbone.body.layers.\1.mlp.fc1.\2"),
    (r"backbone\.stages\.(\d+\.blocks\.\d+)\.ffn\.layers\.1\.(.+)", r"backbone.body.layers.\1.mlp.fc2.\2"),
    (
        r"backbone\.stages\.(\d+\.(?:blocks\.\d+\.norm[12]|downsample\.(?:norm|reduction))\..+)",
        r"backbone.body.layers.\1",
    ),
    (r"backbone\.(norm\d+\..+)", r"backbone.body.\1"),
    (r"neck\.lateral_convs\.0\.conv\.(.+)", r"backbone.fpn.fpn_inner2.\1"),
    (r"neck\.lateral_convs\.1\.conv\.(.+)", r"backbone.fpn.fpn_inner3.\1"),
    (r"neck\.lateral_convs\.2\.conv\.(.+)", r"backbone.fpn.fpn_inner4.\1"),
    (r"neck\.fpn_convs\.0\.conv\.(.+)", r"backbone.fpn.fpn_layer2.\1"),
    (r"neck\.fpn_convs\.1\.conv\.(.+)", r"backbone.fpn.fpn_layer3.\1"),
    (r"neck\.fpn_convs\.2\.conv\.(.+)", r"backbone.fpn.fpn_layer4.\1"),
    (r"neck\.fpn_convs\.3\.conv\.(.+)", r"backbone.fpn.top_blocks.p6.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.+)", r"backbone.fpn.top_blocks.p7.\1"),
    (r"language_model\.(language_backbone\..+)", r"\1"),
    # Files that were converted before the modules were renamed keep DyConv and AttnConv.
    (r"bbox_head\.(head\.dyhead_tower\.\d+)\.dyconvs\.(.+)", r"rpn.\1.DyConv.\2"),
    (r"bbox_head\.(head\.dyhead_tower\.\d+)\.attnconv\.(.+)", r"rpn.\1.AttnConv.\2"),
    (r"bbox_head\.(.+)", r"rpn.\1"),
]
_RULES = [(re.compile(theirs), originals) for theirs, originals in _NAMES]
_MERGING = re.compile(r"backbone\.stages\.\d+\.downsample\.(?:norm|reduction)\.(?:weight|bias)")


def is_mmdetection(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of mmdetection's GLIP."""
    return any(name.startswith("bbox_head.head.") for name in state)


def rename_mmdetection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Args:
        state: mmdetection's name -> tensor; tensors may be on the meta device. Unknown names are kept.

    Returns:
        The name in microsoft/GLIP -> tensor.
    """
    return {_renamed(name): _reordered(name, tensor) for name, tensor in state.items()}


def _renamed(name: str) -> str:
    match, original = next(((match, text) for rule, text in _RULES if (match := rule.fullmatch(name))), (None, ""))
    return name if match is None else match.expand(original)


def _reordered(name: str, tensor: Tensor) -> Tensor:
    """
    The last axis of a patch merging: channel, row, column of the 2 x 2 patches there; column, row, channel in the
    original.
    """
    if _MERGING.fullmatch(name) is None or tensor.shape[-1] % 4:
        return tensor
    by_patch = tensor.unflatten(-1, (-1, 2, 2))
    axes = tuple(range(by_patch.dim() - 3))
    return torch.permute(by_patch, (*axes, -1, -2, -3)).flatten(-3).contiguous()
