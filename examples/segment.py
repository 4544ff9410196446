"""
Draws the masks of what words name into an image.

    python examples/segment.py --model MODEL --image street.jpg --labels person "traffic light" car
    python examples/segment.py --model MODEL --image table.jpg --phrase "the red cup left of the bottle"

Labels give one mask for each object (instance segmentation), a phrase one mask of all that it refers to (referring
segmentation). The drawing goes to `--output`; `--json` also writes boxes, scores and masks (COCO's run lengths).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2Processor, segment_labels
from transformers_glipv2.data.files import write_json
from transformers_glipv2.image_io import open_image
from transformers_glipv2.inference.drawing import Drawn, draw
from transformers_glipv2.layers.paste_masks import encode_region


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of a checkpoint with a mask head")
    add("--image", required=True, type=Path, help="image to segment")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--labels", nargs="+", help="names to look for; one mask for each object")
    words.add_argument("--phrase", help="what to look for, in words; one mask of all it refers to")
    add("--output", type=Path, default=Path("segmented.png"), help="drawing to write (default: segmented.png)")
    add("--json", type=Path, help="also write the results here")
    add("--threshold", type=float, default=0.3, help="on the scores of boxes (default: 0.3)")
    add("--mask_threshold", type=float, default=0.5, help="on the probability of pixels (default: 0.5)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where there is one")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(arguments)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForInstanceSegmentation.from_pretrained(args.model).to(args.device).eval()
    image = open_image(args.image)

    if args.labels:
        found = find_instances(model, processor, image, args)
    else:
        found = find_phrase(model, processor, image, args)
    for entry in found:
        x1, y1, x2, y2 = (round(side) for side in entry["box"])
        print(f"{entry['score']:.3f}  {entry['label']:<24} [{x1}, {y1}, {x2}, {y2}]  {entry['mask'].sum()} pixels")
    if not found:
        print(f"Nothing scores above {args.threshold}; try a lower --threshold.")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    things = [Drawn(f"{entry['label']} {entry['score']:.2f}", entry["box"], entry["mask"]) for entry in found]
    draw(image, things).save(args.output)
    print(f"Wrote {args.output}.")
    if args.json:
        size = (image.height, image.width)
        entries = [{**entry, "mask": encode_region(entry["mask"], 0, 0, size)} for entry in found]
        write_json(args.json, entries)
        print(f"Wrote {args.json}.")
    return found


def find_instances(model, processor, image: Image.Image, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each object's label, score, box and mask, the surest first."""
    options = {"threshold": args.threshold, "mask_threshold": args.mask_threshold, "return_rle": False}
    (result,) = segment_labels(model, processor, image, args.labels, **options)
    columns = (result["text_labels"], result["scores"].tolist(), result["boxes"].tolist(), result["masks"].numpy())
    return [dict(zip(("label", "score", "box", "mask"), row, strict=True)) for row in zip(*columns, strict=True)]


@torch.no_grad()
def find_phrase(model, processor, image: Image.Image, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One mask of what the phrase refers to, with the box around all of its parts."""
    inputs = processor(images=image, text=args.phrase).to(args.device)
    ((phrase,),) = processor.post_process_referring_segmentation(
        model(**inputs),
        args.phrase,
        target_sizes=[(image.height, image.width)],
        threshold=args.threshold,
        mask_threshold=args.mask_threshold,
    )
    if not len(phrase["boxes"]):
        return []
    box = torch.cat([phrase["boxes"][:, :2].amin(0), phrase["boxes"][:, 2:].amax(0)])
    best = phrase["scores"][0].item()
    return [{"label": args.phrase, "score": best, "box": box.tolist(), "mask": phrase["mask"].numpy()}]


if __name__ == "__main__":
    main()
