"""
Scores a model on the composite test: boxes (and masks) of named things in scenes that training does not show.

    python examples/fetch_scene_assets.py scene-assets
    python examples/evaluate_scenes.py --model hub_upload/glipv2-nano --assets scene-assets --output scenes.json

Each prompt holds the scene's labels and 20 sampled absent ones. Three parts: nouns of training, (colour, noun) pairs
that training held out, and nouns that training held out. AP is COCO's, the mean over all labels of a part.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from transformers_glipv2 import (
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForObjectDetection,
    GLIPv2Processor,
    detect_labels,
    segment_labels,
)
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.scenes.scenes import TEST_PARTS, coco_backgrounds, test_scenes
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.scenes import evaluate_rows


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    add("--assets", type=Path, required=True, help="folder that fetch_scene_assets.py wrote")
    add(
        "--background_folder",
        type=Path,
        help="COCO-format folder with train.json that gave training further backgrounds; a quarter is for the test",
    )
    add("--parts", nargs="+", choices=TEST_PARTS, default=list(TEST_PARTS), help="default: all three")
    add("--count", type=int, default=500, help="scenes of a part (default: 500)")
    add("--negatives", type=int, default=20, help="absent labels of a prompt (default: 20)")
    add("--seed", type=int, default=0, help="of the scenes and the absent labels (default: 0)")
    add("--masks", action="store_true", help="also score masks; the model needs a mask head")
    add("--threshold", type=float, default=0.01, help="on scores (default: 0.01)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where there is one")
    add("--output", type=Path, help="json to write the numbers to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_args(arguments)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model_class = GLIPv2ForInstanceSegmentation if args.masks else GLIPv2ForObjectDetection
    model = model_class.from_pretrained(args.model).to(args.device).eval()

    def detect(row):
        ask = segment_labels if args.masks else detect_labels
        return next(iter(ask(model, processor, [row["image"]], row["labels"], threshold=args.threshold)))

    backgrounds = [] if args.background_folder is None else coco_backgrounds(args.background_folder)
    results = {}
    for part in args.parts:
        scenes = test_scenes(args.assets, part, args.count, args.negatives, args.seed, extra_backgrounds=backgrounds)
        rows = tqdm((scenes[index] for index in range(len(scenes))), part, len(scenes), unit="scene")
        content, predictions = evaluate_rows(rows, detect)
        results[part] = {"scenes": len(scenes), "labels": len(content["categories"])}
        for iou_type in ("bbox", "segm") if args.masks else ("bbox",):
            scores = evaluate_coco(content, predictions, iou_type, progress=False)
            results[part] |= {f"{iou_type}_{name}": round(100 * scores[name], 2) for name in ("AP", "AP50", "AP75")}
        print(part, results[part])
    if args.output is not None:
        settings = {name: getattr(args, name) for name in ("count", "negatives", "seed", "threshold")}
        settings["more_backgrounds"] = args.background_folder is not None
        write_json(args.output, {"settings": settings, "results": results})
    return results


if __name__ == "__main__":
    main()
