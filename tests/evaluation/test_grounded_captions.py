"""Scores of grounded captions, by hand."""

import pytest
import torch

from transformers_glipv2.evaluation.grounded_captions import grounded_caption_scores

ROWS = [
    {
        "objects": {
            "bbox": [[10, 10, 20, 20], [50, 10, 20, 20], [0, 0, 10, 10]],
            "phrase": ["two dogs", "two dogs", "a red cup"],
        }
    },
    {"objects": {"bbox": [[0, 0, 40, 40]], "phrase": ["a chair"]}},
]


def phrase(text: str, *boxes: list[float]) -> dict:
    return {"phrase": text, "boxes": torch.tensor(boxes).reshape(-1, 4)}


def test_true_phrases_and_right_boxes():
    results = [
        # The second dog's box is as good as the first's; a blue cup is not there.
        {"phrases": [phrase("Two dogs", [51.0, 10, 71, 30]), phrase("a blue cup", [0.0, 0, 10, 10])]},
        # A true phrase whose first box is wrong, and one that got no box.
        {"phrases": [phrase("the chair", [60.0, 60, 80, 80], [0.0, 0, 40, 40]), phrase("chair")]},
    ]
    scores = grounded_caption_scores(ROWS, results)
    assert scores["phrase_precision"] == pytest.approx(100 * 3 / 4)
    assert scores["phrase_recall"] == pytest.approx(100 * 2 / 3)
    assert scores["R@1"] == pytest.approx(100 * 1 / 3)
    results[0]["phrases"].insert(0, phrase("an image", [0.0, 0, 100, 100]))
    assert grounded_caption_scores(ROWS, results) == scores


def test_nothing_told_and_wrong_numbers():
    scores = grounded_caption_scores(ROWS, [{"phrases": []}, {"phrases": []}])
    assert scores == {"phrase_precision": -1.0, "phrase_recall": 0.0, "R@1": -1.0}
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        grounded_caption_scores(ROWS, [{"phrases": []}])
