"""The same six images and their boxes in every format that `open_dataset` reads."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# Fractions of these sides are exact, so that YOLO's are the same boxes.
WIDTH, HEIGHT = 128, 64
CLASSES = ("cat", "dog", "teddy bear")
SPLITS = {"train": (0, 1, 2, 3), "val": (4, 5)}
# Class and x, y, width, height of each box; the third image has none.
BOXES = {
    0: [("dog", (8, 4, 40, 32))],
    1: [("cat", (16, 8, 64, 48)), ("teddy bear", (96, 20, 24, 40))],
    2: [],
    3: [("cat", (0, 0, 128, 64)), ("dog", (2, 6, 12, 10)), ("dog", (50, 30, 20, 22))],
    4: [("teddy bear", (30, 10, 60, 50))],
    5: [("dog", (64, 0, 64, 64)), ("cat", (1, 1, 30, 30))],
}


def draw(folder: Path, index: int) -> str:
    """Writes an image of noise with its boxes drawn; returns its name."""
    noise = np.random.default_rng(index).integers(0, 255, (8, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((WIDTH, HEIGHT))
    for name, (x, y, w, h) in BOXES[index]:
        outline = ("red", "blue", "green")[CLASSES.index(name)]
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), outline=outline)
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{index}.png")
    return f"{index}.png"


def _coco(names: dict[int, str]) -> str:
    boxes = [(index, name, box) for index in names for name, box in BOXES[index]]
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in names.items()],
            "annotations": [
                {"id": n, "image_id": i, "category_id": CLASSES.index(name) + 1, "bbox": box, "iscrowd": 0}
                for n, (i, name, box) in enumerate(boxes)
            ],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
    )


def write_roboflow(folder: Path) -> Path:
    for split, indices in SPLITS.items():
        place = folder / ("valid" if split == "val" else split)
        names = {index: draw(place, index) for index in indices}
        (place / "_annotations.coco.json").write_text(_coco(names))
    return folder


def write_coco_official(folder: Path) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for split, indices in SPLITS.items():
        names = {index: draw(folder / f"{split}2017", index) for index in indices}
        (folder / "annotations" / f"instances_{split}2017.json").write_text(_coco(names))
    (folder / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    return folder


def write_coco_beside(folder: Path) -> Path:
    for split, indices in SPLITS.items():
        names = {index: f"{split}/{draw(folder / split, index)}" for index in indices}
        (folder / f"{split}.json").write_text(_coco(names))
    return folder


def write_cvat(folder: Path) -> Path:
    """CVAT's COCO export with subsets."""
    (folder / "annotations").mkdir(parents=True)
    for split, indices in SPLITS.items():
        names = {index: draw(folder / "images" / split, index) for index in indices}
        (folder / "annotations" / f"instances_{split}.json").write_text(_coco(names))
    return folder


def write_label_studio(folder: Path) -> Path:
    """Label Studio's COCO export: one file, not divided into splits."""
    names = {index: f"images\\{draw(folder / 'images', index)}" for index in BOXES}
    content = json.loads(_coco(names))
    for category in content["categories"]:
        category["id"] -= 1
    for annotation in content["annotations"]:
        annotation |= {"category_id": annotation["category_id"] - 1, "segmentation": [], "ignore": 0}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def _yolo_lines(index: int) -> str:
    return "".join(
        f"{CLASSES.index(name)} {(x + w / 2) / WIDTH!r} {(y + h / 2) / HEIGHT!r} {w / WIDTH!r} {h / HEIGHT!r}\n"
        for name, (x, y, w, h) in BOXES[index]
    )


def _yolo_labels(folder: Path, indices) -> None:
    folder.mkdir(parents=True)
    for index in indices:
        (folder / f"{index}.txt").write_text(_yolo_lines(index))


def write_yolo(folder: Path) -> Path:
    """Ultralytics: images/SPLIT and labels/SPLIT."""
    for split, indices in SPLITS.items():
        for index in indices:
            draw(folder / "images" / split, index)
        _yolo_labels(folder / "labels" / split, indices)
    names = "\n".join(f"  {index}: {name}" for index, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\ntest:\nnames:\n{names}\n")
    return folder


def write_yolo_roboflow(folder: Path) -> Path:
    """Roboflow: paths that start one folder too high."""
    for split, indices in SPLITS.items():
        place = folder / ("valid" if split == "val" else split)
        for index in indices:
            draw(place / "images", index)
        _yolo_labels(place / "labels", indices)
    names = list(CLASSES)
    (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {names}\n")
    return folder


def write_yolo_lists(folder: Path) -> Path:
    """Splits as a list file and a list of folders, and as polygons of the box's corners."""
    for index in SPLITS["train"]:
        draw(folder / "images" / "all", index)
    for index in SPLITS["val"]:
        draw(folder / "images" / f"part{index}", index)
    _yolo_labels(folder / "labels" / "all", SPLITS["train"])
    for index in SPLITS["val"]:
        place = folder / "labels" / f"part{index}"
        place.mkdir()
        lines = [
            f"{CLASSES.index(name)} {x / WIDTH!r} {y / HEIGHT!r} {(x + w) / WIDTH!r} {y / HEIGHT!r} "
            f"{(x + w) / WIDTH!r} {(y + h) / HEIGHT!r} {x / WIDTH!r} {(y + h) / HEIGHT!r}"
            for name, (x, y, w, h) in BOXES[index]
        ]
        (place / f"{index}.txt").write_text("\n".join(lines))
    (folder / "train.txt").write_text("".join(f"./images/all/{index}.png\n" for index in SPLITS["train"]))
    content = {"train": "train.txt", "val": ["images/part4", "images/part5"], "names": dict(enumerate(CLASSES))}
    (folder / "data.yaml").write_text(json.dumps(content))
    return folder


def _xml(index: int, with_size: bool = True, database: str = "Unknown", shift: int = 0) -> str:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>" if with_size else ""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x + shift}</xmin><ymin>{y + shift}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for name, (x, y, w, h) in BOXES[index]
    )
    return (
        f"<annotation><filename>{index}.png</filename><source><database>{database}</database></source>"
        f"{size}{objects}</annotation>"
    )


def write_voc(folder: Path) -> Path:
    """As the VOC devkit: ImageSets, corners that count from 1."""
    for place in ("Annotations", "ImageSets/Main"):
        (folder / place).mkdir(parents=True)
    for split, indices in SPLITS.items():
        for index in indices:
            draw(folder / "JPEGImages", index)
            text = _xml(index, database="The VOC2007 Database", shift=1)
            (folder / "Annotations" / f"{index}.xml").write_text(text)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{index}\n" for index in indices))
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("".join(f"{index}\n" for index in range(6)))
    (folder / "ImageSets" / "Main" / "dog_train.txt").write_text("0  1\n1 -1\n")
    return folder


def write_voc_beside(folder: Path) -> Path:
    """labelImg and Roboflow: XML beside the images; the size is missing in one."""
    for split, indices in SPLITS.items():
        for index in indices:
            draw(folder / split, index)
            (folder / split / f"{index}.xml").write_text(_xml(index, with_size=index != 1))
    return folder


def _rows(split: str, prefix: str = "") -> Iterator[dict[str, object]]:
    for index in SPLITS[split]:
        image = {"image": f"{prefix}{index}.png", "split": split}
        for name, (x, y, w, h) in BOXES[index]:
            yield {**image, "label": name, "x": x, "y": y, "w": w, "h": h, "x2": x + w, "y2": y + h}
        if not BOXES[index]:
            yield {**image, **dict.fromkeys(("label", "x", "y", "w", "h", "x2", "y2"), "")}


def _table(rows, header: dict[str, str], separator: str = ",", with_header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    if with_header:
        writer.writerow(header)
    writer.writerows([row[column] for column in header.values()] for row in rows)
    return text.getvalue()


def write_csv(folder: Path) -> Path:
    """A table for each split; corners, and x, y, w, h with semicolons."""
    corners = {"image": "image", "label": "label", "x1": "x", "y1": "y", "x2": "x2", "y2": "y2"}
    sides = {"File Name": "image", "Class": "label", "x": "x", "y": "y", "width": "w", "height": "h"}
    for split, header, separator in (("train", corners, ","), ("val", sides, ";")):
        for index in SPLITS[split]:
            draw(folder / "images", index)
        (folder / f"{split}.csv").write_text(_table(_rows(split), header, separator))
    return folder


def write_csv_with_splits(folder: Path) -> Path:
    """One table with a column of splits, with a byte order mark and backslashes."""
    for split, indices in SPLITS.items():
        for index in indices:
            draw(folder / split, index)
    header = {"filename": "image", "subset": "split", "class": "label"}
    header |= {"xmin": "x", "ymin": "y", "xmax": "x2", "ymax": "y2"}
    rows = [row for split in SPLITS for row in _rows(split, f"{split}\\")]
    (folder / "boxes.csv").write_text(_table(rows, header), encoding="utf-8-sig")
    return folder


def write_csv_without_header(folder: Path) -> Path:
    header = {"0": "image", "1": "x", "2": "y", "3": "x2", "4": "y2", "5": "label"}
    for split in SPLITS:
        for index in SPLITS[split]:
            draw(folder, index)
        (folder / f"{split}.csv").write_text(_table(_rows(split), header, with_header=False))
    return folder


def write_imagefolder(folder: Path) -> Path:
    for split, indices in SPLITS.items():
        lines = []
        for index in indices:
            boxes = [box for _, box in BOXES[index]]
            names = [name for name, _ in BOXES[index]]
            name = draw(folder / split, index)
            lines.append(json.dumps({"file_name": name, "objects": {"bbox": boxes, "categories": names}}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_imagefolder_at_the_root(folder: Path) -> Path:
    """One metadata.jsonl for all splits, with classes by number and objects as a list."""
    lines = []
    for split, indices in SPLITS.items():
        for index in indices:
            objects = [{"bbox": box, "category": CLASSES.index(name)} for name, box in BOXES[index]]
            name = f"{split}/{draw(folder / split, index)}"
            lines.append(json.dumps({"file_name": name, "width": WIDTH, "height": HEIGHT, "objects": objects}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def _hf_datasets(folder: Path):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("int64"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
                "category": datasets.List(datasets.ClassLabel(names=list(CLASSES))),
            },
        }
    )
    made = {}
    for split, indices in SPLITS.items():
        examples = [
            {
                "image": str(folder / "drawn" / draw(folder / "drawn", index)),
                "image_id": index,
                "objects": {
                    "bbox": [box for _, box in BOXES[index]],
                    "category": [CLASSES.index(name) for name, _ in BOXES[index]],
                },
            }
            for index in indices
        ]
        made["validation" if split == "val" else split] = datasets.Dataset.from_list(examples, features=features)
    return datasets.DatasetDict(made)


def write_datasets(folder: Path) -> Path:
    _hf_datasets(folder.parent / f"{folder.name}-images").save_to_disk(folder)
    return folder


def write_parquet(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for split, dataset in _hf_datasets(folder.parent / f"{folder.name}-images").items():
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


WRITERS = {
    "roboflow": write_roboflow,
    "coco_official": write_coco_official,
    "coco_beside": write_coco_beside,
    "cvat": write_cvat,
    "yolo": write_yolo,
    "yolo_roboflow": write_yolo_roboflow,
    "yolo_lists": write_yolo_lists,
    "voc": write_voc,
    "voc_beside": write_voc_beside,
    "csv": write_csv,
    "csv_with_splits": write_csv_with_splits,
    "csv_without_header": write_csv_without_header,
    "imagefolder": write_imagefolder,
    "imagefolder_at_the_root": write_imagefolder_at_the_root,
    "datasets": write_datasets,
    "parquet": write_parquet,
}
FORMATS = {
    **dict.fromkeys(("roboflow", "coco_official", "coco_beside", "cvat"), "coco"),
    **dict.fromkeys(("yolo", "yolo_roboflow", "yolo_lists"), "yolo"),
    **dict.fromkeys(("voc", "voc_beside"), "voc"),
    **dict.fromkeys(("csv", "csv_with_splits", "csv_without_header"), "csv"),
    **dict.fromkeys(("imagefolder", "imagefolder_at_the_root"), "imagefolder"),
    **dict.fromkeys(("datasets", "parquet"), "datasets"),
}
