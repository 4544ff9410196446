"""
VQA v2 accuracy (Goyal et al., "Making the V in VQA Matter", CVPR 2017): an answer is right as far as three of the
other nine annotators gave it.

>>> evaluate_vqa("v2_mscoco_val2014_annotations.json", "results.json")["overall"]
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_glipv2.data.answer_text import _strip, normalize_answer
from transformers_glipv2.evaluation.detections import content_of


def evaluate_vqa(
    annotations: str | Path | Mapping[str, Any],
    predictions: str | Path | Iterable[Mapping[str, Any]],
    *,
    question_ids: Iterable[int] | None = None,
) -> dict[str, Any]:
    """
    The VQA accuracy.

    Args:
        annotations (`str`, `Path` or `Mapping`): a VQA v2 annotation file or its content.
        predictions (`str`, `Path` or `Iterable[Mapping]`): a result file or its entries: `question_id`, `answer`.
        question_ids (`Iterable[int]`, *optional*): score these questions only; predictions of others are refused.

    Returns:
        `dict`: "overall" in percent, "per_question_type" and "per_answer_type" of the same, "per_question": id ->
        percent. -1 where there is no question.

    Raises:
        ValueError: when a question is answered twice, is unknown or has no answer.
    """
    questions = {entry["question_id"]: entry for entry in content_of(annotations)["annotations"]}
    if question_ids is not None:
        kept = set(question_ids)
        questions = {question_id: entry for question_id, entry in questions.items() if question_id in kept}
    answers: dict[int, str] = {}
    for entry in content_of(predictions):
        question_id = entry["question_id"]
        if question_id not in questions or question_id in answers:
            problem = (
                "twice; keep one" if question_id in answers else "that the annotations lack; is it another split?"
            )
            raise ValueError(f"`predictions` hold the question {question_id} {problem}.")
        answers[question_id] = entry["answer"]
    missing = [question_id for question_id in questions if question_id not in answers]
    if missing:
        raise ValueError(
            f"`predictions` lack {len(missing)} questions, such as {missing[0]}; answer all, or pass `question_ids`."
        )
    groups: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    per_question = {}
    for question_id, entry in questions.items():
        accuracy = 100 * answer_accuracy(answers[question_id], [answer["answer"] for answer in entry["answers"]])
        per_question[question_id] = accuracy
        for field, members in groups.items():
            members[entry[field]].append(accuracy)
    return {
        "overall": _mean(list(per_question.values())),
        "per_question_type": {name: _mean(values) for name, values in groups["question_type"].items()},
        "per_answer_type": {name: _mean(values) for name, values in groups["answer_type"].items()},
        "per_question": per_question,
    }


def answer_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """
    Of one answer: the mean, over the annotators, of min(1, agreement with the other ones / 3).

    Answers are normalised only where the annotators differ; where all say the same, case and punctuation count.

    Args:
        answer (`str`): predicted.
        annotators (`Sequence[str]`): the ten true ones.

    Returns:
        `float` in [0, 1].

    Raises:
        ValueError: when there are no annotators.
    """
    if not annotators:
        raise ValueError("`annotators` is empty; a question needs at least one true answer.")
    answer, annotators = _strip(answer), [_strip(text) for text in annotators]
    if len(set(annotators)) > 1:
        answer, annotators = normalize_answer(answer), [normalize_answer(text) for text in annotators]
    agreements = [text == answer for text in annotators]
    total = sum(agreements)
    return sum(min(1.0, (total - agrees) / 3) for agrees in agreements) / len(agreements)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else -1.0
