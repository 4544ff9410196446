import json
import random

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.data.photographs import (
    Photographs,
    enlarged_part,
    mosaic,
    reduced_image,
    scene_objects,
    shifted,
)
from transformers_glipv2.data.schema import check_example

COLOURS = {"dress": (215, 30, 30), "bag": (40, 90, 215)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photographs of a red dress left of a blue bag, of different sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "train").mkdir()
    images, annotations = [], []
    for number in range(4):
        width, height = 120 + 10 * number, 90
        pixels = np.full((height, width, 3), 240, dtype=np.uint8)
        for category, (name, x) in enumerate((("dress", 10), ("bag", 70)), start=1):
            w, h = 36, 50
            pixels[20 : 20 + h, x : x + w] = COLOURS[name]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, 20, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, 20, x + w, 20, x + w, 20 + h, x, 20 + h]],
                }
            )
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"train/{number}.png", "width": width, "height": height})
    categories = [{"id": 1, "name": "dress"}, {"id": 2, "name": "bag"}, {"id": 3, "name": "hat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def colours_of_boxes(example):
    """The median colour within each box, by name of the class."""
    pixels = np.asarray(example["image"], dtype=int)
    for (x, y, w, h), name in zip(example["objects"]["bbox"], example["objects"]["category"], strict=True):
        x1, y1, x2, y2 = int(x) + 1, int(y) + 1, max(int(x + w) - 1, int(x) + 2), max(int(y + h) - 1, int(y) + 2)
        yield name, np.median(pixels[y1:y2, x1:x2].reshape(-1, 3), axis=0)


@pytest.mark.parametrize(
    "options",
    [
        {"mosaics": 0.0, "enlarged": 0.0, "reduced": 0.0},
        {"mosaics": 1.0, "enlarged": 0.0, "reduced": 0.0},
        {"mosaics": 0.0, "enlarged": 1.0, "reduced": 0.0},
        {"mosaics": 0.0, "enlarged": 0.0, "reduced": 1.0},
        {"mosaics": 0.0, "enlarged": 0.0, "reduced": 0.0, "pasted": 1.0},
    ],
)
def test_boxes_stay_on_their_objects(folder, options):
    photographs = Photographs(folder, split="train", seed=3, **options)
    for index in range(8):
        example = photographs[index]
        check_example(example)
        assert example["labels"] == ["dress", "bag", "hat"] and example["objects"]["bbox"]
        width, height = example["image"].size
        for (x, y, w, h), (name, colour) in zip(example["objects"]["bbox"], colours_of_boxes(example), strict=True):
            assert x >= -1e-6 and y >= -1e-6 and x + w <= width + 1e-6 and y + h <= height + 1e-6
            if min(w, h) >= 8 and "pasted" not in options:
                assert np.abs(colour - COLOURS[name]).max() < 40


def test_every_photograph_comes_once_a_pass(folder):
    photographs = Photographs(folder, split="train", mosaics=0.0, enlarged=0.0, reduced=0.0)
    passes = [[photographs[index]["image_id"] for index in range(start, start + 4)] for start in (0, 4, 8, 12)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    with pytest.raises(IndexError):
        photographs[-1]


def test_an_index_alone_decides_an_example(folder):
    one, other = (Photographs(folder, split="train", seed=5, pasted=0.5) for _ in range(2))
    for index in (7, 2, 7):
        assert one[index]["objects"]["bbox"] == other[index]["objects"]["bbox"]
        assert one[index]["image"].tobytes() == other[index]["image"].tobytes()


def test_pasted_objects_are_labelled(folder):
    plain = {"mosaics": 0.0, "enlarged": 0.0, "reduced": 0.0, "split": "train"}
    photographs = Photographs(folder, pasted=1.0, names={"bag": "handbag"}, **plain)
    counts = [len(photographs[index]["objects"]["bbox"]) for index in range(12)]
    assert max(counts) > 2
    assert {name for index in range(12) for name in photographs[index]["objects"]["category"]} <= {"dress", "handbag"}
    files = {"paste_from": [str(folder / "train.json")], "paste_images": [str(folder)]}
    other = Photographs(folder, pasted=1.0, **files, **plain)
    assert max(len(other[index]["objects"]["bbox"]) for index in range(12)) > 2


def test_sentences_are_true(folder):
    grounding = Photographs(folder, split="train", kinds={"grounding": 1.0})
    texts = {grounding[index]["text"] for index in range(24)}
    assert any("red dress" in text for text in texts) and any("left of" in text for text in texts)
    for index in range(24):
        example = grounding[index]
        check_example(example)
        for (x, *_), spans in zip(example["objects"]["bbox"], example["objects"]["tokens_positive"], strict=True):
            words = " ".join(example["text"][start:end] for start, end in spans)
            assert ("dress" in words) == (x == 10) and ("bag" in words) == (x == 70)

    questions = Photographs(folder, split="train", kinds={"vqa": 1.0})
    asked = [questions[index] for index in range(40)]
    assert {"is there a hat?"} & {example["question"] for example in asked}
    for example in asked:
        check_example(example)
        if example["question"] == "is there a hat?":
            assert example["answers"] == ["no"] * 10
        assert example["answers"][0] in questions.answers()
    assert grounding.answers() == []

    captions = Photographs(folder, split="train", kinds={"caption": 1.0})
    assert captions[0]["text"] == "a picture of a red dress and a blue bag"


def test_colours_need_masks(folder):
    example = Photographs(folder, split="train")._read(0)
    assert [o.colour for o in scene_objects(example)] == ["red", "blue"]
    del example["objects"]["segmentation"]
    assert [o.colour for o in scene_objects(example)] == [None, None]


def test_boxes_are_clipped_and_dropped():
    objects = {"bbox": [[0, 0, 10, 10], [50, 50, 10, 10]], "category": ["a", "b"], "area": [100, 100]}
    kept = shifted(objects, 2.0, -8, -8, (40, 40), 0.3)
    assert kept == {"bbox": [[0.0, 0.0, 12.0, 12.0]], "category": ["a"], "area": [144.0]}
    assert shifted(objects, 2.0, -8, -8, (40, 40), 0.5)["bbox"] == []


def test_an_image_without_objects_stays_whole():
    example = {"image": Image.new("RGB", (60, 40)), "objects": {"bbox": [], "category": []}}
    assert enlarged_part(example, random.Random(0))["image"].size == (60, 40)
    assert reduced_image(example, random.Random(0))["objects"]["bbox"] == []
    assert mosaic([example] * 4, (60, 40), random.Random(0))["objects"]["bbox"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": {"detection": 0.0}}, "kinds"),
        ({"kinds": {"boxes": 1.0}}, "kinds"),
        ({"mosaics": 0.8, "enlarged": 0.4}, "fractions"),
        ({"pasted": 1.5}, "probabilities"),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        Photographs(folder, split="train", **options)
