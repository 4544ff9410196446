"""Boxes in a table: CSV with a row for each box, under whatever usual names its columns have, or under none."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.files import read_text
from transformers_glipv2.data.formats.coco import content_dataset
from transformers_glipv2.data.formats.coco_json import clean_number, clean_side
from transformers_glipv2.data.formats.source import (
    IMAGE_SUFFIXES,
    WHOLE,
    FoundData,
    ReadOptions,
    image_folder_of,
    is_split_name,
    named_splits,
    places_of,
    split_name,
)
from transformers_glipv2.data.image_files import ImageFinder, annotated_size
from transformers_glipv2.data.schema import BoxReport

# Names that columns go by, without case, spaces, "_", "-" and ".".
COLUMNS = {
    "image": (
        "image",
        "filename",
        "imagepath",
        "imagename",
        "imagefile",
        "file",
        "filepath",
        "path",
        "img",
        "imageid",
    ),
    "label": ("label", "class", "classname", "category", "categoryname", "labelname", "name", "object", "objectname"),
    "x1": ("x1", "xmin", "xminimum", "left", "bboxx1", "bboxxmin", "boxx1", "boxxmin", "minx"),
    "y1": ("y1", "ymin", "yminimum", "top", "bboxy1", "bboxymin", "boxy1", "boxymin", "miny"),
    "x2": ("x2", "xmax", "xmaximum", "right", "bboxx2", "bboxxmax", "boxx2", "boxxmax", "maxx"),
    "y2": ("y2", "ymax", "ymaximum", "bottom", "bboxy2", "bboxymax", "boxy2", "boxymax", "maxy"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "w": ("w", "bboxw", "bboxwidth", "boxw", "boxwidth", "bw"),
    "h": ("h", "bboxh", "bboxheight", "boxh", "boxheight", "bh"),
    "cx": ("cx", "xcenter", "centerx", "xc"),
    "cy": ("cy", "ycenter", "centery", "yc"),
    "bbox": ("bbox", "box", "boundingbox"),
    "width": ("width", "imagewidth", "imgwidth", "imwidth"),
    "height": ("height", "imageheight", "imgheight", "imheight"),
    "split": ("split", "subset", "set", "usage"),
}
# Tables without a header: where the four numbers are says what the columns mean.
_HEADLESS = {
    (1, 2, 3, 4): ("image", "x1", "y1", "x2", "y2", "label"),
    (2, 3, 4, 5): ("image", "label", "x1", "y1", "x2", "y2"),
}
_BOXES = (("x1", "y1", "x2", "y2"), ("x1", "y1", "w", "h"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h"), ("bbox",))
_SEPARATORS = (",", ";", "\t", "|")
_SUFFIXES = (".csv", ".tsv")


@dataclass
class Table:
    """
    A CSV file.

    Attributes:
        file (`Path`): where it is.
        columns (`dict[str, int]`): position by meaning, a name in `COLUMNS`.
        box (`tuple[str, ...]`): the columns that make a box.
        separator (`str`): between fields.
        num_columns (`int`): fields of the header.
        rows (`list[tuple[int, list[str]]]`): number of the line and fields.
        has_header (`bool`): whether the first line names the columns.
        as_fractions (`bool`): whether boxes are fractions of the image's size.
    """

    file: Path
    columns: dict[str, int]
    box: tuple[str, ...]
    separator: str
    num_columns: int
    rows: list[tuple[int, list[str]]]
    has_header: bool
    as_fractions: bool = False

    def get(self, fields: Sequence[str], column: str) -> str:
        """The text of a column, empty where the row lacks it."""
        position = self.columns.get(column)
        return fields[position].strip() if position is not None and position < len(fields) else ""


def find_table(path: Path, images: Path | None) -> FoundData | None:
    """
    A CSV file, or a folder with one: for each split, in a folder for each split, or for all.

    Raises:
        ValueError: when the columns of a file are not understood, or a folder has several and their names do not say
            which splits they are.
    """
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            return None
        files = {split_name(path.stem) if is_split_name(path.stem) else WHOLE: path}
        root = path.parent
    else:
        root = path
        files = {file.parent.name: file for suffix in _SUFFIXES for file in sorted(path.glob(f"*/*{suffix}"))}
        files = {name: file for name, file in files.items() if is_split_name(name)}
        own = [file for suffix in _SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
        named = {file.stem: file for file in own if is_split_name(file.stem)}
        files = named or files or ({WHOLE: own[0]} if own else {})
        if not files:
            return None
        if WHOLE in files and len(own) > 1:
            raise ValueError(
                f"{path} holds several tables, {', '.join(file.name for file in own)}, and their names do not say "
                "which splits they are; name them train.csv, val.csv and test.csv, or pass one."
            )
    tables = {name: read_table(file) for name, file in files.items()}
    names = cache(partial(_class_names, list(tables.values())))
    if list(tables) == [WHOLE] and "split" in tables[WHOLE].columns:
        table = tables[WHOLE]
        parts = dict.fromkeys(table.get(fields, "split") for _, fields in table.rows)
        splits = {part: partial(_read_split, table, root, part, part, names, images) for part in parts if part}
    else:
        splits = {name: partial(_read_split, table, root, name, None, names, images) for name, table in tables.items()}
    table = next(iter(tables.values()))
    shown = ", ".join(sorted(table.columns, key=lambda name: table.columns[name]))
    fractions = ", boxes as fractions of the image" if table.as_fractions else ""
    header = "" if table.has_header else ", without a header"
    return FoundData("csv", f"CSV, {table.file.name}: {shown}{fractions}{header}", named_splits(splits))


def read_table(file: Path) -> Table:
    """
    A CSV file with its columns understood.

    Raises:
        ValueError: when they are not; names those that there are and those that are needed.
    """
    text = read_text(file)
    lines = text.splitlines()
    head = next((line for line in lines if line.strip()), "")
    separator = max(_SEPARATORS, key=head.count)
    if not head.count(separator):
        raise ValueError(f"{file} has one column, {head[:80]!r}; expected fields separated by commas.")
    rows = list(_rows(text, separator))
    _, header = rows[0]
    columns = {name: index for name in COLUMNS if (index := _position(header, COLUMNS[name])) is not None}
    box = _box_columns(columns)
    has_header = True
    if box is None or not {"image", "label"} <= set(columns):
        numbers = tuple(index for index, field in enumerate(header) if _number(field, separator) is not None)
        if numbers not in _HEADLESS or len(header) != 6:
            raise ValueError(_not_understood(file, header, columns, box))
        columns = {name: index for index, name in enumerate(_HEADLESS[numbers])}
        box, has_header = _BOXES[0], False
    assert box is not None
    table = Table(file, columns, box, separator, len(header), rows[1:] if has_header else rows, has_header)
    table.as_fractions = _are_fractions(table)
    return table


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is no CSV: {error}.") from error


def _position(header: Sequence[str], names: Sequence[str]) -> int | None:
    plain = ["".join(character for character in field.lower() if character not in " _-.") for field in header]
    return next((plain.index(name) for name in names if name in plain), None)


def _box_columns(columns: dict[str, int]) -> tuple[str, ...] | None:
    """The columns of a box. Without others for it, "width" and "height" are the box's; else the image's."""
    box = next((names for names in _BOXES if all(name in columns for name in names)), None)
    if box is None and {"width", "height"} <= set(columns):
        columns["w"], columns["h"] = columns.pop("width"), columns.pop("height")
        box = next((names for names in _BOXES if all(name in columns for name in names)), None)
    return box


def _not_understood(file: Path, header: Sequence[str], columns: Mapping[str, int], box: Any) -> str:
    missing = [name for name in ("image", "label") if name not in columns] + (["a box"] if box is None else [])
    return (
        f"{file}: the columns {', '.join(field.strip() for field in header)!r} have no {' and no '.join(missing)}; "
        "name them image, label, x1, y1, x2, y2 (or x, y, w, h)."
    )


def _number(text: str, separator: str) -> float | None:
    text = text.strip()
    return clean_number(text.replace(",", ".") if separator == ";" else text)


def _are_fractions(table: Table) -> bool:
    """All boxes within 0 and 1, and not all of them whole: what no box in pixels is (Open Images)."""
    values = [value for _, fields in table.rows for value in _box_values(table, fields) or () if value is not None]
    return bool(values) and max(values) <= 1 and min(values) >= 0 and any(value != int(value) for value in values)


def _box_values(table: Table, fields: Sequence[str]) -> list[float | None] | None:
    """The four numbers of a row; `None` for a row without any, of an image without objects."""
    if table.box == ("bbox",):
        texts = table.get(fields, "bbox").strip("[]() ").replace(",", " ").split()
    else:
        texts = [table.get(fields, name) for name in table.box]
    if not any(texts):
        return None
    return [_number(text, table.separator) for text in texts]


def _class_names(tables: Sequence[Table]) -> list[str]:
    """Every label, by alphabet: a table lists its classes nowhere."""
    names = {table.get(fields, "label") for table in tables for _, fields in table.rows}
    return sorted(name for name in names if name)


def _read_split(
    table: Table,
    root: Path,
    split: str,
    part: str | None,
    names: Any,
    images: Path | None,
    options: ReadOptions,
) -> ImageDataset:
    report = BoxReport(options.policy, table.file.name if part is None else f"{table.file.name}, {part}")
    rows = [row for row in table.rows if part is None or table.get(row[1], "split") == part]
    found = dict.fromkeys(name for _, fields in rows if (name := table.get(fields, "image")))
    suffixes = [""] if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in found) else sorted(IMAGE_SUFFIXES)
    candidates = places_of([images] if images is not None else [root, root / "images"], (split, split_name(split)))
    if images is None:
        candidates = [table.file.parent, *candidates]
    first = [f"{name}{suffix}" for name in list(found)[:5] for suffix in suffixes]
    folder = image_folder_of(first, candidates)
    where = str(table.file) if part is None else f"{table.file}, {part}"
    sizes = _sizes(table, rows)
    entries = []
    finder = ImageFinder(folder, options.allow_outside_paths)
    for name in found:
        # Identifiers of images, such as Open Images', have no extension.
        file_name = next((f"{name}{suffix}" for suffix in suffixes if (folder / f"{name}{suffix}").is_file()), name)
        size = sizes.get(name)
        if size is None and (table.as_fractions or table.box == ("cx", "cy", "w", "h")):
            path = finder(file_name, report, f"{where}, image {name!r}")
            size = None if path is None else annotated_size(None, None, path, report, f"{where}, image {name!r}")
            if size is None:
                continue
        entries.append({"id": name, "file_name": file_name, **_as_entry(size)})
    annotations = list(_annotations(table, rows, {str(entry["id"]): entry for entry in entries}, report))
    categories = [{"id": name, "name": name} for name in names()]
    return content_dataset(
        {"images": entries, "annotations": annotations, "categories": categories},
        where,
        folder,
        report,
        with_masks=options.with_masks,
        boxes_on=options.boxes_on,
        allow_outside_paths=options.allow_outside_paths,
    )


def _as_entry(size: tuple[int, int] | None) -> dict[str, int]:
    return {} if size is None else {"width": size[0], "height": size[1]}


def _sizes(table: Table, rows: Sequence[tuple[int, list[str]]]) -> dict[str, tuple[int, int]]:
    """The sizes of images that the table gives."""
    sizes = {}
    for _, fields in rows:
        width, height = (clean_side(table.get(fields, name)) for name in ("width", "height"))
        if width and height:
            sizes[table.get(fields, "image")] = (width, height)
    return sizes


def _annotations(
    table: Table,
    rows: Sequence[tuple[int, list[str]]],
    images: Mapping[str, Mapping[str, Any]],
    report: BoxReport,
) -> Iterator[dict[str, Any]]:
    for number, fields in rows:
        where = f"line {number}"
        if len(fields) != table.num_columns:
            separators = [one for one in _SEPARATORS if one != table.separator and one in "".join(fields)]
            hint = f"; is {separators[0]!r} used as a separator there?" if separators else ""
            report.add(
                "bad_entry",
                f"{where} has {len(fields)} fields and the first line {table.num_columns}, separated by "
                f"{table.separator!r}{hint}",
            )
            continue
        name, label = table.get(fields, "image"), table.get(fields, "label")
        values = _box_values(table, fields)
        if not name:
            report.add("bad_entry", f"{where} names no image")
        elif values is None and label:
            report.add("not_a_number", f"{where}, {label!r} of {name!r} has no box")
        elif values is not None and name in images:
            yield {
                "id": where,
                "image_id": name,
                "category_id": label,
                "bbox": _box(table, values, images[name]),
            }


def _box(table: Table, values: Sequence[float | None], image: Mapping[str, Any]) -> list[float | None]:
    """x, y, width, height in pixels; what is not four numbers stays, for `checked_box` to count."""
    if len(values) != 4 or None in values:
        return list(values)
    a, b, c, d = (value or 0.0 for value in values)
    if table.as_fractions:
        a, b, c, d = a * image["width"], b * image["height"], c * image["width"], d * image["height"]
    if table.box[-1] == "y2":
        return [a, b, c - a, d - b]
    if table.box[0] == "cx":
        return [a - c / 2, b - d / 2, c, d]
    return [a, b, c, d]
