"""
Measures how long a large COCO file takes to load, the first time and after, and the memory of each process.

    python benchmarks/annotation_cache.py --images 600000 --boxes 10000000 --output /tmp/annotations

Writes a synthetic file, with boxes in random order and empty image files beside it (they are looked for, never read).
Each load is a process of its own: one that makes the cache, one that opens it, and as many as `--processes` that do so
at once. With `--whole` the file is read as smaller ones are, without a cache. Shown are the peak of the load, with
what the imports take, and what is private to the process after examples were read: pages of the cache are shared.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from transformers_glipv2.cli.arguments import ScriptParser, add_output_folder, check_paths, positive_int
from transformers_glipv2.cli.errors import run

CLASSES = 365
_LOAD = """
import json, resource, sys, time
from transformers_glipv2.data.formats import coco_cache
from transformers_glipv2.data.formats.coco import load_coco

coco_cache.HF_HOME, whole = sys.argv[2], sys.argv[3] == "whole"
if whole:
    coco_cache.CACHED_FROM = 1 << 60
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, start_cpu = time.perf_counter(), time.process_time()
dataset = load_coco(sys.argv[1])
seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
steps = range(0, len(dataset), max(len(dataset) // 10_000, 1))
start = time.perf_counter()
boxes = sum(len(dataset.records[index]["objects"]["bbox"]) for index in steps)
reading = (time.perf_counter() - start) / len(steps)
private = int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
found = {"seconds": seconds, "cpu_seconds": cpu, "private_mb": private // 1024, "imports_mb": before // 1024}
print(json.dumps({**found, "peak_mb": peak // 1024, "microseconds_an_example": reading * 1e6}))
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--images", type=positive_int, default=600_000, help="images of the file (default: 600000, as Objects365)")
    add("--boxes", type=positive_int, default=10_000_000, help="boxes of the file (default: 10000000)")
    add("--processes", type=positive_int, default=2, help="processes that open the cache at once (default: 2)")
    add("--whole", action="store_true", help="also read the file as a whole")
    add_output_folder(parser, "folder for the file and the cache; its content is replaced")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    shutil.rmtree(args.output, ignore_errors=True)
    path = args.output / "train.json"
    write_synthetic(path, args.images, args.boxes)
    print(f"{path}: {args.images} images, {args.boxes} boxes, {path.stat().st_size / 1e6:.0f} MB", flush=True)
    if args.whole:
        show("read as a whole", load(path, ["whole"]))
    show("first time", load(path, ["cached"]))
    show("opened again", load(path, ["cached"]))
    show(f"by {args.processes} processes", load(path, ["cached"] * args.processes))


def load(path: Path, modes: list[str]) -> list[dict[str, float]]:
    """What processes that load the file at the same time report."""
    cache = str(path.parent / "cache")
    command = [sys.executable, "-c", _LOAD, str(path), cache]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    processes = [
        subprocess.Popen([*command, mode], env=environment, stdout=subprocess.PIPE, text=True) for mode in modes
    ]
    return [json.loads(process.communicate()[0]) for process in processes]


def show(what: str, found: list[dict[str, float]]) -> None:
    for one in found:
        memory = (
            f"peak {one['peak_mb']} MB (imports {one['imports_mb']} MB), at the end {one['private_mb']} MB private"
        )
        reading = f"then {one['microseconds_an_example']:.0f} us an example"
        print(f"{what}: {one['seconds']:.1f} s ({one['cpu_seconds']:.1f} s of CPU), {memory}; {reading}", flush=True)


def write_synthetic(path: Path, images: int, boxes: int, seed: int = 0) -> None:
    """A COCO file of boxes in random order, and an empty file for each image."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True)
    names = [f"{index // 10_000:03d}/{index:08d}.jpg" for index in range(images)]
    for folder in sorted({name.partition("/")[0] for name in names}):
        (path.parent / folder).mkdir()
    for name in names:
        os.close(os.open(path.parent / name, os.O_CREAT | os.O_WRONLY))
    entry = '{"id": %d, "file_name": "%s", "width": 640, "height": 480, "license": 1}'
    box = '{"id": %d, "image_id": %d, "category_id": %d, "bbox": [%.2f, %.2f, %.2f, %.2f], "area": %.4f, "iscrowd": 0}'
    with open(path, "w") as file:
        file.write('{"info": {"description": "synthetic"}, "images": [')
        file.write(", ".join(entry % (index, name) for index, name in enumerate(names)))
        file.write('], "annotations": [')
        for start in range(0, boxes, 100_000):
            count = min(100_000, boxes - start)
            numbers = np.arange(start, start + count)
            image, category = random.integers(0, images, count), random.integers(1, CLASSES + 1, count)
            sides = random.uniform(4, 300, (2, count)).round(2)
            corners = (random.uniform(0, 1, (2, count)) * (np.array([[640], [480]]) - sides)).round(2)
            columns = [numbers, image, category, *corners, *sides, sides[0] * sides[1]]
            rows = zip(*map(np.ndarray.tolist, columns), strict=True)
            file.write((", " if start else "") + ", ".join(box % row for row in rows))
        categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


if __name__ == "__main__":
    run(main)
