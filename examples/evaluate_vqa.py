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
from pathlib import Path
from typing import Any

import torch

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.vqa import load_vqa
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    weights_id,
)
from transformers_glipv2.evaluation.vqa import evaluate_vqa
from transformers_glipv2.image_io import open_image
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    add("--questions", required=True, type=Path, help="json of questions")
    add("--annotations", type=Path, help="json of answers (default: none, nothing is scored)")
    add("--images", required=True, type=Path, help="folder of COCO's images")
    add("--output", required=True, type=Path, help="folder for predictions and scores")
    add("--limit", type=int, help="only the questions of the first so many images")
    add("--num_workers", type=int, default=0, help="processes that read images, for each process (default: 0)")
    add("--images_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForVisualQuestionAnswering.from_pretrained(args.model).to(accelerator.device).eval()

    # Every question must be answered, so a broken entry is no reason to leave one out.
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in load_vqa(args.questions, args.annotations, args.images, policy="refuse").records:
        by_image[record["image_id"]].append(record)
    image_ids = list(by_image)[: args.limit]
    settings = {"weights": weights_id(args.model), "mixed_precision": accelerator.mixed_precision}
    shards = PredictionShards(args.output / "predictions", image_ids, settings, args.images_per_file)

    def load(position: int):
        questions = by_image[image_ids[position]]
        return questions, open_image(questions[0]["image_path"])

    @torch.no_grad()
    def answer(items):
        return [answer_image(questions, image) for questions, image in items]

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

    predict_in_shards(shards, load, answer, accelerator, num_workers=args.num_workers, description="VQA")
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        predictions, failures = list(shards.predictions()), shards.failures()
        if failures:
            write_json(args.output / "failures.json", failures)
            print(f"{len(failures)} images could not be read; their answers are empty; see failures.json")
            unanswered = (record for image_id in failures for record in by_image[image_id])
            predictions += [{"question_id": record["question_id"], "answer": ""} for record in unanswered]
        write_json(args.output / "predictions.json", predictions)
        if args.annotations is None:
            print("no annotations to score with; predictions.json is ready for an evaluation server")
        else:
            answered = [entry["question_id"] for entry in predictions]
            metrics = evaluate_vqa(args.annotations, predictions, question_ids=answered)
            write_json(args.output / "metrics.json", metrics)
            print({"overall": round(metrics["overall"], 2), **metrics["per_answer_type"]})
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
