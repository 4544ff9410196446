"""examples/hold_out.py: two files of one, with images that look alike on one side."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.scripts import load_script

hold_out = load_script("examples/hold_out.py")


def test_annotations_and_questions_go_with_their_images(tmp_path):
    """Each photograph is there twice, in two sizes."""
    content = {"images": [], "annotations": [], "questions": [], "categories": [{"id": 1, "name": "cat"}]}
    for index in range(20):
        pixels = np.random.default_rng(index // 2).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((60 + 30 * (index % 2), 40), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{index}.png")
        content["images"].append({"id": index, "file_name": f"{index}.png"})
        content["annotations"].append({"id": index, "image_id": index, "category_id": 1, "bbox": [0, 0, 9, 9]})
        content["questions"].append({"image_id": index, "question": "what is it?", "answers": ["cat"]})
    (tmp_path / "all.json").write_text(json.dumps(content))
    arguments = ["--annotations", str(tmp_path / "all.json"), "--images", str(tmp_path), "--fraction", "0.2"]
    assert hold_out.main([*arguments, "--output", str(tmp_path / "out")]) == {"images": 20, "held_out": 4}
    train, val = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("train", "val"))
    held_out = {image["id"] for image in val["images"]}
    assert len(held_out) == 4 and all(index ^ 1 in held_out for index in held_out)
    for part, ids in ((val, held_out), (train, set(range(20)) - held_out)):
        assert part["categories"] == content["categories"]
        for name in ("annotations", "questions"):
            assert {entry["image_id"] for entry in part[name]} == ids


def test_one_image_cannot_be_divided(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "all.json").write_text(json.dumps({"images": [{"id": 0, "file_name": "0.png"}], "annotations": []}))
    arguments = ["--annotations", str(tmp_path / "all.json"), "--images", str(tmp_path)]
    with pytest.raises(ValueError, match="lists 1 images, of which none can be held out"):
        hold_out.main([*arguments, "--output", str(tmp_path / "out")])


@pytest.fixture
def named(tmp_path):
    """The options of a file of three images, of which `names.json` is to hold out some."""
    images = [{"id": 7 + index, "file_name": f"{index}.png"} for index in range(3)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": []}))
    given = ["--annotations", tmp_path / "all.json", "--images", tmp_path, "--output", tmp_path / "out"]
    return [*map(str, given), "--file_names", str(tmp_path / "names.json")]


def test_images_are_held_out_by_name(named, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(["2.png", "0.png"]))
    assert hold_out.main(named) == {"images": 3, "held_out": 2}
    train, val = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("train", "val"))
    assert [image["id"] for image in val["images"]] == [7, 9] and [image["id"] for image in train["images"]] == [8]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0.png", "x.png"], "1 of the 2 images of .* are not listed, such as x.png"),
        ({}, "is no JSON list"),
        ([], "is no JSON list"),
    ],
)
def test_names_that_are_not_there_are_refused(named, tmp_path, names, said):
    (tmp_path / "names.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=said):
        hold_out.main(named)
    assert not (tmp_path / "out").exists()
