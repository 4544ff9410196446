"""
Turns checkpoints of microsoft/GLIP into folders that `from_pretrained` reads.

    python -m transformers_glipv2.convert_glip_checkpoint --checkpoint glip_tiny_model_o365_goldg_cc_sbu.pth \
        --original-config glip_Swin_T_O365_GoldG.yaml --output glip-tiny

Sizes are read off the tensors' shapes; a config of the original adds what shapes cannot show and must agree with them.
Nothing may be missing, and a tensor is left out only where `_EXTRAS` says why.
"""

import argparse
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from transformers_glipv2.configuration_glipv2 import GLIPv2Config
from transformers_glipv2.glip_original_config import GLIPConfig, PictureSettings, read_mapping, translate_config
from transformers_glipv2.modeling_glipv2 import GLIPv2ForObjectDetection

StateDict = dict[str, torch.Tensor]
Replacement = str | Callable[[re.Match], str]

# Names ---------------------------------------------------------------------------------------------------------------

_TOWER = "rpn.head.dyhead_tower."


def _shifted(template: str, shift: int) -> Replacement:
    """A replacement that writes the first group, a number, plus `shift` into `template`; then the second group."""
    return lambda match: template.format(int(match[1]) + shift) + match[2]


def _block(name: str) -> Replacement:
    """Modules of the tower are numbered singly; with fusion three make a block."""
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

# The same for the backbone, after `backbone.body.`; the places in braces differ between Swin and CoSwin.
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
_SWIN_PLACES = {
    "stem": "model.backbone.swin.embeddings",
    "patches": "patch_embeddings.projection",
    "stages": "model.backbone.swin.encoder.layers",
}
_COSWIN_PLACES = {"stem": "model.backbone.stem", "patches": "projection", "stages": "model.backbone.stages"}

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
    (r"backbone\.body\.layers\.\d+\.blocks\.\d+\.attn_mask", "follows from the picture's size"),
    (r"rpn\.anchor_generator\.cell_anchors\.\d+", "follows from the anchors' sizes and strides"),
    (r"language_backbone\.body\.model\.embeddings\.(position|token_type)_ids", "a range of numbers"),
    (r"language_backbone\.body\.model\.pooler\.dense\.(weight|bias)", "GLIP does not use BERT's pooler"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", "frozen at its initial values and never used"),
    (r"rpn\.head\.mlm_head\.decoder\.bias", "the same parameter as mlm_head.bias"),
]

_QKV = re.compile(r"backbone\.body\.layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_LEVEL_SCALE = re.compile(r"rpn\.head\.scales\.(\d+)\.scale")


def _is_coswin(original: StateDict) -> bool:
    """CoSwin's patches overlap; Swin's are as large as the stride."""
    patches = original.get("backbone.body.patch_embed.proj.weight")
    return patches is not None and patches.shape[-1] == 7


def _backbone_rules(places: dict[str, str]) -> list[tuple[str, Replacement]]:
    return [(r"backbone\.body\." + theirs, ours.format(**places)) for theirs, ours in _BACKBONE_NAMES]


def _tower_rules(has_fusion: bool) -> list[tuple[str, Replacement]]:
    rules = []
    for theirs, ours in _TOWER_NAMES.items():
        replacement = _block(ours) if has_fusion else _shifted("model.layers.{}." + ours, 0)
        rules.append((re.escape(_TOWER) + r"(\d+)\." + theirs + r"((?:\.weight|\.bias)?)", replacement))
    return rules


@dataclass
class Translation:
    """
    What became of a checkpoint's tensors.

    Args:
        state: our name -> tensor.
        extras: original names left out on purpose -> why.
        unknown: original names of which nothing is known.
    """

    state: StateDict = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def strip_prefix(original: StateDict) -> StateDict:
    """Takes the `module.` off the names that training on several GPUs leaves there."""
    return {name.removeprefix("module."): tensor for name, tensor in original.items()}


def translate(original: StateDict) -> Translation:
    """
    Renames, splits and stacks the tensors of an original checkpoint, and says what is left.

    Args:
        original: original name (with or without `module.`) -> tensor; tensors may be on the meta device.
    """
    original = strip_prefix(original)
    has_fusion = any(".b_attn." in name for name in original)
    places = _COSWIN_PLACES if _is_coswin(original) else _SWIN_PLACES
    names = _NAMES + _backbone_rules(places) + _tower_rules(has_fusion) + _MASK_NAMES
    rules = [(re.compile(pattern), replacement) for pattern, replacement in names]
    extras = [(re.compile(pattern), reason) for pattern, reason in _EXTRAS]
    result, level_scales = Translation(), {}
    for name, tensor in original.items():
        if match := _QKV.fullmatch(name):
            attention = f"{places['stages']}.{match[1]}.blocks.{match[2]}.attention"
            for part, projection in zip("qkv", tensor.chunk(3), strict=True):
                result.state[f"{attention}.{part}_proj.{match[3]}"] = projection.contiguous()
        elif match := _LEVEL_SCALE.fullmatch(name):
            level_scales[int(match[1])] = tensor.reshape(1)
        elif reason := next((reason for pattern, reason in extras if pattern.fullmatch(name)), None):
            result.extras[name] = reason
        else:
            match, replacement = next(
                ((match, ours) for pattern, ours in rules if (match := pattern.fullmatch(name))), (None, None)
            )
            if match is None:
                result.unknown.append(name)
                continue
            ours = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            # Modules of the tower in an order that is not GLIP's would fall on each other.
            if ours in result.state:
                result.unknown.append(name)
            else:
                result.state[ours] = tensor
    if level_scales:
        result.state["detection_head.level_scales"] = torch.cat([level_scales[i] for i in sorted(level_scales)])
    if places is _SWIN_PLACES:
        _fill_unused_norm(result.state)
    return result


def _fill_unused_norm(state: StateDict) -> None:
    """transformers' Swin has a last norm that backbones never apply; the original has none."""
    stages = [name for name in state if name.startswith("model.backbone.hidden_states_norms.")]
    if stages:
        last = state[max(stages)]
        state["model.backbone.swin.layernorm.weight"] = torch.ones_like(last)
        state["model.backbone.swin.layernorm.bias"] = torch.zeros_like(last)


def convert_state_dict(original: StateDict) -> StateDict:
    """
    The weights of `GLIPv2ForObjectDetection` (and of further heads, where the checkpoint has them).

    Args:
        original: original name (with or without `module.`) -> tensor; tensors may be on the meta device.

    Returns:
        Our name -> tensor.

    Raises:
        ValueError: when tensors are unknown; it lists them.
    """
    translation = translate(original)
    _refuse_unknown(translation, len(original))
    return translation.state


def _refuse_unknown(translation: Translation, total: int) -> None:
    if translation.unknown:
        raise ValueError(
            f"{len(translation.unknown)} of the checkpoint's {total} tensors are unknown, so it is no checkpoint of "
            f"microsoft/GLIP or has parts that the model lacks:\n  {_listed(translation.unknown)}"
        )


def _listed(names: list[str], limit: int = 40) -> str:
    shown = sorted(names)[:limit]
    return "\n  ".join(shown + ([f"... and {len(names) - limit} more"] if len(names) > limit else []))


# Sizes ---------------------------------------------------------------------------------------------------------------


# What the released checkpoints were trained with, where it is not the default.
_RELEASED_FIELDS = {"drop_block_prob": 0.3}
# Fields of a config.json that say nothing of the architecture.
_FOREIGN_FIELDS = ("architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path")


def _shape(original: StateDict, name: str, num_axes: int) -> tuple[int, ...]:
    """
    Raises:
        ValueError: when there is no such tensor, or it has another number of axes.
    """
    if name not in original:
        raise ValueError(
            f"The checkpoint has no tensor {name}; it is no checkpoint of microsoft/GLIP, or it is incomplete."
        )
    shape = tuple(original[name].shape)
    if len(shape) != num_axes:
        raise ValueError(
            f"The checkpoint's tensor {name} has shape {shape} where {num_axes} axes were expected; it is no "
            "checkpoint of microsoft/GLIP."
        )
    return shape


def _count(original: StateDict, pattern: str) -> int:
    """One more than the largest number that the first group of `pattern` finds in the names; 0 when there is none."""
    return max((int(match[1]) + 1 for name in original if (match := re.match(pattern, name))), default=0)


def backbone_fields(original: StateDict) -> dict[str, Any]:
    """Arguments of the backbone's config from the shapes of a Swin's or CoSwin's tensors."""
    body = "backbone.body."
    embed_dim = _shape(original, body + "patch_embed.proj.weight", 4)[0]
    num_stages = _count(original, r"backbone\.body\.layers\.(\d+)\.blocks\.")
    tables = [
        _shape(original, f"{body}layers.{stage}.blocks.0.attn.relative_position_bias_table", 2)
        for stage in range(num_stages)
    ]
    fields = {
        "model_type": "swin",
        "embed_dim": embed_dim,
        "patch_size": _shape(original, body + "patch_embed.proj.weight", 4)[-1],
        "depths": [_count(original, rf"backbone\.body\.layers\.{i}\.blocks\.(\d+)\.") for i in range(num_stages)],
        "num_heads": [heads for _, heads in tables],
        # The table has (2 * window - 1)^2 rows.
        "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        "mlp_ratio": _shape(original, body + "layers.0.blocks.0.mlp.fc1.weight", 2)[0] / embed_dim,
        "qkv_bias": body + "layers.0.blocks.0.attn.qkv.bias" in original,
        "out_indices": [2, 3, 4],
        # As trained: 0.2 for Swin-T, 0.4 for Swin-L.
        "drop_path_rate": 0.4 if embed_dim >= 192 else 0.2,
    }
    if _is_coswin(original):
        fields["model_type"] = "glipv2_coswin"
        fields["layer_scale_init_value"] = 1e-4 if body + "layers.0.blocks.0.gamma" in original else 0.0
    return fields


def bert_fields(original: StateDict) -> dict[str, Any]:
    """Arguments of the text encoder's config from the shapes of a BERT's tensors."""
    body = "language_backbone.body.model."
    vocab_size, hidden_size = _shape(original, body + "embeddings.word_embeddings.weight", 2)
    return {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count(original, r"language_backbone\.body\.model\.encoder\.layer\.(\d+)\."),
        # Shapes do not show it; every BERT of Google's has heads of 64.
        "num_attention_heads": max(hidden_size // 64, 1),
        "intermediate_size": _shape(original, body + "encoder.layer.0.intermediate.dense.weight", 2)[0],
        "max_position_embeddings": _shape(original, body + "embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": _shape(original, body + "embeddings.token_type_embeddings.weight", 2)[0],
    }


def anchor_fields(original: StateDict) -> dict[str, list[int]]:
    """Sizes and strides of the anchors from the first anchor of each level, where the checkpoint holds them."""
    sizes, strides = [], []
    for level in range(_count(original, r"rpn\.anchor_generator\.cell_anchors\.(\d+)$")):
        anchor = original.get(f"rpn.anchor_generator.cell_anchors.{level}")
        if anchor is None or anchor.is_meta or tuple(anchor.shape) != (1, 4):
            return {}
        x1, _, x2, _ = anchor[0].tolist()
        # The first anchor is centred on the first cell, whose corners are the pixels 0 and stride - 1.
        sizes.append(round(x2 - x1 + 1))
        strides.append(round(x1 + x2 + 1))
    return {"anchor_sizes": sizes, "anchor_strides": strides} if sizes else {}


def mask_fields(original: StateDict) -> dict[str, Any]:
    """Arguments of the mask head, where the checkpoint has one."""
    extractor = r"roi_heads\.mask\.feature_extractor\."
    # They are numbered from 1.
    num_convs = _count(original, extractor + r"mask_fcn(\d+)\.") - 1
    num_hourglasses = _count(original, extractor + r"mask_hg(\d+)\.") - 1
    if max(num_convs, num_hourglasses) < 1:
        return {}
    return {
        "mask_extractor": "fcn" if num_convs > 0 else "hourglass",
        "mask_num_convs": max(num_convs, num_hourglasses),
        "mask_dim": _shape(original, "roi_heads.mask.predictor.conv5_mask.weight", 4)[1],
    }


def _fields_of_shapes(original: StateDict) -> dict[str, Any]:
    """Arguments of `GLIPv2Config` that the tensors show; those of the two encoders are left to their own functions."""
    use_fusion = any(".b_attn." in name for name in original)
    fields: dict[str, Any] = {
        "d_model": _shape(original, "rpn.head.bbox_pred.weight", 4)[1],
        "num_fusion_layers": _count(original, re.escape(_TOWER) + r"(\d+)\.DyConv\."),
        "use_fusion": use_fusion,
        # Without the head there is nothing to tie.
        "tie_word_embeddings": "rpn.head.mlm_head.decoder.weight" not in original,
        **anchor_fields(original),
        **mask_fields(original),
    }
    if use_fusion:
        fields["num_fusion_layers"] = -(-fields["num_fusion_layers"] // 3)
        fields["fusion_embed_dim"] = _shape(original, _TOWER + "0.b_attn.attn.v_proj.weight", 2)[0]
        # Fixed in the original's code.
        fields["fusion_num_heads"] = 8
    projection = "rpn.loss_evaluator.shallow_contrastive_projection_image.weight"
    if projection in original:
        fields["contrastive_dim"] = _shape(original, projection, 2)[0]
    return fields


def config_from_state_dict(
    original: StateDict,
    original_config: dict[str, Any] | GLIPConfig | None = None,
    text_config: dict[str, Any] | None = None,
) -> GLIPv2Config:
    """
    The configuration that fits an original checkpoint.

    Args:
        original: original name (with or without `module.`) -> tensor; tensors may be on the meta device.
        original_config: the checkpoint's YAML as a mapping, or already translated; `None` takes what the released
            checkpoints were trained with for everything that shapes do not show.
        text_config: fields of the text encoder's config (as in its `config.json`), for what shapes do not show, such
            as its number of attention heads.

    Raises:
        ValueError: when a config does not fit the weights, or the weights are not GLIP's.
    """
    original = strip_prefix(original)
    if original_config is None:
        original_config = GLIPConfig(fields=dict(_RELEASED_FIELDS))
    elif not isinstance(original_config, GLIPConfig):
        original_config = translate_config(original_config)
    vision_fields = {**backbone_fields(original), **original_config.backbone_fields}
    text_fields = bert_fields(original)
    shape_fields = _fields_of_shapes(original)
    _check_sizes(original_config, shape_fields, vision_fields, text_fields)
    text_fields = _merge_text_config(text_fields, text_config)
    anchors = {ours: value for ours, value in original_config.sizes.values() if ours.startswith("anchor_")}
    fields = {**original_config.fields, **anchors, **shape_fields}
    try:
        return GLIPv2Config(backbone_config=vision_fields, text_config=text_fields, **fields)
    except StrictDataclassError as error:
        raise ValueError(f"The checkpoint and its configs make no valid configuration: {error}") from error


def _check_sizes(original_config: GLIPConfig, *groups: dict[str, Any]) -> None:
    """Raises `ValueError` with one line for each size of the original config that the weights contradict."""
    shape_fields, vision_fields, text_fields = groups
    known = {
        **shape_fields,
        **{f"backbone_config.{name}": value for name, value in vision_fields.items()},
        **{f"text_config.{name}": value for name, value in text_fields.items()},
    }
    wrong = []
    for option, (ours, value) in original_config.sizes.items():
        if ours in known and known[ours] != value:
            wrong.append(f"{option} is {value!r}, and the weights show {known[ours]!r}")
    if wrong:
        raise ValueError(
            "The original config does not fit the checkpoint; pass the config it was trained with:\n  "
            + "\n  ".join(wrong)
        )


def _merge_text_config(text_fields: dict[str, Any], text_config: dict[str, Any] | None) -> dict[str, Any]:
    """
    Raises:
        ValueError: when `text_config` contradicts what the shapes show.
    """
    text_config = {name: value for name, value in (text_config or {}).items() if name not in _FOREIGN_FIELDS}
    wrong = [
        f"{name} is {text_config[name]!r}, and the weights show {value!r}"
        for name, value in text_fields.items()
        if name != "num_attention_heads" and name in text_config and text_config[name] != value
    ]
    if wrong:
        raise ValueError("The text config does not fit the checkpoint:\n  " + "\n  ".join(wrong))
    merged = {**text_fields, **text_config}
    if merged["hidden_size"] % merged["num_attention_heads"]:
        raise ValueError(
            f"The text encoder's hidden size {merged['hidden_size']} is not a multiple of its "
            f"{merged['num_attention_heads']} attention heads; pass the right num_attention_heads in the text config."
        )
    return merged


def check_fit(state: StateDict, config: GLIPv2Config) -> GLIPv2ForObjectDetection:
    """
    Compares converted weights with the names and shapes of `GLIPv2ForObjectDetection`.

    Returns:
        The model on the meta device.

    Raises:
        ValueError: with every tensor that is missing, has another shape, or has no place.
    """
    with torch.device("meta"):
        model = GLIPv2ForObjectDetection(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = [f"{name} {shape} is missing" for name, shape in expected.items() if name not in state]
    problems += [
        f"{name} is {tuple(state[name].shape)} where the config asks for {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems += [
        f"{name} {tuple(state[name].shape)} has no place in the model"
        for name in state
        if name not in expected and not name.startswith(("mlm_head.", "contrastive_head.", "mask_head."))
    ]
    if problems:
        raise ValueError(
            f"The checkpoint does not make a whole model ({len(problems)} tensors):\n  {_listed(problems)}"
        )
    return model


# Files ---------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> StateDict:
    """
    The weights in a checkpoint file, in their original names without `module.`.

    Args:
        path: .pth, .pt or .bin as `torch.save` wrote it, of the weights or of a mapping that holds them as `model` or
            `state_dict`; or .safetensors. Python objects in it are not run.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds no weights, or some that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"The checkpoint {path} is no safetensors file, or is damaged: {error}") from error
    elif path.suffix in (".pth", ".pt", ".bin"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        # Unpickling damaged bytes can raise anything.
        except Exception as error:
            raise ValueError(
                f"The checkpoint {path} cannot be read as weights. It is damaged or no PyTorch file, or it holds "
                "Python objects beside its tensors, which are refused because they could run any code: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            ) from error
    else:
        raise ValueError(f"The checkpoint {path} must be a .pth, .pt, .bin or .safetensors file.")
    original = _unwrap(content, path)
    broken = [name for name, tensor in original.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} tensors of the checkpoint {path} hold values that are not finite:\n  {_listed(broken)}"
        )
    return strip_prefix(original)


def _unwrap(content: Any, path: Path) -> StateDict:
    """
    Raises:
        ValueError: when there are no tensors by name.
    """
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"The checkpoint {path} holds {type(content).__name__} where tensors by name were expected.")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"The checkpoint {path} holds {', '.join(others[:8])} where tensors by name, or a mapping `model` of "
            "them, were expected."
        )
    return dict(content)


def load_tokenizer(folder: str | Path | None, vocab_size: int) -> PreTrainedTokenizerBase:
    """
    The tokenizer of the checkpoint's text encoder.

    Args:
        folder: with tokenizer.json and tokenizer_config.json, or with vocab.txt; `None` takes bert-base-uncased from
            the Hub or the cache.
        vocab_size: rows of the text encoder's embedding.

    Raises:
        FileNotFoundError: when there is no such folder, or the Hub cannot be reached.
        ValueError: when the folder holds no tokenizer, or one with more words than the checkpoint.
    """
    if folder is None:
        try:
            tokenizer = BertTokenizerFast.from_pretrained("bert-base-uncased")
        except OSError as error:
            raise FileNotFoundError(
                "The tokenizer bert-base-uncased is not in the cache and cannot be fetched from the Hub; pass "
                "--tokenizer with a folder that holds its tokenizer.json and tokenizer_config.json, or its vocab.txt."
            ) from error
    else:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"There is no tokenizer folder at {folder}.")
        has_config = (Path(folder) / "tokenizer_config.json").is_file()
        if not has_config and not (Path(folder) / "vocab.txt").is_file():
            raise ValueError(f"The tokenizer folder {folder} holds neither tokenizer_config.json nor vocab.txt.")
        tokenizer = (AutoTokenizer if has_config else BertTokenizerFast).from_pretrained(folder)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} words and the checkpoint's text encoder {vocab_size}; pass the "
            "tokenizer that the checkpoint was trained with."
        )
    return tokenizer


def make_processor(pictures: PictureSettings, tokenizer: PreTrainedTokenizerBase):
    """The processor that prepares pictures as the original did."""
    from transformers_glipv2.image_processing_glipv2 import GLIPv2ImageProcessor
    from transformers_glipv2.processing_glipv2 import GLIPv2Processor

    # Ours are in the order of the network's channels.
    mean, std = (list(values[::-1] if pictures.is_bgr else values) for values in (pictures.mean, pictures.std))
    image_processor = GLIPv2ImageProcessor(
        size={"shortest_edge": pictures.shortest_edge, "longest_edge": pictures.longest_edge},
        do_bgr=pictures.is_bgr,
        rescale_factor=1.0,
        image_mean=mean,
        image_std=std,
        size_divisor=pictures.pad_divisor,
    )
    return GLIPv2Processor(image_processor, tokenizer)


@dataclass
class Conversion:
    """
    What a conversion wrote.

    Args:
        translation: what became of each tensor.
        config: the model's configuration.
        notes: what a reader should know of the original config.
    """

    translation: Translation
    config: GLIPv2Config
    notes: list[str]


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    original_config: str | Path | None = None,
    text_config: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Conversion:
    """
    Writes a folder that `AutoModelForZeroShotObjectDetection` and `AutoProcessor` read.

    Nothing is written unless everything fits.

    Args:
        checkpoint: as `read_checkpoint` takes it.
        output: the folder.
        original_config: the checkpoint's config of microsoft/GLIP, .yaml or .json.
        text_config: the config.json of the text encoder, where it is not BERT-base.
        tokenizer: a folder as `load_tokenizer` takes it.

    Raises:
        FileNotFoundError: when a file is not there.
        ValueError: when the files are not what they should be, or do not fit each other.
    """
    if Path(output).is_file():
        raise ValueError(f"The output {output} is a file; pass a folder.")
    glip_config = GLIPConfig(fields=dict(_RELEASED_FIELDS))
    if original_config is not None:
        glip_config = translate_config(read_mapping(original_config, "original config"))
    text_fields = None if text_config is None else read_mapping(text_config, "text config")
    original = read_checkpoint(checkpoint)
    config = config_from_state_dict(original, glip_config, text_fields)
    translation = translate(original)
    _refuse_unknown(translation, len(original))
    model = check_fit(translation.state, config)
    processor = make_processor(glip_config.pictures, load_tokenizer(tokenizer, config.text_config.vocab_size))
    # The weights go through the model's own saving, which writes the names that every release of transformers reads.
    model.save_pretrained(output, state_dict=translation.state)
    processor.save_pretrained(output)
    return Conversion(translation, config, glip_config.notes)


# Command line --------------------------------------------------------------------------------------------------------


def describe(conversion: Conversion) -> str:
    """What was mapped, part by part, and what was left out, by name."""
    parts: dict[str, list[int]] = {}
    for name, tensor in conversion.translation.state.items():
        parts.setdefault(".".join(name.split(".")[: 2 if name.startswith("model.") else 1]), []).append(tensor.numel())
    lines = [
        f"{part:<22} {len(sizes):>4} tensors {sum(sizes) / 1e6:>8.2f} M parameters" for part, sizes in parts.items()
    ]
    if "model.backbone.swin.layernorm.weight" in conversion.translation.state:
        lines.append("model.backbone.swin.layernorm, which transformers adds and never applies, is the identity.")
    for name, reason in conversion.translation.extras.items():
        lines.append(f"left out {name}: {reason}")
    return "\n".join(lines + conversion.notes)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m transformers_glipv2.convert_glip_checkpoint",
        description="Turns a checkpoint of microsoft/GLIP into a folder that from_pretrained reads.",
    )
    parser.add_argument("--checkpoint", required=True, help=".pth, .pt, .bin or .safetensors file of the original")
    parser.add_argument("--original-config", help="its .yaml or .json; without it the released checkpoints' settings")
    parser.add_argument("--text-config", help="config.json of the text encoder, where it is not BERT-base")
    parser.add_argument("--tokenizer", help="folder of the tokenizer; without it bert-base-uncased from the Hub")
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        conversion = convert_checkpoint(
            options.checkpoint, options.output, options.original_config, options.text_config, options.tokenizer
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(describe(conversion))
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
