"""What is trained, how fast: parameter groups and learning rates as functions of the step."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

SCHEDULES = ("cosine", "steps", "constant")
# Where PyTorch updates all parameters in one kernel. On one CPU thread that takes an eighth of the time.
FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def make_optimizer(groups: list[dict[str, Any]]) -> AdamW:
    """
    AdamW, fused where PyTorch has it for all the parameters.

    Args:
        groups (`list[dict]`): as of `parameter_groups`. Moving the model afterwards keeps the optimizer.
    """
    params = [parameter for group in groups for parameter in group["params"]]
    fused = all(one.device.type in FUSED_DEVICES and one.is_floating_point() for one in params)
    return AdamW(groups, fused=fused)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 1e-4,
    text_learning_rate_factor: float = 0.1,
    text_prefixes: Sequence[str] = ("text_encoder.", ".text_layer."),
    backbone_learning_rate_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """
    Groups of trainable parameters for AdamW.

    The pretrained text encoder and the tower's text layers get a lower rate than the rest: while regions do not
    separate classes yet, fast text layers would collapse all tokens to one feature, which is the quickest way to a
    lower loss. Norms, biases, scales and tables of relative positions are not decayed.

    Args:
        model (`nn.Module`): parameters with `requires_grad=False` are left out.
        learning_rate (`float`): of everything but the text encoder and text layers.
        weight_decay (`float`, *optional*, defaults to 1e-4): of matrices and convolutions.
        text_learning_rate_factor (`float`, *optional*, defaults to 0.1): their rate over the others'.
        text_prefixes (`Sequence[str]`, *optional*): what the names of their parameters contain.
        backbone_learning_rate_factor (`float`, *optional*, defaults to 1.0): the backbone's rate over the others'. At
            1 the backbone shares the others' groups; a pretrained one keeps more of what it knows at 0.1.

    Returns:
        `list[dict]`: at most six groups with "params", "lr", "initial_lr", "weight_decay" and a "name" ("base",
        "base_no_decay", "text", "text_no_decay", "backbone", "backbone_no_decay"). Empty groups are left out.

    Raises:
        ValueError: when nothing is trainable, or a rate is not above 0.
    """
    factors = {"base": 1.0, "text": text_learning_rate_factor, "backbone": backbone_learning_rate_factor}
    for name, value in (
        ("learning_rate", learning_rate),
        ("text_learning_rate_factor", text_learning_rate_factor),
        ("backbone_learning_rate_factor", backbone_learning_rate_factor),
    ):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` is {value}; expected a number above 0. To leave parts out, freeze them.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"`weight_decay` is {weight_decay}; expected a number of at least 0.")
    params: dict[str, list[nn.Parameter]] = {f"{part}{decay}": [] for part in factors for decay in ("", "_no_decay")}
    apart = (*text_prefixes, *(() if backbone_learning_rate_factor == 1 else (".backbone.",)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = next((prefix for prefix in apart if prefix in name), None)
            part = "base" if prefix is None else "text" if prefix in text_prefixes else "backbone"
            params[part if is_decayed(name, parameter) else f"{part}_no_decay"].append(parameter)
    groups = []
    for name, members in params.items():
        rate = learning_rate * factors[name.removesuffix("_no_decay")]
        decay = 0.0 if name.endswith("no_decay") else weight_decay
        if members:
            groups.append({"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay, "name": name})
    if not groups:
        raise ValueError("no parameter of the model has `requires_grad`; unfreeze the part that is to be trained.")
    return groups


def head_groups(
    model: nn.Module, learning_rate: float, head: str, head_factor: float, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """
    Parameter groups in which the new head learns faster than the pretrained rest.

    Args:
        model (`nn.Module`): parameters with `requires_grad=False` are left out.
        learning_rate (`float`): of the rest.
        head (`str`): how the names of the head's parameters begin, such as "answer_head.".
        head_factor (`float`): the head's rate over the others'.
        weight_decay (`float`, *optional*, defaults to 0.01): of matrices and convolutions.

    Returns:
        `list[dict]`: as `parameter_groups`, named "base", "base_no_decay", "head", "head_no_decay".
    """
    groups = parameter_groups(model, learning_rate, weight_decay, head_factor, (head,))
    return [{**group, "name": group["name"].replace("text", "head")} for group in groups]


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, scales and tables of relative positions."""
    return parameter.ndim > 1 and not name.endswith("bias") and "relative_position_bias_table" not in name


def learning_rate_factor(
    step: int, num_steps: int, warmup_steps: int = 0, schedule: str = "cosine", drops: Sequence[float] = (0.67, 0.89)
) -> float:
    """
    What the initial learning rate is multiplied with at a step. A pure function, so a resumed run needs no history.

    Args:
        step (`int`): from 0.
        num_steps (`int`): of the whole run.
        warmup_steps (`int`, *optional*, defaults to 0): the factor rises linearly to 1 over these.
        schedule (`str`, *optional*, defaults to `"cosine"`): then "cosine" falls to 0 at `num_steps`, "steps" is
            divided by 10 at each of `drops`, "constant" stays.
        drops (`Sequence[float]`, *optional*): fractions of `num_steps`; the original's.

    Raises:
        ValueError: for an unknown schedule or a negative number of steps.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` is {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    if step < 0 or num_steps < 1 or warmup_steps < 0:
        raise ValueError(
            f"`step` and `warmup_steps` must be >= 0 and `num_steps` >= 1, got {step}, {warmup_steps}, {num_steps}."
        )
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if schedule == "steps":
        return 0.1 ** sum(step >= drop * num_steps for drop in drops)
    return 1.0


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Sets every group's rate to `factor` times its "initial_lr"."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
