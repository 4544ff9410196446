"""
Finds what the phrases of a sentence speak of, prints the boxes of each phrase and draws them.

    python examples/ground.py --model hub_upload/glipv2-nano --image table.jpg --text "a cup of coffee on a table"

Phrases are found by spaCy where `en_core_web_sm` is installed, else by a small rule chunker; `--phrases` gives your
own.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

import transformers_glipv2  # noqa: F401  registers the model with the Auto classes
from transformers_glipv2.image_io import open_image
from transformers_glipv2.inference.detector import ground_phrases
from transformers_glipv2.inference.drawing import Drawn, draw


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="hub_upload/glipv2-nano", help="folder or Hub id (default: the nano of this repository)")
    add("--image", type=Path, required=True, help="image to look at")
    add("--text", required=True, help="sentence about the image")
    add("--phrases", nargs="+", help="parts of the sentence to ground (default: its noun phrases)")
    add("--threshold", type=float, default=0.3, help="on scores (default: 0.3)")
    add("--top_k", type=int, default=1, help="boxes of a phrase at most (default: 1)")
    add("--output", type=Path, default=Path("outputs/grounded.png"), help="default: outputs/grounded.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict]:
    args = parse_args(arguments)
    image = open_image(args.image)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(args.model).eval()
    spans = None if args.phrases is None else [[span_of(phrase, args.text) for phrase in args.phrases]]
    (phrases,) = ground_phrases(model, processor, [image], [args.text], phrases=spans, top_k=args.top_k)

    things = []
    for index, phrase in enumerate(phrases):
        for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].tolist(), strict=True):
            if score > args.threshold:
                print(f"{score:.3f}  {phrase['phrase']:<32} {[round(side) for side in box]}")
                things.append((score, Drawn(f"{phrase['phrase']} {score:.2f}", box, group=index)))
    if not things:
        print(f"No phrase scores above {args.threshold}; try a lower --threshold.")
    things.sort(key=lambda pair: -pair[0])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(image, [thing for _, thing in things]).save(args.output)
    print(f"Wrote {args.output}.")
    return phrases


def span_of(phrase: str, text: str) -> tuple[int, int]:
    """The characters of a phrase in a text."""
    start = text.find(phrase)
    if start < 0:
        raise SystemExit(f"error: {phrase!r} is no part of {text!r}; write phrases as the sentence has them.")
    return start, start + len(phrase)


if __name__ == "__main__":
    main()
