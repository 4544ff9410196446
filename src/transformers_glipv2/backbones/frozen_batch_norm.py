"""Frozen batch normalisation of timm's backbones; a file of its own, since timm is slow to import."""

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d


class GLIPv2FrozenBatchNormAct2d(FrozenBatchNormAct2d):
    """timm's own, normalised by one operator in place of eight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` to the same."""
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(self.drop(F.batch_norm(x, *statistics, training=False, eps=self.eps)))


__all__ = ["GLIPv2FrozenBatchNormAct2d"]
