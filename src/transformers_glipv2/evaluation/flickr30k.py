"""
Flickr30k Entities phrase grounding: recall at 1, 5 and 10 and its upper bound (Plummer et al., ICCV 2015), by the
ANY-BOX and MERGED-BOXES protocols (Kamath et al., "MDETR", ICCV 2021).

>>> annotations = flickr30k_annotations("flickr30k_entities", "test")
>>> evaluate_flickr30k(annotations, "predictions.json")["any_box"]["recall@1"]["all"]
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from transformers_glipv2.data.files import read_text
from transformers_glipv2.data.flickr30k import read_annotation, read_sentences
from transformers_glipv2.evaluation.detections import content_of

PROTOCOLS = ("any_box", "merged_boxes")
IOU_THRESHOLD = 0.5


def flickr30k_annotations(folder: str | Path, split: str = "test", progress: bool = True) -> list[dict[str, Any]]:
    """
    The sentences of a split with the phrases that are evaluated: those whose chain has a box.

    Args:
        folder (`str` or `Path`): of Flickr30k Entities, with `Annotations/`, `Sentences/` and `SPLIT.txt`.
        split (`str`, *optional*, defaults to `"test"`): "train", "val" or "test".
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `list[dict]`: a sentence each: `image_id` (int), `sentence_id` (its index in the file), `width`, `height`,
        `text`, and `phrases`: {"phrase", "span" [start, end) in the text, "types", "boxes" (x1, y1, x2, y2 in pixels
        as the files have them)}. A sentence may have none.

    Raises:
        FileNotFoundError: when the split or one of its images has no file.
    """
    folder = Path(folder)
    names = read_text(folder / f"{split}.txt").split()
    sentences = []
    for name in tqdm(names, desc=f"Flickr30k {split}", unit=" images", disable=not progress):
        annotation = read_annotation(folder / "Annotations" / f"{name}.xml")
        for index, sentence in enumerate(read_sentences(folder / "Sentences" / f"{name}.txt")):
            phrases = [
                {
                    "phrase": phrase.text,
                    "span": list(phrase.span),
                    "types": list(phrase.types),
                    "boxes": annotation.boxes[phrase.chain_id],
                }
                for phrase in sentence.phrases
                if annotation.boxes.get(phrase.chain_id)
            ]
            sentences.append(
                {
                    "image_id": int(name),
                    "sentence_id": index,
                    "width": annotation.width,
                    "height": annotation.height,
                    "text": sentence.text,
                    "phrases": phrases,
                }
            )
    return sentences


def evaluate_flickr30k(
    annotations: str | Path | Sequence[Mapping[str, Any]],
    predictions: str | Path | Iterable[Mapping[str, Any]],
    *,
    top_k: Sequence[int] = (1, 5, 10),
    image_ids: Iterable[int] | None = None,
) -> dict[str, Any]:
    """
    How often one of the first k boxes of a phrase meets a box of the phrase, at IoU 0.5 or above.

    Any-box counts a phrase as found when any of its boxes is met, merged-boxes when the box around all of them is. A
    phrase of several types counts once overall and once for each type.

    Args:
        annotations (`str`, `Path` or `Sequence[Mapping]`): as `flickr30k_annotations` gives them, or their json file.
        predictions (`str`, `Path` or `Iterable[Mapping]`): a sentence each, or their json file: `image_id`,
            `sentence_id` and `boxes`: for each of the sentence's evaluated phrases, in order, boxes x1, y1, x2, y2 in
            pixels, best first (none is a miss). With `scores`, of the same form, the boxes are put in order first.
        top_k (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): the ks.
        image_ids (`Iterable[int]`, *optional*): score these images only; predictions of others are refused.

    Returns:
        `dict`: "any_box" and "merged_boxes", each {"recall@1", ..., "upper_bound"} of fractions by type and of "all";
        "phrase_counts" by type.

    Raises:
        ValueError: when a sentence is predicted twice, is unknown or lacks a prediction, or has another number of
            phrases.
    """
    sentences = {(entry["image_id"], entry["sentence_id"]): entry["phrases"] for entry in content_of(annotations)}
    if image_ids is not None:
        kept = set(image_ids)
        sentences = {key: phrases for key, phrases in sentences.items() if key[0] in kept}
    ranked = _boxes_by_sentence(content_of(predictions), sentences)
    hits: dict[str, dict[str, list[float]]] = {protocol: {"all": []} for protocol in PROTOCOLS}
    for key, phrases in sentences.items():
        for phrase, boxes in zip(phrases, ranked.get(key, ()), strict=True):
            truths = np.asarray(phrase["boxes"], dtype=np.float64).reshape(-1, 4)
            merged = np.concatenate((truths[:, :2].min(axis=0), truths[:, 2:].max(axis=0)))[None]
            for protocol, wanted in zip(PROTOCOLS, (truths, merged), strict=True):
                rank = first_hit(boxes, wanted)
                for name in ("all", *phrase["types"]):
                    hits[protocol].setdefault(name, []).append(rank)
    results: dict[str, Any] = {}
    for protocol, ranks in hits.items():
        results[protocol] = {f"recall@{k}": _fraction_within(ranks, k) for k in top_k}
        results[protocol]["upper_bound"] = _fraction_within(ranks, np.inf, inclusive=False)
    results["phrase_counts"] = {name: len(ranks) for name, ranks in hits["any_box"].items()}
    return results


def first_hit(boxes: np.ndarray, truths: np.ndarray) -> float:
    """
    The rank, from 1, of the first box that overlaps a true one at IoU 0.5 or above; infinity where none does.

    Args:
        boxes (`np.ndarray` of shape `(n, 4)`): x1, y1, x2, y2, best first.
        truths (`np.ndarray` of shape `(m, 4)`): x1, y1, x2, y2.
    """
    overlap = np.minimum(boxes[:, None, 2:], truths[None, :, 2:]) - np.maximum(boxes[:, None, :2], truths[None, :, :2])
    intersection = overlap.clip(min=0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (boxes, truths)]
    union = areas[0][:, None] + areas[1][None] - intersection
    # No division: a box without area, met by a truth without area, overlaps by nothing.
    met = (np.divide(intersection, union, out=np.zeros_like(union), where=union > 0) >= IOU_THRESHOLD).any(axis=1)
    return float(met.argmax()) + 1 if met.any() else np.inf


def _fraction_within(ranks: Mapping[str, Sequence[float]], limit: float, inclusive: bool = True) -> dict[str, float]:
    """The fraction of each type's phrases that are found within the limit; -1 where there is no phrase."""
    return {
        name: float(np.mean([rank <= limit if inclusive else rank < limit for rank in values])) if values else -1.0
        for name, values in ranks.items()
    }


def _boxes_by_sentence(
    predictions: Iterable[Mapping[str, Any]], sentences: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]
) -> dict[tuple[int, int], list[np.ndarray]]:
    ranked: dict[tuple[int, int], list[np.ndarray]] = {}
    for entry in predictions:
        key = (entry["image_id"], entry["sentence_id"])
        if key not in sentences:
            raise ValueError(f"`predictions` hold sentence {key[1]} of image {key[0]}, which the annotations lack.")
        if key in ranked:
            raise ValueError(f"`predictions` hold sentence {key[1]} of image {key[0]} twice; keep one.")
        if not sentences[key]:
            continue
        if len(entry["boxes"]) != len(sentences[key]):
            raise ValueError(
                f"sentence {key[1]} of image {key[0]} has {len(entry['boxes'])} lists of boxes for its "
                f"{len(sentences[key])} evaluated phrases; give one for each, empty where nothing is found."
            )
        boxes = [np.asarray(rows, dtype=np.float64).reshape(-1, 4) for rows in entry["boxes"]]
        if "scores" in entry:
            boxes = [
                rows[np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")]
                for rows, scores in zip(boxes, entry["scores"], strict=True)
            ]
        if not all(np.isfinite(rows).all() for rows in boxes):
            raise ValueError(f"sentence {key[1]} of image {key[0]} has a box that is not finite.")
        ranked[key] = boxes
    missing = [key for key, phrases in sentences.items() if phrases and key not in ranked]
    if missing:
        raise ValueError(
            f"`predictions` lack {len(missing)} sentences, such as sentence {missing[0][1]} of image "
            f"{missing[0][0]}; predict every sentence, or pass `image_ids` for a part of the set."
        )
    return ranked
