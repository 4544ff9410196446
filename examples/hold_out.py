"""
Holds out a part of a data set by whole groups of near-duplicate images.

    python examples/hold_out.py --annotations animals/train.json --images animals/train --output splits/animals

Writes `train.json` and `val.json` to the output folder; the images stay where they are. Every list of the file whose
entries have an `image_id` (annotations, questions) is divided along with the images.
"""

import argparse
from typing import Any

from PIL import Image
from tqdm import tqdm

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_output_folder,
    add_seed,
    check_paths,
    fraction_below_one,
    non_negative_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import read_json, write_json
from transformers_glipv2.data.near_duplicates import hold_out, near_duplicate_groups, perceptual_hash


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--annotations", type=InputFile, required=True, help="JSON file with `images`, as of COCO")
    add("--images", type=InputFolder, required=True, help="folder that its file names start from")
    add_output_folder(parser, "folder for train.json and val.json")
    add("--fraction", type=fraction_below_one, default=0.1, help="of the images to hold out (default: 0.1)")
    help = "of 64 bits in which the hashes of near-duplicates differ at most (default: 12)"
    add("--distance", type=non_negative_int, default=12, help=help)
    add_seed(parser, "of the choice of groups")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    args = check_paths(parse_args(arguments))
    content = read_json(args.annotations)
    images = content["images"]
    hashes = []
    for image in tqdm(images, desc="hashing", unit="image"):
        with Image.open(args.images / image["file_name"]) as opened:
            hashes.append(perceptual_hash(opened))
    groups = near_duplicate_groups(hashes, args.distance)
    held_out = {images[index]["id"] for index in hold_out(groups, args.fraction, args.seed)}
    every = {image["id"] for image in images}
    write_json(args.output / "train.json", only_images(content, every - held_out))
    write_json(args.output / "val.json", only_images(content, held_out))
    counts = {"images": len(images), "groups": len(groups), "held_out": len(held_out)}
    print(f"{args.output}: {counts['held_out']} of {counts['images']} images held out; {counts['groups']} groups")
    return counts


def only_images(content: dict[str, Any], ids: set[Any]) -> dict[str, Any]:
    """The file's content about some of its images alone."""
    part = dict(content)
    part["images"] = [image for image in content["images"] if image["id"] in ids]
    for name, entries in content.items():
        if isinstance(entries, list) and entries and isinstance(entries[0], dict) and "image_id" in entries[0]:
            part[name] = [entry for entry in entries if entry["image_id"] in ids]
    return part


if __name__ == "__main__":
    run(main)
