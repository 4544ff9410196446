"""
`--compile`: the network compiled for training, and batches of a few shapes, for each of which it compiles once.

Losses stay as they are: their shapes go with the number of boxes, which is another one in each batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from transformers_glipv2.inference.compiled_network import MOST_FORMS, bucket_side, bucket_tokens, check_fixed_shapes
from transformers_glipv2.modeling_glipv2 import GLIPv2DetectionHead, GLIPv2Model

# What is `(batch, tokens)` in a batch, and `(n, tokens)` among the labels of an image.
_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mlm_labels", "caption_labels")
_LABEL_TOKENS = ("positive_map", "prompt_map")
_TARGETS = ("mlm_labels", "caption_labels", "labels")


def compile_network(model: nn.Module, **options: Any) -> None:
    """
    Compiles the encoders, the layers of the tower and the detection head, in place: names of weights stay, and so do
    checkpoints. The layers of the tower share what is compiled.

    Args:
        model (`nn.Module`): of any class, also in a wrapper of adapters.
        options: of `torch.compile`.

    Raises:
        ValueError: for a model that cuts padding away, whose shapes depend on each image.
    """
    networks = [module for module in model.modules() if isinstance(module, GLIPv2Model)]
    heads = [module for module in model.modules() if isinstance(module, GLIPv2DetectionHead)]
    for network in networks:
        check_fixed_shapes(network.config)
    torch._dynamo.config.recompile_limit = max(MOST_FORMS, torch._dynamo.config.recompile_limit)
    parts = [[one.backbone, one.neck, one.text_encoder, *one.layers] for one in networks]
    for part in (*(part for own in parts for part in own), *heads):
        part.compile(**{"dynamic": False, **options})


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Within the context a compiled model runs as it is written: evaluation has a shape for each image."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


class FixedShapes:
    """
    Pads the batches of a collator: images up to a few sides, texts up to a few lengths (`bucket_side`,
    `bucket_tokens`). Longer texts change no loss; wider images can a little, as any padding of a batch does.

    Args:
        collate (`Callable`): makes a batch.
        processor (`GLIPv2Processor`): whose sides are kept as they are, and whose texts are not made longer.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]], processor: Any):
        self.collate = collate
        self.edges = processor.image_processor.usual_edges()
        self.max_tokens = processor.max_tokens
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        height, width = batch["pixel_values"].shape[2:]
        image = (0, bucket_side(width, self.edges) - width, 0, bucket_side(height, self.edges) - height)
        tokens = batch["input_ids"].shape[1]
        text = (0, bucket_tokens(tokens, self.max_tokens) - tokens)
        padded = dict(batch)
        for name, value in batch.items():
            if name in ("pixel_values", "pixel_mask"):
                padded[name] = F.pad(value, image)
            elif name in _TOKENS or (name == "labels" and isinstance(value, torch.Tensor)):
                fill = -100 if name in _TARGETS else self.pad_token_id if name == "input_ids" else 0
                padded[name] = F.pad(value, text, value=fill)
            elif name == "labels":
                padded[name] = [None if one is None else _longer(one, text) for one in value]
        return padded


def _longer(label: dict[str, Any], text: tuple[int, int]) -> dict[str, Any]:
    return {name: F.pad(value, text) if name in _LABEL_TOKENS else value for name, value in label.items()}
