"""
Evaluates answers on VQA v2, or on questions in its format.

    python examples/evaluate_vqa.py --model MODEL --questions v2_OpenEnded_mscoco_val2014_questions.json \\
        --annotations v2_mscoco_val2014_annotations.json --images coco --output outputs/vqa

The model answers from the vocabulary in its configuration. An image is encoded once for all its questions. Without
`--annotations` (test-dev, test-std) `predictions.json` is ready for the evaluation server, and nothing is scored. Runs
on many processes with `accelerate launch`; after an interruption the same command goes on where it was.
"""

import argparse
from collections import defaultdict
from typing import Any

import torch

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_model,
    add_output_folder,
    add_prediction,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import predict_images, score_predictions, write_predictions
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.vqa import load_vqa
from transformers_glipv2.evaluation.shards import evaluation_accelerator
from transformers_glipv2.evaluation.vqa import evaluate_vqa
from transformers_glipv2.images.image_io import open_image
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    add("--questions", required=True, type=InputFile, help="JSON file of questions")
    add("--annotations", type=InputFile, help="JSON file of answers (default: none, nothing is scored)")
    add("--images", required=True, type=InputFolder, help="folder of COCO's images")
    add_output_folder(parser, "folder for predictions and scores")
    add_prediction(parser, batch_size=False)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    accelerator = evaluation_accelerator(args.mixed_precision)
    # Every question must be answered, so a broken entry is no reason to leave one out.
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in load_vqa(args.questions, args.annotations, args.images, policy="refuse").records:
        by_image[record["image_id"]].append(record)
    image_ids = list(by_image)[: args.max_samples]
    model, processor = load_checkpoint(GLIPv2ForVisualQuestionAnswering, args.model, accelerator.device)

    def load(index: int):
        questions = by_image[image_ids[index]]
        return questions, open_image(questions[0]["image_path"])

    @torch.no_grad()
    def answer_image(questions, image):
        inputs = processor.image_processor([image], return_tensors="pt").to(accelerator.device)
        entries = []
        with accelerator.autocast():
            features = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
            for record in questions:
                text = processor(text=[record["question"]], return_tensors="pt").to(accelerator.device)
                best = model(image_features=features, **text).answer_logits[0].argmax().item()
                entries.append({"question_id": record["question_id"], "answer": model.config.id2label[best]})
        return entries

    def answer(items):
        return [answer_image(questions, image) for questions, image in items]

    shards = predict_images(args, accelerator, image_ids, load, answer, "VQA", {})

    def score() -> dict[str, Any]:
        failures = write_predictions(args.output, shards, "have empty answers")
        unanswered = [record["question_id"] for image_id in failures for record in by_image[image_id]]
        predictions = [*shards.predictions(), *({"question_id": name, "answer": ""} for name in unanswered)]
        write_json(args.output / "predictions.json", predictions)
        if args.annotations is None:
            return {}
        question_ids = [entry["question_id"] for entry in predictions]
        metrics = evaluate_vqa(args.annotations, predictions, question_ids=question_ids)
        print({"overall": round(metrics["overall"], 2), **metrics["per_answer_type"]})
        return metrics

    return score_predictions(args, accelerator, score)


if __name__ == "__main__":
    run(main)
