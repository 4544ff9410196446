"""Grounded captions: how many of their phrases are true, and how many of those have the right box."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchvision.ops import box_convert, box_iou

ARTICLES = ("a ", "an ", "the ")
# "a picture of ..." claims nothing.
NO_CLAIMS = ("picture", "image")


def grounded_caption_scores(
    examples: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], iou_threshold: float = 0.5
) -> dict[str, float]:
    """
    Scores captions and their boxes against images whose objects have phrases.

    A phrase is true where the image has objects of that phrase (articles and case aside), and its box is right where
    it overlaps one of them. "An image" does not count.

    Args:
        examples: of the schema, with `objects` of "bbox" and "phrase".
        results: one an example, {"phrases": a list of {"phrase", "boxes"}} as `caption_and_ground` gives them; the
            first box of a phrase counts.
        iou_threshold: from which a box overlaps.

    Returns:
        In percent, -1 where there is nothing to average: "phrase_precision", the fraction of phrases that are true;
        "phrase_recall", the fraction of the images' phrases that are mentioned; "R@1", the fraction of true phrases
        whose box is right.

    Raises:
        ValueError: when examples and results differ in number.
    """
    if len(examples) != len(results):
        raise ValueError(f"There are {len(results)} captions for {len(examples)} images; pass one for each.")
    mentioned = true = right = known = found = 0
    for example, result in zip(examples, results, strict=True):
        objects: dict[str, list[Sequence[float]]] = {}
        for box, phrase in zip(example["objects"]["bbox"], example["objects"]["phrase"], strict=True):
            objects.setdefault(bare(phrase), []).append(box)
        phrases = [(bare(phrase["phrase"]), phrase["boxes"]) for phrase in result["phrases"]]
        phrases = [(name, boxes) for name, boxes in phrases if name not in NO_CLAIMS]
        mentioned += len(phrases)
        known += len(objects)
        found += len(objects.keys() & {name for name, _ in phrases})
        for name, boxes in phrases:
            if name in objects:
                true += 1
                truths = box_convert(torch.tensor(objects[name], dtype=torch.float32), "xywh", "xyxy")
                right += bool(len(boxes)) and bool((box_iou(boxes[:1].float().cpu(), truths) >= iou_threshold).any())
    return {
        "phrase_precision": _percent(true, mentioned),
        "phrase_recall": _percent(found, known),
        "R@1": _percent(right, true),
    }


def bare(phrase: str) -> str:
    """In lower case, without an article before it."""
    phrase = phrase.strip().lower()
    return next((phrase[len(article) :] for article in ARTICLES if phrase.startswith(article)), phrase)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else -1.0
