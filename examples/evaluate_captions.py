"""
Evaluates captions on COCO: BLEU, METEOR, ROUGE-L, CIDEr, and SPICE where its models are installed.

    python examples/evaluate_captions.py --model MODEL --annotations dataset_coco.json --split test --images coco \\
        --output outputs/captions

`--annotations` is COCO's caption file or, with `--split`, the file of Karpathy's splits. Captions are generated with
beam search. Runs on many processes with `accelerate launch`; after an interruption the same command goes on where it
was. Scores need Java (`--metrics BLEU` and the like too: the tokenizer is a Java program).
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.captions import load_coco_captions, load_karpathy_captions
from transformers_glipv2.data.files import write_json
from transformers_glipv2.evaluation.captions import DEFAULT_METRICS, METRICS, evaluate_captions
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    weights_id,
)
from transformers_glipv2.image_io import open_image
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    add("--annotations", required=True, type=Path, help="json of captions")
    add("--split", choices=("train", "restval", "val", "test"), help="of Karpathy's splits (default: COCO's own file)")
    add("--images", required=True, type=Path, help="folder of COCO's images")
    add("--output", required=True, type=Path, help="folder for predictions and scores")
    add("--prefix", default="", help="how captions begin; it is part of them (default: nothing)")
    add("--num_beams", type=int, default=5, help="of beam search; 1 is greedy (default: 5)")
    add("--max_new_tokens", type=int, default=30, help="(default: 30)")
    add("--metrics", nargs="+", choices=METRICS, default=DEFAULT_METRICS, help="(default: all but SPICE)")
    add("--limit", type=int, help="only the first so many images")
    add("--batch_size", type=int, default=1, help="images of a process at once (default: 1)")
    add("--num_workers", type=int, default=0, help="processes that read images, for each process (default: 0)")
    add("--images_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForConditionalGeneration.from_pretrained(args.model).to(accelerator.device).eval()

    if args.split:
        dataset = load_karpathy_captions(args.annotations, args.images, args.split, per_image=True)
    else:
        dataset = load_coco_captions(args.annotations, args.images, per_image=True)
    records = [dataset.records[index] for index in range(min(len(dataset), args.limit or len(dataset)))]
    settings = {name: getattr(args, name) for name in ("split", "prefix", "num_beams", "max_new_tokens", "batch_size")}
    settings |= {"weights": weights_id(args.model), "mixed_precision": accelerator.mixed_precision}
    image_ids = [record["image_id"] for record in records]
    shards = PredictionShards(args.output / "predictions", image_ids, settings, args.images_per_file)

    def load(position: int):
        return image_ids[position], open_image(records[position]["image_path"])

    @torch.no_grad()
    def caption(items):
        own_ids, images = zip(*items, strict=True)
        inputs = processor.image_processor(list(images), return_tensors="pt").to(accelerator.device)
        text = {}
        if args.prefix:
            text = processor(text=[args.prefix] * len(images), return_tensors="pt").to(accelerator.device)
        with accelerator.autocast():
            tokens = model.generate(
                pixel_values=inputs["pixel_values"],
                pixel_mask=inputs["pixel_mask"],
                num_beams=args.num_beams,
                max_new_tokens=args.max_new_tokens,
                do_sample=False,
                **text,
            )
        captions = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [[{"image_id": key, "caption": line.strip()}] for key, line in zip(own_ids, captions, strict=True)]

    predict_in_shards(shards, load, caption, accelerator, args.batch_size, args.num_workers, "captions")
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        predictions, failures = list(shards.predictions()), shards.failures()
        write_json(args.output / "predictions.json", predictions)
        if failures:
            write_json(args.output / "failures.json", failures)
            print(f"{len(failures)} images could not be read and are left out; see failures.json")
        references = [
            {"image_id": record["image_id"], "caption": text} for record in records for text in record["captions"]
        ]
        metrics = evaluate_captions({"annotations": references}, predictions, args.metrics)
        write_json(args.output / "metrics.json", metrics)
        print({name: round(100 * value, 2) for name, value in metrics.items() if name != "per_image"})
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
