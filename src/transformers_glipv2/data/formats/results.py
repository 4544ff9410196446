"""
Results of a detector as files that other tools read, and as `supervision.Detections`.

Corners of results are inclusive: a box from pixel 3 to pixel 3 is one pixel wide. Annotation formats measure a box
from edge to edge, so there the same box is written from 3 to 4.
"""

import csv
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import yaml

from transformers_glipv2.data.dataset import stored_orientation
from transformers_glipv2.data.files import printable, replaced_file, write_text
from transformers_glipv2.data.masks import decode_mask, encode_mask, mask_polygon
from transformers_glipv2.images.image_io import image_size, open_image

TASKS = ("boxes", "masks", "captions")
ROWS_PER_GROUP = 1000
# Of a score, and of a coordinate in pixels and as a fraction: finer than any model is.
SCORE_DIGITS, PIXEL_DIGITS, FRACTION_DIGITS = 5, 3, 8
_YOLO_MARK = "# Predictions written by transformers-glipv2, which replaces this folder when it writes them again.\n"
# Characters that XML cannot hold.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class ImageResult:
    """
    What was found in an image.

    Attributes:
        name (`str`): of the image, with "/" between folders.
        width (`int`), height (`int`): of the image, upright.
        labels (`list[str]`), scores (`list[float]`): of each object.
        boxes (`list[list[float]]`): x1, y1, x2, y2 in pixels, inclusive.
        masks (`list[dict]`, *optional*): COCO run lengths {"size": [height, width], "counts": str}.
        caption (`str`, *optional*): in place of objects.
        file (`Path`, *optional*): where the image is.
    """

    name: str
    width: int
    height: int
    labels: list[str]
    scores: list[float]
    boxes: list[list[float]]
    masks: list[dict[str, Any]] | None = None
    caption: str | None = None
    file: Path | None = None

    @property
    def task(self) -> str:
        """What it holds: "boxes", "masks" or "captions"."""
        if self.caption is not None:
            return "captions"
        return "boxes" if self.masks is None else "masks"

    def objects(self) -> Iterator[tuple[str, float, list[float]]]:
        """Label, score, and x, y, width, height in pixels from edge to edge of each object."""
        for label, score, (x1, y1, x2, y2) in zip(self.labels, self.scores, self.boxes, strict=True):
            box = [x1, y1, max(x2 - x1 + 1, 0.0), max(y2 - y1 + 1, 0.0)]
            yield label, round(score, SCORE_DIGITS), [round(side, PIXEL_DIGITS) for side in box]

    def fractions(self) -> Iterator[tuple[str, float, list[float]]]:
        """As [`ImageResult.objects`], in fractions of the image's width and height."""
        sides = (self.width, self.height) * 2
        for label, score, box in self.objects():
            yield label, score, [round(side / of, FRACTION_DIGITS) for side, of in zip(box, sides, strict=True)]


class ClassNumbers:
    """Numbers of labels from 0 on, in the order given or else of their first appearance."""

    def __init__(self, names: Iterable[str] = ()):
        self.numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}

    def __getitem__(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)


@dataclass(frozen=True)
class ResultFormat:
    """
    A way to write results.

    Attributes:
        file_name (`str`): of the file, or of the folder, where a folder is given to write to.
        tasks (`tuple[str, ...]`): what it holds, of "boxes", "masks" and "captions".
        write (`Callable`): writes results to a path.
    """

    file_name: str
    tasks: tuple[str, ...]
    write: Callable[[Path, Iterable[ImageResult], ClassNumbers, str], None]


def write_results(
    path: str | Path,
    results: Iterable[Any],
    format: str | None = None,
    images: Sequence[str | Path] | None = None,
    classes: Sequence[str] = (),
    task: str | None = None,
) -> Path:
    """
    Writes the results of many images as one file (as a folder for "yolo"), one image in memory at a time.

    The file is there as a whole or not at all, and replaces one that was there. Images without objects stay in it.

    Args:
        path (`str` or `Path`): to write to.
        results (`Iterable`): of [`Detector.stream`], [`Detector.segment`] or a pipeline, one for each of `images`; or
            mappings that say their image themselves: "image" (a name), "width", "height", "scores", "labels" (names),
            "boxes" (x1, y1, x2, y2 in pixels, inclusive) and "masks" (COCO run lengths), or "caption".
        format (`str`, *optional*): one of `RESULT_FORMATS`; by default what the name ends in says: `.json` is "coco",
            `.csv`, `.parquet`, `.xml` is "cvat", and a name without an ending is a folder of "yolo".
        images (`Sequence[str or Path]`, *optional*): the image files, in the order of the results.
        classes (`Sequence[str]`, *optional*): the labels in the order of their numbers; by default and beyond these
            the order in which they are found.
        task (`str`, *optional*): "boxes", "masks" or "captions"; by default what the first result has.

    Returns:
        `Path`: what was written.

    Raises:
        ValueError: for an unknown format, one that cannot hold the results, or another number of results than images.
        FileExistsError: when there is a folder in the way that is no earlier result.
    """
    path = Path(path)
    format = format_of(path) if format is None else format
    check_format(format, task or TASKS[0])
    rows = _rows(results, images)
    first = next(rows, None)
    if first is not None:
        rows = itertools.chain([first], rows)
        task = task or first.task
    check_format(format, task or TASKS[0])
    RESULT_FORMATS[format].write(path, rows, ClassNumbers(classes), task or TASKS[0])
    return path


def check_format(format: str, task: str) -> None:
    """Raises ValueError for an unknown format, or one that cannot hold "boxes", "masks" or "captions"."""
    if format not in RESULT_FORMATS:
        raise ValueError(f"there is no format {format!r} of results; choose one of {', '.join(RESULT_FORMATS)}.")
    if task not in RESULT_FORMATS[format].tasks:
        able = [name for name, one in RESULT_FORMATS.items() if task in one.tasks]
        raise ValueError(f"the format {format!r} holds no {task}; choose one of {', '.join(able)}.")


def format_of(path: Path) -> str:
    """The format that the ending of a name says; raises ValueError for one that says none."""
    endings = {".json": "coco", ".csv": "csv", ".parquet": "parquet", ".xml": "cvat", "": "yolo"}
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path.name!r} does not say its format; pass one of {', '.join(RESULT_FORMATS)}.")
    return endings[path.suffix.lower()]


# Formats -------------------------------------------------------------------------------------------------------------


def _write_coco(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """An instances file with a score for each annotation, or a captions file; ids count from 1."""
    number = 0
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file, _spool() as annotations:
        file.write('{"images": [')
        for image_id, row in enumerate(rows, start=1):
            entry = {"id": image_id, "file_name": row.name, "width": row.width, "height": row.height}
            file.write(_listed(entry, image_id))
            for annotation in _coco_annotations(row, classes):
                number += 1
                annotations.write(_listed({"id": number, "image_id": image_id, **annotation}, number))
        file.write('\n],\n"annotations": [')
        _append(annotations, file)
        categories = [{"id": classes[name] + 1, "name": name} for name in classes]
        file.write(f'\n],\n"categories": {json.dumps(categories)}}}\n')


def _coco_annotations(row: ImageResult, classes: ClassNumbers) -> Iterator[dict[str, Any]]:
    if row.caption is not None:
        yield {"caption": row.caption}
    for index, (label, score, box) in enumerate(row.objects()):
        entry = {"category_id": classes[label] + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
        if row.masks is not None:
            entry["segmentation"] = row.masks[index]
        yield entry


def _write_yolo(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """
    `data.yaml`, `labels/NAME.txt`, and upright copies of the images that are files in `images/`; no scores. Masks are
    polygons in place of boxes; YOLO has no way to write an empty one, so its object is left out.
    """
    used: set[str] = set()
    with _replaced_folder(path) as folder:
        (folder / "labels").mkdir()
        (folder / "images").mkdir()
        for row in rows:
            name = _new_name(_inner_name(row.name), used)
            lines = [
                f"{classes[label]} {' '.join(f'{value:.8g}' for value in place)}\n"
                for label, place in _yolo_places(row)
                if place
            ]
            write_text(folder / "labels" / name.with_suffix(".txt"), "".join(lines))
            if row.file is not None:
                _copy_upright(row.file, folder / "images" / name)
        content = {"train": "images", "names": dict(enumerate(classes))}
        write_text(folder / "data.yaml", _YOLO_MARK + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _yolo_places(row: ImageResult) -> Iterator[tuple[str, list[float]]]:
    """Each label with its box by centre and sides, or with the corners of its mask, as fractions of the image."""
    for index, (label, _, (x, y, w, h)) in enumerate(row.fractions()):
        if row.masks is None:
            yield label, [x + w / 2, y + h / 2, w, h]
            continue
        polygon = mask_polygon(_pixels(row.masks[index]))
        yield label, [] if polygon is None else (polygon / (row.width, row.height)).ravel().tolist()


def _write_label_studio(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """
    Tasks with predictions, and beside them the labeling configuration that they need: rectangles in percent of the
    image, or brush strokes where there are masks.
    """
    kind, tag = ("brushlabels", "BrushLabels") if task == "masks" else ("rectanglelabels", "RectangleLabels")
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for number, row in enumerate(rows, start=1):
            regions = []
            size = {"original_width": row.width, "original_height": row.height, "image_rotation": 0}
            for index, (label, score, box) in enumerate(row.fractions()):
                _ = classes[label]
                value: dict[str, Any] = {kind: [label]}
                if row.masks is not None:
                    value |= {"format": "rle", "rle": _label_studio_runs(_pixels(row.masks[index]))}
                else:
                    sides = zip(("x", "y", "width", "height"), box, strict=True)
                    value |= {name: round(100 * side, FRACTION_DIGITS - 2) for name, side in sides} | {"rotation": 0}
                names = {"id": f"{number}-{index + 1}", "from_name": "label", "to_name": "image"}
                regions.append({**names, "type": kind, **size, "value": value, "score": score})
            mean = round(sum(row.scores) / len(row.scores), SCORE_DIGITS) if row.scores else 0.0
            prediction = {"model_version": "glipv2", "score": mean, "result": regions}
            file.write(
                _listed({"data": {"image": _label_studio_image(row.name)}, "predictions": [prediction]}, number)
            )
        file.write("\n]\n")
    labels = "".join(f"    <Label value={quoteattr(_xml(name))}/>\n" for name in classes)
    write_text(
        path.with_suffix(".label_config.xml"),
        f'<View>\n  <Image name="image" value="$image"/>\n  <{tag} name="label" toName="image">\n'
        f"{labels}  </{tag}>\n</View>\n",
    )


def _label_studio_runs(pixels: np.ndarray) -> list[int]:
    """
    A mask as Label Studio has it, the bytes of thi.ng's `rle-pack`: runs over the four equal channels of every pixel.

    Bits: the number of values (32), the bits of a value less 1 (5), the bits of each of four sorts of lengths less 1
    (4 each), then the runs: 1, the sort (2), the length less 1, the value (8). Ours are all of the sort of 16 bits.
    """
    flat = pixels.ravel()
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    for end, length in zip(ends.tolist(), np.diff(ends, prepend=0).tolist(), strict=True):
        value = 255 if flat[end - 1] else 0
        for start in range(0, 4 * length, 1 << 16):
            bits.append(f"111{min(4 * length - start, 1 << 16) - 1:016b}{value:08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _label_studio_image(name: str) -> str:
    return name if "://" in name else f"/data/local-files/?d={quote(name)}"


def _write_cvat(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """CVAT for images 1.1; the score is an attribute."""
    count = 0
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file, _spool() as body:
        for row in rows:
            name = quoteattr(_xml(row.name))
            body.write(f'  <image id="{count}" name={name} width="{row.width}" height="{row.height}">\n')
            for index, (label, score, (x, y, w, h)) in enumerate(row.objects()):
                _ = classes[label]
                common = f'label={quoteattr(_xml(label))} source="auto" occluded="0"'
                if row.masks is None:
                    corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
                    tag = f"box {common} {corners}"
                else:
                    tag = f"mask {common} {_cvat_runs(row.masks[index])}"
                body.write(f'    <{tag} z_order="0">\n      <attribute name="score">{score}</attribute>\n')
                body.write(f"    </{tag.split()[0]}>\n")
            body.write("  </image>\n")
            count += 1
        shape = "rectangle" if task == "boxes" else "mask"
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n')
        file.write(f"    <task>\n      <size>{count}</size>\n      <mode>annotation</mode>\n      <labels>\n")
        for name in classes:
            file.write(
                f"        <label>\n          <name>{escape(_xml(name))}</name>\n          <type>{shape}</type>\n"
                "          <attributes>\n            <attribute>\n              <name>score</name>\n"
                "              <mutable>False</mutable>\n              <input_type>text</input_type>\n"
                "              <default_value></default_value>\n              <values></values>\n"
                "            </attribute>\n          </attributes>\n        </label>\n"
            )
        file.write("      </labels>\n    </task>\n  </meta>\n")
        _append(body, file)
        file.write("</annotations>\n")


def _cvat_runs(mask: Mapping[str, Any]) -> str:
    """A mask as CVAT has it: run lengths by rows, the first of pixels outside, within the rectangle around it."""
    pixels = _pixels(mask)
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    top, left = (int(found[0]) if len(found) else 0 for found in (rows, columns))
    bottom, right = (int(found[-1]) + 1 if len(found) else 1 for found in (rows, columns))
    flat = pixels[top:bottom, left:right].ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, len(flat)]).tolist()
    runs = [0, *runs] if flat[0] else runs
    place = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
    return f'rle="{", ".join(map(str, runs))}" {place}'


def _pixels(mask: Mapping[str, Any]) -> np.ndarray:
    """Run lengths as a boolean array `(height, width)`."""
    pixels = decode_mask(mask, *mask["size"])
    assert pixels is not None
    return pixels


def _write_fiftyone(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """
    What `fiftyone.types.FiftyOneImageDetectionDataset` imports: images go by their names without the ending. It reads
    no masks, so these are written for `fiftyone.types.COCODetectionDataset`.
    """
    if task == "masks":
        _write_coco(path, rows, classes, task)
        return
    used: dict[str, str] = {}
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"labels": {')
        for number, row in enumerate(rows, start=1):
            key = str(_inner_name(row.name).with_suffix(""))
            if key in used:
                raise ValueError(
                    f"FiftyOne knows images by their names without the ending, and {used[key]!r} and {row.name!r} are "
                    f"both {key!r} there; rename one, or choose another format."
                )
            used[key] = row.name
            objects = [
                {"label": classes[label], "bounding_box": box, "confidence": score}
                for label, score, box in row.fractions()
            ]
            file.write(f"{',' if number > 1 else ''}\n{json.dumps(key)}: {json.dumps(objects)}")
        file.write(f'\n}},\n"classes": {json.dumps(list(classes))}}}\n')


def _write_parquet(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """A row for each image, a thousand in memory at a time; boxes with inclusive corners, as results have them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {"image": pa.string(), "width": pa.int32(), "height": pa.int32()}
    if task == "captions":
        fields["caption"] = pa.string()
    else:
        fields |= {"scores": pa.list_(pa.float32()), "labels": pa.list_(pa.string())}
        fields |= {"boxes": pa.list_(pa.list_(pa.float32()))}
    if task == "masks":
        fields["masks"] = pa.list_(pa.string())
    schema = pa.schema(fields)

    def columns(row: ImageResult) -> dict[str, Any]:
        masks = [mask["counts"] for mask in row.masks or ()]
        return {**vars(row), "image": row.name, "masks": masks}

    with replaced_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        rows = iter(rows)
        while group := [columns(row) for row in itertools.islice(rows, ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema))


def _write_csv(path: Path, rows: Iterable[ImageResult], classes: ClassNumbers, task: str) -> None:
    """A line for each object, x2 and y2 as edges; one without a box for an image without objects."""
    captions = ["image", "width", "height", "caption"]
    objects = ["image", "width", "height", "label", "score", "x1", "y1", "x2", "y2"]
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(captions if task == "captions" else objects)
        for row in rows:
            image = [row.name, row.width, row.height]
            if task == "captions":
                writer.writerow([*image, row.caption])
                continue
            for label, score, (x, y, w, h) in row.objects():
                writer.writerow([*image, label, score, x, y, round(x + w, PIXEL_DIGITS), round(y + h, PIXEL_DIGITS)])
            if not row.labels:
                writer.writerow([*image, *[""] * 6])


RESULT_FORMATS = {
    "parquet": ResultFormat("predictions.parquet", TASKS, _write_parquet),
    "coco": ResultFormat("predictions.json", TASKS, _write_coco),
    "csv": ResultFormat("predictions.csv", ("boxes", "captions"), _write_csv),
    "yolo": ResultFormat("yolo", ("boxes", "masks"), _write_yolo),
    "labelstudio": ResultFormat("label_studio.json", ("boxes", "masks"), _write_label_studio),
    "cvat": ResultFormat("annotations.xml", ("boxes", "masks"), _write_cvat),
    "fiftyone": ResultFormat("labels.json", ("boxes", "masks"), _write_fiftyone),
}


# supervision ---------------------------------------------------------------------------------------------------------


def to_supervision(result: Any, classes: Sequence[str] = ()) -> Any:
    """
    A result as `supervision.Detections`, which draws, counts, tracks and scores.

    Args:
        result: of one image, from [`Detector.detect`], [`Detector.segment`], [`Detector.ground`] or a pipeline.
        classes (`Sequence[str]`, *optional*): the labels in the order of their numbers; by default those that the
            result has ("labels"), else the order in which they are found.

    Returns:
        `supervision.Detections`: `xyxy` `(n, 4)` in pixels, as the result has them; `confidence` and `class_id`
        `(n,)`; `data["class_name"]` `(n,)`, the labels; `mask` `(n, height, width)` where there are masks.

    Raises:
        ImportError: when supervision is not installed.
        TypeError: when the result is none that is known here.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            '`to_supervision` needs supervision: pip install "transformers-glipv2[supervision]"'
        ) from error
    labels, scores, boxes, masks = _objects_of(result)
    numbers = ClassNumbers(classes)
    ids = [numbers[label] for label in labels]
    if not classes and isinstance(result, Mapping) and "text_labels" in result:
        ids = _as_list(result["labels"])
    arrays = None
    if masks is not None:
        arrays = np.array([decode_mask(mask, *mask["size"]) for mask in masks], dtype=bool)
    return supervision.Detections(
        xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        confidence=np.array(scores, dtype=np.float32),
        class_id=np.array(ids, dtype=int),
        mask=arrays if arrays is not None and len(arrays) else None,
        data={"class_name": np.array(labels, dtype=str)},
    )


# Results -------------------------------------------------------------------------------------------------------------


def _rows(results: Iterable[Any], images: Sequence[str | Path] | None) -> Iterator[ImageResult]:
    if images is None:
        for index, result in enumerate(results):
            if not isinstance(result, Mapping) or not {"image", "width", "height"} <= set(result):
                raise ValueError(
                    f"result {index} does not say its image, width and height; pass the image files as `images`, in "
                    "the order of the results."
                )
            yield _row(result, result["image"], result["width"], result["height"], result.get("file"))
        return
    names = _names(images)
    count = 0
    for count, result in enumerate(results, start=1):
        if count > len(names):
            raise ValueError(f"there are more results than `images`, which are {len(names)}.")
        file = Path(images[count - 1])
        yield _row(result, names[count - 1], *image_size(file), file)
    if count < len(names):
        raise ValueError(f"`images` are {len(names)} and results {count}; each image needs one.")


def _row(result: Any, name: str, width: int, height: int, file: str | Path | None) -> ImageResult:
    file = None if file is None else Path(file)
    if isinstance(result, Mapping) and "caption" in result:
        return ImageResult(name, width, height, [], [], [], caption=result["caption"], file=file)
    labels, scores, boxes, masks = _objects_of(result, (height, width))
    return ImageResult(name, width, height, labels, scores, boxes, masks, file=file)


def _names(images: Sequence[str | Path]) -> list[str]:
    """Names of image files from the folder on that they are all in."""
    paths = [Path(image).absolute() for image in images]
    root = commonpath([path.parent for path in paths]) if paths else ""
    names = [path.relative_to(root).as_posix() for path in paths]
    return [printable(name) for name in names]


def _objects_of(
    result: Any, size: tuple[int, int] | None = None
) -> tuple[list[str], list[float], list[list[float]], list[dict[str, Any]] | None]:
    """Labels, scores, boxes and masks of a result of the detector or a pipeline."""
    if isinstance(result, Mapping) and {"scores", "boxes"} <= set(result):
        labels = _as_list(result["text_labels"] if "text_labels" in result else result["labels"])
        masks = [_run_lengths(mask, size) for mask in result["masks"]] if "masks" in result else None
        return labels, _as_list(result["scores"]), _as_list(result["boxes"]), masks
    if not isinstance(result, Sequence) or not all(isinstance(one, Mapping) for one in result):
        raise TypeError(f"a result of `Detector` or a pipeline is expected, got {type(result).__name__}.")
    if all({"phrase", "scores", "boxes"} <= set(one) for one in result):
        labels = [one["phrase"] for one in result for _ in one["scores"]]
        scores, boxes = ([value for one in result for value in _as_list(one[name])] for name in ("scores", "boxes"))
        return labels, scores, boxes, None
    if not all({"label", "score", "box"} <= set(one) for one in result):
        raise TypeError(f"no objects of `Detector` or a pipeline: {sorted(result[0])}.")
    boxes = [[float(one["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for one in result]
    masks = [_run_lengths(one["mask"], size) for one in result] if result and "mask" in result[0] else None
    return [one["label"] for one in result], [one["score"] for one in result], boxes, masks


def _run_lengths(mask: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    if isinstance(mask, Mapping):
        return {"size": list(mask["size"]), "counts": mask["counts"]}
    if isinstance(mask, str):
        assert size is not None
        return {"size": list(size), "counts": mask}
    return encode_mask(np.asarray(mask) > 0)


def _as_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _spool() -> Iterator[IO[str]]:
    """A temporary text file, in memory as long as it is small, for what belongs behind what is not yet known."""
    with tempfile.SpooledTemporaryFile(1 << 24, "w+", encoding="utf-8", newline="") as file:
        yield file


def _append(spool: IO[str], file: IO[str]) -> None:
    spool.seek(0)
    shutil.copyfileobj(spool, file)


def _listed(entry: Any, number: int) -> str:
    return f"{',' if number > 1 else ''}\n{json.dumps(entry)}"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _inner_name(name: str) -> PurePosixPath:
    """The name of an image as a path that stays in a folder; of a URL host and path."""
    if "://" in name:
        parts = urlsplit(name)
        name = f"{parts.netloc}{parts.path}".replace(":", "_")
    return PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in ("/", "//", "..")))


def _new_name(name: PurePosixPath, used: set[str]) -> PurePosixPath:
    """A name whose stem no other has: label files have no other ending to be told apart by."""
    numbered = (name.with_stem(f"{name.stem}_{number}") for number in itertools.count(2))
    new = next(one for one in itertools.chain([name], numbered) if str(one.with_suffix("")).lower() not in used)
    used.add(str(new.with_suffix("")).lower())
    return new


@contextmanager
def _replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path`, which may be new, empty, or an earlier result."""
    if path.exists() and not _may_be_replaced(path):
        raise FileExistsError(f"{path} is there already, and is no result that may be replaced; choose a new folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _may_be_replaced(path: Path) -> bool:
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    file = path / "data.yaml"
    written_here = file.is_file() and file.read_bytes().startswith(_YOLO_MARK.encode())
    return not names or (written_here and names <= {"data.yaml", "labels", "images", "labels.cache"})


def _copy_upright(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    if stored_orientation(file)[0] == 1:
        shutil.copyfile(file, copy)
    else:
        open_image(file).save(copy, quality=95)
