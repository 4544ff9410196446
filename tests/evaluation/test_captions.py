"""Caption scores against pycocoevalcap run with its own tokenizer, and what is refused."""

import shutil

import pytest

from tests.evaluation.helpers import read
from transformers_glipv2.evaluation import captions
from transformers_glipv2.evaluation.captions import DEFAULT_METRICS, evaluate_captions, ptb_tokenize

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the tokenizer and METEOR are Java programs")


def references(by_image):
    return {"annotations": [{"image_id": key, "caption": text} for key, texts in by_image.items() for text in texts]}


def results(by_image):
    return [{"image_id": key, "caption": texts[0]} for key, texts in by_image.items()]


@pytest.fixture(scope="module")
def folder(metrics_dir):
    return metrics_dir / "captions"


@needs_java
def test_equals_the_official_scores(folder):
    # METEOR loads its tables for seconds, so it has a smaller test of its own.
    scores = evaluate_captions(
        read(folder / "refs.json.gz"), folder / "results.json", [name for name in DEFAULT_METRICS if name != "METEOR"]
    )
    expected = read(folder / "expected.json")
    for name in set(expected["corpus"]) - {"METEOR"}:
        assert scores[name] == pytest.approx(expected["corpus"][name], abs=1e-6)
        for image_id, entry in expected["per_image"].items():
            assert scores["per_image"][int(image_id)][name] == pytest.approx(entry[name], abs=1e-6)


@needs_java
def test_meteor_equals_the_official_one(folder):
    mini = read(folder / "scorer_mini.json")
    scores = evaluate_captions(references(mini["refs"]), results(mini["results"]), ["METEOR"], tokenize=False)
    assert scores["METEOR"] == pytest.approx(mini["corpus"]["METEOR"], abs=1e-4)
    each = {key: entry["METEOR"] for key, entry in mini["per_item"].items()}
    assert {key: entry["METEOR"] for key, entry in scores["per_image"].items()} == pytest.approx(each, abs=1e-4)


def test_tokenized_captions_need_no_java(folder, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    mini = read(folder / "scorer_mini.json")
    metrics = ("BLEU", "ROUGE_L", "CIDEr")
    scores = evaluate_captions(references(mini["refs"]), results(mini["results"]), metrics, tokenize=False)
    corpus = {name: value for name, value in mini["corpus"].items() if name != "METEOR"}
    assert {name: scores[name] for name in corpus} == pytest.approx(corpus, abs=1e-6)
    with pytest.raises(RuntimeError, match="need Java"):
        evaluate_captions(references(mini["refs"]), results(mini["results"]))


@needs_java
def test_tokenizer_equals_the_official_one(folder):
    cases = read(folder / "tokenizer_cases.json")
    # Each case was followed by a line of its own, because the next line can change how the last one ends.
    lines = {
        (index, part): [text] for index, case in enumerate(cases) for part, text in ((0, case["input"]), (1, "x"))
    }
    tokenized = ptb_tokenize(lines)
    assert [tokenized[index, 0][0] for index in range(len(cases))] == [case["tokens"] for case in cases]
    broken = ptb_tokenize({1: ["A dog\u2028runs.\r\nFast"], 2: ["A cat."]})
    assert broken == {1: ["a dog runs fast"], 2: ["a cat"]}


def test_refuses_what_does_not_fit(monkeypatch):
    truth = references({1: ["a dog"]})
    with pytest.raises(ValueError, match="is empty"):
        evaluate_captions(truth, [])
    with pytest.raises(ValueError, match="without a reference, such as 2"):
        evaluate_captions(truth, results({1: ["a dog"], 2: ["a cat"]}))
    with pytest.raises(ValueError, match="image 1 twice"):
        evaluate_captions(truth, results({1: ["a dog"]}) * 2)
    with pytest.raises(ValueError, match="choose from BLEU"):
        evaluate_captions(truth, results({1: ["a dog"]}), ["WER"])
    monkeypatch.setattr(captions, "_require_java", lambda: None)
    monkeypatch.setattr(captions, "SPICE_MODELS", "absent.jar")
    with pytest.raises(RuntimeError, match="SPICE needs"):
        evaluate_captions(truth, results({1: ["a dog"]}), ["SPICE"], tokenize=False)
