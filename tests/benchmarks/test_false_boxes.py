"""benchmarks/false_boxes.py with a tiny model."""

import json

import pytest

from tests.scripts import load_script
from tests.tiny_detector import tiny_detector, tiny_processor
from tests.tiny_training import drawn_coco

false_boxes = load_script("benchmarks/false_boxes.py")


@pytest.fixture
def given(tmp_path):
    """Drawn images of which every fourth shows neither cat nor dog, and a third class that none shows."""
    tiny_detector().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    drawn_coco(tmp_path / "coco", val=5)
    file = tmp_path / "coco" / "val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "bus"})
    file.write_text(json.dumps(content))
    return ["--model", str(tmp_path / "model"), "--annotations", str(file), "--max_samples", "4"]


def test_only_absent_classes_are_asked_for(given, monkeypatch, capsys):
    asked = []
    detect = false_boxes.Detector.detect

    def watched(self, image, labels):
        asked.append(set(labels))
        return detect(self, image, labels)

    monkeypatch.setattr(false_boxes.Detector, "detect", watched)
    result = false_boxes.main([*given, "--num_labels", "2", "--threshold", "0"])
    assert asked[:3] == [{"dog", "bus"}, {"cat", "bus"}, {"dog", "bus"}] and len(asked[3]) == 2
    # At a threshold of 0 there are boxes everywhere, at 1 nowhere.
    assert result["num_images"] == 4 and result["images"] == 100 and result["boxes"] > 1
    assert "4 images: " in capsys.readouterr().out
    none = false_boxes.main([*given, "--num_labels", "2", "--threshold", "1"])
    assert none["boxes"] == none["images"] == 0


def test_more_classes_than_are_absent_are_refused(given):
    with pytest.raises(ValueError, match="image 0 lacks 2 of the classes"):
        false_boxes.main([*given, "--num_labels", "3"])
