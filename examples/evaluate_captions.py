"""
Evaluates captions on COCO: BLEU, METEOR, ROUGE-L, CIDEr, and SPICE where its models are installed.

    python examples/evaluate_captions.py --model MODEL --annotations dataset_coco.json --split test --images coco \\
        --output outputs/captions

`--annotations` is COCO's caption file or, with `--split`, the file of Karpathy's splits. Captions are generated with
beam search. Runs on many processes with `accelerate launch`; after an interruption the same command goes on where it
was. Scores need Java (`--metrics BLEU` and the like too: the tokenizer is a Java program).
"""

import argparse
from typing import Any

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_generation,
    add_model,
    add_output_folder,
    add_prediction,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import (
    generate_captions,
    predict_images,
    score_predictions,
    write_predictions,
)
from transformers_glipv2.data.captions import load_coco_captions, load_karpathy_captions
from transformers_glipv2.evaluation.captions import DEFAULT_METRICS, METRICS, evaluate_captions
from transformers_glipv2.evaluation.shards import evaluation_accelerator
from transformers_glipv2.images.image_io import open_image
from transformers_glipv2.inference.detector import Detector
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    add("--annotations", required=True, type=InputFile, help="JSON file of captions")
    add("--split", choices=("train", "restval", "val", "test"), help="of Karpathy's splits (default: COCO's own file)")
    add("--images", required=True, type=InputFolder, help="folder of COCO's images")
    add_output_folder(parser, "folder for predictions and scores")
    add("--prefix", default="", help="how captions begin; it is part of them (default: nothing)")
    add_generation(parser)
    add("--metrics", nargs="+", choices=METRICS, default=DEFAULT_METRICS, help="(default: all but SPICE)")
    add_prediction(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    accelerator = evaluation_accelerator(args.mixed_precision)
    if args.split:
        dataset = load_karpathy_captions(args.annotations, args.images, args.split, per_image=True)
    else:
        dataset = load_coco_captions(args.annotations, args.images, per_image=True)
    records = [dataset.records[index] for index in range(min(len(dataset), args.max_samples or len(dataset)))]
    image_ids = [record["image_id"] for record in records]
    loaded = load_checkpoint(GLIPv2ForConditionalGeneration, args.model, accelerator.device)
    detector = Detector(*loaded, batch_size=args.batch_size, progress=False)

    def load(index: int):
        return image_ids[index], open_image(records[index]["image_path"])

    def caption(items):
        own_ids, images = zip(*items, strict=True)
        with accelerator.autocast():
            captions = generate_captions(detector, images, args.num_beams, args.max_new_tokens, args.prefix)
        return [[{"image_id": key, "caption": caption}] for key, caption in zip(own_ids, captions, strict=True)]

    settings = {name: getattr(args, name) for name in ("split", "prefix", "num_beams", "max_new_tokens")}
    shards = predict_images(args, accelerator, image_ids, load, caption, "captions", settings)

    def score() -> dict[str, Any]:
        write_predictions(args.output, shards, "are left out")
        references = [
            {"image_id": record["image_id"], "caption": text} for record in records for text in record["captions"]
        ]
        metrics = evaluate_captions({"annotations": references}, list(shards.predictions()), args.metrics)
        print({name: round(100 * value, 2) for name, value in metrics.items() if name != "per_image"})
        return metrics

    return score_predictions(args, accelerator, score)


if __name__ == "__main__":
    run(main)
