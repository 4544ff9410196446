"""Captions token by token: what each token may see, and the way of tokens and images through the tower."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from .dyhead import neighbour_grid
from .feature_maps import FeatureMaps, flatten_levels, map_shapes, pad_locations, split_levels
from .region_attention import GLIPv2Locations


@dataclass
class GLIPv2VisualStates:
    """
    What the tokens of captions attend to, made once an image by `get_visual_states`.

    Args:
        groups (`list` of `tuple` of `torch.FloatTensor` of shape `(images, locations, d_model)`):
            For each group of images, in order, the normalised maps before each fusion of the tower, as one sequence
            each, P3 first. All images are one group, unless `config.mask_padded_pixels`, where each is a group of its
            own.
        locations (`list` of `GLIPv2Locations`, *optional*):
            For each group what the caption head attends to, with `config.caption_region_attention`.
        level_shapes (`list` of `tuple[int, int]`):
            Height and width of each level's map of the batch.
        own_shapes (`list` of `list` of `tuple[int, int]`, *optional*):
            The part of each map that each image fills, where each image is a group of its own.
        fused_feature_maps (`tuple` of 5 `torch.FloatTensor` of shape `(batch, d_model, H_l, W_l)`, *optional*):
            P3..P7 after the tower, where they were asked for.
    """

    groups: list[tuple[torch.Tensor, ...]]
    locations: list[GLIPv2Locations] | None
    level_shapes: list[tuple[int, int]]
    own_shapes: list[list[tuple[int, int]]] | None = None
    fused_feature_maps: FeatureMaps | None = None

    @property
    def num_images(self) -> int:
        return sum(self.group_sizes)

    @property
    def group_sizes(self) -> list[int]:
        return [len(group[0]) for group in self.groups]


def texts_to_images(text: torch.Tensor, group_sizes: list[int]) -> list[torch.Tensor]:
    """
    Texts by groups of images; what a token sees depends on the image and itself alone, so all tokens of an image are
    one sequence.

    Args:
        text: `(texts, tokens, dim)`; each image has equally many texts, side by side.
        group_sizes: images of each group.

    Returns:
        For each group `(images, texts of an image * tokens, dim)`.
    """
    return list(text.unflatten(0, (sum(group_sizes), -1)).flatten(1, 2).split(group_sizes))


def images_to_texts(groups: list[torch.Tensor], num_texts: int) -> torch.Tensor:
    """The inverse of [`texts_to_images`], for any `dim`."""
    text = torch.cat(groups)
    return text.unflatten(1, (num_texts // len(text), -1)).flatten(0, 1)


# Texts ---------------------------------------------------------------------------------------------------------------


def causal_mask(attention_mask: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Which tokens each new token may see, and its position: padding, on whatever side, neither counts nor is seen.

    Args:
        attention_mask: `(batch, earlier + tokens)`, 1 for tokens and 0 for padding.
        tokens: how many of them are new.

    Returns:
        boolean `(batch, 1, tokens, earlier + tokens)`, and positions `(batch, tokens)`. Padding sees itself, since a
        softmax over nothing is not a number.
    """
    num_keys = attention_mask.shape[1]
    keys = torch.arange(num_keys, device=attention_mask.device)
    queries = keys[num_keys - tokens :, None]
    allowed = (keys <= queries) & attention_mask[:, None, :].bool() | (keys == queries)
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return allowed[:, None], positions[:, num_keys - tokens :]


def prefixes(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    bos_token_id: int | None,
    eos_token_ids: set[int],
    pad_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Texts as the beginnings of captions: without the token that ends a text, with the one that begins it, and with the
    padding on the left, where generation needs it.

    Args:
        input_ids: `(batch, tokens)`, with or without special tokens.
        attention_mask: `(batch, tokens)`, 1 for tokens and 0 for padding; `None` when nothing is padded.
        bos_token_id, eos_token_ids, pad_token_id: what captions begin and end with, and what pads; without a
            `bos_token_id` texts keep their first token.

    Returns:
        `input_ids` and `attention_mask`, `(batch, longest)`.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    texts = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)]
    texts = [text[:-1] if text and text[-1] in eos_token_ids else text for text in texts]
    if bos_token_id is not None:
        texts = [text if text and text[0] == bos_token_id else [bos_token_id, *text] for text in texts]
    longest = max(len(text) for text in texts)
    padding = [longest - len(text) for text in texts]
    ids = [[pad_token_id] * missing + text for missing, text in zip(padding, texts, strict=True)]
    kept = [[0] * missing + [1] * (longest - missing) for missing in padding]
    return torch.tensor(ids, device=input_ids.device), torch.tensor(kept, device=input_ids.device)


# Tower ---------------------------------------------------------------------------------------------------------------


def maps_without_text(
    layers: nn.ModuleList, feature_maps: FeatureMaps, final_maps: bool
) -> tuple[tuple[torch.Tensor, ...], FeatureMaps | None]:
    """
    The image's way through the tower when it sees no text.

    Args:
        layers: the tower's blocks.
        feature_maps: P3..P7 before the tower.
        final_maps: also compute the maps after the last block, which no token attends to.

    Returns:
        The normalised maps before each fusion as one sequence, `(images, locations, d_model)`, and the final maps or
        `None`.
    """
    shapes, sequences = map_shapes(feature_maps), []
    grid = neighbour_grid(feature_maps, layers[0].dyconv.offset_mode)
    for index, layer in enumerate(layers):
        # The residual of a fusion is the normalised tensor: without text it is all that the block adds to.
        vision = layer.fusion.normalize_vision(flatten_levels(feature_maps))
        sequences.append(vision)
        if index + 1 == len(layers) and not final_maps:
            return tuple(sequences), None
        levels = split_levels(vision, shapes)
        feature_maps = checkpointed(layer, lambda *maps, dyconv=layer.dyconv: dyconv(maps, grid), *levels)
    return tuple(sequences), feature_maps


def tokens_through_layer(
    layer: GradientCheckpointingLayer,
    text: torch.Tensor,
    visual_states: GLIPv2VisualStates,
    index: int,
    mask: torch.Tensor,
    cache: Cache | None = None,
    cache_layer: int = 0,
    output_attentions: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The tokens' way through a block of the tower.

    Args:
        layer: the block, with a `fusion` and a `text_layer`.
        text: `(texts, tokens, text_dim)`; each image has equally many texts, side by side.
        visual_states: of the images.
        index: of the block in the tower.
        mask: boolean, as `causal_mask` gives it.
        cache: takes the keys and values of the text layer, as its layer `cache_layer`.
        output_attentions: also return what each token attends to in its image.

    Returns:
        The new text, and the attention `(texts, heads, tokens, locations)` or `None`.
    """

    def read_image(vision: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _, tokens, attentions = layer.fusion.attend(
            vision, tokens, output_attentions=output_attentions, vision_sees_text=False
        )
        return (tokens, attentions[1]) if output_attentions else (tokens,)

    num_texts = len(text)
    read = [
        checkpointed(layer, read_image, group[index], tokens)
        for group, tokens in zip(visual_states.groups, texts_to_images(text, visual_states.group_sizes), strict=True)
    ]
    text = images_to_texts([tokens for tokens, *_ in read], num_texts)
    attention = None
    if output_attentions:
        attention = text_attention([one for _, one in read], visual_states, num_texts)
    if cache is None:
        return checkpointed(layer, layer.text_layer, text, mask), attention
    layers = cache.layers
    known = len(layers) > cache_layer and layers[cache_layer].is_initialized
    past = (layers[cache_layer].keys, layers[cache_layer].values) if known else ()
    text, present = layer.text_layer(text, mask, past)
    cache.update(*(states[:, :, -text.shape[1] :] for states in present), cache_layer)
    return text, attention


def text_attention(groups: list[torch.Tensor], visual_states: GLIPv2VisualStates, num_texts: int) -> torch.Tensor:
    """
    Attention of the tokens of each group's images, `(images, heads, texts of an image * tokens, locations)`, as that
    of texts, `(texts, heads, tokens, locations)`; 0 in the padding of images.
    """
    if visual_states.own_shapes is not None:
        groups = [
            pad_locations(group, own_shapes, visual_states.level_shapes, dim=3)
            for group, own_shapes in zip(groups, visual_states.own_shapes, strict=True)
        ]
    attention = torch.cat(groups)
    return attention.unflatten(2, (num_texts // len(attention), -1)).transpose(1, 2).flatten(0, 1)


def grow_cache(cache: Cache, num_layers: int) -> Cache:
    """
    Gives a cache as many layers as captions need: those made from a configuration have one for each layer of the text
    encoder, and the fused text layers have keys and values too.
    """
    if cache.layers:
        cache.layers += [DynamicLayer() for _ in range(num_layers - len(cache.layers))]
    return cache


def checkpointed(layer: GradientCheckpointingLayer, function: Any, *args: torch.Tensor) -> Any:
    """
    `function(*args)`, a part of a block, whose activations are computed twice if those of the block are to be. Tensors
    that need gradients are arguments of their own: reentrant checkpointing overlooks those inside of tuples.
    """
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        return layer._gradient_checkpointing_func(function, *args)
    return function(*args)
