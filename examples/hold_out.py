"""
Holds out a part of a data set; images that look alike stay on one side.

    python examples/hold_out.py --annotations animals/train.json --images animals/train --output splits/animals

Writes `train.json` and `val.json` to the output folder; the images stay where they are. Every list of the file whose
entries have an `image_id` (annotations, questions) is divided along with the images. `--file_names` holds out those
that a file names, such as the images that a published checkpoint was not trained on.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_output_folder,
    add_seed,
    check_paths,
    fraction_below_one,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import read_json, write_json
from transformers_glipv2.data.held_out import held_out_indices


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--annotations", type=InputFile, required=True, help="JSON file with `images`, as of COCO")
    add("--images", type=InputFolder, required=True, help="folder that its file names start from")
    add_output_folder(parser, "folder for train.json and val.json")
    add("--fraction", type=fraction_below_one, default=0.1, help="of the images to hold out (default: 0.1)")
    add_seed(parser, "of the choice")
    add("--file_names", type=InputFile, help="JSON list of the file names to hold out (default: chosen by the seed)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    args = check_paths(parse_args(arguments))
    content = read_json(args.annotations)
    images = content["images"]
    if args.file_names is None:
        held_out, how = chosen_ids(content, args)
    else:
        held_out, how = named_ids(images, args.file_names), f"those that {args.file_names} names"
    every = {image["id"] for image in images}
    write_json(args.output / "train.json", only_images(content, every - held_out))
    write_json(args.output / "val.json", only_images(content, held_out))
    print(f"{args.output}: {len(held_out)} of {len(images)} images held out, {how}")
    return {"images": len(images), "held_out": len(held_out)}


def chosen_ids(content: dict[str, Any], args: argparse.Namespace) -> tuple[set[Any], str]:
    """The images to hold out, and how they were chosen."""
    images = content["images"]
    categories = defaultdict(list)
    for entry in content.get("annotations", ()):
        categories[entry["image_id"]].append(entry.get("category_id"))
    records = [
        {"image_path": str(args.images / image["file_name"]), "objects": {"category": categories[image["id"]]}}
        for image in images
    ]
    indices, how = held_out_indices(records, args.fraction, args.seed)
    if not indices:
        raise ValueError(f"{args.annotations} lists {len(images)} images, of which none can be held out.")
    return {images[index]["id"] for index in indices}, how


def named_ids(images: list[dict[str, Any]], file: Path) -> set[Any]:
    """The images that a file names; each name has to be there, since a missing one would be trained on unseen."""
    names = read_json(file)
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{file} is no JSON list of file names.")
    ids = {image["file_name"]: image["id"] for image in images}
    missing = [name for name in names if name not in ids]
    if missing:
        raise ValueError(f"{len(missing)} of the {len(names)} images of {file} are not listed, such as {missing[0]}.")
    return {ids[name] for name in names}


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
