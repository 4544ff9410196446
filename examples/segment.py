"""
Draws the masks of what labels or a phrase name into an image.

    python examples/segment.py --model MODEL --image street.jpg --labels person "traffic light" car
    python examples/segment.py --model MODEL --image table.jpg --phrase "the red cup left of the bottle"

Labels give one mask for each object (instance segmentation), a phrase one mask of all that it refers to (referring
segmentation). The drawing goes to `--output`; `--json` also writes boxes, scores and masks (COCO's run lengths).
"""

import argparse

from PIL import Image

from transformers_glipv2 import GLIPv2ForInstanceSegmentation, segment_labels
from transformers_glipv2.cli.arguments import (
    NANO,
    OutputFile,
    ScriptParser,
    add_device,
    add_drawing,
    add_image,
    add_model,
    add_threshold,
    check_paths,
    fraction,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import Found, load_image, objects_found, objects_json, show
from transformers_glipv2.data.files import write_json
from transformers_glipv2.inference.segmentation import segment_phrase


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a checkpoint with a mask head", default=NANO)
    add_image(parser, help="image to segment")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--labels", nargs="+", help="names to look for; one mask for each object")
    text.add_argument("--phrase", help="phrase to look for; one mask of all it refers to")
    add_drawing(parser, "outputs/segmented.png")
    add("--json", type=OutputFile, help="also write the results here")
    add_threshold(parser)
    add("--mask_threshold", type=fraction, default=0.5, help="least probability of a pixel (default: 0.5)")
    add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[Found]:
    args = check_paths(parse_args(arguments))
    image = load_image(args.image)
    model, processor = load_checkpoint(GLIPv2ForInstanceSegmentation, args.model, args.device)

    find = find_instances if args.labels else find_phrase
    found = find(model, processor, image, args)
    show(image, found, args.output, args.threshold)
    if args.json:
        write_json(args.json, objects_json(found))
        print(f"Wrote {args.json}.")
    return found


def find_instances(model, processor, image: Image.Image, args: argparse.Namespace) -> list[Found]:
    """Each object's label, score, box and mask, the highest-scoring first."""
    options = {"threshold": args.threshold, "mask_threshold": args.mask_threshold, "return_rle": False}
    (result,) = segment_labels(model, processor, image, args.labels, **options)
    return objects_found(result)


def find_phrase(model, processor, image: Image.Image, args: argparse.Namespace) -> list[Found]:
    """One mask of what the phrase refers to, with the box around all of its parts."""
    found = segment_phrase(model, processor, image, args.phrase, args.threshold, args.mask_threshold)
    return [] if found is None else [Found(args.phrase, found["score"], found["box"].tolist(), found["mask"].numpy())]


if __name__ == "__main__":
    run(main)
