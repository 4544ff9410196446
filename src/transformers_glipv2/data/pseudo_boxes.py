"""
Captions with boxes that a grounding model found: one json object a line.

    {"image": "part3/0001.jpg", "caption": "a dog on a sofa", "boxes": [[12, 30, 200, 180]],
     "spans": [[[0, 5]]], "scores": [0.93], "width": 640, "height": 480}

`boxes` are x1, y1, x2, y2 in pixels as `post_process_phrase_grounding` gives them, `spans` a list of character spans
[start, end) for each box (a single span is taken too). `scores`, `width`, `height` and `image_id` may be missing.
`pseudo_box_entry` makes such an object. COCO-like json with pseudo boxes is read by `load_mixed_grounding`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, ImageStream, make_dataset
from transformers_glipv2.data.files import read_lines
from transformers_glipv2.data.formats.coco_json import clean_side
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.schema import BoxReport, checked_objects, xyxy_to_xywh

_FORMATS = ("xyxy", "xywh")


def load_pseudo_boxes(
    files: str | Path | Sequence[str | Path],
    image_folder: str | Path,
    *,
    policy: str | Mapping[str, str] = "skip",
    min_score: float = 0.5,
    box_format: str = "xyxy",
    streaming: bool = False,
    allow_outside_paths: bool = False,
) -> ImageDataset | ImageStream:
    """
    Examples of captions with pseudo boxes.

    Args:
        files (`str`, `Path` or a sequence of them): json lines, `.gz` too; several are read one after the other.
        image_folder (`str` or `Path`): where `image` starts from.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        min_score (`float`, *optional*, defaults to 0.5): boxes with a lower score are left out.
        box_format (`str`, *optional*, defaults to `"xyxy"`): "xyxy" or "xywh", in pixels.
        streaming (`bool`, *optional*, defaults to `False`): read lines while examples are asked for, one in memory.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): follow file names and links that lead out of
            the image folder. Only for files that are trusted.

    Returns:
        `ImageDataset` or `ImageStream`: grounding examples with objects of bbox, phrase, tokens_positive and score. A
        caption without a box that passes becomes a caption example without `objects`: what it names may be there.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when `box_format` is unknown, or the policy refuses.
    """
    if box_format not in _FORMATS:
        raise ValueError(f"`box_format` is {box_format!r}; choose one of {', '.join(_FORMATS)}.")
    paths = [Path(files)] if isinstance(files, (str, Path)) else [Path(path) for path in files]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no file of captions with boxes at {path}.")
    read = partial(_records, paths, Path(image_folder), min_score, box_format, allow_outside_paths)
    return make_dataset(read, BoxReport(policy, ", ".join(path.name for path in paths[:3])), streaming=streaming)


def pseudo_box_entry(
    image: str, caption: str, phrases: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> dict[str, Any]:
    """
    What a grounding model found, as an object for a line.

    Args:
        image (`str`): the file's path from the folder of images.
        caption (`str`): the sentence.
        phrases (`Sequence[Mapping]`): an image's result of `post_process_phrase_grounding`: each with "span",
            "scores" and "boxes" (x1, y1, x2, y2 in pixels).
        size (`tuple[int, int]`): width and height of the image in pixels.
    """
    entry: dict[str, Any] = {"image": image, "caption": caption, "width": size[0], "height": size[1]}
    found = [
        (phrase["span"], float(score), [float(value) for value in box])
        for phrase in phrases
        for score, box in zip(phrase["scores"], phrase["boxes"], strict=True)
    ]
    entry["boxes"] = [[round(value, 2) for value in box] for _, _, box in found]
    entry["spans"] = [[[int(border) for border in span]] for span, _, _ in found]
    entry["scores"] = [round(score, 4) for _, score, _ in found]
    return entry


def _records(
    paths: Sequence[Path],
    image_folder: Path,
    min_score: float,
    box_format: str,
    allow_outside_paths: bool,
    report: BoxReport,
) -> Iterator[dict[str, Any]]:
    find = ImageFinder(image_folder, allow_outside_paths)
    for path in paths:
        for number, line in enumerate(read_lines(path), start=1):
            where = f"{path.name}, line {number}"
            entry = _parse(line, report, where) if line.strip() else None
            if entry is None:
                continue
            image_path = find(entry["image"], report, where)
            if image_path is None:
                continue
            sides = (clean_side(entry.get("width")), clean_side(entry.get("height")))
            size = annotated_size(*sides, image_path, report, where)
            if size is not None:
                yield _record(entry, image_path, size, min_score, box_format, report, where)


def _parse(line: str, report: BoxReport, where: str) -> dict[str, Any] | None:
    """The object of a line with its columns in step, or `None` where it is left out."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        report.add("bad_entry", f"{where}: not json: {error}")
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or "\0" in entry["image"]:
        report.add("bad_entry", f"{where}: no object with `image`: {line[:80]!r}")
        return None
    if not isinstance(entry.get("caption"), str) or not entry["caption"].strip():
        report.add("empty_text", f"{where}, caption {entry.get('caption')!r}")
        return None
    boxes, spans = entry.setdefault("boxes", []), entry.setdefault("spans", [])
    scores: Any = entry.setdefault("scores", [1.0] * len(boxes) if isinstance(boxes, list) else None)
    columns = (boxes, spans, scores)
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) > 1:
        report.add("bad_entry", f"{where}: boxes, spans and scores must be lists of equal length: {line[:80]!r}")
        return None
    if not all(isinstance(score, (int, float)) for score in scores):
        report.add("bad_entry", f"{where}: scores must be numbers, got {scores}")
        return None
    return entry


def _record(
    entry: Mapping[str, Any],
    path: str,
    size: tuple[int, int],
    min_score: float,
    box_format: str,
    report: BoxReport,
    where: str,
) -> dict[str, Any]:
    text = entry["caption"]
    objects: dict[str, list[Any]] = {"bbox": [], "tokens_positive": [], "score": []}
    for box, spans, score in zip(entry["boxes"], entry["spans"], entry["scores"], strict=True):
        if score < min_score:
            continue
        single = isinstance(spans, list) and bool(spans) and not isinstance(spans[0], list)
        objects["bbox"].append(xyxy_to_xywh(box) if box_format == "xyxy" else box)
        objects["tokens_positive"].append([spans] if single else spans)
        objects["score"].append(float(score))
    objects = checked_objects(objects, *size, report, where, text=text)
    objects["phrase"] = [" ".join(text[start:end] for start, end in spans) for spans in objects["tokens_positive"]]
    record = {
        "kind": "grounding" if objects["bbox"] else "caption",
        "image_id": entry.get("image_id", entry["image"]),
        "image_path": path,
        "width": size[0],
        "height": size[1],
        "text": text,
    }
    return {**record, "objects": objects} if objects["bbox"] else record
