"""
Scores answers and captions on composite scenes that training does not show, beside what needs no image.

    python examples/fetch_scene_assets.py scene-assets
    python examples/evaluate_understanding.py --model hub_upload/glipv2-nano --assets scene-assets \\
        --blind_answers outputs/blind-answers --output understanding.json

Answers: VQA accuracy, over all questions and of each type, beside the most frequent answer of the type and, with
`--blind_answers`, a model that was trained with `finetune_vqa.py --blind`. Captions: CIDEr and BLEU by greedy and by
beam search, beside the best constant caption, those of another scene each, and with `--blind_captions` a model that
`finetune_captioning.py --blind` trained; then how many phrases of the captions are true, and how many of their boxes
are right. Scores need Java, as the official tools do; without it words are split at everything that is no letter.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.scenes.scenes import load_scenes
from transformers_glipv2.evaluation.grounded_captions import grounded_caption_scores
from transformers_glipv2.inference.language import caption_and_ground
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering
from transformers_glipv2.training import (
    AnswerEvaluator,
    CaptionEvaluator,
    best_constant_answers,
    best_constant_caption,
    caption_scores,
)

TASKS = ("answers", "captions")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of a model with the heads in question")
    add("--assets", type=Path, required=True, help="folder that fetch_scene_assets.py wrote")
    add(
        "--background_folder",
        type=Path,
        help="COCO-format folder with train.json that gave training further backgrounds; a quarter is for the test",
    )
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: both")
    add("--blind_answers", help="folder of a model trained without images")
    add("--blind_captions", help="folder of a model trained without images")
    add("--questions", type=int, default=1000, help="scenes with a question each (default: 1000)")
    add("--captions", type=int, default=300, help="scenes to describe (default: 300)")
    add("--num_beams", type=int, default=5, help="of beam search (default: 5)")
    add("--seed", type=int, default=0, help="of the scenes (default: 0)")
    add("--output", type=Path, help="json to write the numbers to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    accelerator = Accelerator()
    results: dict[str, Any] = {}
    for task, kind, count, score in (
        ("answers", "vqa", args.questions, score_answers),
        ("captions", "caption", args.captions, score_captions),
    ):
        if task in args.tasks:
            scenes = load_scenes(args.assets, args.background_folder, split="test", seed=args.seed, kinds={kind: 1.0})
            results[task] = score(args, accelerator, [scenes[index] for index in range(count)])
            print(task, json.dumps(results[task], indent=2))
    if args.output is not None:
        settings = {name: getattr(args, name) for name in ("questions", "captions", "num_beams", "seed")}
        settings["more_backgrounds"] = args.background_folder is not None
        write_json(args.output, {"settings": settings, "results": results})
    return results


def load(accelerator: Accelerator, model_class: type, folder: str) -> tuple[GLIPv2Processor, torch.nn.Module]:
    """A model of a class, ready to evaluate, and its processor."""
    model = model_class.from_pretrained(folder).to(accelerator.device).eval()
    return GLIPv2Processor.from_pretrained(folder), model


def score_answers(args: argparse.Namespace, accelerator: Accelerator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies in percent, over all and by type, of the model and of what sees no image."""
    counts = Counter(row["question_type"] for row in rows)
    scores: dict[str, Any] = {"questions": {"all": len(rows), **dict(sorted(counts.items()))}}
    for name, folder in (("model", args.model), ("blind model", args.blind_answers)):
        if folder is not None:
            processor, model = load(accelerator, GLIPv2ForVisualQuestionAnswering, folder)
            scores[name] = AnswerEvaluator(accelerator, processor, rows, with_images=name == "model")(model)
    scores["most frequent answer"] = best_constant_answers(rows)
    return rounded(scores)


def score_captions(args: argparse.Namespace, accelerator: Accelerator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """CIDEr and BLEU times 100 of the model and of what sees no image; phrases and boxes in percent."""
    processor, model = load(accelerator, GLIPv2ForConditionalGeneration, args.model)
    beams = CaptionEvaluator(accelerator, processor, rows, num_beams=args.num_beams)
    scores: dict[str, Any] = {
        "images": len(rows),
        "greedy": CaptionEvaluator(accelerator, processor, rows)(model),
        f"{args.num_beams} beams": beams(model),
    }
    # How much of the score is the manner of the sentences.
    scores["captions of other scenes"] = caption_scores(rows, beams.captions[1:] + beams.captions[:1])
    constant = best_constant_caption(rows)
    scores["best constant caption"] = {"caption": constant, **caption_scores(rows, [constant] * len(rows))}
    if args.blind_captions is not None:
        blind = CaptionEvaluator(
            accelerator,
            GLIPv2Processor.from_pretrained(args.blind_captions),
            rows,
            num_beams=args.num_beams,
            with_images=False,
        )
        scores["blind model"] = blind(load(accelerator, GLIPv2ForConditionalGeneration, args.blind_captions)[1])
    grounded = caption_and_ground(
        model, processor, [row["image"] for row in rows], generate_kwargs=beams.generation, progress=True
    )
    scores["grounded"] = grounded_caption_scores(rows, grounded)
    return rounded(scores)


def rounded(scores: dict[str, Any]) -> dict[str, Any]:
    """To two digits."""
    return {
        name: rounded(value) if isinstance(value, dict) else round(value, 2) if isinstance(value, float) else value
        for name, value in scores.items()
    }


if __name__ == "__main__":
    main()
