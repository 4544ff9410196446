"""
Counts false boxes: photographs are asked for classes that none of them shows, so every box is one.

    python benchmarks/false_boxes.py --model hub_upload/glipv2-nano --annotations coco-mini/val.json --images coco-mini

The classes of an image are drawn from those of the file that it does not show, by the seed and its index alone, and
asked for together in one prompt.
"""

import argparse
import random
from statistics import fmean
from typing import Any

from tqdm import tqdm

from transformers_glipv2 import Detector, GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_max_samples,
    add_model,
    add_seed,
    add_threshold,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.seeding import derive_seed


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a checkpoint")
    add("--annotations", type=InputFile, required=True, help="COCO-format file in which all objects are annotated")
    add("--images", type=InputFolder, help="folder of its images (default: that of the file)")
    add("--num_labels", type=positive_int, default=20, help="absent classes that are asked for (default: 20)")
    add_max_samples(parser, "images, the first of the file", default=100)
    add_threshold(parser)
    add_seed(parser, "of the classes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    # What is in a crowd is shown, too.
    examples = load_coco(args.annotations, args.images, policy={"crowd": "keep"})
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model)
    detector = Detector(model, processor, threshold=args.threshold, progress=False)
    counts = []
    for index in tqdm(range(min(args.max_samples, len(examples))), unit="image"):
        example = examples[index]
        absent = sorted(set(examples.class_names or ()) - set(example["objects"]["category"]))
        if args.num_labels > len(absent):
            raise ValueError(
                f"image {index} lacks {len(absent)} of the classes of {args.annotations}, fewer than --num_labels "
                f"{args.num_labels}; pass fewer."
            )
        asked = random.Random(derive_seed(args.seed, "absent", index)).sample(absent, args.num_labels)
        (found,) = detector.detect(example["image"], asked)
        counts.append(len(found["boxes"]))
    boxes, images = fmean(counts), 100 * fmean(map(bool, counts))
    print(f"{len(counts)} images: {boxes:.2f} false boxes an image, {images:.0f} % of the images with one")
    return {"num_images": len(counts), "boxes": boxes, "images": images}


if __name__ == "__main__":
    run(main)
