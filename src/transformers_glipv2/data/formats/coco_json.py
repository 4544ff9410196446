"""COCO-like JSON: what is harmless is accepted, everything else is counted with the entry's name or refused."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import read_json
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.masks import segmentation_box
from transformers_glipv2.data.schema import BoxReport, checked_objects


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


def clean_id(value: Any) -> int | str | None:
    """An id as files have it, whole floats as integers; `None` for what is no id."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "" else None


def clean_side(value: Any) -> int | None:
    """A width or height in whole pixels, also of a whole float or a string of digits; `None` for anything else."""
    if isinstance(value, str):
        # The grounding files publish sizes as strings.
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    value = clean_id(value)
    return value if isinstance(value, int) and value > 0 else None


def clean_number(value: Any) -> float | None:
    """A finite number, also of a string; `None` for anything else."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def checked_categories(
    categories: Sequence[Any], annotations: Sequence[Any], report: BoxReport, name: str | Path
) -> dict[int | str, str]:
    """
    Names by category id, in the file's order, without dummies (`used_categories`).

    Args:
        annotations (`Sequence`): of the file.
        categories, report, name: as for `clean_categories`, which raises the same.
    """
    clean = clean_categories(categories, report, name)
    return used_categories(clean, [entry for entry in annotations if isinstance(entry, Mapping)])


def clean_categories(categories: Sequence[Any], report: BoxReport, name: str | Path) -> list[dict[str, Any]]:
    """
    The categories of a file, each with a clean "id" and a "name", each id once.

    Args:
        categories (`Sequence`): of the file.
        report (`BoxReport`): counts categories without an id or a name.
        name (`str` or `Path`): the file, for messages.

    Raises:
        ValueError: when one id has two names, or no category is left.
    """
    clean: dict[int | str, dict[str, Any]] = {}
    for index, entry in enumerate(categories):
        entry = entry if isinstance(entry, Mapping) else {"name": entry, "id": None}
        category_id, label = clean_id(entry.get("id")), entry.get("name")
        # Numbers on cards and number plates are classes too.
        label = str(label) if isinstance(label, (int, float)) and not isinstance(label, bool) else label
        if category_id is None or not isinstance(label, str) or not label.strip():
            report.add("bad_entry", f"categories[{index}] needs an id and a name, it is {str(dict(entry))[:120]}")
        elif category_id in clean and clean[category_id]["name"] != label:
            raise ValueError(
                f"{name}: the category id {category_id!r} comes twice, as {clean[category_id]['name']!r} and as "
                f"{label!r} (categories[{index}]), so its annotations may mean either; give each class its own id."
            )
        else:
            clean.setdefault(category_id, {**entry, "id": category_id, "name": label})
    if not clean:
        raise ValueError(f"{name} lists no category with an id and a name, so there is no class to look for.")
    return list(clean.values())


def used_categories(
    categories: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
) -> dict[int | str, str]:
    """
    Names by category id, in the file's order, without dummies.

    Roboflow writes groups of classes as categories of their own. A category without annotations that is the
    supercategory of others is such a dummy, where all other categories are below one. (In a file where only some
    classes have a supercategory, "vehicle" above "car" may be a class that has no box here.)
    """
    return without_dummies(categories, {clean_id(entry.get("category_id")) for entry in annotations})


def without_dummies(categories: Sequence[Mapping[str, Any]], used: Collection[Any]) -> dict[int | str, str]:
    """As `used_categories`, with the ids that annotations have."""
    parents = {
        entry.get("supercategory")
        for entry in categories
        if isinstance(entry.get("supercategory"), str) and entry.get("supercategory") != entry["name"]
    }
    groups = {entry["id"]: entry["name"] for entry in categories if entry["id"] not in used}
    groups = {category_id: name for category_id, name in groups.items() if name in parents}
    others = [entry for entry in categories if entry["id"] not in groups]
    if not others or any(entry.get("supercategory") not in groups.values() for entry in others):
        return {entry["id"]: entry["name"] for entry in categories}
    return {entry["id"]: entry["name"] for entry in others}


def by_image(
    content: Mapping[str, Any], report: BoxReport, needed: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """
    Each entry of `images` with its entries of `annotations`, in the file's order.

    Args:
        content (`Mapping`): of a COCO-like file.
        report (`BoxReport`): counts annotations of unknown images, and images that come twice or have a field of a
            wrong kind, which are left out.
        needed (`Sequence[str]`): fields of images, beside the id, that must be strings.

    Yields:
        The image, a copy with a clean "id", and with "width" and "height" as whole numbers, or `None` where the file
        gives no size; and its annotations, which are mappings.
    """
    images: dict[int | str, dict[str, Any]] = {}
    for index, entry in enumerate(content["images"]):
        image = clean_image(entry, index, images, report, needed)
        if image is not None:
            images[image["id"]] = image
    groups: dict[int | str, list[Mapping[str, Any]]] = defaultdict(list)
    for index, entry in enumerate(content["annotations"]):
        if not isinstance(entry, Mapping):
            report.add("bad_entry", f"annotations[{index}]{annotation_problem(entry)}")
        elif (image_id := clean_id(entry.get("image_id"))) is not None and image_id in images:
            groups[image_id].append(entry)
        else:
            report.add("unknown_image", unknown_image(entry, index))
    for key, image in images.items():
        yield image, groups.pop(key, [])


def clean_image(
    entry: Any, index: int, known: Collection[Any], report: BoxReport, needed: Sequence[str] = ()
) -> dict[str, Any] | None:
    """
    An entry of `images` as `by_image` gives it; `None`, and counted, where it is left out.

    Args:
        entry: of the file, the one at this index.
        index (`int`), report (`BoxReport`), needed (`Sequence[str]`): as for `by_image`.
        known (`Collection`): the ids of the images before.
    """
    image = dict(entry) if isinstance(entry, Mapping) else {}
    image["id"] = clean_id(image.get("id"))
    problems = ["no id"] if image["id"] is None else []
    problems += [f"{name} {image.get(name)!r}" for name in needed if not _is_text(image.get(name))]
    for side in ("width", "height"):
        value = image.get(side)
        image[side] = clean_side(value)
        if image[side] is None and value not in (None, 0, ""):
            problems.append(f"{side} {value!r}")
    if problems:
        report.add("bad_entry", f"images[{index}], id {image['id']!r}, has {', '.join(problems)}"[:300])
        return None
    if image["id"] in known:
        report.add("bad_entry", f"image {image['id']!r} comes twice in `images`")
        return None
    return image


def unknown_image(entry: Mapping[str, Any], index: int) -> str:
    """The annotation at an index of the file, of an image that the file does not list, for a message."""
    return f"annotations[{index}], id {entry.get('id')!r}, {entry.get('image_id')!r}"


def check_any_object(has_any: bool, annotations: int, report: BoxReport, name: str | Path) -> None:
    """Raises ValueError, with the report's reasons, when a file has annotations and no object is left of them."""
    if annotations and not has_any:
        raise ValueError(f"none of the {annotations} annotations of {name} can be used: {report.summary()}")


def note_same_names(categories: Mapping[int | str, str], report: BoxReport, name: str | Path) -> None:
    """Take note of the classes whose name another one has."""
    counts = Counter(categories.values())
    for category_id, label in categories.items():
        if counts[label] > 1:
            report.note("same_name", f"{name}, {label!r}, class {category_id!r}")


def dataset_of(
    records: Sequence[Mapping[str, Any]],
    categories: dict[int | str, str],
    report: BoxReport,
    missing_images: tuple[int, str | None],
) -> ImageDataset:
    """A data set with the classes of a file, each name once."""
    ids = {name: category_id for category_id, name in reversed(categories.items())}
    names = list(dict.fromkeys(categories.values()))
    dataset = ImageDataset(records, names, report)
    dataset.category_ids = [ids[name] for name in names]
    dataset.missing_images = missing_images
    return dataset


def found_image(image: dict[str, Any], find: ImageFinder, report: BoxReport) -> str | None:
    """
    The path of an image of a COCO file, whose "width" and "height" are read from it where the file gives none; `None`
    where it is left out.
    """
    where = f"image {image['id']!r} ({image['file_name']})"
    path = find(image["file_name"], report, where)
    if path is None:
        return None
    size = annotated_size(image["width"], image["height"], path, report, where)
    if size is None:
        return None
    image |= {"width": size[0], "height": size[1]}
    return path


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
        image (`Mapping`): an entry of `images`, with "width" and "height".
        annotations (`Sequence[Mapping]`): its entries of `annotations`. One without `bbox` gets the box around its
            segmentation, one without `area` the box's area.
        categories (`Mapping`): names by category id.
        report (`BoxReport`): counts problems.
        with_masks (`bool`, *optional*, defaults to `False`): keep `segmentation` (`None` where there is none).
    """
    width, height = image["width"], image["height"]
    where = f"image {image['id']!r} ({image.get('file_name', image.get('coco_url'))})"
    columns = ("bbox", "category", "area", "iscrowd", *(("segmentation",) if with_masks else ()))
    objects: dict[str, list[Any]] = {name: [] for name in columns}
    names = []
    for index, entry in enumerate(annotations):
        name = f"annotation {entry['id']!r}" if "id" in entry else f"object {index}"
        problem = annotation_problem(entry)
        if problem:
            report.add("bad_entry", f"{where}{problem}")
            continue
        segmentation = entry.get("segmentation") or None
        box = entry.get("bbox")
        box = box if box not in (None, [], ()) else segmentation_box(segmentation, height, width) or ()
        category_id = clean_id(entry.get("category_id"))
        objects["bbox"].append(box)
        objects["category"].append(categories.get(category_id, f"id {entry.get('category_id')!r}"))
        objects["area"].append(clean_number(entry.get("area")))
        objects["iscrowd"].append(crowd_flag(entry))
        if with_masks:
            objects["segmentation"].append(segmentation)
        names.append(name)
    objects = checked_objects(objects, width, height, report, where, list(categories.values()), names=names)
    objects["area"] = [
        box[2] * box[3] if area is None else area for box, area in zip(objects["bbox"], objects["area"], strict=True)
    ]
    return {"image_id": image["id"], "width": width, "height": height, "objects": objects, "kind": "detection"}


def annotation_problem(entry: Any) -> str | None:
    """What is of a wrong kind in an annotation, beside its box and ids, for a message; `None` where all is well."""
    if not isinstance(entry, Mapping):
        return f" is no annotation: {str(entry)[:80]}"
    crowd, area = entry.get("iscrowd"), entry.get("area")
    if crowd_flag(entry) is None:
        return f", annotation {entry.get('id')!r}, has iscrowd {crowd!r}"[:200]
    if area is not None and clean_number(area) is None:
        return f", annotation {entry.get('id')!r}, has area {area!r}"[:200]
    return None


def crowd_flag(entry: Mapping[str, Any]) -> int | None:
    """0 or 1; 0 where an annotation does not say it, `None` where `iscrowd` is something else."""
    flag = entry.get("iscrowd")
    return int(flag or 0) if flag is None or flag in (0, 1) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value
