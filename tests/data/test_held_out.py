"""Which images are held out of the training images."""

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.data import held_out
from transformers_glipv2.data.held_out import held_out_indices, look_alike_groups


def records(folder, images, names=None, classes=None):
    made = []
    for index, image in enumerate(images):
        path = folder / (names[index] if names else f"{index:03d}.png")
        image.save(path)
        objects = {"bbox": [], "category": classes[index] if classes else []}
        made.append({"image_id": index, "image_path": str(path), "objects": objects})
    return made


def noise(seed, size=(96, 64)):
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def sources(made):
    return [record["image_path"] for record in made]


def test_images_that_look_alike_are_one_group(tmp_path):
    brighter = Image.eval(noise(1), lambda value: min(255, value + 3))
    images = [noise(0), noise(1), noise(1, (192, 128)), noise(2), brighter]
    made = records(tmp_path, images)
    noise(0).save(tmp_path / "copy.jpg", quality=60)
    made.append({**made[0], "image_path": str(tmp_path / "copy.jpg")})
    (tmp_path / "broken.png").write_bytes(b"no image")
    made += [{**made[0], "image_path": str(tmp_path / "broken.png")}] * 2
    assert sorted(map(sorted, look_alike_groups(sources(made)))) == [[0, 5], [1, 2, 4], [3], [6], [7]]


def test_roboflow_copies_of_an_image_are_one_group(tmp_path):
    names = ["a_jpg.rf.0123.jpg", "b_jpg.rf.4567.jpg", "a_jpg.rf.89ab.jpg"]
    made = records(tmp_path, [noise(index) for index in range(3)], names)
    assert sorted(map(sorted, look_alike_groups(sources(made)))) == [[0, 2], [1]]


def test_groups_stay_whole_and_the_choice_does_not_depend_on_the_order(tmp_path):
    # Every image comes four times.
    made = records(tmp_path, [noise(index // 4) for index in range(40)])
    held_out, how = held_out_indices(made, 0.25, seed=1)
    assert how == "images that look alike kept together" and len(held_out) == 8
    assert {index // 4 for index in held_out} & {index // 4 for index in set(range(40)) - set(held_out)} == set()
    turned, _ = held_out_indices(made[::-1], 0.25, seed=1)
    assert [39 - index for index in turned[::-1]] == held_out
    assert held_out_indices(made, 0.25, seed=2)[0] != held_out


def test_of_every_class_some_images_are_left(tmp_path):
    classes = [["rare"] if index in (3, 7) else ["usual"] for index in range(20)]
    made = records(tmp_path, [noise(index) for index in range(20)], classes=classes)
    for seed in range(20):
        held_out, _ = held_out_indices(made, 0.5, seed)
        assert len(held_out) in (9, 10) and not {3, 7} <= set(held_out)


def test_a_fixed_camera_gives_the_last_images(tmp_path):
    made = records(tmp_path, [noise(0)] * 10)
    assert held_out_indices(made, 0.2) == ([8, 9], "the last by name, many images look alike")
    assert held_out_indices(made[:1], 0.2)[0] == []


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        held_out_indices([], fraction)


def test_very_many_images_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "MAX_COMPARED", 9)
    monkeypatch.setattr(held_out, "_thumbnail", lambda source: pytest.fail("opened"))
    classes = [["rare"] if index in (3, 7) else ["usual"] for index in range(10)]
    names = [f"{index // 2}_jpg.rf.{index}.png" for index in range(10)]
    made = records(tmp_path, [noise(0)] * 10, names, classes)
    indices, how = held_out_indices(made, 0.5)
    assert how == "at random, as more than 9 images are not compared"
    assert len(indices) == 4 and not {3, 7} <= set(indices)
    # Copies of one source stay together all the same.
    assert all((index ^ 1) in indices for index in indices)
