"""
VQA v2 accuracy (Goyal et al., "Making the V in VQA Matter", CVPR 2017): an answer is right as far as three of the
other nine annotators gave it.

>>> evaluate_vqa("v2_mscoco_val2014_annotations.json", "results.json")["overall"]
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_glipv2.evaluation.detections import read_json

NUMBERS = {
    word: str(digit)
    for digit, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Every mark of this list goes out of an answer that has a comma between digits; else it leaves a space behind.
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)
# Answers lose at most this many periods: the official code passes a flag of this value where the count belongs.
_MAX_PERIODS = 32

# Words that get their apostrophe back. Each group is a form with its apostrophes and how answers spell it without.
_CONTRACTIONS = """
ain't aint|aren't arent|can't cant|could've couldve|couldn't couldnt|couldn't've couldn'tve couldnt've|didn't didnt|
doesn't doesnt|don't dont|hadn't hadnt|hadn't've hadnt've hadn'tve|hasn't hasnt|haven't havent|he'd hed|
he'd've hed've he'dve|he's hes|how'd howd|how'll howll|how's hows|isn't isnt|it'd itd|it'd've itd've it'dve|
it'll itll|ma'am maam|mightn't mightnt|mightn't've mightnt've mightn'tve|might've mightve|mustn't mustnt|
must've mustve|needn't neednt|not've notve|o'clock oclock|oughtn't oughtnt|'ow's'at ow's'at 'ows'at 'ow'sat|
shan't shant|she'd've shed've she'dve|should've shouldve|shouldn't shouldnt|shouldn't've shouldnt've shouldn'tve|
somebodyd somebody'd|somebody'd've somebodyd've somebody'dve|somebody'll somebodyll|somebody's somebodys|
someone'd someoned|someone'd've someoned've someone'dve|someone'll someonell|someone's someones|
something'd somethingd|something'd've somethingd've something'dve|something'll somethingll|that's thats|
there'd thered|there'd've thered've there'dve|there're therere|there's theres|they'd theyd|
they'd've theyd've they'dve|they'll theyll|they're theyre|they've theyve|'twas twas|wasn't wasnt|
we'd've wed've we'dve|we've weve|weren't werent|what'll whatll|what're whatre|what's whats|what've whatve|
when's whens|where'd whered|where's wheres|where've whereve|who'd whod|who'd've whod've who'dve|who'll wholl|
who's whos|who've whove|why'll whyll|why're whyre|why's whys|won't wont|would've wouldve|wouldn't wouldnt|
wouldn't've wouldnt've wouldn'tve|y'all yall|y'all'll yall'll y'allll|y'all'd've yall'd've y'alld've y'all'dve|
you'd youd|you'd've youd've you'dve|you'll youll|you're youre|you've youve
"""
CONTRACTIONS = {
    spelling: group.split()[0]
    for group in _CONTRACTIONS.replace("\n", "").split("|")
    for spelling in group.split()[1:]
}


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
    questions = {entry["question_id"]: entry for entry in read_json(annotations)["annotations"]}
    if question_ids is not None:
        kept = set(question_ids)
        questions = {question_id: entry for question_id, entry in questions.items() if question_id in kept}
    answers: dict[int, str] = {}
    for entry in read_json(predictions):
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


def normalize_answer(answer: str) -> str:
    """Without punctuation and articles, in lower case, number words as digits, contractions with apostrophes."""
    return _normalize_words(_normalize_punctuation(_strip(answer)))


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalize_punctuation(text: str) -> str:
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        vanishes = has_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _normalize_words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else -1.0
