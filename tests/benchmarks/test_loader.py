"""benchmarks/loader.py: every number of workers and size is measured on the loader that training has."""

from tests.scripts import load_script
from tests.tiny_training import tiny_checkpoint


def test_measures_each_number_of_workers(tmp_path):
    script = load_script("benchmarks/loader.py")
    model = tiny_checkpoint(tmp_path / "model")
    arguments = ["--model", model, "--workers", 0, 1, "--batch_size", 2, "--num_steps", 1, "--image_size", 64]
    found = script.main([*map(str, arguments), "--output", str(tmp_path / "loader.md")])
    assert found.keys() == {(64, 0), (64, 1)} and min(found.values()) > 0
    assert "| 64 | 1 | " in (tmp_path / "loader.md").read_text()
