"""
Measures what ONNX Runtime gains: seconds for an image through the `Detector` with `backend="torch"` and `"onnx"`.

    python benchmarks/backends.py --model hub_upload/glipv2-nano --image docs/images/astronaut.jpg --threads 1

Both are timed in turns in one process, from an image object to boxes, and the median turn of each counts. Their boxes
are compared. Needs `pip install "transformers-glipv2[export]"`.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from tqdm import tqdm

from transformers_glipv2 import Detector, GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_image,
    add_model,
    add_timing,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import load_image
from transformers_glipv2.inference.onnx_backend import BACKENDS


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a checkpoint")
    add_image(parser, help="photograph to time with")
    add("--labels", nargs="+", default=["person", "dog", "car", "chair", "bottle"], help="names to look for")
    add("--batch_size", type=positive_int, default=1, help="copies of the image at once (default: 1)")
    add_timing(parser, 21, "turns of each backend after three that warm up")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    torch.set_num_threads(args.threads)
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model)
    detectors = {
        backend: Detector(model, processor, backend, batch_size=args.batch_size, progress=False)
        for backend in BACKENDS
    }
    images = [load_image(args.image)] * args.batch_size
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    found: dict[str, dict[str, Any]] = {}
    for turn in tqdm(range(args.repeats + 3), "turns"):
        for backend, detector in detectors.items():
            start = time.perf_counter()
            found[backend] = detector.detect(images, args.labels)[0]
            if turn > 2:
                times[backend].append(time.perf_counter() - start)
    seconds = {backend: statistics.median(measured) for backend, measured in times.items()}
    boxes = [result["boxes"] for result in found.values()]
    counts = [len(one) for one in boxes]
    largest = float((boxes[0] - boxes[1]).abs().max()) if counts[0] == counts[1] > 0 else None
    ratio = seconds["torch"] / seconds["onnx"]
    print(
        f"{args.batch_size} images of {images[0].width} x {images[0].height}, {args.threads} threads: "
        f"PyTorch {1e3 * seconds['torch']:.1f} ms, ONNX Runtime {1e3 * seconds['onnx']:.1f} ms, "
        f"{ratio:.2f} times as fast\n"
        f"boxes: {counts[0]} and {counts[1]}" + ("" if largest is None else f", at most {largest:.1g} pixels apart")
    )
    return {"seconds": seconds, "ratio": ratio, "counts": counts, "largest": largest}


if __name__ == "__main__":
    run(main)
