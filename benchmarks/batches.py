"""
Measures what batches gain: seconds for images of one size through the `Detector`, one by one and together.

    python benchmarks/batches.py --model hub_upload/glipv2-nano --image docs/images/astronaut.jpg
    python benchmarks/batches.py --model hub_upload/glipv2-nano --image docs/images/astronaut.jpg --device cuda

The images are one photograph, mirrored and brightened in turn. Both ways are timed in turns in one process, from image
objects to boxes on the CPU, and the median turn of each counts. The boxes of both ways are compared.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from PIL import ImageEnhance, ImageOps
from tqdm import tqdm

from transformers_glipv2 import Detector, GLIPv2ForObjectDetection
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
    add_model(parser, "folder or Hub id of a checkpoint")
    add_image(parser, help="photograph to time with")
    add("--labels", nargs="+", default=["person", "dog", "car", "chair", "bottle"], help="names to look for")
    add("--batch_size", type=positive_int, default=8, help="images that go through the network together (default: 8)")
    add_timing(parser, 7, "turns of each way after one that warms up")
    add_device(parser, default="cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    torch.set_num_threads(args.threads)
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model, args.device)
    detector = Detector(model, processor, progress=False)
    photograph = load_image(args.image)
    images = [
        ImageEnhance.Brightness(ImageOps.mirror(photograph) if index % 2 else photograph).enhance(1 + index / 20)
        for index in range(args.batch_size)
    ]
    times: dict[int, list[float]] = {1: [], args.batch_size: []}
    found: dict[int, list[dict[str, Any]]] = {}
    for turn in tqdm(range(args.repeats + 1), "turns"):
        for size in times:
            start = time.perf_counter()
            found[size] = detector.detect(images, args.labels, batch_size=size)
            if turn:
                times[size].append(time.perf_counter() - start)
    seconds = {size: statistics.median(measured) for size, measured in times.items()}
    counts = [[len(image["boxes"]) for image in results] for results in found.values()]
    largest = 0.0
    for one, other in zip(*found.values(), strict=True) if counts[0] == counts[-1] else ():
        largest = max([largest, *(one["boxes"] - other["boxes"]).abs().flatten().tolist()])
    alone, together = seconds[1], seconds[args.batch_size]
    print(
        f"{args.batch_size} images one by one: {alone:.3f} s\n"
        f"{args.batch_size} images together: {together:.3f} s, {together / alone:.2f} of that\n"
        f"boxes of each image: {counts[0]} and {counts[-1]}, at most {largest:.1g} pixels apart"
    )
    return {"seconds": seconds, "counts": counts, "largest": largest}


if __name__ == "__main__":
    run(main)
