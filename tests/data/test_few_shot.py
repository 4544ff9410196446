import random
from collections import Counter

import pytest

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.few_shot import SEEDS, few_shot, few_shot_indices

NAMES = ["a", "b", "c", "d"]


def make(count=80, seed=0):
    rng = random.Random(seed)
    records = []
    for index in range(count):
        categories = [rng.choice("aaaabbc") for _ in range(rng.randint(0, 3))]
        objects = {"bbox": [[0, 0, 1, 1]] * len(categories), "category": categories}
        records.append({"image_id": index, "image_path": "none", "objects": objects, "kind": "detection"})
    return ImageDataset(records, NAMES)


@pytest.mark.parametrize("shots", [1, 3, 5, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_class_has_its_shots(shots, seed):
    dataset = make()
    part = few_shot(dataset, shots, seed)
    copies = {1: 8, 3: 4, 5: 2, 10: 1}[shots]
    ids = Counter(record["image_id"] for record in part.records)
    assert set(ids.values()) == {copies}
    images = Counter(n for r in dataset.records for n in set(r["objects"]["category"]))
    got = Counter(n for r in part.records for n in set(r["objects"]["category"]))
    assert all(got[name] >= min(shots, images[name]) * copies for name in "abc")
    assert part.class_names == NAMES
    needless = [i for i in ids if all(got[n] // copies > shots for n in dataset.records[i]["objects"]["category"])]
    assert len(needless) < len(ids)


def test_seeds_and_the_order_of_the_file():
    dataset = make()
    choices = [[r["image_id"] for r in few_shot(dataset, 3, seed).records] for seed in SEEDS]
    assert choices[0] != choices[1] != choices[2]
    backwards = dataset.select(range(len(dataset) - 1, -1, -1))
    assert [r["image_id"] for r in few_shot(backwards, 3, 3).records] == choices[0]


def test_greedy_choice_by_hand():
    classes = [{"a"}, {"a"}, {"a", "b"}, {"b"}, set(), {"c"}]
    assert few_shot_indices(classes, [0, 1, 2, 3, 4, 5], 1, 0) == [0, 2, 5]
    assert few_shot_indices(classes, [5, 4, 3, 2, 1, 0], 1, 0) == [5, 3, 2]
    assert few_shot_indices(classes, list("abcdef"), 2, 0) == [0, 1, 2, 3, 5]


def test_empty_images():
    part = few_shot(make(), 1, 3, copies=1, empty_images=5)
    assert sum(not record["objects"]["bbox"] for record in part.records) == 5
    assert not any(not record["objects"]["bbox"] for record in few_shot(make(), 1).records)


def test_wrong_numbers():
    with pytest.raises(ValueError, match="shots"):
        few_shot(make(), 0)
    with pytest.raises(ValueError, match="copies"):
        few_shot(make(), 1, copies=0)
