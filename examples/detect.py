"""
Finds objects by their names, prints their boxes and draws them.

    python examples/detect.py --model hub_upload/glipv2-nano --image street.jpg --labels person "traffic light" car

Without `--image` a photograph of scikit-image (CC0) is used; `--sample` says which.
"""

import argparse

from transformers import pipeline

import transformers_glipv2  # noqa: F401  registers the model with the Auto classes and pipelines
from transformers_glipv2.cli.arguments import (
    NANO,
    ScriptParser,
    add_drawing,
    add_image,
    add_model,
    add_threshold,
    check_paths,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import SAMPLES, Found, load_image, show


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, default=NANO)
    add_image(parser, required=False)
    add("--sample", choices=SAMPLES, default=SAMPLES[0], help=f"photograph without --image (default: {SAMPLES[0]})")
    add("--labels", nargs="+", required=True, help="names to look for")
    add_threshold(parser)
    add_drawing(parser, "outputs/detected.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict]:
    args = check_paths(parse_args(arguments))
    image = load_image(args.image, args.sample)
    detector = pipeline("zero-shot-object-detection", model=args.model)
    results = detector(image, candidate_labels=args.labels, threshold=args.threshold)
    found = [
        Found(one["label"], one["score"], list(one["box"].values()), group=args.labels.index(one["label"]))
        for one in results
    ]
    show(image, found, args.output, args.threshold)
    return results


if __name__ == "__main__":
    run(main)
