"""
Scores masks of referring phrases ("the red cup left of the bottle") in composite scenes that training does not show.

    python examples/fetch_scene_assets.py scene-assets
    python examples/evaluate_referring.py --model hub_upload/glipv2-nano --assets scene-assets --output referring.json

One phrase a scene, which mostly holds several things of the phrase's noun; the numbers are PhraseCut's: mean IoU, IoU
of all pixels together, and the share of phrases with an IoU above 0.5 to 0.9. "found" is the share whose surest box
overlaps the true one by 0.5 or more.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2Processor
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.scenes.scenes import ReferringScenes, coco_backgrounds
from transformers_glipv2.evaluation.referring import evaluate_referring, segment_phrases
from transformers_glipv2.noun_phrases import chunk_noun_phrases


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of a checkpoint with a mask head")
    add("--assets", type=Path, required=True, help="folder that fetch_scene_assets.py wrote")
    add(
        "--background_folder",
        type=Path,
        help="COCO-format folder with train.json that gave training further backgrounds; a quarter is for the test",
    )
    add("--count", type=int, default=500, help="phrases, one a scene (default: 500)")
    add("--seed", type=int, default=0, help="of the scenes (default: 0)")
    add(
        "--words",
        choices=("head", "all"),
        default="head",
        help="whose scores count: the first noun phrase's, which names the thing and was read with the rest, or all "
        "words' (default: head)",
    )
    add(
        "--threshold",
        type=float,
        default=1.0,
        help="score from which further boxes are part of the mask (default: 1, the surest box alone, as each phrase "
        "means one thing)",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where there is one")
    add("--output", type=Path, help="json to write the numbers to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    args = parse_args(arguments)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForInstanceSegmentation.from_pretrained(args.model).to(args.device).eval()

    def segment(row):
        text = row["text"]
        span = head_span(text) if args.words == "head" else (0, len(text))
        return segment_phrases(model, processor, row["image"], [text], threshold=args.threshold, spans=[span])[0]

    backgrounds = [] if args.background_folder is None else coco_backgrounds(args.background_folder)
    scenes = ReferringScenes(args.assets, args.count, args.seed, extra_backgrounds=backgrounds)
    rows = tqdm((scenes[index] for index in range(len(scenes))), "referring", len(scenes), unit="phrase")
    scores = evaluate_referring(rows, segment)

    results = {"phrases": scores["count"]}
    for name, score in (
        ("found", scores["found"]),
        ("mean_IoU", scores["mean_mask_iou"]),
        ("cumulative_IoU", scores["cum_mask_iou"]),
        *((f"Pr@{threshold}", share) for threshold, share in scores["mask_precision"].items()),
    ):
        results[name] = round(100 * score, 2)
    print(results)
    if args.output is not None:
        settings = {name: getattr(args, name) for name in ("count", "seed", "words", "threshold")}
        settings["more_backgrounds"] = args.background_folder is not None
        write_json(args.output, {"settings": settings, "results": {"referring": results}})
    return results


def head_span(text: str) -> tuple[int, int]:
    """The characters [start, end) of the first noun phrase; all where none is found, as names may read as verbs."""
    return next(iter(chunk_noun_phrases(text)), (0, len(text)))


if __name__ == "__main__":
    main()
