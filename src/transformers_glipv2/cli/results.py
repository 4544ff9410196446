"""What scripts show of one image: a line for each object, and a drawing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_glipv2.images.image_io import open_image
from transformers_glipv2.inference.drawing import DrawnObject, draw
from transformers_glipv2.layers.paste_masks import encode_region

SAMPLES = ("chelsea", "coffee", "astronaut", "rocket")


@dataclass
class Found:
    """
    An object that was found.

    Attributes:
        label (`str`): its label or phrase.
        score (`float`): in [0, 1].
        box (`Sequence[float]`): x1, y1, x2, y2 in pixels of the image.
        mask (`np.ndarray` of shape `(height, width)`, *optional*): boolean.
        group (`int`, *optional*): objects of a group are drawn in one colour.
    """

    label: str
    score: float
    box: Sequence[float]
    mask: np.ndarray | None = None
    group: int | None = None


def load_image(path: str | Path | None, sample: str = SAMPLES[0]) -> Image.Image:
    """An image file as RGB, upright, or where there is none a photograph of scikit-image (CC0)."""
    if path is not None:
        return open_image(path)
    from skimage import data

    return Image.fromarray(getattr(data, sample)()).convert("RGB")


def objects_found(result: Mapping[str, Any]) -> list[Found]:
    """The objects of a result of [`Detector.stream`] or [`Detector.segment`] (with `return_rle=False`)."""
    masks = result["masks"].numpy() if "masks" in result else [None] * len(result["scores"])
    scores, boxes, groups = (result[name].tolist() for name in ("scores", "boxes", "labels"))
    return [Found(*one) for one in zip(result["text_labels"], scores, boxes, masks, groups, strict=True)]


def phrase_spans(phrases: Sequence[str], text: str) -> list[tuple[int, int]]:
    """The characters [start, end) of phrases in a text; raises ValueError for one that is not in it."""
    spans = []
    for phrase in phrases:
        start = text.find(phrase)
        if start < 0 or not phrase:
            raise ValueError(f"--phrases has {phrase!r}, which is no part of {text!r}; write it as the sentence does.")
        spans.append((start, start + len(phrase)))
    return spans


def phrases_found(phrases: Iterable[Mapping[str, Any]], threshold: float) -> list[Found]:
    """The boxes of grounded phrases with at least a score, the highest-scoring first."""
    found = [
        Found(phrase["phrase"], score, box, group=index)
        for index, phrase in enumerate(phrases)
        for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].tolist(), strict=True)
        if score >= threshold
    ]
    return sorted(found, key=lambda one: -one.score)


def show(image: Image.Image, found: Sequence[Found], output: Path, threshold: float, title: str | None = None) -> None:
    """
    Prints what was found and draws it.

    Args:
        image (`PIL.Image.Image`): RGB.
        found (`Sequence[Found]`): the highest-scoring first.
        output (`Path`): the drawing to write; its folder is made.
        threshold (`float`): named where nothing was found.
        title (`str`, *optional*): written into the upper left corner.
    """
    print_objects(found, threshold)
    save_drawing(image, found, output, title)
    print(f"Wrote {output}.")


def print_objects(found: Sequence[Found], threshold: float) -> None:
    """A line for each object: score, label, corners of the box, and the number of pixels of its mask."""
    for one in found:
        pixels = "" if one.mask is None else f"  {one.mask.sum()} pixels"
        print(f"{one.score:.3f}  {one.label:<32} {[round(side) for side in one.box]}{pixels}")
    if not found:
        print(f"No box has a score of {threshold} or more; try a lower --threshold.")


def objects_json(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Objects as JSON values: "label", "score", "box" (x1, y1, x2, y2 in pixels), "mask" (COCO's run lengths)."""
    entries = []
    for one in found:
        entry = {"label": one.label, "score": round(one.score, 5), "box": [round(float(side), 2) for side in one.box]}
        if one.mask is not None:
            entry["mask"] = encode_region(one.mask, 0, 0, one.mask.shape)
        entries.append(entry)
    return entries


def save_drawing(image: Image.Image, found: Sequence[Found], output: Path, title: str | None = None) -> None:
    """Draws objects into a copy of an image and writes it; the file is there as a whole or not at all."""
    # A title stands at a box of no size.
    drawn = [] if title is None else [DrawnObject(title, (0, 0, 0, 0))]
    drawn += [DrawnObject(f"{one.label} {one.score:.2f}", one.box, one.mask, one.group) for one in found]
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial{output.suffix}")
    draw(image, drawn).save(partial)
    partial.replace(output)
