"""
Finds objects by name, prints their boxes and draws them.

    python examples/detect.py --model hub_upload/glipv2-nano --image street.jpg --labels person "traffic light" car

Without `--image` a photograph of scikit-image (CC0) is taken: `--sample` says which.
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers import pipeline

import transformers_glipv2  # noqa: F401  registers the model with the Auto classes and pipelines
from transformers_glipv2.image_io import open_image
from transformers_glipv2.inference.drawing import Drawn, draw

SAMPLES = ("chelsea", "coffee", "astronaut", "rocket")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="hub_upload/glipv2-nano", help="folder or Hub id (default: the nano of this repository)")
    add("--image", type=Path, help="image to look at")
    add("--sample", choices=SAMPLES, default="chelsea", help="photograph that is taken without --image")
    add("--labels", nargs="+", required=True, help="names to look for")
    add("--threshold", type=float, default=0.3, help="on scores (default: 0.3)")
    add("--output", type=Path, default=Path("outputs/detected.png"), help="default: outputs/detected.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict]:
    args = parse_args(arguments)
    image = load_image(args.image, args.sample)
    detector = pipeline("zero-shot-object-detection", model=args.model)
    found = detector(image, candidate_labels=args.labels, threshold=args.threshold)

    for entry in found:
        box = entry["box"]
        print(f"{entry['score']:.3f}  {entry['label']:<24} {[box[side] for side in ('xmin', 'ymin', 'xmax', 'ymax')]}")
    if not found:
        print(f"Nothing scores above {args.threshold}; try a lower --threshold.")
    things = []
    for entry in found:
        group = args.labels.index(entry["label"])
        things.append(Drawn(f"{entry['label']} {entry['score']:.2f}", list(entry["box"].values()), group=group))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(image, things).save(args.output)
    print(f"Wrote {args.output}.")
    return found


def load_image(path: Path | None, sample: str) -> Image.Image:
    """An image file, turned upright, or a photograph of scikit-image."""
    if path is not None:
        return open_image(path)
    from skimage import data

    return Image.fromarray(getattr(data, sample)()).convert("RGB")


if __name__ == "__main__":
    main()
