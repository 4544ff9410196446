"""Checkpoints in the names of microsoft/GLIP and of mmdetection, made from small models of ours."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection

# What the shapes of the tensors do not show has the values of the released checkpoints.
SIZES = {
    "text_config": {
        "model_type": "bert",
        "vocab_size": 128,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
    },
    "fusion_num_heads": 8,
    "max_text_length": 256,
}


def released_model(use_fusion: bool = True, seed: int = 0) -> GLIPv2ForObjectDetection:
    """With random weights in every tensor."""
    torch.manual_seed(seed)
    config: GLIPv2Config = tiny_config(**SIZES, use_fusion=use_fusion)
    model = GLIPv2ForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


# Our name -> the name in microsoft/GLIP, after `module.`; `{0}` and `{1}` are numbers.
_STAGE = r"model\.backbone\.swin\.encoder\.layers\.(\d+)"
_BLOCK = _STAGE + r"\.blocks\.(\d+)"
_LAYER = r"model\.layers\.(\d+)"
_TO_ORIGINAL = {
    r"model\.backbone\.swin\.embeddings\.patch_embeddings\.projection": "backbone.body.patch_embed.proj",
    r"model\.backbone\.swin\.embeddings\.norm": "backbone.body.patch_embed.norm",
    _BLOCK + r"\.layernorm_before": "backbone.body.layers.{0}.blocks.{1}.norm1",
    _BLOCK + r"\.layernorm_after": "backbone.body.layers.{0}.blocks.{1}.norm2",
    _BLOCK + r"\.attention\.o_proj": "backbone.body.layers.{0}.blocks.{1}.attn.proj",
    _BLOCK + r"\.attention\.relative_position_bias": "backbone.body.layers.{0}.blocks.{1}.attn",
    _BLOCK + r"\.mlp\.fc1": "backbone.body.layers.{0}.blocks.{1}.mlp.fc1",
    _BLOCK + r"\.mlp\.fc2": "backbone.body.layers.{0}.blocks.{1}.mlp.fc2",
    _STAGE + r"\.downsample\.norm": "backbone.body.layers.{0}.downsample.norm",
    _STAGE + r"\.downsample\.reduction": "backbone.body.layers.{0}.downsample.reduction",
    r"model\.backbone\.hidden_states_norms\.stage(\d+)": "backbone.body.norm{minus_one}",
    r"model\.neck\.lateral_convs\.(\d+)": "backbone.fpn.fpn_inner{plus_two}",
    r"model\.neck\.output_convs\.(\d+)": "backbone.fpn.fpn_layer{plus_two}",
    r"model\.neck\.p6": "backbone.fpn.top_blocks.p6",
    r"model\.neck\.p7": "backbone.fpn.top_blocks.p7",
    r"model\.text_encoder": "language_backbone.body.model",
    _LAYER + r"\.fusion\.vision_query": "{fusion}.b_attn.attn.v_proj",
    _LAYER + r"\.fusion\.text_key": "{fusion}.b_attn.attn.l_proj",
    _LAYER + r"\.fusion\.vision_value": "{fusion}.b_attn.attn.values_v_proj",
    _LAYER + r"\.fusion\.text_value": "{fusion}.b_attn.attn.values_l_proj",
    _LAYER + r"\.fusion\.vision_out": "{fusion}.b_attn.attn.out_v_proj",
    _LAYER + r"\.fusion\.text_out": "{fusion}.b_attn.attn.out_l_proj",
    _LAYER + r"\.fusion\.vision_norm": "{fusion}.b_attn.layer_norm_v",
    _LAYER + r"\.fusion\.text_norm": "{fusion}.b_attn.layer_norm_l",
    _LAYER + r"\.fusion\.vision_gamma": "{fusion}.b_attn.gamma_v",
    _LAYER + r"\.fusion\.text_gamma": "{fusion}.b_attn.gamma_l",
    _LAYER + r"\.text_layer\.attention\.(query|key|value)": "{text}.attention.self.{1}",
    _LAYER + r"\.text_layer\.attention\.output": "{text}.attention.output.dense",
    _LAYER + r"\.text_layer\.attention_norm": "{text}.attention.output.LayerNorm",
    _LAYER + r"\.text_layer\.intermediate": "{text}.intermediate.dense",
    _LAYER + r"\.text_layer\.output": "{text}.output.dense",
    _LAYER + r"\.text_layer\.output_norm": "{text}.output.LayerNorm",
    _LAYER + r"\.dyconv\.branches\.coarser\.conv": "{dyconv}.DyConv.0.conv",
    _LAYER + r"\.dyconv\.branches\.same\.conv": "{dyconv}.DyConv.1.conv",
    _LAYER + r"\.dyconv\.branches\.finer\.conv": "{dyconv}.DyConv.2.conv",
    _LAYER + r"\.dyconv\.branches\.coarser\.norm": "{dyconv}.DyConv.0.bn",
    _LAYER + r"\.dyconv\.branches\.same\.norm": "{dyconv}.DyConv.1.bn",
    _LAYER + r"\.dyconv\.branches\.finer\.norm": "{dyconv}.DyConv.2.bn",
    _LAYER + r"\.dyconv\.branch_attention": "{dyconv}.AttnConv.1",
    _LAYER + r"\.dyconv\.activation\.reduce": "{dyconv}.relu.fc.0",
    _LAYER + r"\.dyconv\.activation\.expand": "{dyconv}.relu.fc.2",
    _LAYER + r"\.dyconv\.offset": "{dyconv}.offset",
    r"detection_head\.box_predictor": "rpn.head.bbox_pred",
    r"detection_head\.centerness_predictor": "rpn.head.centerness",
    r"detection_head\.token_projection": "rpn.head.dot_product_projection_text",
    r"detection_head\.log_scale": "rpn.head.log_scale",
    r"detection_head\.text_bias": "rpn.head.bias_lang",
    r"detection_head\.bias": "rpn.head.bias0",
}


def original_state(model: GLIPv2ForObjectDetection) -> dict[str, Tensor]:
    """The weights of a model as microsoft/GLIP names and stacks them."""
    state, original = dict(model.state_dict()), {}
    use_fusion = model.config.use_fusion
    for name in [name for name in state if ".attention.q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        stage, block, kind = re.fullmatch(_BLOCK + r"\.attention\.q_proj\.(.+)", name).groups()
        original[f"module.backbone.body.layers.{stage}.blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    for level, scale in enumerate(state.pop("detection_head.level_scales")):
        original[f"module.rpn.head.scales.{level}.scale"] = scale.reshape(1)
    for name, tensor in state.items():
        if name.startswith("model.backbone.swin.layernorm."):
            continue
        match, theirs = next(
            (match, theirs)
            for ours, theirs in _TO_ORIGINAL.items()
            if (match := re.match(ours + r"(?=\.(?!norm)|$)", name)) and fits(name, match)
        )
        number = int(match[1]) if match.groups() and match[1].isdigit() else 0
        tower = {
            part: f"rpn.head.dyhead_tower.{3 * number + place if use_fusion else number}"
            for place, part in enumerate(("fusion", "text", "dyconv"))
        }
        theirs = theirs.format(*match.groups(), minus_one=number - 1, plus_two=number + 2, **tower)
        original[f"module.{theirs}{name[match.end() :]}"] = tensor
    for level, (size, stride) in enumerate(zip(model.config.anchor_sizes, model.config.anchor_strides, strict=True)):
        corner = (stride - size) / 2
        anchor = torch.tensor([[corner, corner, corner + size - 1, corner + size - 1]])
        original[f"module.rpn.anchor_generator.cell_anchors.{level}"] = anchor
    original["module.rpn.head.cls_logits.weight"] = torch.zeros(80, model.config.d_model, 1, 1)
    original["module.rpn.head.cls_logits.bias"] = torch.zeros(80)
    return original


def fits(name: str, match: re.Match) -> bool:
    """What follows a module's name is one of its parameters, except in the text encoder."""
    rest = name[match.end() :]
    return rest in ("", ".weight", ".bias", ".relative_position_bias_table") or "text_encoder" in name


def mmdetection_state(original: dict[str, Tensor], renamed_modules: bool = True) -> dict[str, Tensor]:
    """
    A checkpoint of microsoft/GLIP as mmdetection's `tools/model_converters/glip_to_mmdet.py` renames it; its first
    version kept the names DyConv and AttnConv.
    """
    neck = {f"fpn_inner{level}": f"lateral_convs.{level - 2}.conv" for level in (2, 3, 4)}
    neck |= {f"fpn_layer{level}": f"fpn_convs.{level - 2}.conv" for level in (2, 3, 4)}
    neck |= {"top_blocks.p6": "fpn_convs.3.conv", "top_blocks.p7": "fpn_convs.4.conv"}
    state = {}
    for name, tensor in original.items():
        name = name.removeprefix("module.")
        if "anchor_generator" in name or "cls_logits" in name:
            continue
        if name.startswith("backbone.body."):
            name = name.replace("backbone.body.", "backbone.").replace("layers.", "stages.", 1)
            name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace(".attn.", ".attn.w_msa.")
            name = name.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
            if ".downsample." in name:
                tensor = unfold_order(tensor)
        elif name.startswith("backbone.fpn."):
            module, kind = name.removeprefix("backbone.fpn.").rsplit(".", 1)
            name = f"neck.{neck[module]}.{kind}"
        elif name.startswith("language_backbone."):
            name = f"language_model.{name}"
        else:
            name = name.replace("rpn.", "bbox_head.", 1)
            if renamed_modules:
                name = name.replace(".DyConv.", ".dyconvs.").replace(".AttnConv.", ".attnconv.")
        state[name] = tensor
    return state


def unfold_order(tensor: Tensor) -> Tensor:
    """
    The channels of four neighbouring patches, which the original concatenates in the order (row, column) = (0, 0),
    (1, 0), (0, 1), (1, 1), in the order of `nn.Unfold`: each channel's four patches row by row.
    """
    top_left, bottom_left, top_right, bottom_right = tensor.chunk(4, dim=-1)
    return torch.stack([top_left, top_right, bottom_left, bottom_right], dim=-1).flatten(-2)


def bert_tokenizer_files() -> dict[str, bytes]:
    """A small tokenizer as the repository of bert-base-uncased holds it."""
    vocabulary = tiny_tokenizer().get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    return {
        "vocab.txt": "\n".join(words).encode() + b"\n",
        "tokenizer_config.json": json.dumps(settings).encode(),
        "config.json": json.dumps({"model_type": "bert", "vocab_size": len(words)}).encode(),
    }


def saved(content: object, path: Path, **options) -> bytes:
    """What `torch.save` writes."""
    torch.save(content, path, **options)
    return path.read_bytes()
