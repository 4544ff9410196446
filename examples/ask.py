"""
Answers a question about an image, prints the answers, and draws the boxes of what the question names.

    python examples/ask.py --model hub_upload/glipv2-nano --image street.jpg --question "what color is the car?"

Answers and boxes come from one forward pass.
"""

import argparse
from pathlib import Path

from transformers import AutoProcessor

from transformers_glipv2.image_io import open_image
from transformers_glipv2.inference.drawing import Drawn, draw
from transformers_glipv2.inference.language import answer_and_ground
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="hub_upload/glipv2-nano", help="folder or Hub id (default: the nano of this repository)")
    add("--image", type=Path, required=True, help="image to look at")
    add("--question", required=True, help="what to ask")
    add("--top_k", type=int, default=5, help="answers to print (default: 5)")
    add("--threshold", type=float, default=0.3, help="on scores of boxes (default: 0.3)")
    add("--output", type=Path, default=Path("outputs/answered.png"), help="default: outputs/answered.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = parse_args(arguments)
    image = open_image(args.image)
    processor = AutoProcessor.from_pretrained(args.model)
    model = GLIPv2ForVisualQuestionAnswering.from_pretrained(args.model).eval()
    (result,) = answer_and_ground(model, processor, [image], args.question, args.top_k)

    for entry in result["answers"]:
        print(f"{entry['score']:.3f}  {entry['answer']}")
    best = result["answers"][0]
    # The answer stands in the corner, at a box of no size.
    things = [Drawn(f"{args.question} {best['answer']} ({best['score']:.2f})", (0, 0, 0, 0))]
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
