"""
Turns checkpoints of microsoft/GLIP, and of GLIP in mmdetection, into folders that `from_pretrained` reads.

    python -m transformers_glipv2.convert_glip_checkpoint --checkpoint glip_tiny_model_o365_goldg_cc_sbu.pth \
        --original-config glip_Swin_T_O365_GoldG.yaml --output glip-tiny

Sizes are read from the shapes of the tensors. A config of the original adds what shapes do not show, and must agree
with them. No tensor may be missing, and a tensor is left out only if `glip_original_names.py` gives the reason.
"""

import argparse
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from transformers_glipv2.configuration_glipv2 import GLIPv2Config
from transformers_glipv2.conversion.glip_original_config import (
    GLIPConfig,
    ImageSettings,
    read_mapping,
    translate_config,
)
from transformers_glipv2.conversion.glip_original_names import (
    TOWER,
    StateDict,
    Translation,
    is_coswin,
    strip_prefix,
    translate,
)
from transformers_glipv2.conversion.mmdetection_names import is_mmdetection, rename_mmdetection
from transformers_glipv2.modeling_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

# Names ---------------------------------------------------------------------------------------------------------------


def convert_state_dict(original: StateDict) -> StateDict:
    """
    The weights of `GLIPv2ForObjectDetection`, and of further heads if the checkpoint has them.

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
            "microsoft/GLIP or of GLIP in mmdetection, or has parts that the model lacks:\n  "
            f"{_listed(translation.unknown)}"
        )


def _listed(names: list[str], limit: int = 40) -> str:
    shown = sorted(names)[:limit]
    return "\n  ".join(shown + ([f"... and {len(names) - limit} more"] if len(names) > limit else []))


# Sizes ---------------------------------------------------------------------------------------------------------------


# What the released checkpoints were trained with, where it is not the default.
_RELEASED_FIELDS = {"drop_block_prob": 0.3}
BERT_NAMES = ("google-bert/bert-base-uncased", "bert-base-uncased")
# Fields of a config.json that do not describe the architecture.
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
    if is_coswin(original):
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
        # Shapes do not show it; all BERT models of Google have heads of 64.
        "num_attention_heads": max(hidden_size // 64, 1),
        "intermediate_size": _shape(original, body + "encoder.layer.0.intermediate.dense.weight", 2)[0],
        "max_position_embeddings": _shape(original, body + "embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": _shape(original, body + "embeddings.token_type_embeddings.weight", 2)[0],
    }


def anchor_fields(original: StateDict) -> dict[str, list[int]]:
    """Sizes and strides of the anchors from the first anchor of each level, if the checkpoint has them."""
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
    """Arguments of the mask head, if the checkpoint has one."""
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
    """Arguments of `GLIPv2Config` that the tensors show, but for those of the two encoders."""
    use_fusion = any(".b_attn." in name for name in original)
    fields: dict[str, Any] = {
        "d_model": _shape(original, "rpn.head.bbox_pred.weight", 4)[1],
        "num_fusion_layers": _count(original, re.escape(TOWER) + r"(\d+)\.DyConv\."),
        "use_fusion": use_fusion,
        # Without the head there is nothing to tie.
        "tie_word_embeddings": "rpn.head.mlm_head.decoder.weight" not in original,
        **anchor_fields(original),
        **mask_fields(original),
    }
    if use_fusion:
        fields["num_fusion_layers"] = -(-fields["num_fusion_layers"] // 3)
        fields["fusion_embed_dim"] = _shape(original, TOWER + "0.b_attn.attn.v_proj.weight", 2)[0]
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
        ValueError: when a config does not fit the weights, or the weights are not those of GLIP.
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
    Compares converted weights with the names and shapes of `GLIPv2ForObjectDetection`, or with a mask head those of
    `GLIPv2ForInstanceSegmentation`.

    Returns:
        The model on the meta device.

    Raises:
        ValueError: with every tensor that is missing, has another shape, or is unknown to the model.
    """
    has_masks = any(name.startswith("mask_head.") for name in state)
    with torch.device("meta"):
        model = (GLIPv2ForInstanceSegmentation if has_masks else GLIPv2ForObjectDetection)(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = [f"{name} {shape} is missing" for name, shape in expected.items() if name not in state]
    problems += [
        f"{name} is {tuple(state[name].shape)} where the config expects {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems += [
        f"{name} {tuple(state[name].shape)} is unknown to the model"
        for name in state
        if name not in expected and not name.startswith(("mlm_head.", "contrastive_head."))
    ]
    if problems:
        raise ValueError(
            f"The checkpoint does not make a whole model ({len(problems)} tensors):\n  {_listed(problems)}"
        )
    return model


# Files ---------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> StateDict:
    """
    The weights in a checkpoint file, in the names of microsoft/GLIP without `module.`.

    Args:
        path: .pth, .pt or .bin as `torch.save` wrote it, of the weights or of a mapping that holds them as `model`,
            `state_dict` or `ema_state_dict`; or .safetensors. Of microsoft/GLIP, or of GLIP in mmdetection. Python
            objects in it are never unpickled: those beside the weights are left out, those among them are an error.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds no weights, or values that are not finite.
    """
    return _read_any(path)[0]


def _read_any(path: str | Path) -> tuple[StateDict, str]:
    """As `read_checkpoint`, with the code base that wrote it."""
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
            content = _load_pickle(path)
        # Unpickling damaged bytes can raise anything.
        except Exception as error:
            raise ValueError(
                f"The checkpoint {path} cannot be read as weights. It is damaged or no PyTorch file, or it holds "
                "Python objects beside its tensors, which are refused because they could run any code: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            ) from error
    else:
        raise ValueError(f"The checkpoint {path} must be a .pth, .pt, .bin or .safetensors file.")
    original, kind = strip_prefix(_unwrap(content, path)), "microsoft/GLIP"
    if is_mmdetection(original):
        original, kind = rename_mmdetection(original), "mmdetection"
    broken = [name for name, tensor in original.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} tensors of the checkpoint {path} hold values that are not finite:\n  {_listed(broken)}"
        )
    return original, kind


class _LeftOut:
    """Stands for an object that is not unpickled: takes what pickle gives it, and does nothing."""

    def __new__(cls, *args: Any) -> Any:
        # An object that may be a dictionary of a class of its own: torch fills only those of its own list.
        return super().__new__(cls) if args else OrderedDict()

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _load_pickle(path: Path) -> Any:
    """
    What `torch.save` wrote, with memory for those tensors only that are read. Training runs also save their settings
    and logs as Python objects; each of these becomes a `_LeftOut`.
    """
    if not zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(_LeftOut, name) for name in foreign]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _unwrap(content: Any, path: Path) -> StateDict:
    """
    Raises:
        ValueError: when there are no tensors by name.
    """
    # mmengine saves averaged weights as `state_dict`, and those of the last step as `ema_state_dict`.
    for key in ("model", "state_dict", "ema_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping | _LeftOut):
            content = content[key]
    if isinstance(content, _LeftOut) or (type(content) is OrderedDict and not content):
        raise ValueError(
            f"The checkpoint {path} holds Python objects where tensors by name were expected. They are refused "
            "because they could run any code; save the model's `state_dict()` instead."
        )
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"The checkpoint {path} holds {type(content).__name__} where tensors by name were expected.")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"The checkpoint {path} holds {', '.join(others[:8])} where tensors by name, or a mapping `model` of "
            "them, were expected."
        )
    return dict(content)


def _default_tokenizer() -> PreTrainedTokenizerBase:
    """That of BERT, from the cache where it is; also under the name that it had on the Hub before."""
    for name in BERT_NAMES:
        with suppress(OSError):
            return AutoTokenizer.from_pretrained(name, local_files_only=True)
    return AutoTokenizer.from_pretrained(BERT_NAMES[0])


def load_tokenizer(folder: str | Path | PreTrainedTokenizerBase | None, vocab_size: int) -> PreTrainedTokenizerBase:
    """
    The tokenizer of the checkpoint's text encoder.

    Args:
        folder: with tokenizer.json and tokenizer_config.json, or with vocab.txt; or a tokenizer; `None` takes
            bert-base-uncased from the Hub or the cache.
        vocab_size: number of token embeddings of the text encoder.

    Raises:
        FileNotFoundError: when there is no such folder, or the Hub cannot be reached.
        ValueError: when the folder holds no tokenizer, or one with more tokens than the checkpoint.
    """
    if folder is None:
        try:
            tokenizer = _default_tokenizer()
        except OSError as error:
            raise FileNotFoundError(
                "The tokenizer bert-base-uncased is not in the cache and cannot be fetched from the Hub; pass "
                "--tokenizer with a folder that holds its tokenizer.json and tokenizer_config.json, or its vocab.txt."
            ) from error
    elif isinstance(folder, PreTrainedTokenizerBase):
        tokenizer = folder
    else:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"There is no tokenizer folder at {folder}.")
        has_config = (Path(folder) / "tokenizer_config.json").is_file()
        if not has_config and not (Path(folder) / "vocab.txt").is_file():
            raise ValueError(f"The tokenizer folder {folder} holds neither tokenizer_config.json nor vocab.txt.")
        tokenizer = (AutoTokenizer if has_config else BertTokenizer).from_pretrained(folder)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the checkpoint's text encoder {vocab_size}; pass the "
            "tokenizer that the checkpoint was trained with."
        )
    return tokenizer


def make_processor(images: ImageSettings, tokenizer: PreTrainedTokenizerBase):
    """The processor that prepares images as the original did."""
    from transformers_glipv2.image_processing_glipv2 import GLIPv2ImageProcessor
    from transformers_glipv2.processing_glipv2 import GLIPv2Processor

    # Our mean and std are in the order of the network's channels.
    mean, std = (list(values[::-1] if images.is_bgr else values) for values in (images.mean, images.std))
    image_processor = GLIPv2ImageProcessor(  # type: ignore[call-arg]  # typed as its base class
        size={"shortest_edge": images.shortest_edge, "longest_edge": images.longest_edge},
        do_bgr=images.is_bgr,
        rescale_factor=1.0,
        image_mean=mean,
        image_std=std,
        size_divisor=images.pad_divisor,
    )
    return GLIPv2Processor(image_processor, tokenizer)


@dataclass
class Conversion:
    """
    What a conversion wrote.

    Args:
        translation: what became of each tensor.
        config: the model's configuration.
        notes: remarks on options of the original config.
        kind: the code base that wrote the checkpoint, "microsoft/GLIP" or "mmdetection".
    """

    translation: Translation
    config: GLIPv2Config
    notes: list[str]
    kind: str


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    original_config: str | Path | None = None,
    text_config: str | Path | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
) -> Conversion:
    """
    Writes a folder that `AutoModelForZeroShotObjectDetection` and `AutoProcessor` load.

    Nothing is written unless everything fits.

    Args:
        checkpoint: as `read_checkpoint` takes it.
        output: the folder.
        original_config: the checkpoint's config of microsoft/GLIP, .yaml or .json.
        text_config: the config.json of the text encoder, where it is not BERT-base.
        tokenizer: as `load_tokenizer` takes it.

    Raises:
        FileNotFoundError: when a file is not there.
        ValueError: when a file is not of its kind, or the files do not fit each other.
    """
    if Path(output).is_file():
        raise ValueError(f"The output {output} is a file; pass a folder.")
    glip_config = GLIPConfig(fields=dict(_RELEASED_FIELDS))
    if original_config is not None:
        glip_config = translate_config(read_mapping(original_config, "original config"))
    text_fields = None if text_config is None else read_mapping(text_config, "text config")
    original, kind = _read_any(checkpoint)
    config = config_from_state_dict(original, glip_config, text_fields)
    translation = translate(original)
    _refuse_unknown(translation, len(original))
    model = check_fit(translation.state, config)
    processor = make_processor(glip_config.images, load_tokenizer(tokenizer, config.get_text_config().vocab_size))
    # `save_pretrained` writes the names that every release of transformers reads.
    model.save_pretrained(output, state_dict=translation.state)
    processor.save_pretrained(output)
    return Conversion(translation, config, glip_config.notes, kind)


# Command line --------------------------------------------------------------------------------------------------------


def describe(conversion: Conversion) -> str:
    """Tensors and parameters of each part, and the tensors that were left out."""
    parts: dict[str, list[int]] = {}
    for name, tensor in conversion.translation.state.items():
        parts.setdefault(".".join(name.split(".")[: 2 if name.startswith("model.") else 1]), []).append(tensor.numel())
    lines = [f"A checkpoint of {conversion.kind}:"]
    lines += [
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
        description="Turns a checkpoint of microsoft/GLIP or mmdetection into a folder that from_pretrained reads.",
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
