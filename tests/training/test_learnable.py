"""A run that would train on nothing is refused before its first step."""

import pytest

from transformers_glipv2.data import ImageDataset
from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.training import require_learnable

BOX = {"bbox": [[1, 2, 3, 4]], "category": ["cat"]}
DETECTION = {"kind": "detection", "objects": BOX}
EMPTY = {"kind": "detection", "objects": {"bbox": [], "category": []}}
MASKED = {"kind": "detection", "objects": {**BOX, "segmentation": [[[1, 2, 3, 4, 5, 6]]]}}
UNMASKED = {"kind": "detection", "objects": {**BOX, "segmentation": [None]}}
CAPTION = {"kind": "caption", "text": "a cat"}
QUESTION = {"kind": "vqa", "question": "a cat?", "answers": ["Yes."] * 10}
UNANSWERED = {"kind": "vqa", "question": "a cat?", "answers": []}


@pytest.mark.parametrize(
    ("target", "learnable", "nothing"),
    [
        ("boxes", [EMPTY, DETECTION], [EMPTY, CAPTION]),
        ("masks", [DETECTION, MASKED], [DETECTION, UNMASKED]),
        ("captions", [DETECTION, CAPTION], [DETECTION, QUESTION, {"kind": "caption", "text": " "}]),
        ("answers", [UNANSWERED, QUESTION], [UNANSWERED, CAPTION]),
        ("tokens", [QUESTION, CAPTION], [QUESTION, EMPTY]),
    ],
)
def test_counts_what_can_be_learned_and_refuses_zero(target, learnable, nothing):
    assert require_learnable([ImageDataset(learnable)], [target]) == {target: 1}
    assert require_learnable([ImageDataset(nothing), ImageDataset(learnable)], [target]) == {target: 1}
    with pytest.raises(ValueError, match=f"nothing to learn.*1 examples of kind '{nothing[0]['kind']}'"):
        require_learnable([ImageDataset(nothing[:1])], [target])
    with pytest.raises(ValueError, match="nothing to learn"):
        require_learnable([ImageDataset(nothing)], [target])


def test_one_of_several_targets_is_enough():
    assert require_learnable([ImageDataset([CAPTION])], ["boxes", "tokens"]) == {"boxes": 0, "tokens": 1}


def test_answers_count_where_the_vocabulary_has_them():
    assert require_learnable([ImageDataset([QUESTION])], ["answers"], ["yes", "no"]) == {"answers": 1}
    with pytest.raises(ValueError, match="nothing to learn: the run needs questions with answers"):
        require_learnable([ImageDataset([QUESTION])], ["answers"], ["red", "blue"])


def test_the_error_says_what_was_left_out():
    report = BoxReport(name="raccoons")
    report.add("unknown_class", "image 3, category '7'")
    with pytest.raises(ValueError, match=r"Left out were: raccoons: 1 times .*image 3, category '7'"):
        require_learnable([ImageDataset([EMPTY], report=report)], ["boxes"])


def test_endless_sources_are_tried():
    class Endless:
        def __init__(self, *examples):
            self.examples, self.asked = examples, 0

        def __getitem__(self, index):
            self.asked += 1
            return self.examples[index % len(self.examples)]

    source = Endless(EMPTY, EMPTY, DETECTION)
    assert require_learnable([source], ["boxes"]) == {"boxes": 1}
    assert source.asked == 3
    with pytest.raises(ValueError, match="200 examples of kind 'detection' without any"):
        require_learnable([Endless(EMPTY)], ["boxes"])


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="'words'; choose of boxes, masks"):
        require_learnable([], ["words"])
