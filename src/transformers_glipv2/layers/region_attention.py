"""Attention from tokens to regions of the image, and the labels that fit them: what two heads share."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration_glipv2 import GLIPv2Config
from .feature_maps import FeatureMaps, flatten_levels
from .half_precision import avoid_float16

# Coordinates in [0, 1] become (x - 0.5) times this. A centre that is uniform over the image then has a standard
# deviation of 4 / sqrt(12) = 1.15, near that of the normalised features beside it; a linear layer that starts small
# overlooks small inputs.
POSITION_SCALE = 4.0


def location_features(feature_maps: FeatureMaps, fused_feature_maps: FeatureMaps) -> torch.Tensor:
    """
    Features of each location before fusion, which L_inter compares with the tokens of all images, and after.

    Args:
        feature_maps, fused_feature_maps: P3..P7 before and after the tower, each `(images, d_model, height, width)`.

    Returns:
        `(images, locations, 2 * d_model)`, each half of mean 0 and variance 1.
    """
    # Maps before fusion have channels a thousand times the others, beside which a norm alone would leave nothing of
    # them; asinh is linear near 0 and logarithmic far from it.
    halves = [torch.asinh(flatten_levels(levels)) for levels in (feature_maps, fused_feature_maps)]
    features = torch.cat([F.layer_norm(half, half.shape[-1:]) for half in halves], dim=-1)
    return features.to(fused_feature_maps[0].dtype)


@dataclass
class GLIPv2Locations:
    """
    The locations of images as [`GLIPv2RegionWordAttention`] attends to them; all of P3..P7, P3 first.

    Args:
        keys, values (`torch.FloatTensor` of shape `(images, locations, heads * head_dim)`):
            What tokens attend by and to.
        regions (`torch.FloatTensor` of shape `(images, locations, contrastive_dim)`):
            Unit vectors, to be compared with labels.
        confidence (`torch.FloatTensor` of shape `(images, locations)`):
            Logarithm of the centerness: how likely an object is centred there.
    """

    keys: torch.Tensor
    values: torch.Tensor
    regions: torch.Tensor
    confidence: torch.Tensor


class GLIPv2RegionWordAttention(nn.Module):
    """
    Finds the labels of what tokens are about: tokens attend to locations where the detector finds an object, and the
    features there are compared with label embeddings, as L_inter compares regions and words (section 3.2).

    Args:
        config: sizes and options.
        num_labels: labels to choose from: the answers, or the words of the vocabulary.
    """

    # Several heads, so that a token can attend to several objects; 32 channels each, the width of MiniLM's heads, for
    # text encoders of any size.
    num_heads = 8
    head_dim = 32

    def __init__(self, config: GLIPv2Config, num_labels: int):
        super().__init__()
        text_dim, label_dim = config.text_config.hidden_size, config.contrastive_dim
        width = self.num_heads * self.head_dim
        self.text_norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)
        # Maps hold little of where they are, and words ask for left and right: x and y are added.
        self.key = nn.Linear(2 * config.d_model + 2, width)
        self.value = nn.Linear(2 * config.d_model + 2, width)
        self.query = nn.Linear(text_dim, width)
        self.image_projection = nn.Linear(config.d_model, label_dim)
        self.out = nn.Linear(width + self.num_heads * label_dim, text_dim)
        self.out_norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)
        self.gate = nn.Linear(text_dim, self.num_heads)
        self.label_embeddings = nn.Linear(label_dim, num_labels, bias=False)

    def locations(
        self, features: torch.Tensor, feature_maps: FeatureMaps, centerness: torch.Tensor, centers: torch.Tensor
    ) -> GLIPv2Locations:
        """
        Args:
            features: of [`location_features`].
            feature_maps: P3..P7 before the tower.
            centerness: `(images, locations)`, before the sigmoid.
            centers: `(images, locations, 2)`, x and y in [0, 1] of each image.

        Returns:
            What tokens attend to.
        """
        features = torch.cat([features, POSITION_SCALE * (centers - 0.5).to(features.dtype)], dim=-1)
        regions = F.normalize(avoid_float16(self.image_projection, flatten_levels(feature_maps)), dim=-1)
        regions = regions.to(features.dtype)
        return GLIPv2Locations(self.key(features), self.value(features), regions, F.logsigmoid(centerness))

    def forward(self, text: torch.Tensor, locations: GLIPv2Locations) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            text: fused tokens `(images, tokens, text_dim)`.
            locations: of their images.

        Returns:
            The tokens with what they attended to, in the shape of `text`, and what `label_embeddings` scores,
            `(images, tokens, contrastive_dim)`.
        """
        text = self.text_norm(text)
        query, key, value = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for states in (self.query(text), locations.keys, locations.values)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim) + locations.confidence[:, None, None, :]
        attention = scores.float().softmax(-1).to(text.dtype)
        # Times the root of their number, so that the entries of unit vectors are near unit size.
        attended = math.sqrt(locations.regions.shape[-1]) * attention @ locations.regions[:, None]
        heads = torch.cat([attention @ value, attended], dim=-1)
        text = self.out_norm(text + self.out(heads.transpose(1, 2).flatten(2)))
        return text, (self.gate(text).transpose(1, 2)[..., None] * attended).sum(1)
