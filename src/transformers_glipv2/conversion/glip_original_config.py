"""
Reads the configs of microsoft/GLIP (yacs YAML, or the same as JSON) for the checkpoint converter.

A config has three kinds of options: fields that GLIPv2Config has too (`GLIPConfig.fields`), sizes that the weights
show as well and must agree with (`GLIPConfig.sizes`), and switches of which the model supports one value. Another
value is an error, because the converted model would silently give other numbers.
"""

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Values of each switch that the model supports, and the reason. Switches that a config leaves out are not checked.
_SWITCHES: dict[str, tuple[tuple[Any, ...], str]] = {
    "MODEL.META_ARCHITECTURE": (("GeneralizedVLRCNN",), "only the vision-language detector is known"),
    "MODEL.RPN_ARCHITECTURE": (("VLDYHEAD",), "only the dynamic head with language is known"),
    "MODEL.BACKBONE.CONV_BODY": (("SWINT-FPN-RETINANET",), "only Swin with the P3 to P7 pyramid is known"),
    "MODEL.SWINT.VERSION": (("v1", "v2"), "Swin blocks that read text are not supported"),
    "MODEL.SWINT.APE": ((False,), "absolute position embeddings are not supported"),
    "MODEL.SWINT.OUT_NORM": ((True,), "the backbone's maps are always normalised"),
    "MODEL.FPN.USE_GN": ((False,), "the pyramid has no normalisation"),
    "MODEL.FPN.USE_RELU": ((False,), "the pyramid has no activation"),
    "MODEL.FPN.USE_SPP": ((False,), "the pyramid has no spatial pooling"),
    "MODEL.FPN.USE_PAN": ((False,), "the pyramid has no bottom-up path"),
    "MODEL.FPN.USE_DYHEAD": ((False,), "the pyramid has no head of its own"),
    "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE": (("bert-base-uncased",), "only BERT text encoders can be converted"),
    "MODEL.LANGUAGE_BACKBONE.MASK_SPECIAL": ((False,), "special tokens are always attended to"),
    "MODEL.RPN.USE_FPN": ((True,), "anchors are on five levels"),
    "MODEL.RPN.SCALES_PER_OCTAVE": ((1,), "there is one anchor a location"),
    "MODEL.DYHEAD.USE_GN": ((True,), "the head is normalised by groups"),
    "MODEL.DYHEAD.USE_DYRELU": ((True,), "the head's activation is the dynamic ReLU"),
    "MODEL.DYHEAD.USE_DYFUSE": ((True,), "the head weights its branches"),
    "MODEL.DYHEAD.USE_DFCONV": ((True,), "the head's convolutions are deformable"),
    "MODEL.DYHEAD.CONV_FUNC": (("",), "other convolutions are not known"),
    "MODEL.DYHEAD.SCORE_AGG": (
        ("MEAN",),
        "a label's score is the mean over its tokens; if the mean is what you want, set it to MEAN in a copy",
    ),
    "MODEL.DYHEAD.FUSE_CONFIG.SEPARATE_BIDIRECTIONAL": ((False,), "the levels attend jointly"),
    "MODEL.DYHEAD.FUSE_CONFIG.USE_DOT_PRODUCT_TOKEN_LOSS": ((True,), "scores are dot products with tokens"),
    "MODEL.DYHEAD.FUSE_CONFIG.USE_TOKEN_LOSS": ((False,), "scores are dot products with tokens"),
    "MODEL.DYHEAD.FUSE_CONFIG.USE_CONTRASTIVE_ALIGN_LOSS": ((False,), "scores are dot products with tokens"),
    "MODEL.ROI_MASK_HEAD.HG_SCALE": ((1,), "hourglasses have one scale"),
    "MODEL.ROI_MASK_HEAD.DILATION": ((1,), "the mask head's convolutions are not dilated"),
    "INPUT.FIX_RES": ((False,), "images keep their aspect ratio"),
}

# The original's own defaults, for what a config leaves out.
_DEFAULTS: dict[str, Any] = {
    "MODEL.SWINT.DROP_PATH_RATE": 0.2,
    "MODEL.FPN.DROP_BLOCK": True,
    "MODEL.FPN.DROP_PROB": 0.3,
    "MODEL.FPN.DROP_SIZE": 3,
    "MODEL.GROUP_NORM.NUM_GROUPS": 16,
    "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN": 256,
    "MODEL.LANGUAGE_BACKBONE.N_LAYERS": 1,
    "MODEL.DYHEAD.PRIOR_PROB": 0.01,
    "MODEL.DYHEAD.FUSE_CONFIG.TOKEN_ALPHA": 0.25,
    "MODEL.DYHEAD.FUSE_CONFIG.TOKEN_GAMMA": 2.0,
    "MODEL.DYHEAD.FUSE_CONFIG.DOT_PRODUCT_TOKEN_LOSS_WEIGHT": 1.0,
    "MODEL.DYHEAD.FUSE_CONFIG.MLM_LOSS_COEF": 1.0,
    "MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_CONTRASTIVE_LOSS_WEIGHT": 1.0,
    "MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_MAX_POSITIVE_ANCHORS": 100,
    "MODEL.ATSS.TOPK": 9,
    "MODEL.ATSS.REG_LOSS_WEIGHT": 2.0,
    "MODEL.RPN.RETURN_FUSED_FEATURES": False,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "INPUT.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "",
    "INPUT.TO_BGR255": True,
    "DATALOADER.SIZE_DIVISIBILITY": 0,
}

# Their option -> our field, where the value is the same.
_FIELDS: dict[str, str] = {
    "MODEL.GROUP_NORM.NUM_GROUPS": "group_norm_groups",
    "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN": "max_text_length",
    "MODEL.LANGUAGE_BACKBONE.N_LAYERS": "num_text_layers",
    "MODEL.DYHEAD.PRIOR_PROB": "prior_prob",
    "MODEL.DYHEAD.FUSE_CONFIG.TOKEN_ALPHA": "focal_alpha",
    "MODEL.DYHEAD.FUSE_CONFIG.TOKEN_GAMMA": "focal_gamma",
    "MODEL.DYHEAD.FUSE_CONFIG.DOT_PRODUCT_TOKEN_LOSS_WEIGHT": "intra_loss_weight",
    "MODEL.DYHEAD.FUSE_CONFIG.MLM_LOSS_COEF": "mlm_loss_weight",
    "MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_CONTRASTIVE_LOSS_WEIGHT": "inter_loss_weight",
    "MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_MAX_POSITIVE_ANCHORS": "max_contrastive_regions",
    "MODEL.ATSS.TOPK": "atss_topk",
    "MODEL.ATSS.REG_LOSS_WEIGHT": "box_loss_weight",
    "MODEL.FPN.DROP_SIZE": "drop_block_size",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "mask_pool_size",
}

# Their option -> the name under which the converter finds the same size in the weights.
_SIZES: dict[str, str] = {
    "MODEL.BACKBONE.OUT_CHANNELS": "d_model",
    "MODEL.DYHEAD.CHANNELS": "d_model",
    "MODEL.DYHEAD.NUM_CONVS": "num_fusion_layers",
    "MODEL.DYHEAD.FUSE_CONFIG.EARLY_FUSE_ON": "use_fusion",
    "MODEL.LANGUAGE_BACKBONE.LANG_DIM": "text_config.hidden_size",
    "MODEL.SWINT.EMBED_DIM": "backbone_config.embed_dim",
    "MODEL.SWINT.DEPTHS": "backbone_config.depths",
    "MODEL.SWINT.NUM_HEADS": "backbone_config.num_heads",
    "MODEL.SWINT.WINDOW_SIZE": "backbone_config.window_size",
    "MODEL.SWINT.MLP_RATIO": "backbone_config.mlp_ratio",
    "MODEL.RPN.ANCHOR_SIZES": "anchor_sizes",
    "MODEL.RPN.ANCHOR_STRIDE": "anchor_strides",
}


@dataclass
class ImageSettings:
    """
    How the original prepares images.

    Args:
        shortest_edge, longest_edge: pixels.
        mean, std: three numbers each, in the order red, green, blue and on the scale 0 to 255.
        is_bgr: whether the network reads blue, green, red.
        pad_divisor: padded sizes are multiples of this; 1 pads to the largest image only.
    """

    shortest_edge: int = 800
    longest_edge: int = 1333
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    is_bgr: bool = True
    pad_divisor: int = 32


@dataclass
class GLIPConfig:
    """
    A config of microsoft/GLIP, translated.

    Args:
        fields: arguments of `GLIPv2Config`.
        backbone_fields: arguments of its `backbone_config`.
        sizes: their option -> (our name, value) for sizes that must agree with the weights.
        images: how images are prepared.
        notes: remarks to print after the conversion.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    backbone_fields: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, tuple[str, Any]] = field(default_factory=dict)
    images: ImageSettings = field(default_factory=ImageSettings)
    notes: list[str] = field(default_factory=list)


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """
    The mapping in a .yaml, .yml or .json file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no mapping, or has YAML tags of Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} at {path}.")
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"The {what} {path} must be a .yaml, .yml or .json file.")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The {what} {path} cannot be read as plain {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The {what} {path} holds {type(content).__name__} where a mapping was expected.")
    return content


def _decode(value: Any) -> Any:
    """Like yacs: strings that are Python literals, such as `(64, 128)`, become their values; tuples become lists."""
    if isinstance(value, dict):
        return {key: _decode(entry) for key, entry in value.items()}
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            return value
    return [_decode(entry) for entry in value] if isinstance(value, list | tuple) else value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"MODEL": {"MASK_ON": True}}` to `{"MODEL.MASK_ON": True}`."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _refusals(given: dict[str, Any]) -> list[str]:
    """One line for each option with a value that the model does not support."""
    lines = [
        f"{option} is {given[option]!r} (known: {', '.join(map(repr, known))}): {reason}"
        for option, (known, reason) in _SWITCHES.items()
        if option in given and given[option] not in known
    ]
    ratios = given.get("MODEL.RPN.ASPECT_RATIOS", [1.0])
    if ratios != [1.0]:
        lines.append(f"MODEL.RPN.ASPECT_RATIOS is {ratios!r} (known: [1.0]): there is one square anchor a location")
    fuse = "MODEL.DYHEAD.FUSE_CONFIG."
    is_fused = given.get(fuse + "EARLY_FUSE_ON")
    if is_fused and given.get(fuse + "TYPE", "MHA-B") != "MHA-B":
        lines.append(f"{fuse}TYPE is {given[fuse + 'TYPE']!r} (known: 'MHA-B'): only that fusion is known")
    reads_fused = given.get(fuse + "USE_FUSED_FEATURES_DOT_PRODUCT")
    if is_fused is not None and reads_fused is not None and bool(is_fused) != bool(reads_fused):
        lines.append(
            f"{fuse}USE_FUSED_FEATURES_DOT_PRODUCT is {reads_fused!r} with EARLY_FUSE_ON {is_fused!r}: the classifier "
            "uses the fused tokens if and only if there is fusion"
        )
    if given.get("MODEL.MASK_ON"):
        known_pooling = {"POOLER_SAMPLING_RATIO": 2, "POOLER_SCALES": [1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128]}
        for option, known in known_pooling.items():
            value = given.get(f"MODEL.ROI_MASK_HEAD.{option}", known)
            if value != known:
                lines.append(
                    f"MODEL.ROI_MASK_HEAD.{option} is {value!r} (known: {known!r}): masks pool P3 to P7 with two "
                    "samples a side of each cell"
                )
    return lines


def _notes(given: dict[str, Any]) -> list[str]:
    """Options whose value makes no difference, or none within the range of float32 features."""
    fuse = "MODEL.DYHEAD.FUSE_CONFIG."
    notes = []
    unclamped = [name for name, value in given.items() if name.startswith(fuse + "CLAMP_") and not value]
    if unclamped:
        notes.append(f"{', '.join(unclamped)}: off in the config; the model clamps, at 50000, in any case.")
    if given.get(fuse + "STABLE_SOFTMAX_2D"):
        notes.append(f"{fuse}STABLE_SOFTMAX_2D: on in the config; the softmax gives the same without.")
    if given.get(fuse + "USE_CLASSIFICATION_LOSS"):
        notes.append(f"{fuse}USE_CLASSIFICATION_LOSS: on in the config; scores do not come from that classifier.")
    return notes


def _images(value: dict[str, Any]) -> ImageSettings:
    """
    Raises:
        ValueError: when mean or std are not three numbers.
    """
    is_255, is_bgr = "255" in value["INPUT.FORMAT"], "bgr" in value["INPUT.FORMAT"].lower()
    if not value["INPUT.FORMAT"]:
        if not value["INPUT.TO_BGR255"]:
            raise ValueError("INPUT.TO_BGR255 is False and INPUT.FORMAT is empty; the original cannot run that.")
        is_255 = is_bgr = True
    numbers = {}
    for name in ("PIXEL_MEAN", "PIXEL_STD"):
        triple = value[f"INPUT.{name}"]
        if not isinstance(triple, list) or len(triple) != 3:
            raise ValueError(f"INPUT.{name} must be three numbers, not {triple!r}.")
        triple = triple[::-1] if is_bgr else triple
        numbers[name] = tuple(float(number) * (1 if is_255 else 255) for number in triple)
    return ImageSettings(
        shortest_edge=int(value["INPUT.MIN_SIZE_TEST"]),
        longest_edge=int(value["INPUT.MAX_SIZE_TEST"]),
        mean=numbers["PIXEL_MEAN"],
        std=numbers["PIXEL_STD"],
        is_bgr=is_bgr,
        pad_divisor=max(int(value["DATALOADER.SIZE_DIVISIBILITY"]), 1),
    )


def translate_config(tree: dict[str, Any]) -> GLIPConfig:
    """
    Args:
        tree: the content of a model config of microsoft/GLIP, as `configs/pretrain/*.yaml` or as dumped by a training
            run. Options that it leaves out have the original's defaults.

    Raises:
        ValueError: when it is no such config, or with one line for each option that the model does not support.
    """
    given = _flatten(_decode(tree))
    if "MODEL.RPN_ARCHITECTURE" not in given:
        raise ValueError(
            "The original config has no MODEL.RPN_ARCHITECTURE, so it is not the config of a model. Pass the model's "
            "YAML (such as configs/pretrain/glip_Swin_T_O365_GoldG.yaml, or the config.yml of the training run), not "
            "the YAML of a data set."
        )
    refusals = _refusals(given)
    if refusals:
        raise ValueError(
            "The model does not support these options of the original config:\n  " + "\n  ".join(refusals)
        )
    value = {**_DEFAULTS, **given}
    fields = {ours: value[theirs] for theirs, ours in _FIELDS.items()}
    fields["drop_block_prob"] = value["MODEL.FPN.DROP_PROB"] if value["MODEL.FPN.DROP_BLOCK"] else 0.0
    fields["mask_feature_source"] = "after_fusion" if value["MODEL.RPN.RETURN_FUSED_FEATURES"] else "before_fusion"
    return GLIPConfig(
        fields=fields,
        backbone_fields={"drop_path_rate": value["MODEL.SWINT.DROP_PATH_RATE"]},
        sizes={theirs: (ours, given[theirs]) for theirs, ours in _SIZES.items() if theirs in given},
        images=_images(value),
        notes=_notes(given),
    )
