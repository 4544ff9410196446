"""What places look like, and which names fit them: what the heads of answers and captions share."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration_glipv2 import GLIPv2Config
from .feature_maps import FeatureMaps, flatten_levels


def location_features(feature_maps: FeatureMaps, fused_feature_maps: FeatureMaps) -> torch.Tensor:
    """
    How each location looks before fusion, which L_inter compares with the words of all images, and after.

    Args:
        feature_maps, fused_feature_maps: P3..P7 before and after the tower, each `(images, d_model, height, width)`.

    Returns:
        `(images, locations, 2 * d_model)`, each half of mean 0 and variance 1.
    """
    # The logarithm, since maps before fusion have channels a thousand times the others, beside which a norm alone
    # would leave nothing of them.
    halves = [torch.asinh(flatten_levels(levels)) for levels in (feature_maps, fused_feature_maps)]
    return torch.cat([F.layer_norm(half, half.shape[-1:]) for half in halves], dim=-1)


@dataclass
class GLIPv2Locations:
    """
    The places of images as [`GLIPv2RegionWordAttention`] sees them; all locations of P3..P7, P3 first.

    Args:
        keys, values (`torch.FloatTensor` of shape `(images, locations, heads * head_dim)`):
            What words attend by and to.
        regions (`torch.FloatTensor` of shape `(images, locations, contrastive_dim)`):
            Unit vectors, to be compared with words.
        confidence (`torch.FloatTensor` of shape `(images, locations)`):
            Logarithm of how surely there is the middle of a thing.
    """

    keys: torch.Tensor
    values: torch.Tensor
    regions: torch.Tensor
    confidence: torch.Tensor


class GLIPv2RegionWordAttention(nn.Module):
    """
    Names what words are about: they attend to places where the detector takes a thing to be, and what is seen there is
    compared with names, as L_inter compares regions and words (section 3.2).

    Args:
        config: sizes and options.
        num_names: names to choose from: answers, or the words of the vocabulary.
    """

    num_heads = 8
    head_dim = 32

    def __init__(self, config: GLIPv2Config, num_names: int):
        super().__init__()
        text_dim, names_dim = config.text_config.hidden_size, config.contrastive_dim
        width = self.num_heads * self.head_dim
        self.text_norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)
        # Maps hardly know where they are, and words tell left from right.
        self.key = nn.Linear(2 * config.d_model + 2, width)
        self.value = nn.Linear(2 * config.d_model + 2, width)
        self.query = nn.Linear(text_dim, width)
        self.image_projection = nn.Linear(config.d_model, names_dim)
        self.out = nn.Linear(width + self.num_heads * names_dim, text_dim)
        self.out_norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)
        self.gate = nn.Linear(text_dim, self.num_heads)
        self.label_embeddings = nn.Linear(names_dim, num_names, bias=False)

    def places(
        self, looks: torch.Tensor, feature_maps: FeatureMaps, centerness: torch.Tensor, centers: torch.Tensor
    ) -> GLIPv2Locations:
        """
        Args:
            looks: of [`location_features`].
            feature_maps: P3..P7 before the tower.
            centerness: `(images, anchors)`, before the sigmoid.
            centers: `(images, anchors, 2)`, x and y in [0, 1] of each image.

        Returns:
            What words attend to.
        """
        looks = torch.cat([looks, 4 * (centers - 0.5).to(looks.dtype)], dim=-1)
        regions = F.normalize(self.image_projection(flatten_levels(feature_maps)), dim=-1)
        return GLIPv2Locations(self.key(looks), self.value(looks), regions, F.logsigmoid(centerness))

    def forward(self, text: torch.Tensor, places: GLIPv2Locations) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            text: fused words `(images, tokens, text_dim)`.
            places: of their images.

        Returns:
            The words with what they saw, in the shape of `text`, and what `names` scores,
            `(images, tokens, contrastive_dim)`.
        """
        text = self.text_norm(text)
        query, key, value = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for states in (self.query(text), places.keys, places.values)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim) + places.confidence[:, None, None, :]
        attention = scores.float().softmax(-1).to(text.dtype)
        # So that the features of unit vectors are near unit size.
        seen = math.sqrt(places.regions.shape[-1]) * attention @ places.regions[:, None]
        heads = torch.cat([attention @ value, seen], dim=-1)
        text = self.out_norm(text + self.out(heads.transpose(1, 2).flatten(2)))
        return text, (self.gate(text).transpose(1, 2)[..., None] * seen).sum(1)
