"""
Evaluates masks of phrases on PhraseCut: mean and cumulative IoU, precision at IoU 0.5 to 0.9, and the subsets.

    python examples/evaluate_phrasecut.py --model MODEL --data VGPhraseCut_v0 --images VG_100K \\
        --output outputs/phrasecut

`--data` holds `refer_SPLIT.json`, `image_data_split.json` and `name_att_rel_count.json`. An image is encoded once for
all its phrases. Runs on many processes with `accelerate launch`; after an interruption the same command goes on.
"""

import argparse
from collections import defaultdict
from typing import Any

from transformers_glipv2.boxes import inclusive_xyxy_to_coco
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_model,
    add_output_folder,
    add_prediction,
    add_threshold,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.evaluation import predict_images, score_predictions, write_predictions
from transformers_glipv2.data.files import read_json
from transformers_glipv2.data.masks import encode_mask
from transformers_glipv2.evaluation.detector import open_annotated_image
from transformers_glipv2.evaluation.phrasecut import evaluate_phrasecut
from transformers_glipv2.evaluation.referring import segment_phrases
from transformers_glipv2.evaluation.shards import evaluation_accelerator
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    add("--data", required=True, type=InputFolder, help="folder of VGPhraseCut_v0")
    add("--images", required=True, type=InputFolder, help="folder of ID.jpg (Visual Genome)")
    add("--file_names", type=InputFile, help="JSON of {image id: file name}, where images are not named ID.jpg")
    add_output_folder(parser, "folder for predictions and scores")
    add("--split", choices=("train", "val", "test", "miniv"), default="test", help="(default: test)")
    add_threshold(parser, default=0.25, help="least score of a box to be part of the phrase's mask")
    add_prediction(parser, batch_size=False)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    accelerator = evaluation_accelerator(args.mixed_precision)
    tasks = read_json(args.data / f"refer_{args.split}.json")
    images = read_json(args.data / "image_data_split.json")
    sizes = {image["image_id"]: (image["width"], image["height"]) for image in images}
    names = read_json(args.file_names) if args.file_names else {}
    by_image = defaultdict(list)
    for task in tasks:
        by_image[task["image_id"]].append(task)
    image_ids = list(by_image)[: args.max_samples]
    model, processor = load_checkpoint(GLIPv2ForInstanceSegmentation, args.model, accelerator.device)

    def load(index: int):
        image_id = image_ids[index]
        path = args.images / names.get(str(image_id), f"{image_id}.jpg")
        return by_image[image_id], open_annotated_image(path, sizes[image_id])

    def segment_image(tasks, image):
        width, height = sizes[tasks[0]["image_id"]]
        phrases = [task["phrase"] for task in tasks]
        with accelerator.autocast():
            results = segment_phrases(model, processor, image, phrases, (height, width), args.threshold)
        return [
            {
                "task_id": task["task_id"],
                "mask": encode_mask(found["mask"].numpy()),
                "boxes": inclusive_xyxy_to_coco(found["boxes"]).tolist(),
            }
            for task, found in zip(tasks, results, strict=True)
        ]

    def segment(items):
        return [segment_image(tasks, image) for tasks, image in items]

    settings = {"split": args.split, "threshold": args.threshold}
    shards = predict_images(args, accelerator, image_ids, load, segment, "PhraseCut", settings)

    def score() -> dict[str, Any]:
        write_predictions(args.output, shards, "are left out")
        counts = args.data / "name_att_rel_count.json"
        metrics = evaluate_phrasecut(
            tasks,
            images,
            shards.predictions(),
            name_counts=counts if counts.is_file() else None,
            task_ids=[task["task_id"] for image_id in image_ids for task in by_image[image_id]],
        )
        print({name: metrics["all"][name] for name in ("count", "mean_mask_iou", "cum_mask_iou", "mask_precision")})
        return metrics

    return score_predictions(args, accelerator, score)


if __name__ == "__main__":
    run(main)
