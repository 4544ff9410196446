"""
Describes an image, prints the caption, and draws the boxes of what its phrases name.

    python examples/caption.py --model hub_upload/glipv2-nano --image street.jpg --prefix "an image of"

The image is encoded once, for the caption and for the boxes.
"""

import argparse

from transformers_glipv2.cli.arguments import (
    NANO,
    ScriptParser,
    add_drawing,
    add_generation,
    add_image,
    add_model,
    add_threshold,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import load_image, phrases_found, show
from transformers_glipv2.inference.language import caption_and_ground
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add_model(parser, default=NANO)
    add_image(parser, help="image to describe")
    parser.add_argument("--prefix", default="", help="how the caption begins (default: nothing)")
    add_generation(parser, max_new_tokens=40)
    add_threshold(parser)
    add_drawing(parser, "outputs/captioned.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    image = load_image(args.image)
    model, processor = load_checkpoint(GLIPv2ForConditionalGeneration, args.model)
    generation = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens, "do_sample": False}
    (result,) = caption_and_ground(model, processor, [image], args.prefix, generation)

    print(result["caption"])
    found = phrases_found(result["phrases"], args.threshold)
    show(image, found, args.output, args.threshold, title=result["caption"])
    return result


if __name__ == "__main__":
    run(main)
