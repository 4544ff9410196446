"""
Renames the tensors of microsoft/GLIP for the checkpoint converter.

Tensors with unknown names are reported, and one is left out only if `_EXTRAS` gives the reason.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

StateDict = dict[str, torch.Tensor]
Replacement = str | Callable[[re.Match], str]

TOWER = "rpn.head.dyhead_tower."


def _shifted(template: str, shift: int) -> Replacement:
    """Writes the first group, a number, plus `shift` into `template`, and appends the second group."""
    return lambda match: template.format(int(match[1]) + shift) + match[2]


def _block(name: str) -> Replacement:
    """The original numbers the modules of the tower one by one; with fusion, three make a block."""
    return lambda match: f"model.layers.{int(match[1]) // 3}.{name}" + match[2]


# Original name (a regular expression that matches the whole) -> our name.
_NAMES: list[tuple[str, Replacement]] = [
    (r"backbone\.body\.norm(\d+)(\..+)", _shifted("model.backbone.hidden_states_norms.stage{}", 1)),
    (r"backbone\.fpn\.fpn_inner(\d+)(\..+)", _shifted("model.neck.lateral_convs.{}", -2)),
    (r"backbone\.fpn\.fpn_layer(\d+)(\..+)", _shifted("model.neck.output_convs.{}", -2)),
    (r"backbone\.fpn\.top_blocks\.(p[67]\..+)", r"model.neck.\1"),
    (r"language_backbone\.body\.model\.((?:embeddings|encoder)\..+)", r"model.text_encoder.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", r"detection_head.box_predictor.\1"),
    (r"rpn\.head\.centerness\.(.+)", r"detection_head.centerness_predictor.\1"),
    (r"rpn\.head\.dot_product_projection_text\.(.+)", r"detection_head.token_projection.\1"),
    (r"rpn\.head\.log_scale", "detection_head.log_scale"),
    (r"rpn\.head\.bias_lang", "detection_head.text_bias"),
    (r"rpn\.head\.bias0", "detection_head.bias"),
    (r"rpn\.head\.mlm_head\.transform\.dense\.(.+)", r"mlm_head.dense.\1"),
    (r"rpn\.head\.mlm_head\.transform\.LayerNorm\.(.+)", r"mlm_head.norm.\1"),
    (r"rpn\.head\.mlm_head\.decoder\.weight", "mlm_head.decoder.weight"),
    (r"rpn\.head\.mlm_head\.bias", "mlm_head.decoder.bias"),
    (r"rpn\.loss_evaluator\.shallow_contrastive_projection_image\.(.+)", r"contrastive_head.image_projection.\1"),
    (r"rpn\.loss_evaluator\.shallow_contrastive_projection_text\.(.+)", r"contrastive_head.text_projection.\1"),
    (r"rpn\.loss_evaluator\.shallow_log_scale", "contrastive_head.log_scale"),
]

# The same for the backbone, after `backbone.body.`; the names in braces differ between Swin and CoSwin.
_BACKBONE_NAMES: list[tuple[str, str]] = [
    (r"patch_embed\.proj\.(.+)", r"{stem}.{patches}.\1"),
    (r"patch_embed\.norm\.(.+)", r"{stem}.norm.\1"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(.+)", r"{stages}.\1.blocks.\2.layernorm_before.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(.+)", r"{stages}.\1.blocks.\2.layernorm_after.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(.+)", r"{stages}.\1.blocks.\2.attention.o_proj.\3"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(relative_position_bias_table)",
        r"{stages}.\1.blocks.\2.attention.relative_position_bias.\3",
    ),
    (r"layers\.(\d+)\.blocks\.(\d+)\.(mlp\.fc[12]\..+)", r"{stages}.\1.blocks.\2.\3"),
    # Both of these only in CoSwin.
    (r"layers\.(\d+)\.blocks\.(\d+)\.(gamma)", r"{stages}.\1.blocks.\2.dropout.0.\3"),
    (r"layers\.(\d+)\.downsample\.proj\.(.+)", r"{stages}.\1.downsample.projection.\2"),
    (r"layers\.(\d+)\.(downsample\.(?:norm|reduction)\..+)", r"{stages}.\1.\2"),
]
_SWIN_MODULES = {
    "stem": "model.backbone.swin.embeddings",
    "patches": "patch_embeddings.projection",
    "stages": "model.backbone.swin.encoder.layers",
}
_COSWIN_MODULES = {"stem": "model.backbone.stem", "patches": "projection", "stages": "model.backbone.stages"}

# The same for the modules of the tower, after `rpn.head.dyhead_tower.{i}.`.
_TOWER_NAMES: dict[str, str] = {
    r"b_attn\.attn\.v_proj": "fusion.vision_query",
    r"b_attn\.attn\.l_proj": "fusion.text_key",
    r"b_attn\.attn\.values_v_proj": "fusion.vision_value",
    r"b_attn\.attn\.values_l_proj": "fusion.text_value",
    r"b_attn\.attn\.out_v_proj": "fusion.vision_out",
    r"b_attn\.attn\.out_l_proj": "fusion.text_out",
    r"b_attn\.layer_norm_v": "fusion.vision_norm",
    r"b_attn\.layer_norm_l": "fusion.text_norm",
    r"b_attn\.gamma_v": "fusion.vision_gamma",
    r"b_attn\.gamma_l": "fusion.text_gamma",
    r"attention\.self\.query": "text_layer.attention.query",
    r"attention\.self\.key": "text_layer.attention.key",
    r"attention\.self\.value": "text_layer.attention.value",
    r"attention\.output\.dense": "text_layer.attention.output",
    r"attention\.output\.LayerNorm": "text_layer.attention_norm",
    r"intermediate\.dense": "text_layer.intermediate",
    r"output\.dense": "text_layer.output",
    r"output\.LayerNorm": "text_layer.output_norm",
    r"DyConv\.0\.conv": "dyconv.branches.coarser.conv",
    r"DyConv\.1\.conv": "dyconv.branches.same.conv",
    r"DyConv\.2\.conv": "dyconv.branches.finer.conv",
    r"DyConv\.0\.bn": "dyconv.branches.coarser.norm",
    r"DyConv\.1\.bn": "dyconv.branches.same.norm",
    r"DyConv\.2\.bn": "dyconv.branches.finer.norm",
    r"AttnConv\.1": "dyconv.branch_attention",
    r"relu\.fc\.0": "dyconv.activation.reduce",
    r"relu\.fc\.2": "dyconv.activation.expand",
    r"offset": "dyconv.offset",
}

# The mask head of checkpoints trained with MODEL.MASK_ON.
_MASK_NAMES: list[tuple[str, Replacement]] = [
    (r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d+)(\..+)", _shifted("mask_head.extractor.{}", -1)),
    (r"roi_heads\.mask\.feature_extractor\.mask_hg(\d+)(\..+)", _shifted("mask_head.extractor.{}", -1)),
    (r"roi_heads\.mask\.predictor\.conv5_mask\.(.+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask\.predictor\.dot_product_projection_text\.(.+)", r"mask_head.token_projection.\1"),
    (r"roi_heads\.mask\.predictor\.log_scale", "mask_head.log_scale"),
    (r"roi_heads\.mask\.predictor\.bias_lang", "mask_head.text_bias"),
]

# Tensors that are left out, and why.
_EXTRAS: list[tuple[str, str]] = [
    (r"backbone\.body\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index", "follows from the window size"),
    (r"backbone\.body\.layers\.\d+\.blocks\.\d+\.attn_mask", "follows from the image's size"),
    (r"rpn\.anchor_generator\.cell_anchors\.\d+", "follows from the anchors' sizes and strides"),
    (r"language_backbone\.body\.model\.embeddings\.(position|token_type)_ids", "a range of numbers"),
    (r"language_backbone\.body\.model\.pooler\.dense\.(weight|bias)", "GLIP does not use BERT's pooler"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", "frozen at its initial values and never used"),
    (r"rpn\.head\.mlm_head\.decoder\.bias", "the same parameter as mlm_head.bias"),
    (r"data_preprocessor\.(mean|std)", "in the settings of the image processor"),
    (r"steps", "counts the steps of an average over training"),
    (r"ema_\w+", "averages beside the weights that were evaluated"),
]

_QKV = re.compile(r"backbone\.body\.layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_LEVEL_SCALE = re.compile(r"rpn\.head\.scales\.(\d+)\.scale")


def is_coswin(original: StateDict) -> bool:
    """CoSwin's patches overlap; Swin's are as large as the stride."""
    patches = original.get("backbone.body.patch_embed.proj.weight")
    return patches is not None and patches.shape[-1] == 7


def _backbone_rules(modules: dict[str, str]) -> list[tuple[str, Replacement]]:
    return [(r"backbone\.body\." + theirs, ours.format(**modules)) for theirs, ours in _BACKBONE_NAMES]


def _tower_rules(has_fusion: bool) -> list[tuple[str, Replacement]]:
    rules = []
    for theirs, ours in _TOWER_NAMES.items():
        replacement = _block(ours) if has_fusion else _shifted("model.layers.{}." + ours, 0)
        rules.append((re.escape(TOWER) + r"(\d+)\." + theirs + r"((?:\.weight|\.bias)?)", replacement))
    return rules


@dataclass
class Translation:
    """
    The tensors of a checkpoint, translated.

    Args:
        state: our name -> tensor.
        extras: original names left out on purpose -> reason.
        unknown: unknown original names.
    """

    state: StateDict = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def strip_prefix(original: StateDict) -> StateDict:
    """Removes the `module.` that training on several GPUs puts before names."""
    return {name.removeprefix("module."): tensor for name, tensor in original.items()}


def translate(original: StateDict) -> Translation:
    """
    Renames, splits and stacks the tensors of an original checkpoint.

    Args:
        original: original name (with or without `module.`) -> tensor; tensors may be on the meta device.
    """
    original = strip_prefix(original)
    has_fusion = any(".b_attn." in name for name in original)
    modules = _COSWIN_MODULES if is_coswin(original) else _SWIN_MODULES
    names = _NAMES + _backbone_rules(modules) + _tower_rules(has_fusion) + _MASK_NAMES
    rules = [(re.compile(pattern), replacement) for pattern, replacement in names]
    extras = [(re.compile(pattern), reason) for pattern, reason in _EXTRAS]
    result, level_scales = Translation(), {}
    for name, tensor in original.items():
        if match := _QKV.fullmatch(name):
            attention = f"{modules['stages']}.{match[1]}.blocks.{match[2]}.attention"
            for part, projection in zip("qkv", tensor.chunk(3), strict=True):
                result.state[f"{attention}.{part}_proj.{match[3]}"] = projection.contiguous()
        elif match := _LEVEL_SCALE.fullmatch(name):
            level_scales[int(match[1])] = tensor.reshape(1)
        elif reason := next((reason for pattern, reason in extras if pattern.fullmatch(name)), None):
            result.extras[name] = reason
        else:
            match, replacement = next(
                ((match, ours) for pattern, ours in rules if (match := pattern.fullmatch(name))), (None, "")
            )
            if match is None:
                result.unknown.append(name)
                continue
            ours = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            # Modules of the tower in another order than GLIP's would overwrite each other.
            if ours in result.state:
                result.unknown.append(name)
            else:
                result.state[ours] = tensor
    if level_scales:
        result.state["detection_head.level_scales"] = torch.cat([level_scales[i] for i in sorted(level_scales)])
    if modules is _SWIN_MODULES:
        _fill_unused_norm(result.state)
    return result


def _fill_unused_norm(state: StateDict) -> None:
    """The Swin of transformers has a last norm that backbones never apply; the original has none."""
    stages = [name for name in state if name.startswith("model.backbone.hidden_states_norms.")]
    if stages:
        last = state[max(stages)]
        state["model.backbone.swin.layernorm.weight"] = torch.ones_like(last)
        state["model.backbone.swin.layernorm.bias"] = torch.zeros_like(last)
