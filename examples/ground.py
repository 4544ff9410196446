"""
Finds what the phrases of a sentence refer to, prints the boxes of each phrase and draws them.

    python examples/ground.py --model hub_upload/glipv2-nano --image table.jpg --text "a cup of coffee on a table"

Phrases are the noun phrases of the sentence; `--phrases` gives your own.
"""

import argparse

from transformers_glipv2 import GLIPv2ForObjectDetection
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
from transformers_glipv2.cli.results import load_image, phrase_spans, phrases_found, show
from transformers_glipv2.inference.detector import ground_phrases


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, default=NANO)
    add_image(parser)
    add("--text", required=True, help="sentence about the image")
    add("--phrases", nargs="+", help="parts of the sentence to ground (default: its noun phrases)")
    add_threshold(parser)
    add("--top_k", type=positive_int, default=1, help="boxes of a phrase at most (default: 1)")
    add_drawing(parser, "outputs/grounded.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict]:
    args = check_paths(parse_args(arguments))
    spans = None if args.phrases is None else [phrase_spans(args.phrases, args.text)]
    image = load_image(args.image)
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model)
    (phrases,) = ground_phrases(model, processor, [image], [args.text], phrases=spans, top_k=args.top_k)
    show(image, phrases_found(phrases, args.threshold), args.output, args.threshold)
    return phrases


if __name__ == "__main__":
    run(main)
