"""
Scores answers and captions on composite scenes that training does not show, beside baselines that see no image.

    python examples/fetch_scene_assets.py --output scene-assets
    python examples/evaluate_scenes_vqa_captioning.py --model hub_upload/glipv2-nano --assets scene-assets \\
        --ablated_vqa outputs/vqa-ablated --output vqa_captioning.json

VQA: accuracy over all questions and of each type, beside the most frequent answer of the type and, with
`--ablated_vqa`, an image-ablated model (`finetune_vqa.py --ablate_images`). Captioning: CIDEr and BLEU of greedy and
beam search, beside the best constant caption, captions of other scenes and, with `--ablated_captioning`, an
image-ablated model (`finetune_captioning.py --ablate_images`); then how many phrases of the captions are true, and
how many of their boxes are right. Scores use Java where there is one, as the official tools do; without it captions
are split at everything that is no letter.
"""

import argparse
from collections import Counter
from typing import Any

from accelerate import Accelerator

from transformers_glipv2.cli.arguments import (
    ModelSource,
    ScriptParser,
    add_max_samples,
    add_model,
    add_num_beams,
    add_output_file,
    add_scenes,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import write_scene_scores
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

# Scenes of each task, without --max_samples.
TASKS = {"vqa": 1000, "captioning": 300}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a model with the heads in question")
    add_scenes(parser)
    add("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="(default: both)")
    add("--ablated_vqa", type=ModelSource, help="folder of a model that was trained without images")
    add("--ablated_captioning", type=ModelSource, help="folder of a model that was trained without images")
    shown = ", ".join(f"{name} {count}" for name, count in TASKS.items())
    add_max_samples(parser, f"scenes of each task (default: {shown})")
    add_num_beams(parser)
    add_output_file(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    accelerator = Accelerator()
    results: dict[str, Any] = {}
    for task, kind, score in (("vqa", "vqa", score_answers), ("captioning", "caption", score_captions)):
        if task in args.tasks:
            scenes = load_scenes(args.assets, args.background_folder, split="test", seed=args.seed, kinds={kind: 1.0})
            count = args.max_samples or TASKS[task]
            results[task] = score(args, accelerator, [scenes[index] for index in range(count)])
            print(task, results[task])
    write_scene_scores(args, results, ("max_samples", "num_beams"))
    return results


def score_answers(args: argparse.Namespace, accelerator: Accelerator, scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies in percent, over all questions and by type, of the model and of the baselines."""
    counts = Counter(scene["question_type"] for scene in scenes)
    scores: dict[str, Any] = {"questions": {"all": len(scenes), **dict(sorted(counts.items()))}}
    for name, source in (("model", args.model), ("image-ablated", args.ablated_vqa)):
        if source is not None:
            model, processor = load_checkpoint(GLIPv2ForVisualQuestionAnswering, source, accelerator.device)
            scores[name] = AnswerEvaluator(accelerator, processor, scenes, with_images=name == "model")(model)
    scores["most frequent answer"] = best_constant_answers(scenes)
    return rounded(scores)


def score_captions(args: argparse.Namespace, accelerator: Accelerator, scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """CIDEr and BLEU times 100 of the model and of the baselines; phrases and boxes in percent."""
    model, processor = load_checkpoint(GLIPv2ForConditionalGeneration, args.model, accelerator.device)
    beams = CaptionEvaluator(accelerator, processor, scenes, num_beams=args.num_beams)
    scores: dict[str, Any] = {
        "images": len(scenes),
        "greedy": CaptionEvaluator(accelerator, processor, scenes)(model),
        f"{args.num_beams} beams": beams(model),
    }
    # How much of the score is the form of the sentences.
    scores["captions of other scenes"] = caption_scores(scenes, beams.captions[1:] + beams.captions[:1])
    constant = best_constant_caption(scenes)
    scores["best constant caption"] = {"caption": constant, **caption_scores(scenes, [constant] * len(scenes))}
    if args.ablated_captioning is not None:
        ablated, own = load_checkpoint(GLIPv2ForConditionalGeneration, args.ablated_captioning, accelerator.device)
        evaluator = CaptionEvaluator(accelerator, own, scenes, num_beams=args.num_beams, with_images=False)
        scores["image-ablated"] = evaluator(ablated)
    images = [scene["image"] for scene in scenes]
    grounded = caption_and_ground(model, processor, images, generate_kwargs=beams.generation, progress=True)
    scores["grounded"] = grounded_caption_scores(scenes, grounded)
    return rounded(scores)


def rounded(scores: dict[str, Any]) -> dict[str, Any]:
    """To two digits."""
    return {
        name: rounded(value) if isinstance(value, dict) else round(value, 2) if isinstance(value, float) else value
        for name, value in scores.items()
    }


if __name__ == "__main__":
    run(main)
