"""
Describes an image, prints the caption, and draws the boxes of what its phrases name.

    python examples/caption.py --model hub_upload/glipv2-nano --image street.jpg --prefix "an image of"

The image is encoded once, for the caption and for the boxes.
"""

import argparse
from pathlib import Path

from transformers import AutoProcessor

from transformers_glipv2.image_io import open_image
from transformers_glipv2.inference.drawing import Drawn, draw
from transformers_glipv2.inference.language import caption_and_ground
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="hub_upload/glipv2-nano", help="folder or Hub id (default: the nano of this repository)")
    add("--image", type=Path, required=True, help="image to describe")
    add("--prefix", default="", help="how the caption begins (default: nothing)")
    add("--num_beams", type=int, default=5, help="of beam search; 1 is greedy (default: 5)")
    add("--max_new_tokens", type=int, default=40, help="words of the caption at most (default: 40)")
    add("--threshold", type=float, default=0.3, help="on scores of boxes (default: 0.3)")
    add("--output", type=Path, default=Path("outputs/captioned.png"), help="default: outputs/captioned.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = parse_args(arguments)
    image = open_image(args.image)
    processor = AutoProcessor.from_pretrained(args.model)
    model = GLIPv2ForConditionalGeneration.from_pretrained(args.model).eval()
    generation = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens, "do_sample": False}
    (result,) = caption_and_ground(model, processor, [image], args.prefix, generation)

    print(result["caption"])
    # The caption stands in the corner, at a box of no size.
    things = [Drawn(result["caption"], (0, 0, 0, 0))]
    for phrase in result["phrases"]:
        for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].tolist(), strict=True):
            if score > args.threshold:
                print(f"{score:.3f}  {phrase['phrase']:<32} {[round(side) for side in box]}")
                things.append(Drawn(f"{phrase['phrase']} {score:.2f}", box))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(image, things).save(args.output)
    print(f"Wrote {args.output}.")
    return result


if __name__ == "__main__":
    main()
