"""Parts that float16 cannot hold: its largest number is 65504, and P6 and P7 before fusion have channels beyond."""

import torch
from torch import nn
from torch.func import functional_call


def avoid_float16(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """
    `module(*inputs)`; where that would compute in float16, by its weights or by autocast, in float32 instead. bfloat16
    reaches as far as float32 and is left alone.
    """
    device = inputs[0].device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if not autocast and all(parameter.dtype != torch.float16 for parameter in module.parameters()):
        return module(*inputs)
    weights = {
        name: parameter.float() if parameter.dtype == torch.float16 else parameter
        for name, parameter in module.named_parameters()
    }
    with torch.autocast(device, enabled=False):
        return functional_call(module, weights, tuple(states.float() for states in inputs))


__all__ = ["avoid_float16"]
