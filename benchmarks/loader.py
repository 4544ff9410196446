"""
Measures how many images a second the training loader gives: decoded, augmented, resized and collated, by workers.

    python benchmarks/loader.py --workers 0 2 4 8 16 --image_size 800

Images are the photographs of the documentation at 640x480 as JPEG files, with seven boxes each and 80 classes, as in
COCO. Compare with the images a second of a training step: a loader that gives fewer keeps the GPU waiting.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from speed import machine_name, row
from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    ModelSource,
    ScriptParser,
    add_image_size,
    add_output_file,
    check_paths,
    non_negative_int,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.augment import Compose, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import write_json, write_text
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.image_processing_glipv2 import set_shortest_edge
from transformers_glipv2.training import StepBatches, step_loader
from transformers_glipv2.training.batches import read_batches

PHOTOGRAPHS = sorted((Path(__file__).resolve().parents[1] / "docs" / "images").glob("*.jpg"))
FILES, BOXES, CLASSES = 32, 7, 80
SIZE = (640, 480)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--model", type=ModelSource, default="hub_upload/glipv2-nano", help="whose processor (default: the nano)")
    add("--workers", nargs="+", type=non_negative_int, default=[0, 1, 2], help="processes (default: 0 1 2)")
    add("--batch_size", type=positive_int, default=8, help="images of a step (default: 8)")
    add("--num_steps", type=positive_int, default=20, help="steps that are measured, after two (default: 20)")
    add_image_size(parser, "one after the other; the longest edge is 5/3 of each", default=[800])
    add_output_file(parser, "Markdown file to write the table to as well")
    args = parser.parse_args(arguments)
    args.device, args.threads = "cpu", 1  # of each worker, for the line that names the machine
    return args


def photographs(folder: Path) -> ImageDataset:
    """A COCO-format data set of JPEG files."""
    images, annotations = [], []
    for index in range(FILES):
        name = f"{index}.jpg"
        with Image.open(PHOTOGRAPHS[index % len(PHOTOGRAPHS)]) as image:
            image.convert("RGB").resize(SIZE).save(folder / name, quality=90)
        images.append({"id": index, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for box in range(BOXES):
            side = 30 + 20 * box
            entry = {"id": len(annotations), "image_id": index, "category_id": (index + 11 * box) % CLASSES}
            annotations.append({**entry, "bbox": [40 * box, 20 * box, side, side], "area": side * side, "iscrowd": 0})
    categories = [{"id": index, "name": f"class {index}"} for index in range(CLASSES)]
    write_json(folder / "all.json", {"images": images, "annotations": annotations, "categories": categories})
    return load_coco(folder / "all.json", image_folder=folder)


def images_a_second(dataset: ImageDataset, args: argparse.Namespace, image_size: int, num_workers: int) -> float:
    """Of the loader that training has, after two batches, in which workers start."""
    torch.set_num_threads(1)
    processor = GLIPv2Processor.from_pretrained(args.model)
    set_shortest_edge(processor, image_size)
    mixture = MixtureDataset([dataset], length=args.batch_size * (args.num_steps + 2))
    augment = Compose([HorizontalFlip(), PhotometricDistortion()])
    collator = GroundingCollator(processor, augment=augment, size_period=args.batch_size)
    loader = step_loader(mixture, StepBatches(args.batch_size, args.num_steps + 2), collator, num_workers)
    with read_batches(loader) as batches:
        for _ in range(2):
            next(batches)
        start = time.perf_counter()
        count = sum(len(batch["pixel_values"]) for batch in batches)
        return count / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> dict[tuple[int, int], float]:
    args = check_paths(parse_args(arguments))
    found: dict[tuple[int, int], float] = {}
    lines = [machine_name(args), "", row("image size", "workers", "images a second"), row("---", "---", "---:")]
    with tempfile.TemporaryDirectory() as folder:
        dataset = photographs(Path(folder))
        for image_size in args.image_size:
            for num_workers in args.workers:
                speed = images_a_second(dataset, args, image_size, num_workers)
                found[image_size, num_workers] = speed
                lines.append(row(image_size, num_workers, f"{speed:.1f}"))
                print(lines[-1], flush=True)
    print(text := "\n".join(lines))
    if args.output:
        write_text(args.output, text + "\n")
    return found


if __name__ == "__main__":
    run(main)
