"""
Evaluates masks of phrases on PhraseCut: mean and cumulative IoU, precision at IoU 0.5 to 0.9, and the subsets.

    python examples/evaluate_phrasecut.py --model MODEL --data VGPhraseCut_v0 --images VG_100K \\
        --output outputs/phrasecut

`--data` holds `refer_SPLIT.json`, `image_data_split.json` and `name_att_rel_count.json`. An image is encoded once for
all its phrases. Runs on many processes with `accelerate launch`; after an interruption the same command goes on.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.boxes import inclusive_xyxy_to_coco
from transformers_glipv2.data.files import read_json, write_json, write_json_list
from transformers_glipv2.data.masks import encode_mask
from transformers_glipv2.evaluation.detector import open_annotated_image
from transformers_glipv2.evaluation.phrasecut import evaluate_phrasecut
from transformers_glipv2.evaluation.referring import segment_phrases
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    weights_id,
)
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id")
    add("--data", required=True, type=Path, help="folder of VGPhraseCut_v0")
    add("--images", required=True, type=Path, help="folder of ID.jpg (Visual Genome)")
    add("--file_names", type=Path, help="json of {image id: file name}, where images are not named ID.jpg")
    add("--output", required=True, type=Path, help="folder for predictions and scores")
    add("--split", choices=("train", "val", "test", "miniv"), default="test", help="(default: test)")
    add("--threshold", type=float, default=0.25, help="on the score of a box to count as the phrase (default: 0.25)")
    add("--limit", type=int, help="only the first so many images")
    add("--num_workers", type=int, default=0, help="processes that read images, for each process (default: 0)")
    add("--images_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForInstanceSegmentation.from_pretrained(args.model).to(accelerator.device).eval()

    tasks = read_json(args.data / f"refer_{args.split}.json")
    images = read_json(args.data / "image_data_split.json")
    sizes = {image["image_id"]: (image["width"], image["height"]) for image in images}
    names = read_json(args.file_names) if args.file_names else {}
    by_image = defaultdict(list)
    for task in tasks:
        by_image[task["image_id"]].append(task)
    image_ids = list(by_image)[: args.limit]
    settings = {"split": args.split, "threshold": args.threshold, "weights": weights_id(args.model)}
    settings |= {"mixed_precision": accelerator.mixed_precision}
    shards = PredictionShards(args.output / "predictions", image_ids, settings, args.images_per_file)

    def load(position: int):
        image_id = image_ids[position]
        path = args.images / names.get(str(image_id), f"{image_id}.jpg")
        return by_image[image_id], open_annotated_image(path, sizes[image_id])

    def segment(items):
        return [segment_image(tasks, image) for tasks, image in items]

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

    predict_in_shards(shards, load, segment, accelerator, num_workers=args.num_workers, description="PhraseCut")
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        write_json_list(args.output / "predictions.json", shards.predictions())
        failures = shards.failures()
        if failures:
            write_json(args.output / "failures.json", failures)
            print(f"{len(failures)} images could not be read and are left out; see failures.json")
        counts = args.data / "name_att_rel_count.json"
        metrics = evaluate_phrasecut(
            tasks,
            images,
            shards.predictions(),
            name_counts=counts if counts.is_file() else None,
            task_ids=[task["task_id"] for image_id in image_ids for task in by_image[image_id]],
        )
        write_json(args.output / "metrics.json", metrics)
        print({name: metrics["all"][name] for name in ("count", "mean_mask_iou", "cum_mask_iou", "mask_precision")})
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
