"""Results drawn into images."""

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.inference import drawing
from transformers_glipv2.inference.drawing import DrawnObject, draw, palette_color, place_names, same_boxes


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


def overlap(one, other) -> bool:
    return all(one[axis] < other[axis + 2] and other[axis] < one[axis + 2] for axis in (0, 1))


def patches(boxes, sizes, image_size):
    corners = place_names(boxes, sizes, image_size)
    return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_no_name_hides_another_while_there_is_room(seed):
    rng = np.random.default_rng(seed)
    # All in one corner of the image, many at nearly the same place.
    starts = rng.integers(0, 60, (30, 2))
    boxes = np.concatenate([starts, starts + rng.integers(1, 200, (30, 2))], axis=1).tolist()
    sizes = [(int(width), 16) for width in rng.integers(30, 130, 30)]
    found = patches(boxes, sizes, (640, 480))
    assert all(x1 >= 0 and y1 >= 0 and x2 < 640 and y2 < 480 for x1, y1, x2, y2 in found)
    assert not any(overlap(one, other) for index, one in enumerate(found) for other in found[:index])


def test_a_name_stands_above_its_box_where_it_can():
    boxes = [(100, 100, 200, 200), (300, 2, 400, 90)]
    above, inside = place_names(boxes, [(50, 16), (50, 16)], (640, 480))
    assert above == (100, 84)
    assert inside == (300, 0)


def test_names_without_room_are_all_there_and_inside():
    found = patches([(0, 0, 30, 30)] * 9, [(40, 14)] * 9, (60, 40))
    assert len(found) == 9
    assert all(x1 >= 0 and y1 >= 0 and x2 < 60 and y2 < 40 for x1, y1, x2, y2 in found)
    # One that is larger than the image begins at its edge.
    assert place_names([(10, 10, 20, 20)], [(100, 14)], (60, 40)) == [(0, 0)]


def test_names_of_one_box_stand_together():
    boxes = [(10, 60, 90, 160), (200, 60, 280, 160), (10, 60, 91, 161), (10, 60, 60, 160), (0, 0, 0, 0), (0, 0, 0, 0)]
    assert same_boxes(boxes) == [[0, 2], [1], [3], [4], [5]]
    image = Image.new("RGB", (300, 200), "black")

    def names(*objects) -> np.ndarray:
        return np.asarray(draw(image, [DrawnObject(text, box) for text, box in objects]))

    joined = names(("banana", boxes[0]), ("pear", boxes[1]), ("apple", boxes[2]), ("apple", boxes[0]))
    np.testing.assert_array_equal(joined, names(("banana / apple", boxes[0]), ("pear", boxes[1])))


def test_a_long_name_takes_several_lines():
    text = "a sentence that is far wider than the image is and goes on"
    drawn = np.asarray(draw(Image.new("RGB", (120, 200), "black"), [DrawnObject(text, (10, 150, 100, 190))]))
    patch = (drawn == palette_color(0)).all(axis=-1)
    rows = np.flatnonzero(patch[:140].any(axis=1))
    assert rows.max() - rows.min() > 40


def test_a_name_away_from_its_box_is_tied_to_it(monkeypatch):
    monkeypatch.setattr(drawing, "place_names", lambda boxes, sizes, image_size: [(200, 150)])
    drawn = np.asarray(draw(Image.new("RGB", (300, 200), "black"), [DrawnObject("name", (10, 10, 60, 40))]))
    painted = (drawn == palette_color(0)).all(axis=-1)
    reached, frontier = np.zeros_like(painted), np.zeros_like(painted)
    frontier[10, 10] = painted[10, 10]
    while frontier.any():
        reached |= frontier
        around = np.pad(reached, 1)
        spread = sum(around[y : y + 200, x : x + 300].astype(int) for x in range(3) for y in range(3)) > 0
        frontier = spread & painted & ~reached
    # From the corner of the box along the line to the corner of the patch.
    assert reached[150, 200]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        draw(Image.new("RGB", (60, 40)), [DrawnObject("a", (0, 0, 1, 1), np.ones((3, 3)))])
