"""hub_upload/calibrate.py: other scores, the same boxes."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.scripts import load_script
from tests.tiny_detector import tiny_detector, tiny_processor
from tests.tiny_training import drawn_coco
from transformers_glipv2 import Detector

calibrate = load_script("hub_upload/calibrate.py")
NANO = REPOSITORY / "hub_upload" / "glipv2-nano"
IMAGE = REPOSITORY / "docs" / "images" / "astronaut.jpg"
LABELS = ["person", "face"]


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    """A COCO file of what the nano finds best in a photograph: F1 is highest near the lowest of these scores."""
    (found,) = Detector.from_pretrained(NANO, threshold=0.5).detect([IMAGE], LABELS)
    boxes = found["boxes"].tolist()
    assert boxes
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1 + LABELS.index(label), "iscrowd": 0, "area": w * h}
        | {"bbox": [x, y, w, h]}
        for number, (label, (x, y, x2, y2)) in enumerate(zip(found["text_labels"], boxes, strict=True), 1)
        for w, h in [(x2 - x, y2 - y)]
    ]
    file = tmp_path_factory.mktemp("photograph") / "found.json"
    image = {"id": 1, "file_name": IMAGE.name, "width": 512, "height": 512}
    categories = [{"id": number, "name": label} for number, label in enumerate(LABELS, 1)]
    file.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))
    return file


def test_scores_move_to_the_threshold_and_boxes_stay(photograph, tmp_path, capsys):
    output = tmp_path / "calibrated"
    given = ["--model", str(NANO), "--annotations", str(photograph), "--images", str(IMAGE.parent)]
    result = calibrate.main([*given, "--threshold", "0.25", "--output", str(output)])
    assert result["shift"] < -0.5 and result["threshold"] == pytest.approx(0.25, abs=calibrate.TOLERANCE)
    assert "as trained: F1 is highest at" in capsys.readouterr().out

    before, after = (
        Detector.from_pretrained(folder).detect([IMAGE], LABELS, threshold=0)[0] for folder in (NANO, output)
    )
    best = len(json.loads(photograph.read_text())["annotations"])
    assert after["scores"][best - 1] > 0.25 > after["scores"][best]
    torch.testing.assert_close(after["boxes"][:best], before["boxes"][:best])
    assert after["text_labels"][:best] == before["text_labels"][:best]
    assert (after["scores"][:best] < before["scores"][:best]).all()


@pytest.fixture
def tiny(tmp_path):
    """The options of a tiny model, and a file without objects."""
    tiny_detector().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    drawn_coco(tmp_path / "coco", val=1)
    file = tmp_path / "coco" / "val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    given = ["--model", tmp_path / "model", "--annotations", file, "--images", tmp_path / "coco"]
    return [*map(str, given), "--output", str(tmp_path / "output")]


def test_images_without_a_found_object_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="no box is on an object"):
        calibrate.main(tiny)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "further, said",
    [(["--threshold", "1"], "--threshold 1 cannot be reached"), (["--images", ".", "."], "2 folders for 1 files")],
)
def test_what_cannot_be_is_refused(tiny, further, said, capsys):
    with pytest.raises(SystemExit):
        calibrate.main([*tiny, *further])
    assert said in capsys.readouterr().err


def test_an_output_that_exists_is_refused(tiny, tmp_path):
    (tmp_path / "output").mkdir()
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        calibrate.main(tiny)
