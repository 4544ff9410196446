"""benchmarks/backends.py with a tiny model."""

import pytest

from tests.scripts import load_script
from tests.tiny_detector import natural_image, tiny_detector, tiny_processor

pytest.importorskip("onnxruntime")


def test_backends_are_timed_and_their_boxes_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLIPV2_CACHE", str(tmp_path / "cache"))
    tiny_detector().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    natural_image().save(tmp_path / "image.png")
    given = ["--model", str(tmp_path / "model"), "--image", str(tmp_path / "image.png"), "--labels", "dog"]
    result = load_script("benchmarks/backends.py").main([*given, "--repeats", "2", "--threads", "1"])
    assert min(result["seconds"].values()) > 0
    assert result["ratio"] == pytest.approx(result["seconds"]["torch"] / result["seconds"]["onnx"])
    assert result["counts"][0] == result["counts"][1] > 0
    assert result["largest"] == pytest.approx(0, abs=1e-2)
    assert "times as fast" in capsys.readouterr().out
