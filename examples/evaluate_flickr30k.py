"""
Evaluates phrase grounding on Flickr30k Entities: recall at 1, 5 and 10, any-box and merged-boxes.

    python examples/evaluate_flickr30k.py --model MODEL --data flickr30k_entities --images flickr30k-images \\
        --output outputs/flickr30k

`--data` holds `Annotations/`, `Sentences/` and `test.txt`. An image is encoded once for its five sentences. Runs on
many processes with `accelerate launch`; after an interruption the same command goes on where it was.
"""

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.data.files import write_json, write_json_list
from transformers_glipv2.evaluation.detector import open_annotated_image
from transformers_glipv2.evaluation.flickr30k import evaluate_flickr30k, flickr30k_annotations
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    weights_id,
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    add("--data", required=True, type=Path, help="folder of Flickr30k Entities")
    add("--images", required=True, type=Path, help="folder of ID.jpg")
    add("--output", required=True, type=Path, help="folder for predictions and scores")
    add("--split", choices=("train", "val", "test"), default="test", help="(default: test)")
    add("--top_k", type=int, default=100, help="boxes of a phrase, of which ten and all are scored (default: 100)")
    add("--threshold", type=float, default=0.0, help="on scores, before centerness (default: 0)")
    add("--limit", type=int, help="only the first so many images")
    add("--num_workers", type=int, default=0, help="processes that read images, for each process (default: 0)")
    add("--images_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForObjectDetection.from_pretrained(args.model).to(accelerator.device).eval()

    annotations = flickr30k_annotations(args.data, args.split, progress=accelerator.is_main_process)
    evaluated = [sentence for sentence in annotations if sentence["phrases"]]
    by_image = {key: list(group) for key, group in groupby(evaluated, key=lambda sentence: sentence["image_id"])}
    image_ids = list(by_image)[: args.limit]
    settings = {name: getattr(args, name) for name in ("split", "top_k", "threshold")}
    settings |= {"weights": weights_id(args.model), "mixed_precision": accelerator.mixed_precision}
    shards = PredictionShards(args.output / "predictions", image_ids, settings, args.images_per_file)

    def load(position: int):
        sentences = by_image[image_ids[position]]
        path = args.images / f"{image_ids[position]}.jpg"
        return sentences, open_annotated_image(path, (sentences[0]["width"], sentences[0]["height"]))

    @torch.no_grad()
    def ground(items):
        return [ground_image(sentences, image) for sentences, image in items]

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

    predict_in_shards(shards, load, ground, accelerator, num_workers=args.num_workers, description="Flickr30k")
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        failures = shards.failures()
        write_json_list(args.output / "predictions.json", shards.predictions())
        if failures:
            write_json(args.output / "failures.json", failures)
            print(f"{len(failures)} images could not be read and are left out; see failures.json")
        scored = [image_id for image_id in image_ids if image_id not in failures]
        metrics = evaluate_flickr30k(annotations, shards.predictions(), image_ids=scored)
        write_json(args.output / "metrics.json", metrics)
        for protocol in ("any_box", "merged_boxes"):
            print(protocol, {name: round(100 * values["all"], 2) for name, values in metrics[protocol].items()})
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
