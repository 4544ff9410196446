"""
Measures what masks cost: seconds for an image's boxes alone and with their masks, and the peak memory of hundreds of
masks of a large image.

    python benchmarks/masks.py --model hub_upload/glipv2-nano
    python benchmarks/masks.py --model hub_upload/glipv2-nano --device cuda

The image is noise, or the one given, and every box counts whatever its score. Both ways are timed in turns in one
process, from the image object to boxes in its pixels and run lengths of its size, and the fastest turn of each
counts. Memory is that of a process of its own.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from transformers_glipv2 import GLIPv2ForInstanceSegmentation, detect_labels, segment_labels
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_image,
    add_model,
    add_timing,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import load_image


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a checkpoint with a mask head")
    add_image(parser, required=False, help="image to time with (default: noise of 640 x 480 pixels)")
    add("--labels", nargs="+", default=["person", "dog", "car", "chair", "bottle"], help="names to look for")
    add("--masks", type=positive_int, default=100, help="boxes, each with a mask, that are timed (default: 100)")
    help = "width and height, to measure memory with (default: 4000 3000)"
    add("--large", type=positive_int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"), help=help)
    add("--large_masks", type=positive_int, default=300, help="masks of the large image (default: 300)")
    add_timing(parser, 5, "turns of each way after one that warms up")
    add_device(parser, default="cpu")
    return parser.parse_args(arguments)


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    torch.set_num_threads(args.threads)
    return load_checkpoint(GLIPv2ForInstanceSegmentation, args.model, args.device)


def noise(width: int, height: int) -> Image.Image:
    """Noise that is coarse enough to survive resizing."""
    pixels = np.random.default_rng(0).integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def time_both(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of "boxes" and of "masks", and how many masks there were."""
    model, processor = load(args)
    image = load_image(args.image) if args.image else noise(640, 480)
    options = {"threshold": 0.0, "pre_nms_threshold": 0.0, "max_detections": args.masks}
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "boxes": lambda: detect_labels(model, processor, image, args.labels, **options)[0],
        "masks": lambda: next(segment_labels(model, processor, image, args.labels, **options)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for turn in tqdm(range(args.repeats + 1), "turns"):
        for name, way in ways.items():
            start = time.perf_counter()
            found = way()  # its results are on the CPU, so a GPU is done as well
            if turn:
                times[name].append(time.perf_counter() - start)
    return {**{name: min(seconds) for name, seconds in times.items()}, "count": len(found["masks"])}


def most_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory in GB: "total", and "loaded" with code and weights before there is an image."""
    model, processor = load(args)
    on_gpu = args.device != "cpu"
    loaded = held(on_gpu)
    image = noise(*args.large)
    options = {"threshold": 0.0, "pre_nms_threshold": 0.0, "max_detections": args.large_masks}
    found = next(segment_labels(model, processor, image, args.labels, **options))
    return {"total": held(on_gpu), "loaded": loaded, "count": len(found["masks"])}


def held(on_gpu: bool) -> float:
    """The most memory so far in GB: of the GPU, or of the process, which Linux counts in KiB."""
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    args = check_paths(parse_args(arguments))
    results = {}
    for name, measure in (("time", time_both), ("memory", most_memory)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            results[name] = fresh.submit(measure, args).result()
    seconds, memory = results["time"], results["memory"]
    print(
        f"boxes alone: {seconds['boxes']:.3f} s an image\n"
        f"boxes with {seconds['count']} masks: {seconds['masks']:.3f} s an image, "
        f"{seconds['masks'] / seconds['boxes']:.2f} times as long\n"
        f"{memory['count']} masks of {args.large[0]} x {args.large[1]} pixels: {memory['total']:.2f} GB at the peak, "
        f"{memory['loaded']:.2f} GB of it before the image"
    )
    return results


if __name__ == "__main__":
    run(main)
