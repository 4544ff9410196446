import gzip
import json

import pytest
from PIL import Image

from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.pseudo_boxes import load_pseudo_boxes, pseudo_box_entry
from transformers_glipv2.data.schema import check_example

from .stub_processor import StubProcessor

GOOD = {
    "image": "part/a.jpg",
    "caption": "a dog on the sofa",
    "boxes": [[1, 2, 11, 14], [5, 5, 30, 25]],
    "spans": [[[0, 5]], [9, 17]],
    "scores": [0.9, 0.4],
    "width": 40,
    "height": 30,
}


def write(folder, *lines):
    (folder / "part").mkdir(exist_ok=True)
    for name in "ab":
        Image.new("RGB", (40, 30), (0, ord(name), 0)).save(folder / "part" / f"{name}.jpg")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "captions.jsonl").write_text(text)
    return folder / "captions.jsonl", folder


def test_boxes_by_score(tmp_path):
    files = write(tmp_path, GOOD, "", {"image": "part/b.jpg", "caption": "a cat", "image_id": 4})
    dataset = load_pseudo_boxes(*files)
    first, second = dataset
    assert first["kind"] == "grounding" and first["image_id"] == "part/a.jpg"
    assert first["objects"] == {
        "bbox": [[1, 2, 10, 12]],
        "tokens_positive": [[[0, 5]]],
        "score": [0.9],
        "phrase": ["a dog"],
    }
    assert second["kind"] == "caption" and "objects" not in second and second["image_id"] == 4
    assert (second["width"], second["height"]) == (40, 30), "from the image where the line does not say"
    for example in dataset:
        check_example(example)
    low = load_pseudo_boxes(*files, min_score=0.0, box_format="xywh")[0]["objects"]
    assert low["bbox"] == [[1, 2, 11, 14], [5, 5, 30, 25]] and low["phrase"] == ["a dog", "the sofa"]
    batch = GroundingCollator(StubProcessor())([first, second])
    assert batch["labels"][0]["boxes"].shape == (1, 4) and batch["labels"][1] is None


def test_streams_give_the_same(tmp_path):
    path, folder = write(tmp_path, GOOD, {**GOOD, "image": "part/b.jpg", "image_id": 2}, "{")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.write(json.dumps({**GOOD, "image_id": 3}) + "\n")
    files = [path, tmp_path / "more.jsonl.gz"]
    dataset, stream = load_pseudo_boxes(files, folder), load_pseudo_boxes(files, folder, streaming=True)
    assert len(dataset) == 3
    for _ in range(2):
        assert list(stream) == list(dataset)
        assert stream.report.counts == dataset.report.counts == {"bad_entry": 1}


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        ("bad_entry", "{"),
        ("bad_entry", "[1]"),
        ("bad_entry", {**GOOD, "image": None}),
        ("bad_entry", {**GOOD, "scores": [0.9]}),
        ("bad_entry", {**GOOD, "boxes": None}),
        ("bad_entry", {**GOOD, "scores": ["high", "low"]}),
        ("empty_text", {**GOOD, "caption": ""}),
        ("unreadable_image", {**GOOD, "image": "none.jpg", "width": None}),
        ("degenerate", {**GOOD, "boxes": [[11, 2, 1, 14], [5, 5, 30, 25]]}),
        ("mostly_outside", {**GOOD, "boxes": [[39, 2, 90, 14], [5, 5, 30, 25]]}),
        ("not_a_number", {**GOOD, "boxes": [[None] * 4, [5, 5, 30, 25]]}),
        ("not_a_number", {**GOOD, "boxes": [[1, 2, 3], [5, 5, 30, 25]]}),
        ("not_a_number", '{"image": "part/a.jpg", "caption": "a", "boxes": [[1, 2, NaN, 4]], "spans": [[0, 1]]}'),
        ("bad_span", {**GOOD, "spans": [[[0, 50]], [9, 17]]}),
        ("bad_span", {**GOOD, "spans": [[], [9, 17]]}),
    ],
)
def test_bad_lines_are_counted_or_refused(tmp_path, problem, line):
    files = write(tmp_path, GOOD, line)
    dataset = load_pseudo_boxes(*files)
    assert dataset.report.counts == {problem: 1}
    assert sum(len(example["objects"]["bbox"]) for example in dataset if "objects" in example) == 1
    with pytest.raises(ValueError, match="policy"):
        load_pseudo_boxes(*files, policy="refuse")


def test_lines_from_a_grounding_model(tmp_path):
    found = [
        {"phrase": "a dog", "span": (0, 5), "scores": [0.81234, 0.6], "boxes": [[1, 2, 11, 14], [2, 3, 9.456, 9]]},
        {"phrase": "the sofa", "span": (9, 17), "scores": [], "boxes": []},
    ]
    entry = pseudo_box_entry("part/a.jpg", "a dog on the sofa", found, (40, 30))
    assert entry["boxes"][1] == [2.0, 3.0, 9.46, 9.0] and entry["scores"] == [0.8123, 0.6]
    objects = load_pseudo_boxes(*write(tmp_path, entry))[0]["objects"]
    assert objects["phrase"] == ["a dog", "a dog"] and objects["bbox"][0] == [1, 2, 10, 12]


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="box_format"):
        load_pseudo_boxes(*write(tmp_path, GOOD), box_format="cxcywh")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_pseudo_boxes(tmp_path / "none.jsonl", tmp_path)
