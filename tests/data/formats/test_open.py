"""`open_dataset`: the same six images in every format, what is held out, and what is said of broken files."""

import json
import re

import pytest
import torch

from tests.data.formats.six_images import BOXES, CLASSES, FORMATS, SPLITS, WRITERS, write_label_studio
from tests.tiny_training import tiny_processor
from transformers_glipv2.data.augment import Compose, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.formats.open import open_dataset


def batch_of(dataset, processor):
    """A training batch with everything that is drawn at random."""
    augment = Compose([HorizontalFlip(), PhotometricDistortion()])
    collator = GroundingCollator(processor, augment=augment, sizes=[48, 64], mlm_probability=0.2, seed=3)
    return collator([{**dataset[index], "sample_index": index} for index in range(len(dataset))])


def assert_same_batch(one, other):
    assert one.keys() == other.keys()
    for name in one.keys() - {"labels"}:
        assert torch.equal(one[name], other[name]), name
    for first, second in zip(one["labels"], other["labels"], strict=True):
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The batches of `load_coco`."""
    folder = WRITERS["coco_beside"](tmp_path_factory.mktemp("expected"))
    processor = tiny_processor()
    return {split: batch_of(load_coco(folder, split=split), processor) for split in SPLITS}


@pytest.mark.parametrize("writer", WRITERS)
def test_all_formats_give_the_same_training_batches(writer, expected, tmp_path):
    data = open_dataset(WRITERS[writer](tmp_path / "data"))
    assert data.format == FORMATS[writer]
    assert list(data.splits) == data.split_names == ["train", "val"]
    assert data.classes == list(CLASSES)
    processor = tiny_processor()
    for split in SPLITS:
        assert_same_batch(batch_of(data.split(split), processor), expected[split])
    report = data.report
    counts = {name: (own.images, own.boxes.total(), own.without_objects) for name, own in report.splits.items()}
    assert counts == {"train": (4, 6, 1), "val": (2, 3, 0)}
    assert report.notes == []
    # One XML file has no size, and empty images of YOLO have an empty file.
    problems = ["no_size"] if writer == "voc_beside" else []
    assert [name for own in data.splits.values() for name in own.report.counts] == problems


@pytest.mark.parametrize("writer", ["coco_official", "yolo", "voc", "csv", "imagefolder"])
def test_images_that_are_elsewhere(writer, expected, tmp_path):
    folder = WRITERS[writer](tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    for image in sorted(folder.rglob("*.png")):
        place = elsewhere / image.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        image.rename(place)
    with pytest.raises((FileNotFoundError, ValueError), match=r"none of the 4 images|and there is none"):
        open_dataset(folder).split("train")
    sub = {"voc": "JPEGImages", "csv": "images"}.get(writer, "")
    data = open_dataset(folder, images=elsewhere / sub)
    assert_same_batch(batch_of(data.split("train"), tiny_processor()), expected["train"])


def test_a_single_file_is_divided_and_says_so(tmp_path):
    folder = WRITERS["coco_beside"](tmp_path)
    content = json.loads((folder / "train.json").read_text())
    (folder / "boxes.json").write_text(json.dumps(content))
    data = open_dataset(folder / "boxes.json", val_fraction=0.25)
    train, val = data.split("train"), data.split("valid")
    ids = [{record["image_id"] for record in part.records} for part in (train, val)]
    assert [len(part) for part in (train, val)] == [3, 1] and not ids[0] & ids[1]
    assert "val is 1 image held out of 4 (--val_fraction 0.25, seed 0" in str(data.report)
    assert val.category_ids == [1, 2, 3]
    # The same again, whatever the order of the file.
    content["images"] = content["images"][::-1]
    (folder / "boxes.json").write_text(json.dumps(content))
    again = open_dataset(folder / "boxes.json", val_fraction=0.25).split("val")
    assert {record["image_id"] for record in again.records} == ids[1]
    with pytest.raises(ValueError, match=r"has no split 'test'; its splits are train, val, .* by --test_split"):
        data.split("test", "--test_split")
    whole = open_dataset(folder / "boxes.json", val_fraction=0)
    assert whole.split_names == ["all"] and len(whole.split("train")) == len(whole.split("all")) == 4
    with pytest.raises(ValueError, match=r"not divided into splits.*--val_fraction 0.15"):
        whole.split("val")
    with pytest.raises(ValueError, match="one file, so it has no split 'test'"):
        load_coco(folder / "boxes.json", split="test")


def test_a_split_that_is_there_is_never_held_out_of_another(tmp_path):
    data = open_dataset(WRITERS["yolo"](tmp_path))
    assert len(data.split("train")) == 4
    with pytest.raises(ValueError, match="its splits are train, val"):
        data.split("test")


def test_images_in_two_splits_are_reported(tmp_path):
    folder = WRITERS["roboflow"](tmp_path)
    (folder / "valid" / "4.png").write_bytes((folder / "train" / "0.png").read_bytes())
    assert any("1 image is in train and in val too" in note for note in open_dataset(folder).report.notes)


def test_boxes_around_crowds_are_kept_for_scoring_only(tmp_path):
    folder = WRITERS["coco_beside"](tmp_path)
    content = json.loads((folder / "val.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (folder / "val.json").write_text(json.dumps(content))
    data = open_dataset(folder)
    first = data.split("val").records[0]["objects"]
    assert first["bbox"] == [] and data.split("val", for_scoring=True).records[0]["objects"]["iscrowd"] == [1]
    assert len(BOXES[4]) == 1


def test_label_studio_export(expected, tmp_path):
    """One file of all images, with backslashes in its names and classes that count from 0."""
    data = open_dataset(write_label_studio(tmp_path / "data"), val_fraction=0)
    assert (data.format, data.split_names, data.classes) == ("coco", ["all"], list(CLASSES))
    whole = data.split("train")
    for split, indices in SPLITS.items():
        assert_same_batch(batch_of(whole.select(indices), tiny_processor()), expected[split])


def remove(path):
    return lambda folder: (folder / path).unlink()


def replace(path, old, new):
    def change(folder):
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("writer", "change", "sentence", "boxes"),
    [
        ("coco_beside", remove("train/1.png"), "1 image missing, the first .*1.png; copy what is missing there", 6),
        ("coco_beside", replace("train.json", '"category_id": 2', '"category_id": 9'), "unknown_class.*'id 9'", 5),
        ("yolo", remove("images/train/1.png"), "unreadable_image.*labels/train/1.txt has no image of its name", 4),
        ("yolo", replace("labels/train/1.txt", "0 ", "7 "), r"unknown_class.*labels/train/1.txt, line 1.*'id 7'", 5),
        ("voc_beside", remove("train/0.png"), "1 image missing, the first .*0.png; copy", 6),
        ("voc_beside", lambda folder: None, r"does not give the size of its image: read from the image", 6),
        ("csv", remove("images/1.png"), "1 image missing, the first .*1.png; copy", 4),
        (
            "csv",
            replace("train.csv", "1.png,cat,16,8,80,56", "1.png;cat;16;8;80;56"),
            "line 3 has 1 fields and the first line 6, separated by ','; is ';' used as a separator there",
            5,
        ),
        ("imagefolder", replace("train/metadata.jsonl", "1.png", "nine.png"), "1 image missing, the first .*nine", 4),
        ("imagefolder_at_the_root", replace("classes.txt", "teddy bear", ""), "unknown_class.*'id 2'", 5),
    ],
)
def test_broken_parts_are_left_out_and_named(writer, change, sentence, boxes, tmp_path):
    folder = WRITERS[writer](tmp_path / "data")
    change(folder)
    report = open_dataset(folder).report
    assert re.search(sentence, str(report)), str(report)
    assert report.splits["train"].boxes.total() == boxes


@pytest.mark.parametrize(
    ("writer", "change", "sentence"),
    [
        (
            "yolo",
            replace("data.yaml", "images/train", "pictures/train"),
            "mend `path` or the entry, or pass the folder",
        ),
        ("yolo", replace("data.yaml", "names:", "labels:"), "no data set that is known here|write them as a list"),
        ("csv", replace("train.csv", "x1", "left corner"), "name them image, label, x1, y1, x2, y2"),
        ("coco_beside", replace("train.json", '"images"', '"pictures"'), "train"),
    ],
)
def test_broken_files_are_refused_with_what_to_do(writer, change, sentence, tmp_path):
    folder = WRITERS[writer](tmp_path / "data")
    change(folder)
    with pytest.raises((ValueError, OSError), match=sentence):
        open_dataset(folder).split("train")
