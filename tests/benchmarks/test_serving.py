"""benchmarks/serving.py with a tiny model."""

import pytest

from tests.scripts import load_script
from tests.tiny_detector import natural_image, tiny_detector, tiny_processor

pytest.importorskip("fastapi")


def test_servers_are_loaded_and_timed(tmp_path, monkeypatch, capsys):
    tiny_detector().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    natural_image().save(tmp_path / "image.png")
    given = ["--model", str(tmp_path / "model"), "--image", str(tmp_path / "image.png"), "--labels", "dog"]
    results = load_script("benchmarks/serving.py").main(
        [*given, "--requests", "8", "--concurrency", "1", "4", "--batch_size", "4", "--threads", "1"]
    )
    assert results.keys() == {(1, 1), (1, 4), (4, 1), (4, 4)}
    for row in results.values():
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
        assert row["requests_per_second"] > 0
    assert capsys.readouterr().out.count("\n|") == 5
