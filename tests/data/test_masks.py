"""Masks as polygons."""

import numpy as np
import pytest

from transformers_glipv2.data.masks import decode_mask, join_polygons, mask_polygon

pytest.importorskip("pycocotools")


def blobs(size: tuple[int, int], roughness: int, seed: int) -> np.ndarray:
    """Noise, averaged over squares of `roughness` pixels: several parts with holes."""
    noise = np.random.default_rng(seed).standard_normal([side + roughness for side in size])
    sums = np.pad(noise.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = size
    return (
        sums[roughness:, roughness:]
        - sums[:-roughness, roughness:]
        - sums[roughness:, :-roughness]
        + sums[:-roughness, :-roughness]
    )[:height, :width] > 0


@pytest.mark.parametrize("roughness", [1, 3, 9])
def test_a_polygon_holds_exactly_the_pixels_of_its_mask(roughness):
    for seed in range(10):
        size = tuple(np.random.default_rng(seed).integers(1, 50, 2).tolist())
        mask = blobs(size, roughness, seed)
        polygon = mask_polygon(mask)
        if polygon is None:
            assert not mask.any()
            continue
        np.testing.assert_array_equal(decode_mask([polygon.ravel().tolist()], *size), mask)
        rows, columns = np.nonzero(mask)
        assert polygon.min(0).tolist() == [columns.min(), rows.min()]
        assert polygon.max(0).tolist() == [columns.max() + 1, rows.max() + 1]


def test_straight_sides_have_no_corners_between():
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:50, 20:70] = True
    assert len(mask_polygon(mask)) == 8
    assert mask_polygon(np.zeros((4, 4), dtype=bool)) is None


def test_joined_polygons_have_the_area_of_all():
    squares = [np.array([[0, 0], [10, 0], [10, 10], [0, 10]]) + offset for offset in (0, (20, 5), (3, 30))]
    joined = join_polygons(squares)
    assert len(joined) == 4 + 2 * (4 + 2)
    parts = [square.ravel().tolist() for square in squares]
    expected = decode_mask(parts, 50, 50)
    np.testing.assert_array_equal(decode_mask([joined.ravel().tolist()], 50, 50), expected)
