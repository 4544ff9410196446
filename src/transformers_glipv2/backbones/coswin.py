"""
CoSwin: a Swin Transformer with convolutions in place of patch embedding and patch merging.

From "Florence: A New Foundation Model for Computer Vision" (Yuan et al., 2021), section 2.3, as the original's code
has it. Blocks, windows and stages are those of transformers' Swin.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoBackbone, AutoConfig, SwinConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.swin.modeling_swin import SwinPreTrainedModel, SwinStage
from transformers.utils import can_return_tuple


@strict
class GLIPv2CoSwinConfig(SwinConfig):
    r"""
    Configuration of `GLIPv2CoSwinBackbone`: that of Swin, and what the convolutions add.

    Args:
        patch_size (`int`, *optional*, defaults to 7), patch_stride (`int`, *optional*, defaults to 4),
        patch_padding (`int`, *optional*, defaults to 2):
            The convolution that makes the first map.
        layer_scale_init_value (`float`, *optional*, defaults to 0.0):
            Initial value of the gamma of each block, one a channel, which weights its attention and its MLP; 0 leaves
            the gammas out.
    """

    model_type = "glipv2_coswin"

    patch_size: int | list[int] | tuple[int, int] = 7
    patch_stride: int = 4
    patch_padding: int = 2
    layer_scale_init_value: float | int = 0.0


class GLIPv2CoSwinStem(nn.Module):
    """
    Image to the first map: overlapping convolution, then norm.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2CoSwinConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.projection = nn.Conv2d(
            config.num_channels, config.embed_dim, config.patch_size, config.patch_stride, config.patch_padding
        )
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """`(batch, 3, height, width)` to `(batch, map height * map width, embed_dim)`, and the map's two sides."""
        height, width = pixel_values.shape[-2:]
        # Padded to whole patches as if they did not overlap, in the original too; so maps may have one row more.
        feature_map = self.projection(F.pad(pixel_values, (0, -width % self.patch_size, 0, -height % self.patch_size)))
        return self.norm(feature_map.flatten(2).transpose(1, 2)), tuple(feature_map.shape[-2:])


class GLIPv2CoSwinDownsample(nn.Module):
    """
    Half the sides and twice the channels: 3x3 convolution with stride 2, then norm.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.projection = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, hidden_states: torch.Tensor, input_dimensions: tuple[int, int]) -> torch.Tensor:
        """`(batch, height * width, dim)` to `(batch, ceil(height / 2) * ceil(width / 2), 2 * dim)`."""
        feature_map = hidden_states.transpose(1, 2).unflatten(2, input_dimensions)
        return self.norm(self.projection(feature_map).flatten(2).transpose(1, 2))


class GLIPv2LayerScale(nn.Module):
    """
    One weight a channel.

    Args:
        dim: channels, the last axis.
        init_value: initial weight.
    """

    def __init__(self, dim: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., dim)` to the same."""
        return hidden_states * self.gamma


class GLIPv2CoSwinBackbone(BackboneMixin, SwinPreTrainedModel):
    """
    CoSwin as a backbone; `out_indices` or `out_features` of the config say which maps it gives.

    Args:
        config: sizes and options.
    """

    config: GLIPv2CoSwinConfig
    config_class = GLIPv2CoSwinConfig
    base_model_prefix = ""
    _no_split_modules = ["SwinStage", "GLIPv2CoSwinStem"]
    # The stages are called one by one, so nothing is left to record.
    _can_record_outputs = {}

    def __init__(self, config: GLIPv2CoSwinConfig):
        super().__init__(config)
        num_stages, depth = len(config.depths), sum(config.depths)
        dims = [config.embed_dim * 2**stage for stage in range(num_stages)]
        drop_path = [config.drop_path_rate * block / max(depth - 1, 1) for block in range(depth)]
        self.num_features = [config.embed_dim, *dims]
        self.stem = GLIPv2CoSwinStem(config)
        self.stages = nn.ModuleList()
        for stage, dim in enumerate(dims):
            first = sum(config.depths[:stage])
            self.stages.append(
                SwinStage(
                    config,
                    dim,
                    # Sizes come with each image; the stages are told to go by those.
                    input_resolution=(0, 0),
                    depth=config.depths[stage],
                    num_heads=config.num_heads[stage],
                    drop_path=drop_path[first : first + config.depths[stage]],
                    downsample=GLIPv2CoSwinDownsample if stage < num_stages - 1 else None,
                )
            )
            if config.layer_scale_init_value > 0:
                for block in self.stages[-1].blocks:
                    # Attention and MLP both leave a Swin block through its dropout, channels last.
                    block.dropout = nn.Sequential(GLIPv2LayerScale(dim, config.layer_scale_init_value), block.dropout)
        self.hidden_states_norms = nn.ModuleDict(
            {name: nn.LayerNorm(dim) for name, dim in zip(self.out_features, self.channels, strict=True)}
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2LayerScale):
            init.constant_(module.gamma, module.init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.stem.projection

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`.
            output_hidden_states: also return the first map and that of each stage, before the norms.
            output_attentions: also return the attention of each stage's last block (eager attention only).

        Returns:
            `feature_maps`, `(batch, channels, map height, map width)` each, as the config asks for. Take their sides
            from them: they are not always those of the image divided by 4, 8, 16 and 32.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        hidden_states, sides = self.stem(pixel_values)
        maps, attentions = [hidden_states.transpose(1, 2).unflatten(2, sides)], []
        for stage in self.stages:
            hidden_states, feature_map, attention = stage(
                hidden_states, sides, always_partition=True, output_hidden_states_before_downsampling=True
            )
            maps.append(feature_map)
            attentions.append(attention)
            sides = tuple((side + 1) // 2 for side in sides)
        feature_maps = tuple(
            self.hidden_states_norms[name](feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            for name, feature_map in zip(self.stage_names, maps, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps,
            hidden_states=tuple(maps) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


AutoConfig.register("glipv2_coswin", GLIPv2CoSwinConfig, exist_ok=True)
AutoBackbone.register(GLIPv2CoSwinConfig, GLIPv2CoSwinBackbone, exist_ok=True)

__all__ = ["GLIPv2CoSwinBackbone", "GLIPv2CoSwinConfig"]
