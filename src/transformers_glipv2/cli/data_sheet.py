"""What `glipv2 data inspect` shows of a data set: a table of its classes, and annotated images on one sheet."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import replaced_file
from transformers_glipv2.data.formats.open import DataReport
from transformers_glipv2.data.masks import decode_mask
from transformers_glipv2.inference.drawing import DrawnObject, draw

COLUMNS = 4
# Of a sheet, in pixels.
CELL, CAPTION, GAP = 320, 18, 6


def class_table(report: DataReport) -> str:
    """Boxes of each class in each split, and how many are small, medium and large, as COCO has it."""
    splits = report.splits
    names = list(dict.fromkeys([*report.classes, *(name for split in splits.values() for name in split.boxes)]))
    rows = [["class", *splits]]
    rows += [[name, *(str(split.boxes[name]) for split in splits.values())] for name in names]
    rows.append(["all", *(str(split.boxes.total()) for split in splits.values())])
    for size, what in (("small", "below 32 x 32 px"), ("medium", "below 96 x 96 px"), ("large", "larger")):
        fractions = (split.sizes[size] / max(split.sizes.total(), 1) for split in splits.values())
        rows.append([f"{size}, {what}", *(f"{fraction:.0%}" for fraction in fractions)])
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))
        for row in rows
    )


def draw_sheet(dataset: ImageDataset, path: Path, count: int = 16, seed: int = 0) -> int:
    """
    Writes images of a data set with their boxes (and masks) drawn, side by side, a class in a colour.

    Args:
        dataset (`ImageDataset`): of detection.
        path (`Path`): the image to write.
        count (`int`, *optional*, defaults to 16): images at most, drawn at random so that every class is shown.
        seed (`int`, *optional*, defaults to 0): of the choice.

    Returns:
        `int`: how many images are on it.

    Raises:
        ValueError: when no image can be read.
    """
    groups = {name: index for index, name in enumerate(dataset.class_names or [])}
    drawn = []
    for index in chosen_indices(dataset.records, count, seed, dataset.class_names or ()):
        example = dataset.read(index)
        if example is not None:
            drawn.append(_cell(example, groups))
    if not drawn:
        raise ValueError(f"no image can be read: {dataset.report.summary()}")
    rows = [drawn[start : start + COLUMNS] for start in range(0, len(drawn), COLUMNS)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    sheet = Image.new("RGB", (len(rows[0]) * (CELL + GAP) + GAP, sum(heights) + GAP), "white")
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (GAP + column * (CELL + GAP), GAP + sum(heights[:number])))
    with replaced_file(path) as temporary:
        sheet.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    return len(drawn)


def chosen_indices(
    records: Sequence[Mapping[str, Any]], count: int, seed: int, class_names: Sequence[str] = ()
) -> list[int]:
    """
    Records with objects, at random: those that show a class which is not shown yet come first. Records without
    objects follow. No more records are read than that takes, where all classes are known and shown.
    """
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    shown: Counter[str] = Counter()
    first: list[int] = []
    others: list[int] = []
    empty: list[int] = []
    for index in order:
        all_shown = bool(class_names) and shown.keys() >= set(class_names)
        if len(first) >= count or (all_shown and len(first) + len(others) >= count):
            break
        names = set(records[index]["objects"]["category"])
        if not names:
            empty.append(index)
        elif any(not shown[name] for name in names):
            first.append(index)
        else:
            others.append(index)
        shown.update(names)
    return (first + others + empty)[:count]


def _cell(example: Mapping[str, Any], groups: Mapping[str, int]) -> Image.Image:
    image = example["image"]
    width, height = image.size
    scale = CELL / max(width, height)
    small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    objects = example["objects"]
    masks = objects.get("segmentation") or [None] * len(objects["bbox"])
    drawn = []
    for (x, y, w, h), name, mask in zip(objects["bbox"], objects["category"], masks, strict=True):
        pixels = decode_mask(mask, height, width)
        if pixels is not None:
            pixels = np.asarray(Image.fromarray(pixels).resize(small.size))
        corners = (x * scale, y * scale, (x + w) * scale, (y + h) * scale)
        drawn.append(DrawnObject(name, corners, pixels, groups.get(name, 0)))
    cell = Image.new("RGB", (CELL, small.height + CAPTION), "white")
    cell.paste(draw(small, drawn), (0, 0))
    text = f"{example['image_id']}"[-40:]
    ImageDraw.Draw(cell).text((2, small.height + 2), text, fill="black", font=ImageFont.load_default(12))
    return cell
