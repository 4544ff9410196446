import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.data.near_duplicates import hold_out, near_duplicate_groups, perceptual_hash


def image(seed, size=(96, 64)):
    grid = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def test_near_duplicates_share_a_group():
    first, second = image(0), image(1)
    smaller = first.resize((60, 40))
    brighter = Image.eval(first, lambda value: min(255, value + 12))
    groups = near_duplicate_groups([perceptual_hash(one) for one in (first, second, smaller, brighter)])
    assert groups == [[0, 2, 3], [1]]


def test_groups_are_chained():
    hashes = np.zeros((3, 64), dtype=bool)
    hashes[1, :10] = hashes[2, :20] = True
    assert near_duplicate_groups(hashes, distance=10) == [[0, 1, 2]]
    assert near_duplicate_groups(hashes, distance=9) == [[0], [1], [2]]
    assert near_duplicate_groups([]) == []


def test_whole_groups_are_held_out():
    groups = [[0, 1, 2, 3], *([index] for index in range(4, 20)), [20, 21]]
    chosen = set(hold_out(groups, 0.2, seed=1))
    assert len(chosen) == 4
    assert all(chosen.issuperset(group) or chosen.isdisjoint(group) for group in groups)
    assert chosen == set(hold_out(groups, 0.2, seed=1))
    assert any(chosen != set(hold_out(groups, 0.2, seed=seed)) for seed in range(2, 6))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out([[0], [1]], fraction)


def test_groups_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match="larger fraction"):
        hold_out([[0, 1, 2], [3, 4, 5]], 0.3)
