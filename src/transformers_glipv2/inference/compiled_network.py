"""
`Detector(model, processor, compile=True)`: image encoder and fused tower compiled by `torch.compile`.

A compiled network, and a CUDA graph still more, is made for fixed shapes. Images have hundreds of sizes, prompts
hundreds of lengths, and the last batch is smaller. So all three are padded up to a few values: sizes and tokens with
zeros that the masks name, batches by repeating the last image, whose second result is dropped.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..layers.feature_maps import map_shapes
from ..modeling_glipv2 import GLIPv2ImageFeatures, token_features

TOKENS = (16, 32, 64, 128, 192)
# Compiled forms of a function at most; torch gives up after 8 by default, and then runs uncompiled.
MOST_FORMS = 128


class CompiledNetwork:
    """
    What a [`Detector`] asks of a model for boxes, compiled for a few shapes; the first call of each shape compiles,
    which takes seconds to a minute.

    Results belong to the caller: on a GPU, where a graph writes to the same memory each time, they are copies. Threads
    take turns.

    Args:
        model: a detector in evaluation mode, on the device that it stays on.
        edges: sides in pixels that are usual, as the processor's shortest and longest edge; they are kept as they are.
        options: of `torch.compile`; by default `mode="reduce-overhead"` on a GPU, which is CUDA graphs.

    Raises:
        ValueError: for a model that cuts padding away, whose shapes depend on each image.
    """

    def __init__(self, model: PreTrainedModel, edges: Sequence[int] = (), options: Mapping[str, Any] | None = None):
        check_fixed_shapes(model.config)
        if options is None:
            options = {"mode": "reduce-overhead"} if model.device.type == "cuda" else {}
        self.model = model
        self.edges = sorted(edges)
        self.copies = model.device.type == "cuda"
        forward: Any = getattr(model, "ground", model)

        def ground(**inputs: Any) -> ModelOutput:
            outputs = forward(**inputs)
            # Nothing of a CUDA graph may be on the CPU; what is not returned is not computed.
            return type(outputs)(**{name: value for name, value in outputs.items() if name != "level_shapes"})

        self._encode = torch.compile(model.get_image_features, **{"dynamic": False, **options})
        self._ground = torch.compile(ground, **{"dynamic": False, **options})
        self._lock = threading.Lock()

    def get_image_features(self, pixel_values: Tensor, pixel_mask: Tensor) -> GLIPv2ImageFeatures:
        """As `GLIPv2Model.get_image_features`, without the backbone's own maps; of images padded to a usual size."""
        count = len(pixel_values)
        height, width = (bucket_side(side, self.edges) for side in pixel_values.shape[2:])
        padding = (0, width - pixel_values.shape[3], 0, height - pixel_values.shape[2])
        pixel_values, pixel_mask = F.pad(pixel_values, padding), F.pad(pixel_mask, padding)
        batch = bucket_count(count)
        features = self._run(self._encode, repeat_last(pixel_values, batch), repeat_last(pixel_mask, batch))
        kept = GLIPv2ImageFeatures(feature_maps=features.feature_maps, image_sizes=features.image_sizes)
        return first_images(kept, count)

    def ground(
        self,
        image_features: GLIPv2ImageFeatures,
        text_features: Any = None,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> ModelOutput:
        """As `GLIPv2ForObjectDetection.forward` with `image_features`; of texts padded to a usual length."""
        if text_features is None:
            text_features = self.model.get_text_features(input_ids, attention_mask, token_type_ids, return_dict=True)
        text = token_features(text_features)
        mask = text.new_ones(text.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        more = bucket_tokens(text.shape[1], self.model.config.max_text_length) - text.shape[1]
        text, mask = F.pad(text, (0, 0, 0, more)), F.pad(mask, (0, more))
        count = max(len(text), len(image_features.image_sizes))
        batch = bucket_count(count)
        if len(text) > 1:
            text, mask = repeat_last(text, batch), repeat_last(mask, batch)
        if len(image_features.image_sizes) > 1:
            maps = tuple(repeat_last(level, batch) for level in image_features.feature_maps)
            sizes = repeat_last(image_features.image_sizes, batch)
            image_features = GLIPv2ImageFeatures(feature_maps=maps, image_sizes=sizes)
        outputs = self._run(self._ground, image_features=image_features, text_features=text, attention_mask=mask)
        outputs = first_images(outputs, count)
        outputs.level_shapes = torch.tensor(map_shapes(outputs.fused_feature_maps))
        return outputs

    def _run(self, function: Callable[..., ModelOutput], *args: Any, **kwargs: Any) -> ModelOutput:
        with self._lock, torch._dynamo.config.patch(recompile_limit=MOST_FORMS):
            if self.copies:
                torch.compiler.cudagraph_mark_step_begin()
            outputs = function(*args, **kwargs)
            return mapped(outputs, torch.clone) if self.copies else outputs


# Shapes --------------------------------------------------------------------------------------------------------------


def check_fixed_shapes(config: Any) -> None:
    """Raises ValueError for a model that cuts padding away, whose shapes depend on each image."""
    if config.mask_padded_pixels:
        raise ValueError(
            "`compile` needs fixed shapes, and a model with `mask_padded_pixels=True` cuts every image to its "
            "own; load it with `mask_padded_pixels=False`, or leave `compile` out."
        )


def bucket_side(side: int, edges: Sequence[int] = ()) -> int:
    """
    The side in pixels that an image's is padded to: a multiple of 32 up to 256, of 64 up to 512, then of 128; or one
    of `edges`, where that is less.
    """
    step = 32 if side <= 256 else 64 if side <= 512 else 128
    return min([-(-side // step) * step, *(edge for edge in edges if edge >= side)])


def bucket_tokens(tokens: int, max_tokens: int) -> int:
    """The length that a prompt is padded to: one of `TOKENS`, or `max_tokens`."""
    return min([max(tokens, max_tokens), *(length for length in TOKENS if length >= tokens)])


def bucket_count(count: int) -> int:
    """The size that a batch is padded to, a power of two."""
    return 1 << (count - 1).bit_length()


def repeat_last(tensor: Tensor, count: int) -> Tensor:
    """A tensor `(n, ...)` with its last entry repeated up to `count` entries."""
    return torch.cat([tensor, tensor[-1:].expand(count - len(tensor), *tensor.shape[1:])])


# Outputs -------------------------------------------------------------------------------------------------------------


def mapped(outputs: ModelOutput, change: Callable[[Tensor], Tensor]) -> Any:
    """Outputs whose tensors, also those in tuples, are changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return tuple(map(changed, value)) if isinstance(value, tuple) else value

    return type(outputs)(**{field.name: changed(getattr(outputs, field.name)) for field in fields(outputs)})


def first_images(outputs: ModelOutput, count: int) -> Any:
    """The outputs of the first images of a batch."""
    return mapped(outputs, lambda tensor: tensor[:count])


__all__ = ["CompiledNetwork"]
