"""
Evaluates phrase grounding on Flickr30k Entities: recall at 1, 5 and 10, any-box and merged-boxes.

    python examples/evaluate_flickr30k.py --model MODEL --data flickr30k_entities --images flickr30k-images \\
        --output outputs/flickr30k

`--data` holds `Annotations/`, `Sentences/` and `test.txt`. An image is encoded once for its five sentences. Runs on
many processes with `accelerate launch`; after an interruption the same command goes on where it was.
"""

import argparse
from itertools import groupby
from typing import Any

import torch

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    InputFolder,
    ScriptParser,
    add_model,
    add_output_folder,
    add_prediction,
    add_threshold,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import predict_images, score_predictions, write_predictions
from transformers_glipv2.evaluation.detector import open_annotated_image
from transformers_glipv2.evaluation.flickr30k import evaluate_flickr30k, flickr30k_annotations
from transformers_glipv2.evaluation.shards import evaluation_accelerator


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    add("--data", required=True, type=InputFolder, help="folder of Flickr30k Entities")
    add("--images", required=True, type=InputFolder, help="folder of ID.jpg")
    add_output_folder(parser, "folder for predictions and scores")
    add("--split", choices=("train", "val", "test"), default="test", help="(default: test)")
    add("--top_k", type=positive_int, default=100, help="boxes of a phrase, of which 10 and all count (default: 100)")
    add_threshold(parser, default=0.0)
    add_prediction(parser, batch_size=False)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    accelerator = evaluation_accelerator(args.mixed_precision)
    annotations = flickr30k_annotations(args.data, args.split, progress=accelerator.is_main_process)
    evaluated = [sentence for sentence in annotations if sentence["phrases"]]
    by_image = {key: list(group) for key, group in groupby(evaluated, key=lambda sentence: sentence["image_id"])}
    image_ids = list(by_image)[: args.max_samples]
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model, accelerator.device)

    def load(index: int):
        sentences = by_image[image_ids[index]]
        path = args.images / f"{image_ids[index]}.jpg"
        return sentences, open_annotated_image(path, (sentences[0]["width"], sentences[0]["height"]))

    @torch.no_grad()
    def ground_image(sentences, image):
        inputs = processor.image_processor([image], return_tensors="pt").to(accelerator.device)
        entries = []
        with accelerator.autocast():
            features = model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
            for sentence in sentences:
                text = processor(text=[sentence["text"]], return_tensors="pt").to(accelerator.device)
                found = processor.post_process_phrase_grounding(
                    model(image_features=features, **text),
                    text=[sentence["text"]],
                    phrases=[[tuple(phrase["span"]) for phrase in sentence["phrases"]]],
                    target_sizes=[(sentence["height"], sentence["width"])],
                    top_k=args.top_k,
                    threshold=args.threshold,
                )[0]
                entries.append(
                    {
                        "image_id": sentence["image_id"],
                        "sentence_id": sentence["sentence_id"],
                        "boxes": [phrase["boxes"].tolist() for phrase in found],
                        "scores": [phrase["scores"].tolist() for phrase in found],
                    }
                )
        return entries

    def ground(items):
        return [ground_image(sentences, image) for sentences, image in items]

    settings = {name: getattr(args, name) for name in ("split", "top_k", "threshold")}
    shards = predict_images(args, accelerator, image_ids, load, ground, "Flickr30k", settings)

    def score() -> dict[str, Any]:
        failures = write_predictions(args.output, shards, "are left out")
        scored = [image_id for image_id in image_ids if image_id not in failures]
        metrics = evaluate_flickr30k(annotations, shards.predictions(), image_ids=scored)
        for protocol in ("any_box", "merged_boxes"):
            print(protocol, {name: round(100 * values["all"], 2) for name, values in metrics[protocol].items()})
        return metrics

    return score_predictions(args, accelerator, score)


if __name__ == "__main__":
    run(main)
