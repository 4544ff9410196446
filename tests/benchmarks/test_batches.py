"""benchmarks/batches.py with a tiny model."""

import pytest

from tests.scripts import load_script
from tests.tiny_detector import natural_image, tiny_detector, tiny_processor


def test_batches_are_timed_and_their_boxes_compared(tmp_path, capsys):
    tiny_detector().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    natural_image().save(tmp_path / "image.png")
    given = ["--model", str(tmp_path / "model"), "--image", str(tmp_path / "image.png"), "--labels", "dog"]
    result = load_script("benchmarks/batches.py").main(
        [*given, "--batch_size", "3", "--repeats", "2", "--threads", "1"]
    )
    assert set(result["seconds"]) == {1, 3} and min(result["seconds"].values()) > 0
    assert result["counts"][0] == result["counts"][1] and len(result["counts"][0]) == 3
    assert result["largest"] == pytest.approx(0, abs=1e-2)
    assert "3 images together" in capsys.readouterr().out
