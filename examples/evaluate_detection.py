"""
Evaluates a GLIPv2 checkpoint on COCO, LVIS or ODinW, or on any COCO-format file.

    python examples/evaluate_detection.py --model MODEL --output outputs/coco-val \\
        --annotations annotations/instances_val2017.json --images val2017
    python examples/evaluate_detection.py --model MODEL --output outputs/lvis --benchmark lvis \\
        --annotations lvis_v1_minival.json --images coco2017
    python examples/evaluate_detection.py --model MODEL --output outputs/odinw --benchmark odinw \\
        --images odinw --sets 13

Runs on many processes with `accelerate launch`. Predictions are written as they come (`predictions/`, and at the end
`predictions.json`, a COCO or LVIS result file); after an interruption the same command goes on where it was. Scores go
to `metrics.json`. A file without annotations (COCO's test-dev) is predicted for the evaluation server, and not scored.

`--tta` detects at several scales, mirrored and not, and merges the boxes. `--masks` predicts and scores masks too.
ODinW fine-tuned per set: `--model outputs/finetuned/{set}`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.data.files import read_json, write_json, write_json_list
from transformers_glipv2.data.formats.coco import ImageFinder, used_categories
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.detector import (
    Detector,
    coco_entries,
    detect_augmented,
    encode_sentence,
    open_annotated_image,
)
from transformers_glipv2.evaluation.lvis import LABELS_PER_PROMPT, evaluate_lvis, evaluate_lvis_fixed
from transformers_glipv2.evaluation.odinw import odinw_sets, odinw_table, summarize_odinw
from transformers_glipv2.evaluation.shards import (
    PredictionShards,
    evaluation_accelerator,
    predict_in_shards,
    weights_id,
)
from transformers_glipv2.inference.detector import encode_labels, max_prompt_tokens
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.prompts import clean_labels

# Shortest edges in px; the longest is at most 5/3 of it, as 800 goes with 1333.
TTA_SIZES = (600, 800, 1000, 1200)
LONGEST_EDGE_RATIO = 1333 / 800


@dataclass
class Job:
    """One data set: its file's content, its images, and what to ask for."""

    name: str
    content: dict[str, Any]
    image_folder: Path
    labels: list[str]
    category_ids: list[int]
    sentence: tuple[str, list[tuple[int, int]]] | None = None


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id; with `{set}` one for each set of ODinW")
    add("--output", required=True, type=Path, help="folder for predictions and scores")
    add("--benchmark", choices=("coco", "lvis", "odinw"), default="coco", help="how to score (default: coco)")
    add("--annotations", type=Path, help="coco, lvis: the json file")
    add("--images", required=True, type=Path, help="folder of images; odinw: the folder of all data sets")
    add("--sets", nargs="+", default=["13"], help="odinw: 13, 35 or names (default: 13)")
    add("--split", choices=("train", "val", "test"), default="test", help="odinw (default: test)")
    add("--masks", action="store_true", help="predict masks and score them too")
    add("--tta", action="store_true", help="detect at several scales and mirrored, and merge boxes")
    add("--tta_sizes", type=int, nargs="+", default=TTA_SIZES, help=f"shortest edges in px (default: {TTA_SIZES})")
    add("--limit", type=int, help="only the first so many images of each set")
    add("--batch_size", type=int, default=1, help="images of a process at once (default: 1)")
    add("--num_workers", type=int, default=0, help="processes that read images, for each process (default: 0)")
    add("--labels_per_prompt", type=int, help=f"default: as many as fit; lvis: {LABELS_PER_PROMPT}")
    add("--max_detections", type=int, help="boxes of an image (default: 100; lvis: 300 of each prompt)")
    add("--threshold", type=float, default=0.05, help="on scores, before centerness (default: 0.05)")
    add("--images_per_file", type=int, default=32, help="of predictions; a kill loses at most so many (default: 32)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: what `accelerate launch` says, else no")
    args = parser.parse_args(arguments)
    if args.benchmark != "odinw" and args.annotations is None:
        parser.error("--annotations is needed for coco and lvis")
    if args.tta and args.masks:
        parser.error("--tta merges boxes only; run --masks without it")
    if args.labels_per_prompt is None and args.benchmark == "lvis":
        args.labels_per_prompt = LABELS_PER_PROMPT
    if args.max_detections is None and args.benchmark != "lvis":
        args.max_detections = 100
    return args


def jobs_of(args: argparse.Namespace) -> Iterator[Job]:
    """The data sets, one in memory at a time."""
    if args.benchmark != "odinw":
        content = read_json(args.annotations)
        categories = used_categories(content["categories"], content.get("annotations", ()))
        labels = clean_labels(list(categories.values()))
        yield Job(args.benchmark, content, args.images, labels, list(categories))
        return
    sets = odinw_sets(args.sets[0] if len(args.sets) == 1 else args.sets)
    files = {name: entry.annotation_file(args.images, args.split) for name, entry in sets.items()}
    missing = [f"{name} ({path})" for name, path in files.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"ODinW sets without annotations: {', '.join(missing)}; download them, or use --sets.")
    for name, entry in sets.items():
        content = read_json(files[name])
        yield Job(name, content, files[name].parent, entry.labels, entry.category_ids, entry.sentence())


def predict(job: Job, args: argparse.Namespace, accelerator: Accelerator) -> PredictionShards:
    """Predictions of all images of a data set, by all processes."""
    source = args.model.replace("{set}", job.name)
    processor = GLIPv2Processor.from_pretrained(source)
    model_class = GLIPv2ForInstanceSegmentation if args.masks else GLIPv2ForObjectDetection
    model = model_class.from_pretrained(source).to(accelerator.device).eval()
    if job.sentence is not None:
        places = list(range(len(job.labels)))
        prompts = [encode_sentence(*job.sentence, places, model, processor.tokenizer)]
    else:
        limit = min(processor.max_tokens, max_prompt_tokens(model, processor.tokenizer))
        prompts = encode_labels(job.labels, processor.tokenizer, limit, args.labels_per_prompt)
    detector = Detector(
        model, processor, prompts, args.threshold, max_detections=args.max_detections, masks=args.masks
    )
    images = job.content["images"][: args.limit]
    find = ImageFinder(job.image_folder)
    # LVIS v1 gives addresses, whose end names the file.
    names = [image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:]) for image in images]
    keep = ("benchmark", "split", "masks", "labels_per_prompt", "max_detections", "threshold", "batch_size")
    settings = {name: getattr(args, name) for name in keep} | {
        "weights": weights_id(source),
        "labels": job.labels,
        "tta_sizes": list(args.tta_sizes) if args.tta else None,
        "mixed_precision": accelerator.mixed_precision,
    }
    shards = PredictionShards(
        output_of(job, args) / "predictions", [image["id"] for image in images], settings, args.images_per_file
    )

    def load(position: int):
        image = images[position]
        return image, open_annotated_image(find(names[position]), (image["width"], image["height"]))

    def detect(items):
        entries, images = zip(*items, strict=True)
        target_sizes = [(image["height"], image["width"]) for image in entries]
        with accelerator.autocast():
            if args.tta:
                sizes = [{"shortest_edge": s, "longest_edge": round(s * LONGEST_EDGE_RATIO)} for s in args.tta_sizes]
                results = detect_augmented(detector, images, sizes, target_sizes=target_sizes)
            else:
                results = detector(images, target_sizes=target_sizes)
        return [
            coco_entries(image["id"], result, job.category_ids) for image, result in zip(entries, results, strict=True)
        ]

    predict_in_shards(shards, load, detect, accelerator, args.batch_size, args.num_workers, job.name)
    return shards


def score(job: Job, args: argparse.Namespace, shards: PredictionShards) -> dict[str, Any]:
    """Scores of a data set, on one process."""
    write_json_list(output_of(job, args) / "predictions.json", shards.predictions())
    failures = shards.failures()
    if failures:
        write_json(output_of(job, args) / "failures.json", failures)
        print(f"{len(failures)} images could not be read and count as empty; see failures.json")
    if "annotations" not in job.content:
        print(f"{job.name}: no annotations to score with; predictions.json is ready for an evaluation server")
        return {}
    common = {"image_ids": shards.keys}
    scores = {}
    for iou_type in ("bbox", "segm") if args.masks else ("bbox",):
        if args.benchmark == "lvis":
            scores[f"{iou_type}_fixed"] = evaluate_lvis_fixed(job.content, shards.predictions(), iou_type, **common)
            scores[f"{iou_type}_classic"] = evaluate_lvis(job.content, shards.predictions(), iou_type, **common)
        else:
            scores[iou_type] = evaluate_coco(job.content, shards.predictions(), iou_type, **common)
    return scores


def output_of(job: Job, args: argparse.Namespace) -> Path:
    return args.output / job.name if args.benchmark == "odinw" else args.output


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    accelerator = evaluation_accelerator(args.mixed_precision)
    metrics: dict[str, Any] = {}
    for job in jobs_of(args):
        shards = predict(job, args, accelerator)
        if accelerator.is_main_process:
            metrics[job.name] = score(job, args, shards)
            for kind, scores in metrics[job.name].items():
                # -1 says that there is nothing to average.
                shown = {name: value for name, value in scores.items() if name != "per_category" and value >= 0}
                numbers = {name: round(100 * value, 2) for name, value in shown.items()}
                print(job.name, kind, numbers)
    if accelerator.is_main_process:
        if args.benchmark == "odinw":
            each = {name: scores["bbox"]["AP"] for name, scores in metrics.items()}
            print(odinw_table({args.split: each}))
            metrics |= summarize_odinw(each)
        write_json(args.output / "metrics.json", metrics)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
