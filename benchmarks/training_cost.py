"""
Calculates what a step of pre-training takes: operations of an image, and peak memory, at any size of images.

    python benchmarks/training_cost.py --output training_cost.md
    python benchmarks/training_cost.py --scales large --image_size 800 --batches 1 4

Nothing is computed: tensors have shapes and no values (`FakeTensorMode`), so sizes that no machine at hand holds are
calculated in a minute. Operations are those of matrix products, convolutions and attention, forward and backward.
Memory is the largest sum of all tensors alive, with float32 weights, gradients and AdamW's two moments; an allocator
and its workspaces add to it. The fusion has its form for GPUs, whose attention keeps no probabilities, whatever the
dropout. The losses are those of boxes, tokens and regions; masked tokens would add less than a hundredth.
"""

import argparse
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from gpu import replaced
from speed import TOKENS, row
from training_step import BOXES, get_image_size
from transformers_glipv2 import GLIPv2Config, GLIPv2ForPreTraining, losses, modeling_glipv2_pretraining
from transformers_glipv2.boxes import to_device
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_image_size,
    add_output_file,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_text
from transformers_glipv2.layers import input_checks
from transformers_glipv2.layers.fusion import GLIPv2BiAttention
from transformers_glipv2.losses import OnHost

LABELS = 80
PRECISIONS = {"float32": False, "bf16": True}


def attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Operations of attention, of shapes; as `torch.utils.flop_counter` has them for GPUs."""
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(
    grad_out: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Operations of attention's backward pass."""
    return sdpa_backward_flop_count(grad_out, query, key, value)


OPERATORS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--scales", nargs="+", choices=("nano", "tiny", "large"), default=["tiny"], help="(default: tiny)")
    add("--batches", nargs="+", type=positive_int, default=[1], help="images of a step (default: 1)")
    add_image_size(parser, "one after the other; the longest edge is 4/3 of each", default=[800])
    add("--labels", type=int, choices=list(TOKENS), default=LABELS, help=f"of a prompt (default: {LABELS})")
    add_output_file(parser, "Markdown file to write the table to as well")
    return parser.parse_args(arguments)


class LiveMemory(TorchDispatchMode):
    """
    Bytes of all tensors alive within the context.

    Attributes:
        now, peak (`int`): at this moment, and the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        """A storage is gone."""
        self.known.discard(key)
        self.now -= size


@contextmanager
def readable_labels() -> Iterator[None]:
    """Within the context labels keep their values, which losses read, and nothing else is read."""

    def with_values(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            # What is moved to a device is moved after that, without values.
            device = next((one for one in args if isinstance(one, torch.device)), None)
            with unset_fake_temporarily():
                found = function(*args)
            return found if device is None else to_device(found, device)

        return call

    with (
        replaced(input_checks, "can_read", lambda tensor: False),
        replaced(losses, "join_labels", with_values(losses.join_labels)),
        replaced(modeling_glipv2_pretraining, "classes_of_tokens", with_values(losses.classes_of_tokens)),
    ):
        yield


def fused_attention(fusion: GLIPv2BiAttention, *inputs: Any) -> tuple[Any, ...]:
    """The fusion as GPUs compute it with gradients."""
    return *fusion.attend_by_sdpa(*inputs), None


def calculate(scale: str, batch: int, size: tuple[int, int], bf16: bool, checkpointing: bool, labels: int) -> dict:
    """Parameters, operations of a step, and the bytes at its peak."""
    memory, flops = LiveMemory(), FlopCounterMode(display=False, custom_mapping=OPERATORS)
    # One after the other: what counts operations keeps tensors that checkpointing frees.
    for counter in (flops, memory):
        model = step(scale, batch, size, bf16, checkpointing, labels, counter)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # AdamW's two moments, which the second step begins with.
    return {"parameters": parameters, "flops": flops.get_total_flops(), "peak": memory.peak + 8 * parameters}


def step(
    scale: str,
    batch: int,
    size: tuple[int, int],
    bf16: bool,
    checkpointing: bool,
    labels: int,
    counter: AbstractContextManager,
) -> GLIPv2ForPreTraining:
    """A new model, once forward and backward, without values and under a counter."""
    tokens = TOKENS[labels]
    positive_map = torch.zeros(BOXES, tokens)
    positive_map[:, 1] = 1
    centres = torch.full((BOXES, 2), 0.5)
    label = {"boxes": torch.cat([centres, torch.rand(BOXES, 2) * 0.4 + 0.1], dim=1), "positive_map": positive_map}
    label["class_ids"] = torch.arange(BOXES) + 1
    gpu_form = replaced(GLIPv2BiAttention, "attend_by_head", fused_attention)
    with readable_labels(), gpu_form, FakeTensorMode(allow_non_fake_inputs=True), counter:
        # With dropout the kernel for CPUs would keep probabilities, as those for GPUs do not.
        model = GLIPv2ForPreTraining(GLIPv2Config.from_size(scale, fusion_dropout=0.0)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = {"pixel_values": torch.randn(batch, 3, *size), "input_ids": torch.ones(batch, tokens).long()}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**inputs, labels=OnHost([label] * batch)).loss
        loss.backward()
    return model


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    args = check_paths(parse_args(arguments))
    columns = (
        "model",
        "batch",
        "image",
        "tokens",
        "precision",
        "checkpointing",
        "TFLOP an image",
        "GB",
        "of it fixed",
    )
    lines = [row(*columns), row(*["---"] * 6, *["---:"] * 3)]
    results = []
    for scale, batch, edge in itertools.product(args.scales, args.batches, args.image_size):
        size = get_image_size(edge)
        for (precision, bf16), checkpointing in itertools.product(PRECISIONS.items(), (False, True)):
            found = calculate(scale, batch, size, bf16, checkpointing, args.labels)
            results.append(found)
            operations = f"{found['flops'] / batch / 1e12:.2f}"
            memory = (f"{found['peak'] / 1e9:.2f}", f"{16 * found['parameters'] / 1e9:.2f}")
            shown = ("yes" if checkpointing else "no", operations, *memory)
            lines.append(row(scale, batch, f"{size[0]}x{size[1]}", TOKENS[args.labels], precision, *shown))
            print(lines[-1], flush=True)
    lines += ["", "Calculated, not measured. Fixed: weights, gradients and AdamW's two moments, in float32."]
    text = "\n".join(lines)
    print(text)
    if args.output:
        write_text(args.output, text + "\n")
    return results


if __name__ == "__main__":
    run(main)
