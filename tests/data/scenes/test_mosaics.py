import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.data.augment import flip_example
from transformers_glipv2.data.scenes.mosaics import MosaicScenes, class_name, content_box
from transformers_glipv2.data.schema import check_example

# Folder, colour of its images, name of the class.
FOLDERS = {
    "grand_piano": ((200, 0, 0), "grand piano"),
    "car_side": ((0, 200, 0), "car"),
    "wild_cat": ((0, 0, 200), "wild cat"),
    "Leopards": ((200, 200, 0), "leopard"),
    "Faces": ((9, 9, 9), None),
    "BACKGROUND_Google": ((128, 128, 128), None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    for name, (colour, _) in FOLDERS.items():
        (root / name).mkdir()
        for number in range(10):
            image = Image.new("RGB", (60, 40), "white")
            image.paste(colour, (10, 5, 50 - number, 35))
            image.save(root / name / f"{number}.png")
    (root / "wild_cat" / "notes.txt").write_text("no image")
    return root


def test_boxes_are_around_what_is_shown(folder):
    mosaics = MosaicScenes(folder, size=300)
    assert mosaics.class_names == ["car", "grand piano", "leopard", "wild cat"]
    colours = {name: colour for colour, name in FOLDERS.values() if name}
    counts = Counter()
    for index in range(40):
        example = check_example(mosaics[index])
        pixels = np.asarray(example["image"], dtype=int)
        assert max(example["image"].size) == 300
        counts[len(example["objects"]["bbox"])] += 1
        for (x, y, w, h), category in zip(example["objects"]["bbox"], example["objects"]["category"], strict=True):
            inside = pixels[int(y) + 5 : int(y + h) - 5, int(x) + 5 : int(x + w) - 5]
            assert np.abs(inside - colours[category]).max() < 60
            # The image's white border lies around the box.
            assert pixels[int(y + h / 2), int(x) - 4].min() > 200
        check_example(flip_example(example))
    assert counts[1] and counts[4] and counts[9] and not set(counts) - set(range(10))


def test_absent_classes(folder):
    mosaics = MosaicScenes(folder, size=200, tiles={4: 1})
    for index in range(30):
        example = mosaics[index]
        present, absent = set(example["objects"]["category"]), set(example["negative_labels"])
        assert not present & absent and example["labels"] == mosaics.class_names
        # A leopard is a wild cat: neither stands beside the other, nor is denied.
        for one, other in (("leopard", "wild cat"), ("wild cat", "leopard")):
            if one in present:
                assert other not in present | absent


def test_determined_by_number(folder):
    mosaics = MosaicScenes(folder, size=120)
    example = mosaics[5]
    for again in (MosaicScenes(folder, size=120)[5], pickle.loads(pickle.dumps(mosaics))[5]):
        assert again["image"].tobytes() == example["image"].tobytes() and again["objects"] == example["objects"]
    assert MosaicScenes(folder, size=120, seed=1)[5]["image"].tobytes() != example["image"].tobytes()
    with pytest.raises(TypeError):
        len(mosaics)


def test_images_are_divided(folder):
    train, val = (MosaicScenes(folder, split) for split in ("train", "val"))
    assert train.class_names == val.class_names
    for name in train.class_names:
        assert len(train.images[name]) == 8 and len(val.images[name]) == 2
        assert not set(train.images[name]) & set(val.images[name])
    assert len(train.backgrounds) == 8


def test_content_box():
    rng = np.random.default_rng(0)
    busy = Image.fromarray(rng.integers(0, 255, (50, 100, 3), dtype=np.uint8))
    assert content_box(busy, 0.1) == (10, 5, 90, 45)
    plain = Image.new("RGB", (100, 50), (250, 250, 250))
    plain.paste((30, 60, 90), (20, 10, 80, 40))
    plain.putpixel((2, 2), (0, 0, 0))
    assert content_box(plain, 0.1) == (20, 10, 80, 40)
    assert content_box(Image.new("RGB", (100, 50)), 0.0) == (0, 0, 100, 50)
    assert class_name("Grand__piano-2 ") == "grand piano 2"


def test_wrong_arguments(folder, tmp_path):
    for wrong in ({"split": "test"}, {"tiles": {3: 1}}, {"tiles": {}}, {"margin": 0.5}, {"size": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MosaicScenes(folder, **wrong)
    with pytest.raises(ValueError, match="not a folder"):
        MosaicScenes(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no folders with images"):
        MosaicScenes(tmp_path)
    with pytest.raises(IndexError):
        MosaicScenes(folder)[-1]


def test_real_class_folders(data_dir):
    mosaics = MosaicScenes(data_dir / "caltech101")
    assert len(mosaics.class_names) > 90 and "grand piano" in mosaics.class_names
    for index in range(3):
        check_example(mosaics[index])
