import gzip
import json
import random

import pytest
from PIL import Image

from transformers_glipv2.data.lvis import load_lvis
from transformers_glipv2.data.sampling import DetectionSampler

CATEGORIES = [
    {"id": 11, "name": "bow_(weapon)", "frequency": "r"},
    {"id": 5, "name": "traffic_light", "frequency": "f"},
    {"id": 7, "name": "bow_(decorative_ribbons)", "frequency": "c"},
    {"id": 8, "name": "cup", "frequency": "f"},
]
GOOD = {"image_id": 0, "category_id": 11, "bbox": [1, 2, 10, 12], "segmentation": [[1, 2, 11, 2, 11, 14]]}


def write(folder, annotations=(GOOD,), images=None):
    for index in range(2):
        path = folder / "images" / f"00000000000{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    address = "http://images.cocodataset.org/train2017/00000000000{}.jpg"
    if images is None:
        images = [
            {"id": 0, "coco_url": address.format(0), "neg_category_ids": [7, 8], "not_exhaustive_category_ids": [5]},
            {"id": 1, "coco_url": address.format(1), "neg_category_ids": [], "not_exhaustive_category_ids": []},
        ]
    content = {
        "images": [{"width": 40, "height": 30, **image} for image in images],
        "annotations": [{"id": index, "area": 60.0, **entry} for index, entry in enumerate(annotations)],
        "categories": CATEGORIES,
    }
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder / "lvis.json", folder / "images"


def test_known_absent_and_not_exhaustive(tmp_path):
    dataset = load_lvis(*write(tmp_path), with_masks=True)
    assert dataset.class_names == ["bow_(weapon)", "traffic light", "bow_(decorative_ribbons)", "cup"]
    assert dataset.category_ids == [11, 5, 7, 8] and dataset.frequencies == ["r", "f", "c", "f"]
    example = dataset[0]
    assert example["objects"]["category"] == ["bow_(weapon)"]
    assert example["objects"]["segmentation"] == [GOOD["segmentation"]]
    assert example["negative_labels"] == ["bow_(decorative_ribbons)", "cup"]
    assert example["not_exhaustive_labels"] == ["traffic light"]
    text = DetectionSampler(full_probability=1.0)(example, random.Random(0))
    assert sorted(text.text.split(". ")) == ["bow_(decorative_ribbons)", "bow_(weapon)", "cup"], (
        "unknown classes are no negatives"
    )
    assert dataset[1]["negative_labels"] == [] and len(load_lvis(*write(tmp_path), keep_empty=False)) == 1
    assert load_lvis(*write(tmp_path), clean=None)[0]["objects"]["category"] == ["bow_(weapon)"]
    # Where cleaned names are equal all the same, a name of what is there is not absent.
    bows = load_lvis(*write(tmp_path), clean=lambda names: [name.split("_")[0] for name in names])
    assert bows[0]["objects"]["category"] == ["bow"] and bows[0]["negative_labels"] == ["cup"]


@pytest.mark.parametrize(
    ("problem", "annotations", "images"),
    [
        ("degenerate", [GOOD, {**GOOD, "bbox": [1, 2, 0, 4]}], None),
        ("unknown_class", [GOOD, {**GOOD, "category_id": 99}], None),
        ("bad_mask", [{**GOOD, "segmentation": [[1, 2, 3, 4]]}], None),
        ("bad_mask", [{**GOOD, "segmentation": {"size": [3, 4], "counts": [12]}}], None),
        ("unknown_class", [GOOD], [{"id": 0, "file_name": "000000000000.jpg", "neg_category_ids": [99]}]),
        ("bad_entry", [], [{"id": 0}]),
        ("bad_entry", [GOOD], [{"id": 0, "file_name": "000000000000.jpg"}] * 2),
        ("unknown_image", [GOOD, {**GOOD, "image_id": 77}], [{"id": 0, "file_name": "000000000000.jpg"}]),
    ],
)
def test_bad_entries_are_counted_or_refused(tmp_path, problem, annotations, images):
    files = write(tmp_path, annotations, images)
    dataset = load_lvis(*files, with_masks=True)
    assert dataset.report.counts == {problem: 1}
    assert sum(len(example["objects"]["bbox"]) for example in dataset) == (0 if not annotations else 1)
    with pytest.raises(ValueError, match="policy"):
        load_lvis(*files, with_masks=True, policy={problem: "refuse"})


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a LVIS file"):
        load_lvis(tmp_path / "x.json", tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_lvis(tmp_path / "x.json", tmp_path)


def test_real_annotations(metrics_dir, data_dir):
    path = metrics_dir / "lvis" / "gt.json.gz"
    with gzip.open(path, "rt") as file:
        content = json.load(file)
    dataset = load_lvis(path, data_dir / "coco-mini" / "val", with_masks=True)
    boxes = sum(len(record["objects"]["bbox"]) for record in dataset.records)
    lost = sum(n for problem, n in dataset.report.counts.items() if problem not in ("bad_mask", "unknown_class"))
    assert len(dataset) == len(content["images"]) and boxes == len(content["annotations"]) - lost
    assert len(set(dataset.class_names)) == 1230
    # Only names that would be equal without it keep what stands in brackets.
    assert sum("_" in name for name in dataset.class_names) < 60
    assert any(record["negative_labels"] for record in dataset.records)
