"""Which parts of a model a run changes: all, all but some, a head, a prompt, or low-rank adapters."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from transformers_glipv2.layers.prompt_tuning import add_prompt_tuning, remove_prompt_tuning

FREEZABLE = ("text-encoder", "backbone", "lower-backbone")
# What is not trained. The lower half of the backbone, its stem and first stages, knows edges and textures.
_FROZEN = {
    "frozen-backbone": ("lower-backbone",),
    "frozen-text": ("text-encoder",),
    "frozen-encoders": ("text-encoder", "lower-backbone"),
}
FROZEN_WAYS = ("full", *_FROZEN)
TRAIN_WAYS = (*FROZEN_WAYS, "head", "prompt", "lora")

_STEM = re.compile(r"\.(embeddings|stem|conv_stem|bn1)\.")
_STAGE = re.compile(r"\.(?:layers|stages|blocks)\.(\d+)\.")
# Linear layers and convolutions that are called as modules; the fusion reads its vision weights directly.
_LORA_TARGETS = (
    r".*(\.backbone\..*\.(query|value|q_proj|v_proj)|\.text_encoder\..*\.(query|value|q_proj|v_proj)"
    r"|\.text_layer\.attention\.(query|value)|\.fusion\.(text_key|text_value|text_out)"
    r"|\.neck\.(lateral_convs|output_convs)\.\d+)"
)


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """
    Sets `requires_grad` of some parts of a GLIPv2 model to `False`.

    Args:
        model (`nn.Module`): with a head, or `GLIPv2Model` itself.
        parts (`Sequence[str]`): of "text-encoder", "backbone", and "lower-backbone": its stem and the first half of
            its stages (for nano up to stride 8, for Swin likewise).

    Raises:
        ValueError: for an unknown part.
    """
    for part in parts:
        if part not in FREEZABLE:
            raise ValueError(f"`parts` has {part!r}; choose of {', '.join(FREEZABLE)}.")
    base: Any = getattr(model, "model", model)
    if "text-encoder" in parts:
        base.text_encoder.requires_grad_(False)
    if "backbone" in parts:
        base.backbone.requires_grad_(False)
    if "lower-backbone" in parts:
        for parameter in _lower_backbone(base.backbone):
            parameter.requires_grad_(False)


def prepare_tuning(
    model: nn.Module, way: str, processor: Any = None, text: str | None = None, lora_rank: int = 8
) -> nn.Module:
    """
    Makes trainable what a way of fine-tuning trains, and only that.

    Args:
        model (`GLIPv2ForObjectDetection`): changed in place.
        way (`str`): "full"; "frozen-backbone": all but the lower half of the backbone; "frozen-text": all but the text
            encoder; "frozen-encoders": all but both; "head": the detection head alone (a linear probe); "prompt":
            offsets on the tokens of one text alone; "lora": low-rank adapters in the encoders and the tower (needs
            `peft`), and the detection head.
        processor (`GLIPv2Processor`, *optional*): tokenizes `text`.
        text (`str`, *optional*): the prompt that "prompt" tunes.
        lora_rank (`int`, *optional*, defaults to 8).

    Returns:
        `nn.Module`: the model to train; for "lora" a `PeftModel` around it.

    Raises:
        ValueError: for an unknown way, or "prompt" without a text.
    """
    if way not in TRAIN_WAYS:
        raise ValueError(f"`way` is {way!r}; choose one of {', '.join(TRAIN_WAYS)}.")
    if way in FROZEN_WAYS:
        freeze(model, _FROZEN.get(way, ()))
        return model
    if way == "lora":
        return _with_adapters(model, lora_rank)
    model.requires_grad_(False)
    if way == "prompt":
        # Each prompt is tuned anew: the offsets of another one are at other tokens.
        remove_prompt_tuning(model)
    if way == "head":
        model.detection_head.requires_grad_(True)
    elif text is None:
        raise ValueError("prompt tuning needs the `text` whose tokens are tuned.")
    else:
        add_prompt_tuning(model, processor.tokenizer, text)
    return model


def _lower_backbone(backbone: nn.Module) -> list[nn.Parameter]:
    named = [(f".{name}", parameter) for name, parameter in backbone.named_parameters()]
    stages = {int(match[1]) for name, _ in named if (match := _STAGE.search(name))}
    lower = []
    for name, parameter in named:
        stage = _STAGE.search(name)
        if (stage and int(stage[1]) < len(stages) // 2) or (not stage and _STEM.search(name)):
            lower.append(parameter)
    if not lower:
        raise ValueError(
            f"no stem or stage is known in {type(backbone).__name__} ({named[0][0][1:]}, ...); freeze the whole "
            "`backbone` instead."
        )
    return lower


def _with_adapters(model: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LORA_TARGETS, modules_to_save=["detection_head"])
    return get_peft_model(model, config)
