import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_glipv2.data.augment import (
    Compose,
    CopyPaste,
    HorizontalFlip,
    PhotometricDistortion,
    SpanMap,
    flip_row,
    hide,
    mask_box,
    swap_sides,
)
from transformers_glipv2.data.schema import check_example


def detection_row(color=(10, 20, 30), labels=("cup", "left shoe"), boxes=((2, 3, 10, 6),), categories=("cup",)):
    masks = []
    for x, y, w, h in boxes:
        mask = np.zeros((30, 40), dtype=bool)
        mask[y : y + h, x : x + w] = True
        masks.append(mask)
    objects = {"bbox": [list(box) for box in boxes], "category": list(categories), "segmentation": masks}
    image = Image.new("RGB", (40, 30), color)
    return {"image": image, "image_id": 1, "kind": "detection", "labels": list(labels), "objects": objects}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the cup left of the Right bottle", "the cup right of the Left bottle"),
        ("LEFT hand, leftmost, right-hand side", "RIGHT hand, rightmost, left-hand side"),
        ("a bright upright man right next to us", "a bright upright man right next to us"),
        ("food left over on the left", "food left over on the right"),
        ("", ""),
    ],
)
def test_sides_are_swapped(before, after):
    assert swap_sides(before) == after
    assert swap_sides(after) == before


def test_spans_follow_their_words():
    text = "the left cup, a dog, the rightmost left shoe and the right one"
    moved, swapped = SpanMap(text), swap_sides(text)
    for phrase in ("the left cup", "dog", "the rightmost left shoe", "shoe", "the right one", "left", "one", text):
        start = text.index(phrase)
        a, b = moved(start, start + len(phrase))
        assert swapped[a:b] == swap_sides(phrase)
    assert moved(5, 7) == [4, 9], "a border inside a word takes the whole new word"


def test_flip_everything():
    row = detection_row()
    row["objects"]["segmentation"].append([[1, 1, 5, 1, 5, 4]])
    row["objects"]["bbox"].append([1, 1, 4, 3])
    row["objects"]["category"].append("left shoe")
    row["image"].putpixel((0, 0), (255, 0, 0))
    before = copy.deepcopy(row)
    flipped = flip_row(row)
    assert flipped["image"].getpixel((39, 0)) == (255, 0, 0)
    assert flipped["objects"]["bbox"] == [[28, 3, 10, 6], [35, 1, 4, 3]]
    assert mask_box(flipped["objects"]["segmentation"][0]) == [28, 3, 10, 6]
    assert flipped["objects"]["segmentation"][1] == [[39, 1, 35, 1, 35, 4]]
    assert flipped["labels"] == ["cup", "right shoe"] and flipped["objects"]["category"] == ["cup", "right shoe"]
    check_example(flipped)
    assert row["labels"] == before["labels"] and row["objects"]["bbox"] == before["objects"]["bbox"]
    again = flip_row(flipped)
    assert again["objects"]["bbox"] == before["objects"]["bbox"] and again["labels"] == before["labels"]
    np.testing.assert_array_equal(np.asarray(again["image"]), np.asarray(before["image"]))


def test_flip_of_questions_and_sentences():
    image = Image.new("RGB", (10, 10))
    row = flip_row(
        {"image": image, "image_id": 1, "kind": "vqa", "question": "is it on the left?", "answers": ["right", "no"]}
    )
    assert row["question"] == "is it on the right?" and row["answers"] == ["left", "no"]
    objects = {"bbox": [[0, 0, 4, 4]], "tokens_positive": [[[0, 8]]], "phrase": ["left cup"]}
    row = {"image": image, "image_id": 1, "kind": "grounding", "text": "left cup on a table", "objects": objects}
    flipped = flip_row(row)
    assert flipped["objects"]["tokens_positive"] == [[[0, 9]]] and flipped["objects"]["phrase"] == ["right cup"]


def test_photometric_changes_colours_only_and_leaves_the_global_stream_alone():
    row = detection_row()
    state = torch.get_rng_state()
    augment = PhotometricDistortion(probability=1.0)
    first = augment(row, random.Random(1))
    assert torch.equal(state, torch.get_rng_state())
    assert first["image"].getpixel((0, 0)) != row["image"].getpixel((0, 0)) and first["objects"] is row["objects"]
    assert first["image"].tobytes() == augment(row, random.Random(1))["image"].tobytes()
    assert first["image"].tobytes() != augment(row, random.Random(2))["image"].tobytes()


def test_copy_paste():
    donor = detection_row((250, 0, 0), boxes=((1, 1, 8, 8), (20, 10, 9, 9)), categories=("cup", "bottle"))
    row = detection_row()
    before = copy.deepcopy(row)
    pasted_once = 0
    for seed in range(30):
        out = CopyPaste([donor], probability=1.0)(row, random.Random(seed))
        check_example(out)
        assert set(out["objects"]["category"]) == {"cup"}, "bottles are not looked for in this image"
        pasted = out["objects"]["segmentation"][-1]
        assert (np.asarray(out["image"])[pasted][:, 0] > 120).all()
        red = np.asarray(out["image"])[..., 0] > 120
        assert (red == pasted).mean() > 0.99
        for box, mask in zip(out["objects"]["bbox"], out["objects"]["segmentation"], strict=True):
            assert mask_box(mask) == box
        assert len({len(column) for column in out["objects"].values()}) == 1
        pasted_once += len(out["objects"]["bbox"]) == 2
    assert pasted_once > 10
    assert row["objects"]["bbox"] == before["objects"]["bbox"] and row["image"] == before["image"]
    sentence = {**row, "kind": "grounding"}
    assert CopyPaste([donor], probability=1.0)(sentence, random.Random(0)) is sentence
    assert CopyPaste([donor], probability=0.0)(row, random.Random(0)) is row


def test_copy_paste_keeps_the_known_absent_true():
    donor = detection_row((250, 0, 0))
    row = {**detection_row(boxes=(), categories=()), "negative_labels": ["cup", "left shoe"]}
    out = CopyPaste([donor], probability=1.0)(row, random.Random(0))
    assert out["negative_labels"] == ["left shoe"] and row["negative_labels"] == ["cup", "left shoe"]


def test_hidden_objects():
    cover = np.zeros((30, 40), dtype=bool)
    cover[:, :10] = True
    row = detection_row(boxes=((0, 0, 8, 8), (5, 0, 10, 10), (20, 0, 5, 5)), categories=("a", "b", "c"))
    left = hide(row["objects"], cover, 0.3)
    assert left["category"] == ["b", "c"] and left["bbox"] == [[10, 0, 5, 10], [20, 0, 5, 5]]
    boxes_only = {"bbox": [[0, 0, 8, 8], [5, 0, 10, 10]], "category": ["a", "b"]}
    assert hide(boxes_only, cover, 0.3) == {"bbox": [[5, 0, 10, 10]], "category": ["b"]}


def test_compose_and_chance():
    row = detection_row()
    out = Compose([HorizontalFlip(1.0), HorizontalFlip(1.0)])(row, random.Random(0))
    assert out["objects"]["bbox"] == row["objects"]["bbox"]
    flips = sum(HorizontalFlip(0.5)(row, random.Random(seed)) is not row for seed in range(200))
    assert 70 < flips < 130
    with pytest.raises(ValueError, match="probability"):
        HorizontalFlip(1.5)
    with pytest.raises(ValueError, match="max_objects"):
        CopyPaste([row], max_objects=0)
