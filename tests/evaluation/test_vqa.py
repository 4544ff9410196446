"""VQA accuracy against the official evaluator."""

import pytest

from tests.evaluation.helpers import read
from transformers_glipv2.data.answer_text import normalize_answer
from transformers_glipv2.evaluation.vqa import answer_accuracy, evaluate_vqa


def test_equals_the_official_evaluator(metrics_dir):
    folder = metrics_dir / "vqa"
    results = evaluate_vqa(folder / "annotations.json", folder / "results.json")
    expected = read(folder / "expected.json")
    exact = expected["accuracy_rounded_12"]
    assert results["overall"] == pytest.approx(exact["overall"], abs=1e-9)
    assert results["per_question_type"] == pytest.approx(exact["perQuestionType"], abs=1e-9)
    assert results["per_answer_type"] == pytest.approx(exact["perAnswerType"], abs=1e-9)
    assert round(results["overall"], 2) == expected["accuracy_rounded_2"]["overall"] == 70.2
    per_question = {question: entry["accuracy"] for question, entry in expected["per_question"].items()}
    assert {str(key): value for key, value in results["per_question"].items()} == pytest.approx(per_question)


def test_normalisation_equals_the_official_one(metrics_dir):
    cases = read(metrics_dir / "vqa" / "normalisation.json")
    assert len(cases) > 60
    assert {case["input"]: normalize_answer(case["input"]) for case in cases} == {
        case["input"]: case["final"] for case in cases
    }


@pytest.mark.parametrize(("right", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_three_that_agree_make_an_answer_right(right, expected):
    annotators = ["red"] * right + [f"other{index}" for index in range(10 - right)]
    assert answer_accuracy("Red!", annotators) == pytest.approx(expected if right < 10 else 0)
    assert answer_accuracy("red", annotators) == pytest.approx(expected)


def questions(*ids):
    answers = [{"answer": "yes"}] * 9 + [{"answer": "no"}]
    return {
        "annotations": [
            {"question_id": index, "question_type": "is", "answer_type": "yes/no", "answers": answers} for index in ids
        ]
    }


def test_refuses_what_does_not_fit():
    answer = {"question_id": 1, "answer": "yes"}
    assert evaluate_vqa(questions(1), [answer])["overall"] == pytest.approx(100)
    assert evaluate_vqa(questions(1, 2), [answer], question_ids=[1])["overall"] == pytest.approx(100)
    assert evaluate_vqa(questions(), [])["overall"] == -1
    with pytest.raises(ValueError, match="question 2 that the annotations lack"):
        evaluate_vqa(questions(1), [answer, {"question_id": 2, "answer": "yes"}])
    with pytest.raises(ValueError, match="question 1 twice"):
        evaluate_vqa(questions(1), [answer, answer])
    with pytest.raises(ValueError, match="lack 1 questions, such as 2"):
        evaluate_vqa(questions(1, 2), [answer])
    with pytest.raises(ValueError, match="at least one true answer"):
        answer_accuracy("yes", [])
