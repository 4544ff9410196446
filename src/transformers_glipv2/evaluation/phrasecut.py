"""
PhraseCut: masks of phrases (Wu et al., "PhraseCut", CVPR 2020): mean and cumulative IoU and precision at IoU 0.5-0.9,
over all phrases and over the subsets of the paper.

The subsets by kind of attribute (a_color and the like) and stuff against objects need word lists that are published
only as code, and are left out.

>>> evaluate_phrasecut("refer_test.json", "image_data_split.json", "predictions.json")["all"]["mean_mask_iou"]
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from transformers_glipv2.data.masks import decode_mask
from transformers_glipv2.evaluation.detections import content_of

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_COCO_CLASSES = (
    "person/bicycle/car/motorcycle/airplane/bus/train/truck/boat/traffic light/fire hydrant/stop sign/parking meter/"
    "bench/bird/cat/dog/horse/sheep/cow/elephant/bear/zebra/giraffe/backpack/umbrella/handbag/tie/suitcase/frisbee/"
    "skis/snowboard/sports ball/kite/baseball bat/baseball glove/skateboard/surfboard/tennis racket/bottle/wine glass/"
    "cup/fork/knife/spoon/bowl/banana/apple/sandwich/orange/broccoli/carrot/hot dog/pizza/donut/cake/chair/couch/"
    "potted plant/bed/dining table/toilet/tv/laptop/mouse/remote/keyboard/cell phone/microwave/oven/toaster/sink/"
    "refrigerator/book/clock/vase/scissors/teddy bear/hair drier/toothbrush"
)
COCO_CLASSES = frozenset(_COCO_CLASSES.split("/"))


def evaluate_phrasecut(
    tasks: str | Path | Sequence[Mapping[str, Any]],
    images: str | Path | Sequence[Mapping[str, Any]],
    predictions: str | Path | Iterable[Mapping[str, Any]],
    *,
    name_counts: str | Path | Mapping[str, Any] | None = None,
    task_ids: Iterable[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Scores of predicted masks, and of boxes where there are some.

    Args:
        tasks (`str`, `Path` or `Sequence[Mapping]`): `refer_SPLIT.json` or its content.
        images (`str`, `Path` or `Sequence[Mapping]`): `image_data_split.json` or its content, for sizes.
        predictions (`str`, `Path` or `Iterable[Mapping]`): a folder of `TASK_ID.png` (not 0 = the phrase), a json
            file, or entries: `task_id`, `mask` (COCO RLE or a `(height, width)` array) and, if wanted, `boxes`
            (x, y, width, height in pixels).
        name_counts (`str`, `Path` or `Mapping`, *optional*): `name_att_rel_count.json` or its content, for the subsets
            by frequency (c20, a100, ...).
        task_ids (`Iterable[str]`, *optional*): score these phrases only; predictions of others are refused.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `dict`: "all" and each subset: {"count", "mean_mask_iou", "cum_mask_iou", "mask_precision": {threshold:
        fraction with an IoU strictly above it}, and with boxes "mean_box_iou", "box_precision"}; a subset without
        phrases has its count only. Beside them "tasks", "evaluated_tasks", and "mean_mask_iou_over_all_tasks", where a
        phrase without prediction counts 0 (it is left out of all other numbers, as the official evaluator does), and
        "per_task": id -> {"mask_iou", "box_iou", "subsets"}.

    Raises:
        ValueError: when a phrase is unknown or predicted twice, or a mask is not of its image's size.
    """
    by_id = {task["task_id"]: task for task in content_of(tasks)}
    if task_ids is not None:
        kept = set(task_ids)
        by_id = {task_id: task for task_id, task in by_id.items() if task_id in kept}
    sizes = {image["image_id"]: image for image in content_of(images)}
    ranks = _Ranks(content_of(name_counts)) if name_counts is not None else None
    scores: dict[str, dict[str, Any]] = {}
    for prediction in tqdm(_predictions(predictions), desc="PhraseCut", unit=" phrases", disable=not progress):
        task_id = prediction["task_id"]
        if task_id not in by_id:
            raise ValueError(f"`predictions` hold the phrase {task_id!r}, which the tasks lack; is it another split?")
        if task_id in scores:
            raise ValueError(f"`predictions` hold the phrase {task_id!r} twice; keep one.")
        task = by_id[task_id]
        scores[task_id] = _score_task(task, sizes[task["image_id"]], prediction, ranks)
    return _summary(scores, len(by_id))


def phrase_mask(polygons: Sequence[Sequence[Sequence[Sequence[float]]]], height: int, width: int) -> np.ndarray:
    """
    The true mask of a phrase, drawn as the official evaluator draws it.

    Args:
        polygons (`Sequence`): instances -> polygons -> [x, y] points in pixels, truncated to whole ones.
        height, width (`int`): of the image, in pixels.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool: the union of all instances.
    """
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for instance in polygons:
        for polygon in instance:
            if len(polygon) > 1:
                draw.polygon([(int(x), int(y)) for x, y in polygon], outline=1, fill=1)
    return np.asarray(canvas, dtype=bool)


def boxes_iou(predicted: Sequence[Sequence[float]], true: Sequence[Sequence[float]]) -> float:
    """
    IoU of two unions of boxes x, y, width, height in pixels, with the official rounding: corners are truncated, and
    the last row and column are left out twice. Boxes are not cut to the image; a corner at negative coordinates
    counts from the other end, which mostly empties the box.
    """
    boxes = [*predicted, *true]
    height = int(max((y + box_height for _, y, _, box_height in boxes), default=0))
    width = int(max((x + box_width for x, _, box_width, _ in boxes), default=0))
    masks = np.zeros((2, max(height, 0), max(width, 0)), dtype=bool)
    for mask, rows in zip(masks, (predicted, true), strict=True):
        for x, y, box_width, box_height in rows:
            mask[int(y) : int(y + box_height - 1), int(x) : int(x + box_width - 1)] = True
    return mask_iou(*masks)[0]


def mask_iou(predicted: np.ndarray, true: np.ndarray) -> tuple[float, int, int]:
    """IoU, intersection and union in pixels of two bool masks; the IoU is 0 where they do not meet."""
    intersection = int(np.logical_and(predicted, true).sum())
    union = int(np.logical_or(predicted, true).sum())
    return (intersection / union if intersection else 0.0), intersection, union


class _Ranks:
    """Places of names and attributes by frequency, from 0; a word that is not listed comes last."""

    def __init__(self, counts: Mapping[str, Sequence[Sequence[Any]]]):
        self.names = {name: rank for rank, (name, _) in reversed(list(enumerate(counts["cat"])))}
        self.attributes = {name: rank for rank, (name, _) in reversed(list(enumerate(counts["att"])))}


def phrase_subsets(
    task: Mapping[str, Any], gt_fraction: float, image: Mapping[str, Any], ranks: Any = None
) -> list[str]:
    """
    The subsets that a phrase belongs to, in the official evaluator's names.

    Args:
        task (`Mapping`): an entry of `refer_SPLIT.json`.
        gt_fraction (`float`): pixels of its true mask over those of the image.
        image (`Mapping`): its entry of `image_data_split.json`.
        ranks: of names and attributes; without them the subsets by frequency are left out.
    """
    structure = task["phrase_structure"]
    attributes, relations = structure.get("attributes") or (), structure.get("relation_descriptions") or ()
    instances = len(task["instance_boxes"])
    kind = structure["type"]
    conditions = {
        "all": True,
        "c_coco": structure["name"] in COCO_CLASSES,
        "i_single": instances == 1,
        "i_multi": 1 < instances <= 4,
        "i_many": instances > 4,
        "p_name": kind == "name",
        "p_att": bool(attributes),
        "p_att+": kind == "attribute",
        "p_attm": len(attributes) > 1,
        "p_rel": bool(relations),
        "p_rel+": kind == "relation",
        "p_relm": len(relations) > 1,
        "p_att_rel": bool(attributes) and bool(relations),
        "p_verbose": kind == "verbose",
        "s_small": gt_fraction < 0.02,
        "s_mid": 0.02 <= gt_fraction <= 0.2,
        "s_large": gt_fraction > 0.2,
        "d_cocotv": image.get("coco_id") is not None,
        "d_notcocotv": image.get("coco_id") is None,
    }
    if ranks is not None:
        last = 10**9
        name = ranks.names.get(structure["name"], last)
        attribute = min((ranks.attributes.get(word, last) for word in attributes), default=last)
        for letter, rank, (first, second, third) in (("c", name, (20, 100, 500)), ("a", attribute, (20, 100, 200))):
            conditions |= {
                f"{letter}{first}": rank < first,
                f"{letter}{second}": rank < second,
                f"{letter}{third}": rank < third,
                f"{letter}{first + 1}-{second}": first <= rank < second,
                f"{letter}{second + 1}-{third}": second <= rank < third,
                f"{letter}{third}+": rank >= third,
            }
    return [name for name, belongs in conditions.items() if belongs]


def _predictions(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        return (
            {"task_id": path.stem, "mask": np.asarray(Image.open(path)) != 0}
            for path in sorted(Path(source).glob("*.png"))
        )
    return content_of(source)


def _score_task(
    task: Mapping[str, Any], image: Mapping[str, Any], prediction: Mapping[str, Any], ranks: _Ranks | None
) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    _check_extent([point for instance in task["Polygons"] for part in instance for point in part], height, width, task)
    corners = [
        point
        for x, y, box_width, box_height in (*(prediction.get("boxes") or ()), *(task.get("instance_boxes") or ()))
        for point in ((x, y), (x + box_width, y + box_height))
    ]
    _check_extent(corners, height, width, task)
    try:
        predicted = decode_mask(prediction["mask"], height, width)
    except ValueError as error:
        raise ValueError(f"the phrase {task['task_id']!r}: {error}") from error
    if predicted is None:
        raise ValueError(f"the prediction of the phrase {task['task_id']!r} has no mask; pass one, empty or not.")
    true = phrase_mask(task["Polygons"], height, width)
    iou, intersection, union = mask_iou(predicted, true)
    scores = {
        "mask_iou": iou,
        "intersection": intersection,
        "union": union,
        "subsets": phrase_subsets(task, true.sum() / true.size, image, ranks),
    }
    if prediction.get("boxes") is not None:
        scores["box_iou"] = boxes_iou(prediction["boxes"], task["instance_boxes"])
    return scores


def _check_extent(points: Sequence[Sequence[float]], height: int, width: int, task: Mapping[str, Any]) -> None:
    """Raises ValueError for points far outside of the image: drawing them takes memory by their distance."""
    # Comparisons are false for NaN.
    wrong = next((p for p in points if not (abs(p[0]) <= 10 * width and abs(p[1]) <= 10 * height)), None)
    if wrong is not None:
        raise ValueError(
            f"the phrase {task['task_id']!r} has the point {list(wrong)} in polygons or boxes, far outside of its "
            f"image of {width} x {height} pixels."
        )


def _summary(scores: Mapping[str, Mapping[str, Any]], num_tasks: int) -> dict[str, Any]:
    members: dict[str, list[Mapping[str, Any]]] = {"all": []}
    for entry in scores.values():
        for name in entry["subsets"]:
            members.setdefault(name, []).append(entry)
    results: dict[str, Any] = {name: mean_scores(entries) for name, entries in members.items()}
    results["tasks"] = num_tasks
    results["evaluated_tasks"] = len(scores)
    results["mean_mask_iou_over_all_tasks"] = sum(entry["mask_iou"] for entry in scores.values()) / max(num_tasks, 1)
    results["per_task"] = dict(scores)
    return results


def mean_scores(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    The benchmark's numbers over some phrases.

    Args:
        entries (`Sequence[Mapping]`): of each phrase "mask_iou", "intersection" and "union" as `mask_iou` gives them,
            and maybe "box_iou".

    Returns:
        `dict`: as a subset's of `evaluate_phrasecut`.
    """
    results: dict[str, Any] = {"count": len(entries)}
    if not entries:
        return results
    ious = np.array([entry["mask_iou"] for entry in entries])
    results["mean_mask_iou"] = float(ious.mean())
    union = sum(entry["union"] for entry in entries)
    results["cum_mask_iou"] = sum(entry["intersection"] for entry in entries) / union if union else 0.0
    results["mask_precision"] = {threshold: float((ious > threshold).mean()) for threshold in THRESHOLDS}
    box_ious = np.array([entry["box_iou"] for entry in entries if "box_iou" in entry])
    if len(box_ious) == len(entries):
        results["mean_box_iou"] = float(box_ious.mean())
        results["box_precision"] = {threshold: float((box_ious > threshold).mean()) for threshold in THRESHOLDS}
    return results
