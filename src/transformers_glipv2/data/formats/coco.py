"""
COCO-format detection data: COCO, Objects365, Roboflow and ODinW folders, with masks.

Objects365 needs nothing of its own: its `file_name`s ("images/v1/patch8/objects365_v1_00420917.jpg") are found under
the folder that holds the patches. Its names ("Cabinet/shelf") can be cleaned by the sampler.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.files import read_json
from transformers_glipv2.data.schema import BoxReport, checked_objects

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
) -> ImageDataset:
    """
    Detection rows of a COCO-format file or folder.

    Args:
        annotation_file (`str` or `Path`): the json, or a folder: one with `_annotations.coco.json` inside (Roboflow,
            ODinW), one with `SPLIT/_annotations.coco.json`, or one with `SPLIT.json` beside `SPLIT/`.
        image_folder (`str` or `Path`, *optional*): where `file_name` points from; the json's folder by default.
        split (`str`, *optional*): needed where a folder holds several.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`. Crowd boxes are skipped unless
            `{"crowd": "keep"}`.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation`.
        keep_empty (`bool`, *optional*, defaults to `True`): keep images without objects, as negatives.

    Returns:
        `ImageDataset`: rows of kind "detection" with `width`, `height`, and `objects` of bbox, category, area,
        iscrowd and, on request, segmentation. `class_names` follow the file's order of categories;
        `category_ids` are the file's ids in the same order.

    Raises:
        FileNotFoundError: when there is no annotation file.
        ValueError: when the file is not COCO format, or the policy refuses.
    """
    path = find_annotation_file(annotation_file, split)
    content = read_coco_json(path)
    report = BoxReport(policy, path.name)
    categories = used_categories(content["categories"], content["annotations"])
    find = ImageFinder(Path(image_folder) if image_folder is not None else path.parent)

    def records() -> Iterator[dict[str, Any]]:
        for image, annotations in by_image(content, report, ("file_name", "width", "height")):
            record = coco_record(image, annotations, categories, report, with_masks)
            if keep_empty or record["objects"]["bbox"]:
                yield {**record, "image_path": find(image["file_name"])}

    dataset = ImageDataset(PackedRecords(records()), list(categories.values()), report)
    report.warn_once()
    dataset.category_ids = list(categories)
    return dataset


def coco_record(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[Any, str],
    report: BoxReport,
    with_masks: bool = False,
) -> dict[str, Any]:
    """
    One image of a COCO file as a record of `ImageDataset`, without `image_path`.

    Args:
        image (`Mapping`): an entry of `images`.
        annotations (`Sequence[Mapping]`): its entries of `annotations`.
        categories (`Mapping[int, str]`): names by category id.
        report (`BoxReport`): counts problems.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation` (`None` where there is none).
    """
    objects: dict[str, list[Any]] = {
        "bbox": [entry.get("bbox", ()) for entry in annotations],
        "category": [
            categories.get(entry.get("category_id"), f"id {entry.get('category_id')}") for entry in annotations
        ],
        "area": [float(entry.get("area") or 0.0) for entry in annotations],
        "iscrowd": [int(entry.get("iscrowd") or 0) for entry in annotations],
    }
    if with_masks:
        objects["segmentation"] = [entry.get("segmentation") or None for entry in annotations]
    width, height = int(image["width"]), int(image["height"])
    where = f"image {image['id']!r} ({image.get('file_name', image.get('coco_url'))})"
    objects = checked_objects(objects, width, height, report, where, list(categories.values()))
    return {"image_id": image["id"], "width": width, "height": height, "objects": objects, "kind": "detection"}


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


def read_coco_json(
    path: str | Path, keys: Sequence[str] = ("images", "annotations", "categories"), what: str = "COCO detection"
) -> dict[str, Any]:
    """The content of a COCO-like file; raises ValueError where it lacks a list of these keys."""
    content = read_json(path)
    found = content if isinstance(content, Mapping) else {}
    missing = [key for key in keys if not isinstance(found.get(key), list)]
    if missing:
        raise ValueError(f"{path} is not a {what} file: it lacks a list of {', '.join(missing)}.")
    return content


def used_categories(
    categories: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
) -> dict[int, str]:
    """
    Names by category id, in the file's order.

    Roboflow writes the group of all classes as a category 0 of its own; it is left out where it is the supercategory
    of every other class and no box has it.
    """
    names = {entry["id"]: entry["name"] for entry in categories}
    others = [entry for entry in categories if entry["id"] != 0]
    group = names.get(0)
    is_group = group is not None and bool(others) and all(entry.get("supercategory") == group for entry in others)
    if is_group and all(entry.get("category_id") != 0 for entry in annotations):
        del names[0]
    return names


class ImageFinder:
    """
    Where the image of a `file_name` lies: under the folder, or under it without the leading folders of the name.

    Publishers write "train/1.jpg", "images/v1/patch0/1.jpg" or "1.jpg" for images that users keep in one folder;
    how much of the name counts is decided by the first file that exists.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped_parts: int | None = None

    def __call__(self, file_name: str) -> str:
        parts = Path(file_name).parts
        if self.skipped_parts is not None:
            path = self.folder.joinpath(*parts[min(self.skipped_parts, len(parts) - 1) :])
            if path.is_file():
                return str(path)
        for skipped in range(len(parts)):
            path = self.folder.joinpath(*parts[skipped:])
            if path.is_file():
                self.skipped_parts = skipped
                return str(path)
        return str(self.folder / file_name)


def by_image(
    content: Mapping[str, Any], report: BoxReport, needed: Sequence[str] = ()
) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """
    Each entry of `images` with its entries of `annotations`, in the file's order.

    Args:
        content (`Mapping`): of a COCO-like file.
        report (`BoxReport`): counts annotations of unknown images, and images that come twice or lack a field,
            which are left out.
        needed (`Sequence[str]`): the fields.
    """
    images: dict[Any, Mapping[str, Any]] = {}
    for image in content["images"]:
        lacking = [name for name in ("id", *needed) if not _is_usable(name, image.get(name))]
        if lacking:
            values = ", ".join(f"{name} {image.get(name)!r}" for name in lacking)
            report.add("bad_entry", f"image {image.get('id')!r} has {values}")
        elif image["id"] in images:
            report.add("bad_entry", f"image {image['id']!r} comes twice in `images`")
        else:
            images[image["id"]] = image
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        if entry.get("image_id") in images:
            groups[entry["image_id"]].append(entry)
        else:
            report.add("unknown_image", f"annotation {entry.get('id')!r} of image {entry.get('image_id')!r}")
    for key, image in images.items():
        yield image, groups.pop(key, [])


def _is_usable(name: str, value: Any) -> bool:
    if name in ("width", "height"):
        # The grounding files publish sizes as strings.
        return str(value).isdecimal() and int(value) > 0
    return value not in (None, "")
