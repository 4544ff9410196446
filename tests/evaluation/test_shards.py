"""Prediction files: whole or absent, in order, and only what is left gets predicted."""

import json

import pytest
from accelerate import Accelerator

from transformers_glipv2.data.files import write_json_list
from transformers_glipv2.evaluation.shards import PredictionShards, predict_in_shards, weights_id


def shards_of(folder, count=7, size=3, **settings):
    return PredictionShards(folder, [f"p{index}" for index in range(count)], settings, size)


def run(shards, seen=None, broken=(), batch_size=2):
    def load(position):
        if position in broken:
            raise OSError(f"no image {position}")
        return position

    def predict(items):
        if seen is not None:
            seen.append(items)
        return [[{"image": item, "box": index} for index in range(item)] for item in items]

    predict_in_shards(shards, load, predict, Accelerator(cpu=True), batch_size)


def test_batches_stay_within_files_and_predictions_in_order(tmp_path):
    shards, seen = shards_of(tmp_path), []
    run(shards, seen)
    assert seen == [[0, 1], [2], [3, 4], [5], [6]]
    assert [entry["image"] for entry in shards.predictions()] == [p for p in range(7) for _ in range(p)]
    assert shards.remaining() == [] and shards.failures() == {}


def test_only_missing_files_are_predicted_again(tmp_path):
    shards = shards_of(tmp_path)
    run(shards)
    before = list(shards.entries())
    shards.path((3, 6)).unlink()
    again, seen = shards_of(tmp_path), []
    assert again.remaining() == [(3, 6)]
    run(again, seen)
    assert seen == [[3, 4], [5]] and list(again.entries()) == before


def test_unreadable_images_are_listed_and_have_no_predictions(tmp_path):
    shards, seen = shards_of(tmp_path), []
    run(shards, seen, broken=(3, 4))
    assert shards.failures() == {"p3": "OSError: no image 3", "p4": "OSError: no image 4"}
    assert seen == [[0, 1], [2], [5], [6]] and [e["id"] for e in shards.entries()] == shards.keys


def test_a_longer_run_keeps_whole_files(tmp_path):
    run(shards_of(tmp_path, count=4))
    longer = shards_of(tmp_path, count=7)
    assert longer.remaining() == [(3, 6), (6, 7)]
    run(longer)
    assert [entry["id"] for entry in longer.entries()] == longer.keys


def test_refuses_other_settings_other_images_and_repeated_ids(tmp_path):
    shards = shards_of(tmp_path, threshold=0.1)
    run(shards)
    with pytest.raises(ValueError, match=r"made with \{'threshold': 0.1\}, not \{'threshold': 0.2\}"):
        shards_of(tmp_path, threshold=0.2)
    other = PredictionShards(tmp_path, [f"q{index}" for index in range(7)], {"threshold": 0.1}, 3)
    with pytest.raises(ValueError, match="other images"):
        list(other.entries())
    with pytest.raises(ValueError, match="give each once"):
        PredictionShards(tmp_path / "new", ["a", "a"], {})
    with pytest.raises(ValueError, match="block"):
        shards.write((0, 3), [{"id": "p1", "predictions": []}])


def test_what_is_written_is_whole_or_absent(tmp_path):
    def entries():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_json_list(tmp_path / "list.json", entries())
    assert list(tmp_path.iterdir()) == []
    assert write_json_list(tmp_path / "list.json", iter([])) == 0
    assert json.loads((tmp_path / "list.json").read_text()) == []
    assert write_json_list(tmp_path / "list.json", [{"a": 1}, {"b": 2}]) == 2
    assert json.loads((tmp_path / "list.json").read_text()) == [{"a": 1}, {"b": 2}]


def test_weights_tell_checkpoints_apart(tmp_path):
    for name, content in (("one", b"1"), ("two", b"2"), ("same", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, two, same = (weights_id(tmp_path / name) for name in ("one", "two", "same"))
    assert one == same != two
    assert weights_id("someone/glipv2") == "someone/glipv2"


@pytest.mark.parametrize(
    "damage", [b"", b'[{"id": "a", "pred', b"{}", b"[1, 2]", b'[{"id": "x"}, {"id": "y"}]', b"\xff\xfe"]
)
def test_a_damaged_shard_is_named_and_predicted_again(tmp_path, damage):
    shards = PredictionShards(tmp_path, ["a", "b", "c"], {"model": "m"}, size=2)
    for block in shards.blocks:
        shards.write(block, [{"id": key, "predictions": [{"key": key}]} for key in shards.keys[slice(*block)]])
    assert shards.remaining() == []
    shards.path((0, 2)).write_bytes(damage)
    name = shards.path((0, 2)).name
    with pytest.raises(ValueError, match=name):
        list(shards.entries())
    again = PredictionShards(tmp_path, ["a", "b", "c"], {"model": "m"}, size=2)
    assert again.remaining() == [(0, 2)]
    again.write((0, 2), [{"id": key, "predictions": []} for key in "ab"])
    assert again.remaining() == [] and list(again.predictions()) == [{"key": "c"}]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"model": '])
def test_damaged_settings_are_written_anew_and_all_predicted_again(tmp_path, damage):
    shards = PredictionShards(tmp_path, ["a"], {"model": "m"})
    shards.write((0, 1), [{"id": "a", "predictions": []}])
    (tmp_path / "settings.json").write_bytes(damage)
    again = PredictionShards(tmp_path, ["a"], {"model": "other"})
    assert again.remaining() == [(0, 1)]
    with pytest.raises(ValueError, match="holds predictions made with"):
        PredictionShards(tmp_path, ["a"], {"model": "m"})
