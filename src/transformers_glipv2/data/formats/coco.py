"""
COCO-format detection data: COCO, Objects365, Roboflow and ODinW folders, with masks.

Objects365 needs nothing of its own: its `file_name`s ("images/v1/patch8/objects365_v1_00420917.jpg") are found under
the folder that holds the patches. Its names ("Cabinet/shelf") can be cleaned by the sampler.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco_json import by_image, checked_categories, coco_record, read_coco_json
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.orientation import check_boxes_on
from transformers_glipv2.data.schema import BoxReport

ROBOFLOW_FILE = "_annotations.coco.json"
# Data sets of ODinW write both; the classes of this one are those that prompts name.
ODINW_FILE = "annotations_without_background.json"


def load_coco(
    annotation_file: str | Path,
    image_folder: str | Path | None = None,
    *,
    split: str | None = None,
    policy: str | Mapping[str, str] = "skip",
    with_masks: bool = False,
    keep_empty: bool = True,
    boxes_on: str = "auto",
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Detection examples of a COCO-format file or folder.

    Accepted though it is not by the book: sizes as whole floats or missing (then read from the image), null where a
    default is meant (`iscrowd`, `area`), objects with a segmentation and no `bbox`, backslashes in file names.

    Args:
        annotation_file (`str` or `Path`): the json, or a folder: one with `_annotations.coco.json` inside (Roboflow,
            ODinW), one with `SPLIT/_annotations.coco.json`, or one with `SPLIT.json` beside `SPLIT/`.
        image_folder (`str` or `Path`, *optional*): where `file_name` starts from; the json's folder by default.
        split (`str`, *optional*): needed where a folder holds several.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`. Boxes that leave their image
            are clipped and crowd boxes skipped, unless `{"out_of_image": "skip"}` and `{"crowd": "keep"}`.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation`.
        keep_empty (`bool`, *optional*, defaults to `True`): keep images without objects, as negatives.
        boxes_on (`str`, *optional*, defaults to `"auto"`): what the annotations of images with an EXIF orientation
            were made on: the "upright" image or its pixels as they are "stored"; "auto" tells it from the size, and
            takes "upright" where the size fits both. Images are always given upright, boxes and masks with them.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): follow file names and links that lead out of
            the image folder. Only for files that are trusted.

    Returns:
        `ImageDataset`: examples of kind "detection" with `width`, `height`, and `objects` of bbox, category, area,
        iscrowd and, on request, segmentation. `class_names` follow the file's order of categories, each name once;
        `category_ids` are the file's ids in the same order.

    Raises:
        FileNotFoundError: when there is no annotation file, or none of its images.
        ValueError: when the file is not COCO format, the policy refuses, or it has annotations of which none can be
            used.
    """
    check_boxes_on(boxes_on)
    path = find_annotation_file(annotation_file, split)
    content = read_coco_json(path)
    report = BoxReport(policy, path.name)
    categories = checked_categories(content["categories"], content["annotations"], report, path)
    find = ImageFinder(image_folder if image_folder is not None else path.parent, allow_outside_paths)
    records = PackedRecords(_records(content, categories, find, report, with_masks, keep_empty, boxes_on))
    report.warn_once()
    find.check_any_found(path)
    check_any_object(records, content["annotations"], report, path)
    ids = {name: category_id for category_id, name in reversed(categories.items())}
    names = list(dict.fromkeys(categories.values()))
    dataset = ImageDataset(records, names, report)
    dataset.category_ids = [ids[name] for name in names]
    return dataset


def check_any_object(records: PackedRecords, annotations: list[Any], report: BoxReport, name: str | Path) -> None:
    """Raises ValueError, with the report's reasons, when a file has annotations and none of them is left."""
    if annotations and not any(record["objects"]["bbox"] for record in records):
        raise ValueError(f"none of the {len(annotations)} annotations of {name} can be used: {report.summary()}")


def _records(
    content: Mapping[str, Any],
    categories: Mapping[int | str, str],
    find: ImageFinder,
    report: BoxReport,
    with_masks: bool,
    keep_empty: bool,
    boxes_on: str,
) -> Iterator[dict[str, Any]]:
    for image, annotations in by_image(content, report, ("file_name",)):
        where = f"image {image['id']!r} ({image['file_name']})"
        image_path = find(image["file_name"], report, where)
        if image_path is None:
            continue
        size = annotated_size(image["width"], image["height"], image_path, report, where)
        if size is None:
            continue
        image |= {"width": size[0], "height": size[1]}
        record = coco_record(image, annotations, categories, report, with_masks)
        if keep_empty or record["objects"]["bbox"]:
            yield {**record, "image_path": image_path, **({} if boxes_on == "auto" else {"boxes_on": boxes_on})}


def find_annotation_file(path: str | Path, split: str | None = None) -> Path:
    """The json that `load_coco` means, from a file or a folder and a split; raises FileNotFoundError."""
    path = Path(path)
    if path.is_file():
        return path
    names = (ODINW_FILE, ROBOFLOW_FILE)
    candidates = [path / name for name in names] if split is None else []
    # Roboflow says "valid" where others say "val".
    spellings = {"val": ("val", "valid"), "valid": ("valid", "val")}
    for spelling in () if split is None else spellings.get(split, (split,)):
        candidates += [path / f"{spelling}.json", *(path / spelling / name for name in names)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    splits = sorted(p.stem for p in path.glob("*.json")) + sorted(
        {p.parent.name for name in names for p in path.glob(f"*/{name}")}
    )
    hint = f"; splits found: {', '.join(splits)}, pass one as `split`" if splits else ""
    raise FileNotFoundError(f"no COCO annotations at {', '.join(map(str, candidates))}{hint}.")
