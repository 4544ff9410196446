"""Scores of referring phrases, and one way to segment them."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_glipv2.data.masks import encode_mask
from transformers_glipv2.evaluation.referring import evaluate_referring


def square(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((20, 30), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def example(referents: list[int]) -> dict:
    """A landmark, and two squares of which the text may mean one or both."""
    squares = ((0, 0, 5), (10, 2, 10), (20, 12, 4))
    return {
        "image": Image.new("RGB", (30, 20)),
        "image_id": "drawn",
        "text": "the squares right of the square",
        "objects": {
            "bbox": [[x, y, side, side] for x, y, side in squares],
            # As scenes have them and as files have them.
            "segmentation": [square(0, 0, 5), square(10, 2, 10), encode_mask(square(20, 12, 4))],
        },
        "referents": referents,
    }


def answer(mask: np.ndarray, *boxes: tuple[float, ...]) -> dict:
    return {"mask": torch.from_numpy(mask), "boxes": torch.tensor(boxes)}


def test_scores_are_means_over_phrases_and_pixels():
    half, union = square(10, 2, 10), square(10, 2, 10) | square(20, 12, 4)
    half[7:] = False
    # Half of the one square, the landmark in place of it, and all of both squares.
    answers = [
        answer(half, (10.0, 2.0, 19.0, 6.0)),
        answer(square(0, 0, 5), (0.0, 0.0, 4.0, 4.0), (10.0, 2.0, 19.0, 11.0)),
        answer(union, (20.0, 12.0, 23.0, 15.0), (10.0, 2.0, 19.0, 11.0)),
    ]
    examples = [example([1]), example([1]), example([1, 2])]
    given = iter(answers)
    scores = evaluate_referring(examples, lambda _: next(given))
    assert scores["count"] == 3
    assert scores["mean_mask_iou"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert scores["cum_mask_iou"] == pytest.approx((50 + 0 + 116) / (100 + 125 + 116))
    # Strictly above, as in PhraseCut, while a box of IoU 0.5 is found, as in Flickr30k.
    assert scores["mask_precision"] == {t: pytest.approx(1 / 3) for t in (0.5, 0.6, 0.7, 0.8, 0.9)}
    assert scores["found"] == pytest.approx(2 / 3)


def test_refuses_rows_that_refer_to_nothing():
    with pytest.raises(ValueError, match="refers to no object: 'the squares right"):
        evaluate_referring([example([])], lambda _: answer(square(0, 0, 1), (0.0, 0.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="no examples"):
        evaluate_referring([], lambda _: None)
