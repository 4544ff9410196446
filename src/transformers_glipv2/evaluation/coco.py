"""
COCO box and mask average precision (Lin et al., "Microsoft COCO", ECCV 2014), by pycocotools.

>>> scores = evaluate_coco("instances_val2017.json", "results.json")
>>> scores["AP"], scores["per_category"][1]["AP"]
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.masks import encode_mask, mask_problem
from transformers_glipv2.evaluation.detections import (
    DetectionTable,
    detection_table,
    mean_or_minus_one,
    none_if_empty,
    read_annotations,
    subset_annotations,
    with_mask,
)

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")


def evaluate_coco(
    annotations: str | Path | Mapping[str, Any],
    predictions: str | Path | Iterable[Mapping[str, Any]] | DetectionTable,
    iou_type: str = "bbox",
    *,
    use_categories: bool = True,
    image_ids: Iterable[int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    The twelve COCO numbers and those of each category.

    Annotations are numbered anew, because pycocotools takes a match with the annotation of id 0 for none (Roboflow and
    ODinW files start at 0) and mixes up those that share an id.

    Args:
        annotations (`str`, `Path` or `Mapping`): a COCO instances file or its content.
        predictions (`str`, `Path`, `Iterable[Mapping]` or `DetectionTable`): a COCO result file or its entries:
            `image_id`, `category_id`, `score` and `bbox` (x, y, width, height in pixels) or `segmentation` (RLE of the
            image's size). With `iou_type="segm"` areas are those of the masks, whether or not there are boxes.
        iou_type (`str`, *optional*, defaults to `"bbox"`): "bbox" or "segm".
        use_categories (`bool`, *optional*, defaults to `True`): `False` lets any category match any other.
        image_ids (`Iterable[int]`, *optional*): score these images only; predictions of others are refused.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `dict`: AP, AP50, AP75, APs, APm, APl, AR@1, AR@10, AR@100, ARs, ARm, ARl as fractions, -1 where there is
        nothing to average; `per_category`: id -> {"name", "AP", "AP50", "AR@100"}, `None` for a category without
        ground truth (empty without `use_categories`).

    Raises:
        ValueError: when predictions name unknown images or categories or do not fit them.
    """
    content = read_annotations(annotations)
    if image_ids is not None:
        content = subset_annotations(content, image_ids)
    table = detection_table(predictions, content, iou_type)
    evaluation = _Evaluation(_ground_truth(content, iou_type), _detections(content, table), iou_type)
    evaluation.params.useCats = int(use_categories)
    count = (len(content["categories"]) if use_categories else 1) * len(content["images"])
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tqdm(
            total=count * len(evaluation.params.areaRng), desc=f"COCO {iou_type}", disable=not progress, unit=" pairs"
        ) as evaluation.bar,
    ):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    results: dict[str, Any] = dict(zip(STATISTICS, map(float, evaluation.stats), strict=True))
    results["per_category"] = _per_category(evaluation, content) if use_categories else {}
    return results


def truth_entries(
    example: Mapping[str, Any], category_ids: Mapping[str, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    An example of `load_coco` as entries of `images` and `annotations`, so that scores are of what was accepted.

    Args:
        example (`Mapping`): with `width`, `height` and `objects`; no image is needed.
        category_ids (`Mapping[str, int]`): by class name.

    Returns:
        `tuple[dict, list[dict]]`: annotations have no "id"; `evaluate_coco` numbers them.
    """
    image = {"id": example["image_id"], "width": example["width"], "height": example["height"]}
    objects = example["objects"]
    entries = [
        {"image_id": image["id"], "category_id": category_ids[name], "bbox": box, "area": area, "iscrowd": crowd}
        for name, box, area, crowd in zip(
            objects["category"], objects["bbox"], objects["area"], objects["iscrowd"], strict=True
        )
    ]
    for entry, mask in zip(entries, objects.get("segmentation", ()), strict=False):
        if mask is not None:
            entry["segmentation"] = encode_mask(mask) if isinstance(mask, np.ndarray) else mask
    return image, entries


def scored_content(dataset: ImageDataset, max_samples: int | None = None) -> dict[str, Any]:
    """
    The ground truth of a data set, as `evaluate_coco` takes it, with whole numbers for ids. No image is decoded.

    Args:
        dataset (`ImageDataset`): of `load_coco` or `open_dataset`, for scoring.
        max_samples (`int`, *optional*): only the first so many images.

    Returns:
        `dict`: `images`, each with its position in the data set as "index" and its id there as "name", `annotations`
        and `categories`.
    """
    names = dataset.class_names or []
    numbers = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(min(len(dataset), max_samples or len(dataset))):
        example = dataset.read_upright(index)
        if example is None:
            continue
        image, entries = truth_entries(example, numbers)
        number = len(images) + 1
        images.append({**image, "id": number, "index": index, "name": str(image["id"])})
        for entry in entries:
            annotations.append({**entry, "image_id": number, "id": len(annotations) + 1})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def numbered(
    content: Mapping[str, Any], predictions: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and predictions with whole numbers in place of any ids, as `evaluate_coco` needs them."""
    images = {image["id"]: index for index, image in enumerate(content["images"])}
    categories = {category["id"]: index for index, category in enumerate(content["categories"])}

    def with_ids(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**entry, "image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}
            for entry in entries
        ]

    truth = {
        "images": [{**image, "id": images[image["id"]]} for image in content["images"]],
        "annotations": with_ids(content["annotations"]),
        "categories": [{**category, "id": categories[category["id"]]} for category in content["categories"]],
    }
    return truth, with_ids(predictions)


class _Evaluation(COCOeval):
    """pycocotools' evaluation with a progress bar."""

    def evaluateImg(self, *args: Any) -> dict[str, Any] | None:  # noqa: N802 (pycocotools' name)
        self.bar.update()
        return super().evaluateImg(*args)


def _ground_truth(content: Mapping[str, Any], iou_type: str) -> COCO:
    entries = content["annotations"] if iou_type == "bbox" else with_mask(content["annotations"])
    if iou_type == "segm":
        sizes = {image["id"]: (image.get("height"), image.get("width")) for image in content["images"]}
        for entry in entries:
            height, width = sizes.get(entry["image_id"], (None, None))
            problem = mask_problem(entry["segmentation"], height, width) if height and width else None
            if problem:
                raise ValueError(f"annotation {entry.get('id')!r} of image {entry['image_id']!r}: {problem}.")
    return _coco(content, [{**entry, "id": index + 1} for index, entry in enumerate(entries)])


def _detections(content: Mapping[str, Any], table: DetectionTable) -> COCO:
    # `COCO.loadRes` fails on an empty list and takes a mask's area from its box where there is one.
    entries = [
        {"id": index + 1, "image_id": image_id, "category_id": category_id, "score": score, "bbox": box, "area": area}
        for index, (image_id, category_id, score, box, area) in enumerate(
            zip(
                table.image_ids.tolist(),
                table.category_ids.tolist(),
                table.scores.tolist(),
                table.boxes.tolist(),
                table.areas().tolist(),
                strict=True,
            )
        )
    ]
    for entry, mask in zip(entries, table.masks or (), strict=False):
        entry["segmentation"] = mask
    return _coco(content, entries)


def _coco(content: Mapping[str, Any], entries: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": content["images"], "categories": content["categories"], "annotations": entries}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _per_category(evaluation: COCOeval, content: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    # (thresholds, recalls, categories) and (thresholds, categories) over all areas with 100 detections
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    recall = evaluation.eval["recall"][:, :, 0, -1]
    at_half = int(np.flatnonzero(evaluation.params.iouThrs == 0.5)[0])
    return {
        int(category_id): {
            "name": names[category_id],
            "AP": none_if_empty(mean_or_minus_one(precision[:, :, index])),
            "AP50": none_if_empty(mean_or_minus_one(precision[at_half, :, index])),
            "AR@100": none_if_empty(mean_or_minus_one(recall[:, index])),
        }
        for index, category_id in enumerate(evaluation.params.catIds)
    }
