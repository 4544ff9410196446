"""
Answers a question about an image, prints the answers, and draws the boxes of what the question names.

    python examples/ask.py --model hub_upload/glipv2-nano --image street.jpg --question "what color is the car?"

Answers and boxes come from one forward pass.
"""

import argparse

from transformers_glipv2.cli.arguments import (
    NANO,
    ScriptParser,
    add_drawing,
    add_image,
    add_model,
    add_threshold,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import load_image, phrases_found, show
from transformers_glipv2.inference.language import answer_and_ground
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, default=NANO)
    add_image(parser)
    add("--question", required=True, help="what to ask")
    add("--top_k", type=positive_int, default=5, help="answers to print (default: 5)")
    add_threshold(parser)
    add_drawing(parser, "outputs/answered.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    image = load_image(args.image)
    model, processor = load_checkpoint(GLIPv2ForVisualQuestionAnswering, args.model)
    (result,) = answer_and_ground(model, processor, [image], args.question, args.top_k)

    for entry in result["answers"]:
        print(f"{entry['score']:.3f}  {entry['answer']}")
    best = result["answers"][0]
    title = f"{args.question} {best['answer']} ({best['score']:.2f})"
    show(image, phrases_found(result["phrases"], args.threshold), args.output, args.threshold, title)
    return result


if __name__ == "__main__":
    run(main)
