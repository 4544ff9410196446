"""An exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class WeightAverage:
    """
    The exponential moving average of a model's trainable parameters, in float32.

    Works on whatever the process holds: whole parameters under DDP, their shards under FSDP2.

    Args:
        model (`nn.Module`): after `Accelerator.prepare`.
        decay (`float`): fraction of the old average kept at each update, 0 <= decay < 1. The first updates keep less,
            (1 + n) / (10 + n) after n updates, so that random initial weights are soon forgotten.

    Raises:
        ValueError: when the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {decay}; 0.999 is usual.")
        self.decay = decay
        self.updates = 0
        self.average = {
            name: parameter.detach().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights; call it after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        own = {name: parameter for name, parameter in model.named_parameters() if name in self.average}
        # One call for all: thousands of small ones take a GPU longer than the step's optimizer.
        torch._foreach_lerp_(
            [self.average[name] for name in own], [parameter.detach().float() for parameter in own.values()], 1 - decay
        )

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the context the model holds the averaged weights; afterwards its own again."""
        own = {name: parameter for name, parameter in model.named_parameters() if name in self.average}
        backup = {name: parameter.detach().clone() for name, parameter in own.items()}
        try:
            self._copy(self.average, own)
            yield
        finally:
            self._copy(backup, own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU and the number of updates. All processes must call it together under FSDP2."""
        tensors = {name: _whole(tensor).cpu().contiguous() for name, tensor in self.average.items()}
        return {**tensors, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """
        Go on where `state_dict` was taken.

        Raises:
            ValueError: when it belongs to other parameters.
        """
        if set(state) != {*self.average, "updates"}:
            odd = sorted(set(state) ^ {*self.average, "updates"})
            raise ValueError(
                f"the averaged weights belong to other trainable parameters; {len(odd)} names differ, such as "
                f"{', '.join(odd[:3])}. Resume with the model and the frozen parts of the interrupted run."
            )
        self.updates = int(state["updates"])
        for name, tensor in self.average.items():
            tensor.copy_(_like(state[name], tensor))

    def load(self, file: str | Path) -> None:
        """`load_state_dict` from a safetensors file."""
        self.load_state_dict(load_file(file))

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, nn.Parameter]) -> None:
        # In place: optimizer and DDP keep their references and see the change.
        for name, parameter in target.items():
            parameter.copy_(source[name])


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
    return whole
