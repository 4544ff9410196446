"""
Measures a step of pre-training: seconds and peak memory, and how they grow with batch, image and prompt.

    python benchmarks/training_step.py --output training_benchmark.md       # two CPU threads, float32
    python benchmarks/training_step.py --scales nano --batches 1 2 4 8 16 --device cuda

A step is forward, all four losses, backward, and AdamW over all parameters, of random weights, which cost the same as
trained ones. One thing at a time differs from the first row of its model. Every row is measured in a process of its
own, as a process remembers its highest memory only; the fastest of several steps counts.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from speed import TOKENS, clock, label_map, machine_name, process_memory, row
from transformers_glipv2 import GLIPv2Config, GLIPv2ForPreTraining
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_image_size,
    add_output_file,
    add_timing,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_text
from transformers_glipv2.prompts import class_ids
from transformers_glipv2.training import make_optimizer, parameter_groups

BOXES = 7  # of an image of COCO, on average
MASKED = 0.15


@dataclass(frozen=True)
class Setting:
    """One row: an image's height and width in pixels, and how many labels a prompt has."""

    scale: str
    batch: int
    size: tuple[int, int]
    labels: int


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_device(parser, default="cpu")
    add_timing(parser, 3, "steps after the first")
    add("--scales", nargs="+", choices=("nano", "tiny"), default=["nano", "tiny"], help="(default: both)")
    add("--batches", nargs="+", type=positive_int, default=[1, 2, 4, 8], help="images of a step (default: 1 2 4 8)")
    add_image_size(parser, "one after the other; the longest edge is 4/3 of each", default=[192, 256, 320, 384])
    add("--labels", nargs="+", type=int, choices=list(TOKENS), default=list(TOKENS), help="of a prompt")
    add_output_file(parser, "Markdown file to write the table to as well")
    return parser.parse_args(arguments)


def settings(args: argparse.Namespace) -> list[Setting]:
    """Of each model the first of everything, then what differs from it in one thing."""
    found = []
    for scale in args.scales:
        base = Setting(scale, args.batches[0], get_image_size(args.image_size[0]), args.labels[0])
        found.append(base)
        found += [replace(base, batch=batch) for batch in args.batches[1:]]
        found += [replace(base, size=get_image_size(size)) for size in args.image_size[1:]]
        found += [replace(base, labels=labels) for labels in args.labels[1:]]
    return found


def get_image_size(shortest_edge: int) -> tuple[int, int]:
    """Height and width of an image of 4 to 3, in multiples of 32 as the processor pads."""
    return tuple(-(-edge // 32) * 32 for edge in (shortest_edge, round(shortest_edge * 4 / 3)))


def build(scale: str) -> GLIPv2ForPreTraining:
    return GLIPv2ForPreTraining(GLIPv2Config.from_size(scale))


def random_batch(setting: Setting, vocabulary: int, device: torch.device) -> dict:
    """Random images, tokens and boxes; a few tokens are masked."""
    tokens = TOKENS[setting.labels]
    listed = class_ids([f"label {index}" for index in range(setting.labels)])
    input_ids = torch.randint(0, vocabulary, (setting.batch, tokens))
    words = label_map(setting.labels, tokens).float()
    labels = []
    for _ in range(setting.batch):
        classes = torch.randint(0, setting.labels, (BOXES,))
        boxes = torch.cat([torch.rand(BOXES, 2) * 0.5 + 0.25, torch.rand(BOXES, 2) * 0.4 + 0.1], dim=-1)
        one = {
            "boxes": boxes,
            "positive_map": words[classes] / words[classes].sum(-1, keepdim=True),
            "class_ids": listed[classes],
            "prompt_class_ids": listed,
            "prompt_map": words,
        }
        labels.append({name: value.to(device) for name, value in one.items()})
    masked = torch.rand(input_ids.shape) < MASKED
    masked[:, 1] = True
    tensors = {
        "pixel_values": torch.randn(setting.batch, 3, *setting.size),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mlm_labels": input_ids.masked_fill(~masked, -100),
    }
    return {**{name: tensor.to(device) for name, tensor in tensors.items()}, "labels": labels}


def measure(setting: Setting, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest step, and the most memory held, in GB; of a fresh process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    with torch.device("meta"):
        build(setting.scale)  # imports what building imports
    imports = process_memory()
    model = build(setting.scale).to(device).train()
    optimizer = make_optimizer(parameter_groups(model, 1e-4))
    batch = random_batch(setting, model.config.text_config.vocab_size, device)
    seconds = []
    for _ in range(args.repeats + 1):
        start = clock(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock(device) - start)
    on_gpu = device.type != "cpu"
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else process_memory() - imports
    # Without the first step, which warms up.
    return {"seconds": min(seconds[1:]), "memory": memory}


def report(found: dict[Setting, dict[str, float]], args: argparse.Namespace) -> str:
    columns = ("model", "batch", "image", "labels", "tokens", "s", "time", "s an image", "GB", "memory")
    lines = [machine_name(args), "", row(*columns), row(*["---"] * 3, *["---:"] * (len(columns) - 3))]
    base: dict[str, dict[str, float]] = {}
    for setting, values in found.items():
        first = base.setdefault(setting.scale, values)
        seconds, memory = values["seconds"], values["memory"]
        numbers = (f"{seconds:.2f}", f"{seconds / first['seconds']:.2f}x", f"{seconds / setting.batch:.2f}")
        numbers += (f"{memory:.2f}", f"{memory / first['memory']:.2f}x")
        size = f"{setting.size[0]}x{setting.size[1]}"
        lines.append(row(setting.scale, setting.batch, size, setting.labels, TOKENS[setting.labels], *numbers))
    lines += [
        "",
        "Ratios are to the first row of a model. Memory is the most held, with weights, gradients and AdamW's",
    ]
    lines.append(f"two moments, {'on the GPU' if args.device != 'cpu' else 'without imports'}.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[Setting, dict[str, float]]:
    args = check_paths(parse_args(arguments))
    found = {}
    # One at a time, each in a process that has done nothing else.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for setting in tqdm(settings(args)):
            found[setting] = pool.submit(measure, setting, args).result()
    print(text := report(found, args))
    if args.output:
        write_text(args.output, text + "\n")
    return found


if __name__ == "__main__":
    run(main)
