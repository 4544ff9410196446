"""
Grounding json as MDETR publishes it, of which GoldG is made (final_mixed_train, final_flickr_separateGT_train, ...).

COCO-like: each entry of `images` is an image with one `caption`, and each of its `annotations` has `tokens_positive`,
the characters of the caption that name the box. The same image comes again for each caption. `tokens_negative` is
not read: the losses take every word that is not named as negative, which is what the published files say too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco_json import by_image, clean_number, crowd_flag, read_coco_json
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.schema import BoxReport, checked_objects


def load_mixed_grounding(
    annotation_file: str | Path,
    image_folder: str | Path | Sequence[str | Path],
    *,
    policy: str | Mapping[str, str] = "skip",
    min_score: float = 0.0,
    with_masks: bool = False,
    keep_empty: bool = True,
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Grounding examples of an MDETR-style file.

    Args:
        annotation_file (`str` or `Path`): the json (`.gz` too).
        image_folder (`str`, `Path` or a sequence of them): where the images are. GoldG's mixed file names images
            of COCO and of Visual Genome: give both folders; the first that holds a `file_name` counts.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        min_score (`float`, *optional*, defaults to 0.0): boxes whose `score` is below are left out (files with pseudo
            boxes); boxes without a score stay.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation`.
        keep_empty (`bool`, *optional*, defaults to `True`): keep captions without boxes.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): follow file names and links that lead out of
            the image folder. Only for files that are trusted.

    Returns:
        `ImageDataset`: examples whose `image_id` is the entry's id, one a caption; `original_image_id`, `dataset_name`
        and `sentence_id` where the file has them; objects of bbox, phrase (the words of all spans), tokens_positive,
        iscrowd and, on request, segmentation.

    Raises:
        FileNotFoundError: when there is no annotation file, or none of its images.
        ValueError: when the file is not of this kind, or the policy refuses.
    """
    path = Path(annotation_file)
    content = read_coco_json(path, ("images", "annotations"), "grounding")
    folders = [image_folder] if isinstance(image_folder, (str, Path)) else list(image_folder)
    if not folders:
        raise ValueError("`image_folder` is an empty sequence; pass one folder or several.")
    report = BoxReport(policy, path.name)
    finders = [ImageFinder(folder, allow_outside_paths) for folder in folders]
    records = PackedRecords(_records(content, finders, report, min_score, with_masks, keep_empty))
    report.warn_once()
    if not any(finder.found for finder in finders):
        finders[0].check_any_found(path)
    return ImageDataset(records, report=report)


def _records(
    content: Mapping[str, Any],
    finders: Sequence[ImageFinder],
    report: BoxReport,
    min_score: float,
    with_masks: bool,
    keep_empty: bool,
) -> Iterator[dict[str, Any]]:
    for image, annotations in by_image(content, report, ("file_name",)):
        where = f"image {image['id']!r} ({image['file_name']})"
        text = image.get("caption")
        if not isinstance(text, str) or not text.strip():
            report.add("empty_text", f"{where}, caption {text!r}")
            continue
        image_path = _first_found(finders, image["file_name"], report, where)
        if image_path is None:
            continue
        size = annotated_size(image["width"], image["height"], image_path, report, where)
        if size is None:
            continue
        image |= {"width": size[0], "height": size[1]}
        entries = [entry for entry in annotations if _is_sure(entry, min_score, report, where)]
        objects = _objects(entries, text, image, report, where, with_masks)
        if not keep_empty and not objects["bbox"]:
            continue
        # The published original id is the image's own; a caption's id is a running number.
        original = image.get("original_img_id", image.get("original_id"))
        extra = {
            "original_image_id": original,
            "dataset_name": image.get("dataset_name"),
            "sentence_id": image.get("sentence_id"),
        }
        yield {
            "kind": "grounding",
            "image_id": image["id"],
            "image_path": image_path,
            "width": size[0],
            "height": size[1],
            "text": text,
            "objects": objects,
            **{name: value for name, value in extra.items() if value is not None},
        }


def _objects(
    entries: Sequence[Mapping[str, Any]],
    text: str,
    image: Mapping[str, Any],
    report: BoxReport,
    where: str,
    with_masks: bool,
) -> dict[str, list[Any]]:
    objects: dict[str, list[Any]] = {
        "bbox": [entry.get("bbox", ()) for entry in entries],
        "tokens_positive": [entry.get("tokens_positive", ()) for entry in entries],
        "iscrowd": [crowd_flag(entry) for entry in entries],
    }
    if with_masks:
        objects["segmentation"] = [entry.get("segmentation") or None for entry in entries]
    objects = checked_objects(objects, image["width"], image["height"], report, where, text=text)
    objects["phrase"] = [" ".join(text[start:end] for start, end in spans) for spans in objects["tokens_positive"]]
    return objects


def _is_sure(entry: Mapping[str, Any], min_score: float, report: BoxReport, where: str) -> bool:
    """Whether an annotation has no score or one that is high enough; fields of a wrong kind are counted."""
    score = entry.get("score")
    number = math.inf if score is None else clean_number(score)
    if crowd_flag(entry) is None or number is None:
        wrong = f"iscrowd {entry.get('iscrowd')!r} and score {score!r}"
        report.add("bad_entry", f"{where}, annotation {entry.get('id')!r}, has {wrong}"[:300])
        return False
    return number >= min_score


def _first_found(finders: Sequence[ImageFinder], file_name: str, report: BoxReport, where: str) -> str | None:
    """The file in the first folder that has it; where none has, its path in the first; `None` where it is left out."""
    paths = [finder(file_name, report, where) for finder in finders]
    return next((path for path in paths if path is not None and Path(path).is_file()), paths[0])
