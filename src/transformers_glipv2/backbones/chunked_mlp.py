"""Swin's multilayer perceptrons in chunks, which halves what an image needs beyond the weights."""

import torch
from torch import nn
from transformers.models.swin.modeling_swin import SwinMLP

# Locations at a time: their four times wider hidden states stay in the cache.
LOCATIONS_PER_CHUNK = 4096


class GLIPv2ChunkedSwinMLP(SwinMLP):
    """transformers' own, a chunk of locations at a time on the CPU when nothing is differentiated or compiled."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, locations, channels)` to the same."""
        fits = hidden_states.device.type != "cpu" or hidden_states.shape[1] <= LOCATIONS_PER_CHUNK
        if fits or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(hidden_states)
        output = torch.empty_like(hidden_states)
        for start in range(0, hidden_states.shape[1], LOCATIONS_PER_CHUNK):
            chunk = slice(start, start + LOCATIONS_PER_CHUNK)
            output[:, chunk] = super().forward(hidden_states[:, chunk])
        return output


def chunk_mlps(backbone: nn.Module) -> None:
    """Turns every `SwinMLP` of `backbone` into a `GLIPv2ChunkedSwinMLP`; other backbones are left alone."""
    for module in backbone.modules():
        if type(module) is SwinMLP:
            # The same module under another class: names and weights stay.
            module.__class__ = GLIPv2ChunkedSwinMLP


__all__ = ["GLIPv2ChunkedSwinMLP", "chunk_mlps"]
