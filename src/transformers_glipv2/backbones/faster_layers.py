"""Layers of the backbones of other libraries, computed in fewer operators or with less memory."""

import torch
from torch import nn
from transformers.models.swin.modeling_swin import SwinLayer, SwinMLP
from transformers.models.timm_backbone.modeling_timm_backbone import TimmBackbone

# Locations at a time: their four times wider hidden states stay in the cache.
LOCATIONS_PER_CHUNK = 4096
# Added to the scores of pairs that are no neighbours in the image, as transformers has it.
APART = -100.0


class GLIPv2ChunkedSwinMLP(SwinMLP):
    """
    transformers' own, a chunk of locations at a time on the CPU when nothing is differentiated or compiled, which
    halves what an image needs beyond the weights.
    """

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


class GLIPv2SwinLayer(SwinLayer):
    """transformers' own, with the mask of shifted windows in half as many operators."""

    def get_attn_mask(self, height: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """
        What is added to the scores of shifted windows: only the last windows of rows and of columns hold pixels from
        both ends of the image, which must not see each other.

        Args:
            height, width: of the map, multiples of the window.
            dtype: of the result.
            device: of the result.

        Returns:
            `(windows, pixels of a window, pixels of a window)`, or `None` where windows are not shifted.
        """
        window = self.window_size
        if self.shift_size <= 0:
            return None
        is_shifted = torch.arange(window, device=device) >= window - self.shift_size
        apart = is_shifted[:, None] != is_shifted
        rows, columns = (
            (torch.arange(windows, device=device) == windows - 1)[:, None, None] & apart
            for windows in (height // window, width // window)
        )
        mask = rows[:, None, :, None, :, None] | columns[None, :, None, :, None, :]
        return mask.view(-1, window**2, window**2).to(dtype) * APART


def use_faster_layers(backbone: nn.Module) -> None:
    """Turns the layers of `backbone` that are named here into these; the others are left alone."""
    faster: dict[type[nn.Module], type[nn.Module]] = {SwinMLP: GLIPv2ChunkedSwinMLP, SwinLayer: GLIPv2SwinLayer}
    if isinstance(backbone, TimmBackbone):
        from timm.layers import FrozenBatchNormAct2d

        from .frozen_batch_norm import GLIPv2FrozenBatchNormAct2d

        faster[FrozenBatchNormAct2d] = GLIPv2FrozenBatchNormAct2d
    for module in backbone.modules():
        if type(module) in faster:
            # The same module under another class: names and weights stay.
            module.__class__ = faster[type(module)]


__all__ = ["GLIPv2ChunkedSwinMLP", "GLIPv2SwinLayer", "use_faster_layers"]
