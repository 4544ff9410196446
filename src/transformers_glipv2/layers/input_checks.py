"""Checks of what `forward` is given: cheap ones, by shape, and by value only where no device has to be waited for."""

import difflib
import inspect
from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedModel

from ..configuration_glipv2 import GLIPv2Config


def can_read(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be looked at without waiting for a device or breaking a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def check_pixels(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, config: GLIPv2Config) -> None:
    """Raises `TypeError` or `ValueError` for pixels that no image has, before they fail deep inside the backbone."""
    if not torch.is_floating_point(pixel_values):
        raise TypeError(
            f"`pixel_values` must be floating point, not {pixel_values.dtype}; pass images through the processor, "
            "which rescales and normalises them."
        )
    if pixel_values.ndim != 4:
        raise ValueError(
            f"`pixel_values` must have shape (batch, channels, height, width), not {tuple(pixel_values.shape)}."
        )
    channels = getattr(config.backbone_config, "num_channels", 3)
    if pixel_values.shape[0] == 0 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"`pixel_values` must hold at least one image of {channels} channels, not {tuple(pixel_values.shape)}; "
            "the processor turns images of any mode into such."
        )
    if can_read(pixel_values):
        finite = pixel_values.sum(dtype=torch.float32, dim=(1, 2, 3)).isfinite()
        if not finite.all():
            raise ValueError(
                f"`pixel_values[{int(finite.logical_not().nonzero()[0])}]` holds NaN or infinity; look for a division "
                "by zero where the image was made or normalised."
            )
    if pixel_mask is None:
        return
    if pixel_mask.shape != pixel_values[:, 0].shape:
        raise ValueError(
            f"`pixel_mask` must have shape {tuple(pixel_values[:, 0].shape)} (batch, height, width), "
            f"not {tuple(pixel_mask.shape)}."
        )
    if can_read(pixel_mask):
        for used in _used_rows_and_columns(pixel_mask):
            bad = ~used[:, 0] | (used[:, 1:] & ~used[:, :-1]).any(1)
            if bad.any():
                raise ValueError(
                    f"`pixel_mask[{int(bad.nonzero()[0])}]` must be 1 in the image, which begins at the top-left "
                    "corner, and 0 in the padding to its right and below; here whole rows or columns of the image "
                    "are 0. The processor makes the mask."
                )


def _used_rows_and_columns(pixel_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean `(batch, height)` and `(batch, width)`: which rows and columns hold pixels of the image."""
    mask = pixel_mask.bool()
    return mask.any(2), mask.any(1)


def image_sizes_of(pixels: torch.Tensor) -> torch.Tensor:
    """
    Height and width of each un-padded image in pixels.

    Args:
        pixels: the mask of the images, `(batch, height, width)`; or images `(batch, channels, height, width)` that are
            not padded.

    Returns:
        long `(batch, 2)`, where `pixels` are.
    """
    if pixels.ndim == 4:
        sides = [torch.full(pixels.shape[:1], side, device=pixels.device) for side in pixels.shape[2:]]
    else:
        sides = [used.sum(1) for used in _used_rows_and_columns(pixels)]
    return torch.stack(sides, dim=1)


def read_sizes(image_sizes: torch.Tensor) -> list[tuple[int, int]]:
    """Sizes `(batch, 2)` as numbers, by which images can be cut; waits for a GPU unless they are on the CPU."""
    return [(height, width) for height, width in image_sizes.tolist()]


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    A mask of 1 and 0 as what is added to scores: 0 and the lowest number. Attention makes it of each boolean mask that
    it is given, in three steps.
    """
    return (1 - mask.to(dtype)) * torch.finfo(dtype).min


def ready_mask(attention_mask: torch.Tensor | None, encoder: PreTrainedModel) -> torch.Tensor | None:
    """
    The mask of texts `(batch, tokens)` as `additive_mask` `(batch, 1, 1, tokens)`, where transformers would wait for a
    GPU to see whether anything is padded. Encoders without `scaled_dot_product_attention` make what they need
    themselves.
    """
    if attention_mask is None or attention_mask.device.type == "cpu":
        return attention_mask
    if encoder.config._attn_implementation != "sdpa":
        return attention_mask
    return additive_mask(attention_mask, encoder.get_input_embeddings().weight.dtype)[:, None, None, :]


def check_text(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    config: GLIPv2Config,
    attention_mask: torch.Tensor | None = None,
) -> None:
    """Raises `ValueError` unless exactly one form of text is given and fits the text encoder and its mask."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds` (or `text_features`).")
    shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
    tokens = shape[1]
    positions = getattr(config.text_config, "max_position_embeddings", tokens)
    if tokens > positions:
        raise ValueError(
            f"The text has {tokens} tokens and the text encoder {positions} positions; shorten the sentence, or split "
            "a long list of labels over several prompts."
        )
    if tokens > config.max_text_length:
        raise ValueError(
            f"The text has {tokens} tokens and `max_text_length` is {config.max_text_length}; shorten the sentence, "
            "split a long list of labels over several prompts, or load the model with a larger `max_text_length`."
        )
    if input_ids is not None and can_read(input_ids) and input_ids.numel():
        lowest, highest, vocab_size = int(input_ids.min()), int(input_ids.max()), config.text_config.vocab_size
        if lowest < 0 or highest >= vocab_size:
            raise ValueError(
                f"`input_ids` holds {lowest if lowest < 0 else highest}, which is not in the vocabulary (0 to "
                f"{vocab_size - 1}); use the tokenizer that was saved with the model."
            )
    if attention_mask is None:
        return
    if attention_mask.shape != shape:
        raise ValueError(
            f"`attention_mask` must have shape {tuple(shape)} (batch, tokens), not {tuple(attention_mask.shape)}."
        )
    check_has_tokens(attention_mask)


def check_has_tokens(attention_mask: torch.Tensor) -> None:
    """Raises `ValueError` for a text of a mask `(batch, tokens)` that has no token."""
    if not can_read(attention_mask):
        return
    empty = attention_mask.bool().logical_not().all(1)
    if empty.any():
        raise ValueError(
            f"`attention_mask[{int(empty.nonzero()[0])}]` is 0 everywhere, so the text has no token; pass 1 for "
            "tokens and 0 for padding, or leave the mask out."
        )


def check_keywords(given: Iterable[str], known: Iterable[str], function: Callable) -> None:
    """
    Raises `TypeError` for a keyword that is misspelt, where a function takes further ones.

    Args:
        given: the further keywords of a call.
        known: those that may be given.
        function: whose own parameters are looked through for the nearest name.
    """
    known = set(known)
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        names = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind != 4]
        nearest = difflib.get_close_matches(unknown, names, n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"it takes {', '.join(names)}."
        raise TypeError(f"`{function.__name__}` has no argument `{unknown}`; {hint}")


__all__ = [
    "additive_mask",
    "can_read",
    "check_has_tokens",
    "check_keywords",
    "check_pixels",
    "check_text",
    "image_sizes_of",
    "read_sizes",
    "ready_mask",
]
