"""What annotation files hold in practice: the harmless is accepted, the rest is counted by name or refused."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.data.formats.test_coco import CATEGORIES, GOOD, write_folder
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.formats.coco_json import used_categories
from transformers_glipv2.data.masks import encode_mask, mask_problem
from transformers_glipv2.data.schema import BoxReport, checked_box

pytestmark = pytest.mark.usefixtures("reader")


def write(folder, images=None, annotations=(GOOD,), categories=CATEGORIES):
    path = write_folder(folder, [], categories) / "train.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"] if images is None else images
    content["annotations"] = list(annotations)
    path.write_text(json.dumps(content))
    return path


IMAGE = {"id": 0, "file_name": "train/0.jpg", "width": 40, "height": 30}


@pytest.mark.parametrize(
    "image",
    [
        {**IMAGE, "width": 40.0, "height": 30.0},
        {**IMAGE, "width": "40", "height": "30"},
        {"id": 0, "file_name": "train/0.jpg"},
        {**IMAGE, "width": None, "height": 0},
        {**IMAGE, "file_name": "train\\0.jpg"},
        {**IMAGE, "file_name": "C:\\data\\train\\0.jpg"},
        {**IMAGE, "id": 0.0},
    ],
)
def test_harmless_forms_of_images(tmp_path, image):
    dataset = load_coco(write(tmp_path, [image]))
    assert dataset.report.counts == {} and len(dataset) == 1
    example = dataset[0]
    assert (example["width"], example["height"]) == (40, 30) == example["image"].size
    assert example["objects"]["bbox"] == [[1, 2, 10, 12]]


MASK = np.zeros((30, 40), dtype=bool)
MASK[2:14, 1:11] = True


@pytest.mark.parametrize(
    "annotation",
    [
        {**GOOD, "iscrowd": None},
        {**GOOD, "iscrowd": False},
        {**GOOD, "area": None},
        {**GOOD, "area": "120"},
        {**GOOD, "image_id": 0.0, "category_id": 3.0},
        {**GOOD, "bbox": None, "segmentation": [[1, 2, 11, 2, 11, 14]]},
        {"image_id": 0, "category_id": 3, "segmentation": encode_mask(MASK)},
        {**GOOD, "bbox": [], "segmentation": [[1, 2, 11, 2, 11, 14, 1, 14]]},
    ],
)
def test_harmless_forms_of_annotations(tmp_path, annotation):
    dataset = load_coco(write(tmp_path, annotations=[annotation]))
    assert dataset.report.counts == {}
    objects = dataset.records[0]["objects"]
    assert objects["bbox"] == [[1, 2, 10, 12]] and objects["iscrowd"] == [0] and objects["area"] == [120]


@pytest.mark.parametrize(
    "image", [None, 5, [], {**IMAGE, "file_name": 7}, {**IMAGE, "id": None}, {**IMAGE, "id": [1]}]
)
def test_images_of_a_wrong_kind_are_named(tmp_path, image):
    dataset = load_coco(write(tmp_path, [image, {**IMAGE, "id": 5}], [{**GOOD, "image_id": 5}]))
    assert dataset.report.counts == {"bad_entry": 1} and len(dataset) == 1
    assert "train.json" in dataset.report.summary() and "images[0]" in dataset.report.summary()


@pytest.mark.parametrize("sides", [(-4, 30), ("wide", 30), (40.5, 30), (True, 30), ([40], 30), (1e400, 30)])
def test_sizes_of_a_wrong_kind_are_named(tmp_path, sides):
    images = [{**IMAGE, "width": sides[0], "height": sides[1]}, {**IMAGE, "id": 5}]
    dataset = load_coco(write(tmp_path, images, [{**GOOD, "image_id": 5}]))
    assert dataset.report.counts == {"bad_entry": 1} and "width" in dataset.report.summary()


@pytest.mark.parametrize(
    ("problem", "annotation"),
    [
        ("bad_entry", None),
        ("bad_entry", 7),
        ("bad_entry", {**GOOD, "id": 17, "area": "large"}),
        ("bad_entry", {**GOOD, "id": 17, "iscrowd": "yes"}),
        ("unknown_class", {**GOOD, "id": 17, "category_id": "3"}),
        ("unknown_class", {**GOOD, "id": 17, "category_id": [3]}),
        ("unknown_image", {**GOOD, "id": 17, "image_id": {"a": 1}}),
        ("not_a_number", {**GOOD, "id": 17, "bbox": [True, 1, 2, 3]}),
        ("not_a_number", {**GOOD, "id": 17, "bbox": [10**400, 1, 2, 3]}),
        ("not_a_number", {**GOOD, "id": 17, "bbox": None, "segmentation": [[1, 2]]}),
    ],
)
def test_annotations_of_a_wrong_kind_are_named(tmp_path, problem, annotation):
    dataset = load_coco(write(tmp_path, annotations=[GOOD, annotation]))
    assert dataset.report.counts == {problem: 1} and len(dataset.records[0]["objects"]["bbox"]) == 1
    assert "train.json" in dataset.report.summary()
    assert ("annotations[1]" if not isinstance(annotation, dict) else "17") in dataset.report.summary()


def test_categories(tmp_path):
    same = [*CATEGORIES, CATEGORIES[0]]
    assert load_coco(write(tmp_path, categories=same)).class_names == ["dog", "traffic light"]
    with pytest.raises(
        ValueError, match=r"train\.json: the category id 3 comes twice, as 'traffic light' and as 'cow'"
    ):
        load_coco(write(tmp_path, categories=[*CATEGORIES, {"id": 3, "name": "cow"}]))
    for wrong in ({"id": 9}, {"id": 9, "name": ""}, {"name": "cow"}, "cow", None, {"id": 9, "name": ["cow"]}):
        dataset = load_coco(write(tmp_path, categories=[*CATEGORIES, wrong]))
        assert dataset.class_names == ["dog", "traffic light"] and dataset.report.counts == {"bad_entry": 1}
        assert "categories[2]" in dataset.report.summary()
    with pytest.raises(ValueError, match=r"train\.json lists no category"):
        load_coco(write(tmp_path, categories=[]))
    cards = [{"id": 3, "name": 7}, {"id": 4, "name": "7"}]
    dataset = load_coco(write(tmp_path, categories=cards, annotations=[GOOD, {**GOOD, "category_id": 4}]))
    assert dataset.class_names == ["7"] and dataset.category_ids == [3], "one name is one class"
    assert dataset.records[0]["objects"]["category"] == ["7", "7"]


def category(number, name, group=None):
    return {"id": number, "name": name, **({} if group is None else {"supercategory": group})}


@pytest.mark.parametrize(
    ("categories", "used", "expected"),
    [
        # Roboflow's dummy, with the id 0 or another one.
        ([category(0, "pieces", "none"), category(1, "king", "pieces")], {1}, [1]),
        ([category(5, "pieces", "none"), category(1, "king", "pieces"), category(2, "pawn", "pieces")], {1}, [1, 2]),
        ([category(0, "pieces", "none"), category(1, "king", "pieces")], {0, 1}, [0, 1]),
        # Nested ones.
        (
            [
                category(9, "all", "none"),
                category(8, "a", "all"),
                category(1, "x", "a"),
                category(7, "b", "all"),
                category(2, "y", "b"),
            ],
            {1},
            [1, 2],
        ),
        # COCO's person is its own supercategory; a class that has no box here is no dummy.
        ([category(1, "person", "person"), category(2, "car", "vehicle")], {2}, [1, 2]),
        (
            [category(1, "vehicle", "none"), category(2, "car", "vehicle"), category(3, "dog", "animal")],
            {2},
            [1, 2, 3],
        ),
        ([category(1, "a"), category(2, "b")], set(), [1, 2]),
        ([category(1, "a", "b"), category(2, "b", "a")], set(), [1, 2]),
    ],
)
def test_dummy_categories(categories, used, expected):
    annotations = [{"category_id": number} for number in used]
    assert list(used_categories(categories, annotations)) == expected


def test_boxes_are_clipped_down_to_a_tenth():
    report = BoxReport()
    assert checked_box([-10, 0, 20, 10], 40, 30, report, "here") == [0, 0, 10, 10]
    assert checked_box([39, 0, 10, 10], 40, 30, report, "here") == [39, 0, 1, 10], "just a tenth"
    assert checked_box([39.01, 0, 10, 10], 40, 30, report, "here") is None
    assert checked_box([100, 0, 10, 10], 40, 30, report, "here") is None
    assert checked_box([-1e308, 0, 1.7e308, 10], 40, 30, report, "here") is None
    assert report.counts == {"out_of_image": 2, "mostly_outside": 3}


def test_files_of_which_nothing_is_left_are_refused_with_the_reason(tmp_path):
    for annotations, reason in (
        ([{**GOOD, "category_id": "3"}], "unknown_class"),
        ([{**GOOD, "iscrowd": 1}] * 2, "crowd"),
        ([{**GOOD, "image_id": 99}], "unknown_image"),
        ([{**GOOD, "bbox": [900, 2, 4, 4]}], "mostly_outside"),
    ):
        with pytest.raises(ValueError, match=rf"(?s)none of the \d annotations of .*train\.json.*{reason}"):
            load_coco(write(tmp_path, annotations=annotations))
    assert len(load_coco(write(tmp_path, annotations=[]))) == 2, "images without objects are negatives"


def test_files_of_which_every_image_is_missing_are_refused(tmp_path):
    path = write(tmp_path, [{**IMAGE, "file_name": "elsewhere/9.jpg"}])
    with pytest.raises(FileNotFoundError, match=r"none of the 1 images of .*train\.json.*9\.jpg.*`image_folder`"):
        load_coco(path)


@pytest.mark.parametrize("name", ["../secret.png", "train/../../secret.png", "{outside}/secret.png", "train/link.png"])
def test_file_names_do_not_lead_out_of_the_folder(tmp_path, name):
    folder, outside = tmp_path / "data", tmp_path
    path = write(folder, [IMAGE, {**IMAGE, "id": 5, "file_name": name.format(outside=outside)}])
    Image.new("RGB", (40, 30)).save(outside / "secret.png")
    os.symlink(outside / "secret.png", folder / "train" / "link.png")
    dataset = load_coco(path)
    assert dataset.report.counts == {"outside_path": 1} and [record["image_id"] for record in dataset.records] == [0]
    assert "allow_outside_paths" in dataset.report.summary()
    assert len(load_coco(path, allow_outside_paths=True)) == 2
    with pytest.raises(ValueError, match="outside_path"):
        load_coco(path, policy="refuse")


def test_folders_that_are_links_are_no_way_out(tmp_path):
    write(tmp_path / "data", [IMAGE])
    os.symlink(tmp_path / "data", tmp_path / "link")
    assert load_coco(tmp_path / "link" / "train.json")[0]["image_id"] == 0


# Masks ---------------------------------------------------------------------------------------------------------------

BAD_MASKS = {
    "a coordinate that crashes": [[1e12, 1, 2, 2, 3, 3]],
    "far to the left": [[-1000, 1, 2, 2, 3, 3]],
    "not finite": [[float("inf"), 1, 2, 2, 3, 3]],
    "nan": [[float("nan"), 1, 2, 2, 3, 3]],
    "huge": [[10**400, 1, 2, 2, 3, 3]],
    "no numbers": [[True, 1, 2, 2, 3, 3]],
    "odd": [[1, 1, 2, 2, 3, 3, 4]],
    "no runs": {"size": [30, 40], "counts": []},
    "too few": {"size": [30, 40], "counts": [1199]},
    "too many": {"size": [30, 40], "counts": [1200, 1]},
    "negative": {"size": [30, 40], "counts": [1300, -100]},
    "fractions": {"size": [30, 40], "counts": [600.5, 599.5]},
    "text": {"size": [30, 40], "counts": ["1200"]},
    "beyond 32 bits": {"size": [30, 40], "counts": [2**32 + 1200]},
    "an empty string": {"size": [30, 40], "counts": ""},
    "garbage": {"size": [30, 40], "counts": "garbage!"},
    "no end": {"size": [30, 40], "counts": "ooo"},
    "a long number": {"size": [30, 40], "counts": "oooooooooo0"},
    "other characters": {"size": [30, 40], "counts": "\u00e9"},
    "another size": {"size": [40, 30], "counts": [1200]},
    "no size": {"counts": [1200]},
    "a size of another kind": {"size": "30x40", "counts": [1200]},
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_counted_and_never_drawn(tmp_path, name):
    write_folder(tmp_path, [GOOD, {**GOOD, "id": 17, "segmentation": BAD_MASKS[name]}])
    dataset = load_coco(tmp_path / "train.json", with_masks=True)
    assert dataset.report.counts == {"bad_mask": 1} and "17" in dataset.report.summary()
    assert dataset.records[0]["objects"]["segmentation"] == [None, None]


@pytest.mark.parametrize("seed", range(30))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 300, size=2)
    mask = generator.random((height, width)) < generator.choice([0, 0.001, 0.1, 0.5, 1])
    encoded = encode_mask(mask)
    assert mask_problem(encoded, height, width) is None
    assert mask_problem({**encoded, "counts": encoded["counts"].encode()}, height, width) is None
    edges = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel().astype(int), 0]))
    counts = np.diff(np.r_[0, edges, mask.size]).tolist()
    assert mask_problem({"size": [int(height), int(width)], "counts": counts}, height, width) is None
    broken = encoded["counts"] + "1"
    assert "run lengths" in mask_problem({**encoded, "counts": broken}, height, width)
