"""
Scores masks of referring phrases ("the red cup left of the bottle") in composite scenes that training does not show.

    python examples/fetch_scene_assets.py --output scene-assets
    python examples/evaluate_referring.py --model hub_upload/glipv2-nano --assets scene-assets --output referring.json

One phrase a scene, which mostly holds several objects of the phrase's noun. The scores are PhraseCut's: mean IoU, IoU
of all pixels together, and the fraction of phrases with an IoU above 0.5 to 0.9. "found" is the fraction of phrases
whose highest-scoring box has an IoU of 0.5 or more with the true one.
"""

import argparse

from tqdm import tqdm

from transformers_glipv2 import GLIPv2ForInstanceSegmentation
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_max_samples,
    add_model,
    add_output_file,
    add_scenes,
    add_threshold,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import write_scene_scores
from transformers_glipv2.data.scenes.scenes import ReferringScenes, coco_backgrounds
from transformers_glipv2.evaluation.referring import evaluate_referring, segment_phrases
from transformers_glipv2.noun_phrases import chunk_noun_phrases


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add_model(parser, "folder or Hub id of a checkpoint with a mask head")
    add_scenes(parser)
    add_max_samples(parser, "phrases, one a scene", default=500)
    parser.add_argument(
        "--words",
        choices=("head", "all"),
        default="head",
        help="whose scores count: the first noun phrase's, which names the object, or all words' (default: head)",
    )
    add_threshold(
        parser,
        default=1.0,
        help="score from which further boxes are part of the mask; 1: the highest-scoring box alone, as each phrase "
        "refers to one object",
    )
    add_device(parser)
    add_output_file(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    args = check_paths(parse_args(arguments))
    model, processor = load_checkpoint(GLIPv2ForInstanceSegmentation, args.model, args.device)

    def segment(scene):
        text = scene["text"]
        span = head_span(text) if args.words == "head" else (0, len(text))
        return segment_phrases(model, processor, scene["image"], [text], threshold=args.threshold, spans=[span])[0]

    backgrounds = [] if args.background_folder is None else coco_backgrounds(args.background_folder)
    scenes = ReferringScenes(args.assets, args.max_samples, args.seed, extra_backgrounds=backgrounds)
    examples = tqdm((scenes[index] for index in range(len(scenes))), "referring", len(scenes), unit="phrase")
    scores = evaluate_referring(examples, segment)

    results = {"phrases": scores["count"]}
    for name, score in (
        ("found", scores["found"]),
        ("mean_IoU", scores["mean_mask_iou"]),
        ("cumulative_IoU", scores["cum_mask_iou"]),
        *((f"Pr@{threshold}", value) for threshold, value in scores["mask_precision"].items()),
    ):
        results[name] = round(100 * score, 2)
    print(results)
    write_scene_scores(args, {"referring": results}, ("max_samples", "words", "threshold"))
    return results


def head_span(text: str) -> tuple[int, int]:
    """The characters [start, end) of the first noun phrase; all where none is found, as nouns may read as verbs."""
    return next(iter(chunk_noun_phrases(text)), (0, len(text)))


if __name__ == "__main__":
    run(main)
