"""Results drawn into images."""

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.inference.drawing import DrawnObject, draw, palette_color


def test_colors_are_bright_and_apart():
    colors = [palette_color(index) for index in range(8)]
    assert len(set(colors)) == 8
    assert all(max(color) == 255 for color in colors)


def test_a_mask_is_painted_and_nothing_else():
    mask = np.zeros((40, 60), dtype=bool)
    mask[20:30, 20:30] = True
    image = Image.new("RGB", (60, 40), "black")
    drawn = np.asarray(draw(image, [DrawnObject("a", (19, 19, 30, 30), mask)]))
    assert (drawn[25, 25] > 0).any()
    assert not drawn[33:].any()
    assert not drawn[25, :17].any()
    assert not np.asarray(image).any()


def test_a_group_shares_its_color():
    objects = [DrawnObject("", (2, 20, 12, 30), group=1), DrawnObject("", (22, 20, 32, 30), group=1)]
    drawn = np.asarray(draw(Image.new("RGB", (60, 40), "black"), objects))
    assert (drawn[25, 2] == palette_color(1)).all()
    assert (drawn[25, 22] == palette_color(1)).all()


def test_names_of_boxes_at_the_border_stay_inside():
    drawn = draw(Image.new("RGB", (60, 40), "black"), [DrawnObject("a long name", (50, 0, 59, 10))])
    assert drawn.size == (60, 40)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        draw(Image.new("RGB", (60, 40)), [DrawnObject("a", (0, 0, 1, 1), np.ones((3, 3)))])
