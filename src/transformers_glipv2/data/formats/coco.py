"""
COCO-format detection data: COCO, Objects365, Roboflow and ODinW folders, with masks.

Objects365 needs nothing of its own: its `file_name`s ("images/v1/patch8/objects365_v1_00420917.jpg") are found under
the folder that holds the patches. Its names ("Cabinet/shelf") can be cleaned by the sampler.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco_cache import cached_coco, is_large
from transformers_glipv2.data.formats.coco_json import (
    by_image,
    check_any_object,
    checked_categories,
    coco_record,
    dataset_of,
    found_image,
    note_same_names,
    read_coco_json,
)
from transformers_glipv2.data.formats.source import (
    WHOLE,
    FoundData,
    ReadOptions,
    first_strings,
    image_folder_of,
    is_split_name,
    named_splits,
    places_of,
    split_name,
)
from transformers_glipv2.data.image_files import ImageFinder
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

    Files of 50 MB and more are read once, into a cache that all processes share; see `coco_cache`.

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
    path = find_annotation_file(annotation_file, split)
    folder = path.parent if image_folder is None else image_folder
    if is_large(path):
        cached = cached_coco(path, folder, policy, with_masks, keep_empty, boxes_on, allow_outside_paths)
        if cached is not None:
            return cached
    return content_dataset(
        read_coco_json(path),
        path,
        folder,
        BoxReport(policy, path.name),
        with_masks=with_masks,
        keep_empty=keep_empty,
        boxes_on=boxes_on,
        allow_outside_paths=allow_outside_paths,
    )


def content_dataset(
    content: Mapping[str, Any],
    name: str | Path,
    image_folder: str | Path,
    report: BoxReport,
    *,
    with_masks: bool = False,
    keep_empty: bool = True,
    boxes_on: str = "auto",
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Detection examples of what a COCO file holds; other formats are brought into this form, so that one set of checks
    serves all.

    Args:
        content (`Mapping`): with the lists `images`, `annotations` and `categories`.
        name (`str` or `Path`): the file, for messages.
        image_folder (`str` or `Path`): where `file_name` starts from.
        report (`BoxReport`): counts problems; those that came up while another format was read are in it already.
        with_masks, keep_empty, boxes_on, allow_outside_paths: as for `load_coco`.

    Returns, raises: as `load_coco`.
    """
    check_boxes_on(boxes_on)
    categories = checked_categories(content["categories"], content["annotations"], report, name)
    find = ImageFinder(image_folder, allow_outside_paths)
    note_same_names(categories, report, name)
    records = PackedRecords(_records(content, categories, find, report, with_masks, keep_empty, boxes_on))
    report.warn_once()
    find.check_any_found(name)
    check_any_object(any(record["objects"]["bbox"] for record in records), len(content["annotations"]), report, name)
    return dataset_of(records, categories, report, (find.missing, find.first_missing))


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
        image_path = found_image(image, find, report)
        if image_path is None:
            continue
        record = coco_record(image, annotations, categories, report, with_masks)
        if keep_empty or record["objects"]["bbox"]:
            yield {**record, "image_path": image_path, **({} if boxes_on == "auto" else {"boxes_on": boxes_on})}


def find_annotation_file(path: str | Path, split: str | None = None) -> Path:
    """
    The json that `load_coco` means, from a file or a folder and a split.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: for a split of a file that is not named after it: a file holds one split.
    """
    path = Path(path)
    if path.is_file():
        own = split_name(path.name.partition(".")[0])
        if split is not None and split_name(split) not in (own, split_name(path.parent.name)):
            raise ValueError(
                f"{path} is one file, so it has no split {split!r}; pass the folder of the data set, or the file of "
                "that split, without `split`."
            )
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


# A data set in whatever layout ---------------------------------------------------------------------------------------


def find_coco(path: Path, images: Path | None) -> FoundData | None:
    """
    A COCO-format file, or a folder with such files: one a split, beside the images (Roboflow, ODinW), beside the
    folders of images, or in `annotations/` (COCO, CVAT), or a single one (Label Studio).

    Raises:
        ValueError: when a folder has several files and their names do not say which splits they are.
    """
    if path.is_file():
        if not _is_json(path) or not looks_like_coco(path):
            return None
        name = path.name.partition(".")[0]
        split = split_name(path.parent.name if path.name in (ODINW_FILE, ROBOFLOW_FILE) else name)
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        files = {split if is_split_name(split) else WHOLE: path}
        return _found(files, root, images, f"COCO, one file ({path.name})")
    beside = {
        file.parent.name: file for name in (ROBOFLOW_FILE, ODINW_FILE) for file in sorted(path.glob(f"*/{name}"))
    }
    if beside:
        return _found(beside, path, images, "COCO, SPLIT/_annotations.coco.json (Roboflow)")
    for name in (ODINW_FILE, ROBOFLOW_FILE):
        if (path / name).is_file():
            return _found({WHOLE: path / name}, path, images, f"COCO, one file ({name})")
    for folder, form in ((path, "COCO, SPLIT.json"), (path / "annotations", "COCO, annotations/*.json")):
        files = {file.name.partition(".")[0]: file for file in sorted(folder.glob("*.json*")) if _is_json(file)}
        instances = {name: file for name, file in files.items() if name.startswith("instances_")}
        splits = instances or {
            name: file for name, file in files.items() if is_split_name(name) or (path / name).is_dir()
        }
        # Lists of images without annotations, such as COCO's test-dev, are none that can be trained on or scored.
        splits = {name: file for name, file in splits.items() if looks_like_coco(file)}
        if splits:
            if len(splits) == 1 and not is_split_name(next(iter(splits))):
                splits = {WHOLE: next(iter(splits.values()))}
            return _found(splits, path, images, form)
        single = {name: file for name, file in files.items() if looks_like_coco(file)}
        if len(single) > 1:
            raise ValueError(
                f"{folder} holds several COCO files, {', '.join(file.name for file in single.values())}, and their "
                "names do not say which splits they are; name them train.json, val.json and test.json, or pass one."
            )
        if single:
            (file,) = single.values()
            return _found({WHOLE: file}, path, images, f"COCO, one file ({file.name})")
    return None


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file names the lists of COCO detection; it is not parsed."""
    if path.suffix == ".gz":
        return True
    wanted = [b'"images"', b'"categories"', b'"annotations"']
    with open(path, "rb") as file:
        tail = b""
        while wanted and (block := file.read(1 << 22)):
            wanted = [key for key in wanted if key not in tail + block]
            tail = block[-20:]
    return not wanted


def _is_json(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".json", ".json.gz"))


def _found(files: Mapping[str, Path], root: Path, images: Path | None, form: str) -> FoundData:
    read = {name: partial(_read, file, root, name, images) for name, file in files.items()}
    return FoundData("coco", form, named_splits(read))


def _read(file: Path, root: Path, name: str, images: Path | None, options: ReadOptions) -> ImageDataset:
    folders = (name, name.removeprefix("instances_"), split_name(name))
    if images is not None:
        candidates = places_of([images], folders)
    else:
        candidates = [file.parent, *places_of([root, root / "images"], folders)]
    return load_coco(
        file,
        image_folder_of(first_strings(file, "file_name"), candidates),
        policy=options.policy,
        with_masks=options.with_masks,
        boxes_on=options.boxes_on,
        allow_outside_paths=options.allow_outside_paths,
    )
