import json

import pytest
import torch

from transformers_glipv2.data.answers import (
    answer_targets,
    build_answer_vocabulary,
    load_answer_vocabulary,
    save_answer_vocabulary,
    soft_scores,
)


def test_vocabulary_by_count():
    answers = ["Yes"] * 5 + ["yes."] * 4 + ["two"] * 6 + ["2"] * 4 + ["no"] * 9 + ["the cat"] * 8 + ["a"] * 20
    assert build_answer_vocabulary(answers) == ["2", "no", "yes"]
    assert build_answer_vocabulary(answers, min_count=8) == ["2", "no", "yes", "cat"]
    assert build_answer_vocabulary(answers, 5, normalize=str)[:2] == ["a", "no"]
    with pytest.raises(ValueError, match="lower `min_count`"):
        build_answer_vocabulary(answers, 100)
    with pytest.raises(ValueError, match="at least 1"):
        build_answer_vocabulary(answers, 0)


def test_soft_scores():
    ids = {"yes": 0, "no": 1, "2": 2, "cat": 3}
    annotators = ["yes"] * 4 + ["No", "no!", "no"] + ["two"] + ["dog"] + ["maybe"]
    assert soft_scores(annotators, ids) == {0: 1.0, 1: 0.9, 2: 0.3}
    assert soft_scores(["a cat"] * 2 + ["yes"] * 8, ids) == {3: 0.6, 0: 1.0}
    assert soft_scores(["x"] * 10, ids) == {}
    targets = answer_targets([annotators, ["x"], []], ids)
    torch.testing.assert_close(targets, torch.tensor([[1, 0.9, 0.3, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))


def test_files(tmp_path):
    path = tmp_path / "answers.json"
    save_answer_vocabulary(["yes", "café"], path)
    assert load_answer_vocabulary(path) == ["yes", "café"] and list(tmp_path.iterdir()) == [path]
    path.write_text(json.dumps(["yes", "no", "yes"]))
    with pytest.raises(ValueError, match="'yes'"):
        load_answer_vocabulary(path)
    path.write_text('{"yes": 0}')
    with pytest.raises(ValueError, match="json list"):
        load_answer_vocabulary(path)


def test_real_answers(metrics_dir):
    entries = json.loads((metrics_dir / "vqa" / "annotations.json").read_text())["annotations"]
    vocabulary = build_answer_vocabulary((entry["multiple_choice_answer"] for entry in entries), min_count=2)
    ids = {answer: place for place, answer in enumerate(vocabulary)}
    targets = answer_targets([[item["answer"] for item in entry["answers"]] for entry in entries], ids)
    assert "yes" in vocabulary[:3] and targets.shape == (len(entries), len(vocabulary))
    assert set(targets.unique().tolist()) <= set(torch.tensor([0, 0.3, 0.6, 0.9, 1]).tolist())
    in_vocabulary = sum(entry["multiple_choice_answer"] in ids for entry in entries)
    assert (targets.max(dim=1).values >= 0.6).sum() >= 0.9 * in_vocabulary
