"""Results in the files of other tools: every one gives the same boxes back, whatever the names."""

import csv
import json
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from transformers_glipv2.cli.commands import predict
from transformers_glipv2.data.formats.open import open_dataset
from transformers_glipv2.data.formats.results import RESULT_FORMATS, to_supervision, write_results
from transformers_glipv2.data.masks import decode_mask, encode_mask

# Labels and files whose names separators, quotes and other alphabets are in.
CLASSES = ['cup, "large" & <small>', "Äpfel 🍎", "cat"]
WIDTH, HEIGHT = 120, 80
FOUND = {
    "one, two.png": [(0, 0.91234, (0, 0, 119, 79)), (1, 0.5, (10.25, 20.5, 30.75, 40))],
    "leer & 'empty'.png": [],
    "more/ünder #1.png": [(2, 0.4, (7, 7, 7, 7)), (0, 0.3, (100, 60, 119, 79)), (2, 0.2, (1, 2, 3, 4))],
}
# x, y, width, height from edge to edge.
BOXES = {
    name: [(CLASSES[label], [x1, y1, x2 - x1 + 1, y2 - y1 + 1]) for label, _, (x1, y1, x2, y2) in found]
    for name, found in FOUND.items()
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for name in FOUND:
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / name)
    return [folder / name for name in FOUND]


def results(masks: bool = False):
    """As a `Detector` gives them."""
    for found in FOUND.values():
        labels = [label for label, _, _ in found]
        result = {
            "scores": torch.tensor([score for _, score, _ in found]),
            "labels": torch.tensor(labels, dtype=torch.long),
            "text_labels": [CLASSES[label] for label in labels],
            "boxes": torch.tensor([box for _, _, box in found]).reshape(-1, 4),
        }
        yield {**result, "masks": [encode_mask(mask_of(box)) for _, _, box in found]} if masks else result


def mask_of(box) -> np.ndarray:
    x1, y1, x2, y2 = (int(side) for side in box)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    mask[y1 + 1 : y2, x1 + 1 : x2] = False
    return mask


def read_coco(path: Path):
    content = json.loads(path.read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, 6))
    found = {entry["id"]: (entry["file_name"], []) for entry in content["images"]}
    for entry in content["annotations"]:
        found[entry["image_id"]][1].append((names[entry["category_id"]], entry["bbox"], entry["score"]))
    return dict(found.values())


def read_yolo(path: Path):
    names = yaml.safe_load((path / "data.yaml").read_text())["names"]
    found = {}
    for file in (path / "labels").rglob("*.txt"):
        objects = found[file.relative_to(path / "labels").with_suffix(".png").as_posix()] = []
        for line in file.read_text().splitlines():
            number, *values = line.split()
            x, y, w, h = (float(value) * side for value, side in zip(values, (WIDTH, HEIGHT) * 2, strict=True))
            objects.append((names[int(number)], [x - w / 2, y - h / 2, w, h], None))
    return found


def read_csv(path: Path):
    found = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert (row["width"], row["height"]) == (str(WIDTH), str(HEIGHT))
            objects = found.setdefault(row["image"], [])
            if row["label"]:
                x1, y1, x2, y2 = (float(row[side]) for side in ("x1", "y1", "x2", "y2"))
                objects.append((row["label"], [x1, y1, x2 - x1, y2 - y1], float(row["score"])))
    return found


def read_label_studio(path: Path):
    found = {}
    for task in json.loads(path.read_text()):
        ((name,),) = parse_qs(urlsplit(task["data"]["image"]).query).values()
        (prediction,) = task["predictions"]
        objects = found[name] = []
        for region in prediction["result"]:
            assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
            value = region["value"]
            sides = ("x", WIDTH), ("y", HEIGHT), ("width", WIDTH), ("height", HEIGHT)
            box = [value[name] / 100 * side for name, side in sides]
            objects.append((*value["rectanglelabels"], box, region["score"]))
    config = ElementTree.parse(path.with_suffix(".label_config.xml"))
    assert sorted(entry.get("value") for entry in config.iter("Label")) == sorted(CLASSES)
    return found


def read_cvat(path: Path):
    tree = ElementTree.parse(path)
    assert [entry.text for entry in tree.iterfind("meta/task/labels/label/name")] == CLASSES
    found = {}
    for image in tree.iter("image"):
        objects = found[image.get("name")] = []
        for box in image.iter("box"):
            x1, y1, x2, y2 = (float(box.get(side)) for side in ("xtl", "ytl", "xbr", "ybr"))
            objects.append((box.get("label"), [x1, y1, x2 - x1, y2 - y1], float(box.findtext("attribute"))))
    return found


def read_fiftyone(path: Path):
    content = json.loads(path.read_text())
    found = {}
    for name, objects in content["labels"].items():
        found[f"{name}.png"] = [
            (
                content["classes"][entry["label"]],
                [value * side for value, side in zip(entry["bounding_box"], (WIDTH, HEIGHT) * 2, strict=True)],
                entry["confidence"],
            )
            for entry in objects
        ]
    return found


def read_parquet(path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    found = {}
    for row in pq.read_table(path).to_pylist():
        assert (row["width"], row["height"]) == (WIDTH, HEIGHT)
        boxes = [[x1, y1, x2 - x1 + 1, y2 - y1 + 1] for x1, y1, x2, y2 in row["boxes"]]
        found[row["image"]] = list(zip(row["labels"], boxes, row["scores"], strict=True))
    return found


READERS = {
    "coco": read_coco,
    "yolo": read_yolo,
    "csv": read_csv,
    "labelstudio": read_label_studio,
    "cvat": read_cvat,
    "fiftyone": read_fiftyone,
    "parquet": read_parquet,
}


def test_the_command_and_the_tests_know_every_format():
    (given, _) = get_args(predict.predict.__annotations__["format"])
    assert set(get_args(given)) == set(RESULT_FORMATS) == set(READERS)


@pytest.mark.parametrize("format", RESULT_FORMATS)
def test_every_format_holds_the_same_boxes(format, images, tmp_path):
    path = write_results(tmp_path / "out" / RESULT_FORMATS[format].file_name, results(), format, images, CLASSES)
    found = READERS[format](path)
    assert sorted(found) == sorted(BOXES)
    for name, objects in found.items():
        assert [label for label, _, _ in objects] == [label for label, _ in BOXES[name]]
        for (_, box, score), (_, expected), (_, given, _) in zip(objects, BOXES[name], FOUND[name], strict=True):
            assert box == pytest.approx(expected, abs=0.01)
            assert score is None or score == pytest.approx(given, abs=1e-5)
    # Nothing half-written is left behind.
    assert not [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("format", ["coco", "yolo", "csv"])
def test_what_is_written_can_be_trained_on(format, images, tmp_path):
    path = write_results(tmp_path / RESULT_FORMATS[format].file_name, results(), format, images, CLASSES)
    folder = None if format == "yolo" else images[0].parent
    data = open_dataset(path, images=folder, val_fraction=0)
    assert data.format == format
    (split,) = data.split_names
    examples = [data.split(split)[index] for index in range(3)]
    read = {
        Path(str(example["image_id"])).name: sorted(
            zip(example["objects"]["category"], example["objects"]["bbox"], strict=True)
        )
        for example in examples
    }
    if format == "coco":
        read = dict(zip([Path(name).name for name in BOXES], read.values(), strict=True))
    assert set(read) == {Path(name).name for name in BOXES}
    for name, objects in BOXES.items():
        for (label, box), (expected, sides) in zip(read[Path(name).name], sorted(objects), strict=True):
            assert label == expected
            assert box == pytest.approx(sides, abs=0.01)


MASK_FORMATS = [name for name, one in RESULT_FORMATS.items() if "masks" in one.tasks]


@pytest.mark.parametrize("format", MASK_FORMATS)
def test_masks(format, images, tmp_path):
    path = write_results(tmp_path / RESULT_FORMATS[format].file_name, results(masks=True), format, images, CLASSES)
    if format in ("coco", "fiftyone"):
        masks = [decode_mask(entry["segmentation"], HEIGHT, WIDTH) for entry in read_json(path)["annotations"]]
    elif format == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        counts = [counts for row in pq.read_table(path).to_pylist() for counts in row["masks"]]
        masks = [decode_mask({"size": [HEIGHT, WIDTH], "counts": one}, HEIGHT, WIDTH) for one in counts]
    elif format == "yolo":
        lines = [line.split()[1:] for name in FOUND for line in yolo_lines(path, name)]
        corners = [np.array(line, dtype=float).reshape(-1, 2) * (WIDTH, HEIGHT) for line in lines]
        masks = [decode_mask([polygon.ravel().tolist()], HEIGHT, WIDTH) for polygon in corners]
    elif format == "labelstudio":
        regions = [region for task in read_json(path) for region in task["predictions"][0]["result"]]
        assert {region["type"] for region in regions} == {"brushlabels"}
        named = [[name] for found in BOXES.values() for name, _ in found]
        assert [region["value"]["brushlabels"] for region in regions] == named
        assert "<BrushLabels" in path.with_suffix(".label_config.xml").read_text()
        masks = [label_studio_mask(region) for region in regions]
    else:
        masks = [cvat_mask(entry) for entry in ElementTree.parse(path).iter("mask")]
    expected = [mask_of(box) for found in FOUND.values() for _, _, box in found]
    for mask, own in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask, own)


def read_json(path: Path):
    return json.loads(path.read_text())


def yolo_lines(path: Path, name: str) -> list[str]:
    return (path / "labels" / name).with_suffix(".txt").read_text().splitlines()


def label_studio_mask(region) -> np.ndarray:
    """As `label_studio_sdk.converter.brush.decode_rle` reads them: the alpha channel of an RGBA image."""
    assert region["value"]["format"] == "rle"
    bits = "".join(f"{byte:08b}" for byte in region["value"]["rle"])
    at = 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    height, width = region["original_height"], region["original_width"]
    return np.reshape(values, (height, width, 4))[..., 3] > 0


def test_masks_as_polygons_can_be_trained_on(images, tmp_path):
    path = write_results(tmp_path / "yolo", results(masks=True), "yolo", images, CLASSES)
    data = open_dataset(path, val_fraction=0, with_masks=True)
    (split,) = data.split_names
    assert len(data.split(split)) == 3
    for example in (data.split(split)[index] for index in range(3)):
        ((_, found),) = [(name, found) for name, found in FOUND.items() if Path(name).stem in str(example["image_id"])]
        masks = [decode_mask(one, HEIGHT, WIDTH) for one in example["objects"].get("segmentation", ())]
        for mask, (label, _, box), category in zip(masks, found, example["objects"]["category"], strict=True):
            np.testing.assert_array_equal(mask, mask_of(box))
            assert category == CLASSES[label]


def test_an_object_with_an_empty_mask(images, tmp_path):
    nothing = encode_mask(np.zeros((HEIGHT, WIDTH), dtype=bool))
    full = encode_mask(np.ones((HEIGHT, WIDTH), dtype=bool))
    found = {
        "scores": [0.9, 0.5],
        "text_labels": ["cat", "dog"],
        "boxes": [[0, 0, 9, 9]] * 2,
        "masks": [nothing, full],
    }
    for format in MASK_FORMATS:
        path = write_results(tmp_path / RESULT_FORMATS[format].file_name, [found], format, images[:1], ["cat", "dog"])
        if format == "yolo":
            (line,) = yolo_lines(path, images[0].name)
            assert line.split()[0] == "1"
            assert {0.0, 1.0} < {float(value) for value in line.split()[1:]}


def test_long_runs_of_a_mask_in_label_studio(tmp_path):
    mask = np.ones((200, 300), dtype=bool)
    mask[150, 7] = False
    found = {"image": "a.png", "width": 300, "height": 200, "scores": [0.9], "labels": ["cat"]}
    found |= {"boxes": [[0, 0, 299, 199]], "masks": [encode_mask(mask)]}
    path = write_results(tmp_path / "tasks.json", [found], "labelstudio")
    ((region,),) = [task["predictions"][0]["result"] for task in read_json(path)]
    np.testing.assert_array_equal(label_studio_mask(region), mask)


def cvat_mask(entry) -> np.ndarray:
    left, top, width, height = (int(entry.get(side)) for side in ("left", "top", "width", "height"))
    runs = [int(run) for run in entry.get("rle").split(",")]
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = pixels
    return mask


def test_results_of_pipelines_and_names_that_say_the_format(images, tmp_path):
    piped = [
        [
            {
                "score": score,
                "label": CLASSES[label],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            }
            for label, score, box in found
        ]
        for found in FOUND.values()
    ]
    for name, reader in (("a.json", read_coco), ("a.csv", read_csv), ("a.xml", read_cvat), ("a", read_yolo)):
        found = reader(write_results(tmp_path / name, piped, images=images))
        assert [len(found[name]) for name in FOUND] == [2, 0, 3]


def test_captions(images, tmp_path):
    captions = [{"caption": "a red, empty image"}, {"caption": '"quoted"'}, {"caption": ""}]
    content = read_json(write_results(tmp_path / "a.json", captions, images=images))
    assert [entry["caption"] for entry in content["annotations"]] == [one["caption"] for one in captions]
    path = write_results(tmp_path / "a.csv", captions, images=images)
    with open(path, newline="") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == [one["caption"] for one in captions]


def test_no_images_at_all(tmp_path):
    for format, one in RESULT_FORMATS.items():
        assert write_results(tmp_path / one.file_name, [], format).exists()


def test_what_cannot_be_written_is_said_in_a_sentence(images, tmp_path):
    with pytest.raises(ValueError, match="no format 'voc' of results; choose one of parquet, coco, csv, yolo"):
        write_results(tmp_path / "a", results(), "voc", images)
    with pytest.raises(ValueError, match="does not say its format"):
        write_results(tmp_path / "a.txt", results(), images=images)
    with pytest.raises(ValueError, match="'csv' holds no masks; choose one of parquet, coco, yolo"):
        write_results(tmp_path / "a", results(masks=True), "csv", images)
    with pytest.raises(ValueError, match="result 0 does not say its image"):
        write_results(tmp_path / "a.json", results())
    with pytest.raises(ValueError, match="more results than `images`, which are 2"):
        write_results(tmp_path / "a.json", results(), images=images[:2])
    with pytest.raises(ValueError, match="`images` are 4 and results 3"):
        write_results(tmp_path / "a.json", results(), images=[*images, images[0]])
    with pytest.raises(TypeError, match="got dict"):
        write_results(tmp_path / "a.json", [{"answers": []}], images=images[:1])
    assert list(tmp_path.iterdir()) == []


def test_two_images_of_a_name(images, tmp_path):
    entry = {"width": WIDTH, "height": HEIGHT, "scores": [0.5], "labels": ["cat"], "boxes": [[0, 0, 9, 9]]}
    two = [{"image": name, **entry} for name in ("a.png", "a.jpg", "http://host:80/a.png?b")]
    path = write_results(tmp_path / "yolo", two)
    names = sorted(file.relative_to(path / "labels").as_posix() for file in path.rglob("*.txt"))
    assert names == ["a.txt", "a_2.txt", "host_80/a.txt"]
    with pytest.raises(ValueError, match=r"'a\.png' and 'a\.jpg' are both 'a'"):
        write_results(tmp_path / "labels.json", two, "fiftyone")
    tasks = read_json(write_results(tmp_path / "tasks.json", two, "labelstudio"))
    assert tasks[2]["data"]["image"] == "http://host:80/a.png?b"


def test_a_folder_of_results_is_replaced_and_no_other(images, tmp_path):
    path = tmp_path / "yolo"
    write_results(path, results(), images=images)
    write_results(path, list(results())[:1], images=images[:1])
    assert [file.name for file in path.rglob("*.txt")] == ["one, two.txt"]
    (path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    with pytest.raises(FileExistsError, match="no result that may be replaced"):
        write_results(path, results(), images=images)
    assert (path / "labels" / "one, two.txt").exists()


def test_an_image_on_its_side_is_copied_upright(tmp_path):
    image = Image.new("RGB", (60, 40), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.jpg", exif=exif)
    result = {"scores": [0.5], "text_labels": ["cat"], "boxes": [[0, 30, 39, 59]]}
    path = write_results(tmp_path / "out", [result], images=[tmp_path / "side.jpg"])
    assert Image.open(path / "images" / "side.jpg").size == (40, 60)
    assert (path / "labels" / "side.txt").read_text() == "0 0.5 0.75 1 0.5\n"


# supervision ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision():
    pytest.importorskip("supervision")
    with_masks = list(results(masks=True))[2]
    found = to_supervision(with_masks)
    assert found.class_id.tolist() == [2, 0, 2]
    assert found.data["class_name"].tolist() == [CLASSES[2], CLASSES[0], CLASSES[2]]
    np.testing.assert_allclose(found.confidence, [0.4, 0.3, 0.2])
    np.testing.assert_allclose(found.xyxy, with_masks["boxes"])
    expected = [mask_of(box) for _, _, box in FOUND["more/ünder #1.png"]]
    np.testing.assert_array_equal(np.asarray(found.mask), expected)
    assert len(found[found.confidence > 0.25]) == 2

    empty = to_supervision(list(results(masks=True))[1])
    assert len(empty) == 0
    phrases = [{"phrase": "a cat", "scores": torch.tensor([0.5, 0.4]), "boxes": torch.zeros(2, 4)}]
    assert to_supervision(phrases).data["class_name"].tolist() == ["a cat", "a cat"]
    piped = [{"score": 0.5, "label": "dog", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}]
    named = to_supervision(piped, classes=["cat", "dog"])
    assert named.class_id.tolist() == [1]
    assert named.xyxy.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(TypeError, match="expected, got str"):
        to_supervision("a cat")


def test_supervision_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ImportError, match=r"transformers-glipv2\[supervision\]"):
        to_supervision(next(results()))
