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
    flip_example,
    hide,
    mask_box,
    swap_sides,
)
from transformers_glipv2.data.schema import check_example


def detection_example(color=(10, 20, 30), labels=("cup", "left shoe"), boxes=((2, 3, 10, 6),), categories=("cup",)):
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
    example = detection_example()
    example["objects"]["segmentation"].append([[1, 1, 5, 1, 5, 4]])
    example["objects"]["bbox"].append([1, 1, 4, 3])
    example["objects"]["category"].append("left shoe")
    example["image"].putpixel((0, 0), (255, 0, 0))
    before = copy.deepcopy(example)
    flipped = flip_example(example)
    assert flipped["image"].getpixel((39, 0)) == (255, 0, 0)
    assert flipped["objects"]["bbox"] == [[28, 3, 10, 6], [35, 1, 4, 3]]
    assert mask_box(flipped["objects"]["segmentation"][0]) == [28, 3, 10, 6]
    assert flipped["objects"]["segmentation"][1] == [[39, 1, 35, 1, 35, 4]]
    assert flipped["labels"] == ["cup", "right shoe"] and flipped["objects"]["category"] == ["cup", "right shoe"]
    check_example(flipped)
    assert example["labels"] == before["labels"] and example["objects"]["bbox"] == before["objects"]["bbox"]
    again = flip_example(flipped)
    assert again["objects"]["bbox"] == before["objects"]["bbox"] and again["labels"] == before["labels"]
    np.testing.assert_array_equal(np.asarray(again["image"]), np.asarray(before["image"]))


def test_flip_of_questions_and_sentences():
    image = Image.new("RGB", (10, 10))
    example = flip_example(
        {"image": image, "image_id": 1, "kind": "vqa", "question": "is it on the left?", "answers": ["right", "no"]}
    )
    assert example["question"] == "is it on the right?" and example["answers"] == ["left", "no"]
    objects = {"bbox": [[0, 0, 4, 4]], "tokens_positive": [[[0, 8]]], "phrase": ["left cup"]}
    example = {"image": image, "image_id": 1, "kind": "grounding", "text": "left cup on a table", "objects": objects}
    flipped = flip_example(example)
    assert flipped["objects"]["tokens_positive"] == [[[0, 9]]] and flipped["objects"]["phrase"] == ["right cup"]


def test_photometric_changes_colours_only_and_leaves_the_global_stream_alone():
    example = detection_example()
    state = torch.get_rng_state()
    augment = PhotometricDistortion(probability=1.0)
    first = augment(example, random.Random(1))
    assert torch.equal(state, torch.get_rng_state())
    assert (
        first["image"].getpixel((0, 0)) != example["image"].getpixel((0, 0)) and first["objects"] is example["objects"]
    )
    assert first["image"].tobytes() == augment(example, random.Random(1))["image"].tobytes()
    assert first["image"].tobytes() != augment(example, random.Random(2))["image"].tobytes()


def test_copy_paste():
    donor = detection_example((250, 0, 0), boxes=((1, 1, 8, 8), (20, 10, 9, 9)), categories=("cup", "bottle"))
    example = detection_example()
    before = copy.deepcopy(example)
    pasted_once = 0
    for seed in range(30):
        out = CopyPaste([donor], probability=1.0)(example, random.Random(seed))
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
    assert example["objects"]["bbox"] == before["objects"]["bbox"] and example["image"] == before["image"]
    sentence = {**example, "kind": "grounding"}
    assert CopyPaste([donor], probability=1.0)(sentence, random.Random(0)) is sentence
    assert CopyPaste([donor], probability=0.0)(example, random.Random(0)) is example


def test_copy_paste_keeps_the_known_absent_true():
    donor = detection_example((250, 0, 0))
    example = {**detection_example(boxes=(), categories=()), "negative_labels": ["cup", "left shoe"]}
    out = CopyPaste([donor], probability=1.0)(example, random.Random(0))
    assert out["negative_labels"] == ["left shoe"] and example["negative_labels"] == ["cup", "left shoe"]


def test_hidden_objects():
    cover = np.zeros((30, 40), dtype=bool)
    cover[:, :10] = True
    example = detection_example(boxes=((0, 0, 8, 8), (5, 0, 10, 10), (20, 0, 5, 5)), categories=("a", "b", "c"))
    left = hide(example["objects"], cover, 0.3)
    assert left["category"] == ["b", "c"] and left["bbox"] == [[10, 0, 5, 10], [20, 0, 5, 5]]
    boxes_only = {"bbox": [[0, 0, 8, 8], [5, 0, 10, 10]], "category": ["a", "b"]}
    assert hide(boxes_only, cover, 0.3) == {"bbox": [[5, 0, 10, 10]], "category": ["b"]}


def test_compose_and_chance():
    example = detection_example()
    out = Compose([HorizontalFlip(1.0), HorizontalFlip(1.0)])(example, random.Random(0))
    assert out["objects"]["bbox"] == example["objects"]["bbox"]
    flips = sum(HorizontalFlip(0.5)(example, random.Random(seed)) is not example for seed in range(200))
    assert 70 < flips < 130
    with pytest.raises(ValueError, match="probability"):
        HorizontalFlip(1.5)
    with pytest.raises(ValueError, match="max_objects"):
        CopyPaste([example], max_objects=0)
