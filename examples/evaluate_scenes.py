"""
Scores a model on the composite test: boxes (and masks) of named objects in scenes that training does not show.

    python examples/fetch_scene_assets.py --output scene-assets
    python examples/evaluate_scenes.py --model hub_upload/glipv2-nano --assets scene-assets --output scenes.json

Each prompt holds the scene's labels and 20 sampled absent ones. Three parts: nouns of training, (colour, noun) pairs
that training held out, and nouns that training held out. AP is COCO's, the mean over all labels of a part.
"""

import argparse

from tqdm import tqdm

from transformers_glipv2 import (
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForObjectDetection,
    detect_labels,
    segment_labels,
)
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_max_samples,
    add_model,
    add_output_file,
    add_scenes,
    add_threshold,
    check_paths,
    non_negative_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import write_scene_scores
from transformers_glipv2.data.scenes.scenes import TEST_PARTS, coco_backgrounds, test_scenes
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.scenes import evaluate_examples


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    add_scenes(parser)
    add("--parts", nargs="+", choices=TEST_PARTS, default=list(TEST_PARTS), help="(default: all three)")
    add_max_samples(parser, "scenes of a part", default=500)
    add("--negatives", type=non_negative_int, default=20, help="absent labels of a prompt (default: 20)")
    add("--masks", action="store_true", help="also score masks; the model needs a mask head")
    add_threshold(parser, default=0.01)
    add_device(parser)
    add_output_file(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = check_paths(parse_args(arguments))
    model_class = GLIPv2ForInstanceSegmentation if args.masks else GLIPv2ForObjectDetection
    model, processor = load_checkpoint(model_class, args.model, args.device)

    def detect(scene):
        ask = segment_labels if args.masks else detect_labels
        return next(iter(ask(model, processor, [scene["image"]], scene["labels"], threshold=args.threshold)))

    backgrounds = [] if args.background_folder is None else coco_backgrounds(args.background_folder)
    results = {}
    for part in args.parts:
        scenes = test_scenes(
            args.assets, part, args.max_samples, args.negatives, args.seed, extra_backgrounds=backgrounds
        )
        examples = tqdm((scenes[index] for index in range(len(scenes))), part, len(scenes), unit="scene")
        content, predictions = evaluate_examples(examples, detect)
        results[part] = {"scenes": len(scenes), "labels": len(content["categories"])}
        for iou_type in ("bbox", "segm") if args.masks else ("bbox",):
            scores = evaluate_coco(content, predictions, iou_type, progress=False)
            results[part] |= {f"{iou_type}_{name}": round(100 * scores[name], 2) for name in ("AP", "AP50", "AP75")}
        print(part, results[part])
    write_scene_scores(args, results, ("max_samples", "negatives", "threshold"))
    return results


if __name__ == "__main__":
    run(main)
