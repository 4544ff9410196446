"""benchmarks/gpu.py: every section runs on small models without a GPU, and what is left out is named."""

import json

import pytest

from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("benchmarks/gpu.py")


def test_every_section_runs(script, monkeypatch, tmp_path):
    # Compiled ones are the same calls, and take a minute to trace.
    monkeypatch.setattr(script, "KINDS", ("ours", "peer"))
    monkeypatch.setattr(script, "TOKENS", {80: 195})
    found = script.main(["--device", "cpu", "--smoke", "--seconds", "1000", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    assert {(entry["kind"], entry["batch"]) for entry in found["inference"]} == {
        (kind, batch) for kind in ("ours", "peer") for batch in (1, 2)
    }
    assert all(entry["images a second"] > 0 for entry in found["inference"])
    assert set(found["training"]) == set(found["vocabulary"]) == {"ours", "peer"}
    assert found["bounds"]["operations"] > 0 and found["bounds"]["bytes"] > 0
    assert len(found["fusion"]) == 2 and len(found["deformable"]) == 2
    assert found["left out"] == []
    text = (tmp_path / "gpu.md").read_text()
    assert "| ours | 2 |" in text and "| float32 | torchvision |" in text


def test_what_there_is_no_time_for_is_named(script, capsys):
    budget = script.Budget(5)
    assert budget.allows("a short one", 1)
    assert not budget.allows("a long one", 60)
    assert budget.skipped[0].startswith("a long one: about 60 s are needed")
    assert "left out: a long one" in capsys.readouterr().out


def test_prompts_are_labels_with_full_stops(script):
    args = script.parse_args(["--device", "cpu", "--smoke", "--output", "unused"])
    ids = script.Bench(args).prompt(10, 22)[0].tolist()
    assert (ids[0], ids[-2], ids[-1]) == (script.CLS, script.STOP, script.SEP)
    assert ids.count(script.STOP) == 10
