"""Flickr30k recall against GLIP's evaluator."""

import copy

import numpy as np
import pytest

from tests.evaluation.helpers import read
from transformers_glipv2.evaluation.flickr30k import evaluate_flickr30k, first_hit, flickr30k_annotations

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def official(metrics_dir):
    folder = metrics_dir / "flickr30k"
    annotations = flickr30k_annotations(folder / "flickr30k_entities", "test", progress=False)
    predictions = [
        {
            "image_id": entry["image_id"],
            "sentence_id": entry["sentence_id"],
            "boxes": [phrase["pred_boxes"] for phrase in entry["phrases"]],
        }
        for entry in read(folder / "predictions.json.gz")
    ]
    return folder, annotations, predictions


def test_equals_the_official_evaluator(official):
    folder, annotations, predictions = official
    expected = read(folder / "expected.json")
    results = evaluate_flickr30k(annotations, predictions)
    for protocol in ("any_box", "merged_boxes"):
        assert results[protocol].keys() == expected[protocol].keys()
        for name, by_type in expected[protocol].items():
            assert results[protocol][name] == pytest.approx(by_type, abs=TOLERANCE)
    assert results["phrase_counts"] == expected["phrase_counts"]


def test_scores_put_boxes_in_order(official):
    folder, annotations, _ = official
    unordered = []
    for entry in read(folder / "raw_detections.json.gz"):
        examples = [[d for d in entry["detections"] if d["phrase_index"] == i] for i in range(entry["num_phrases"])]
        unordered.append(
            {
                "image_id": entry["image_id"],
                "sentence_id": entry["sentence_id"],
                "boxes": [[detection["box"] for detection in example] for example in examples],
                "scores": [[detection["score"] for detection in example] for example in examples],
            }
        )
    expected = read(folder / "expected.json")["any_box"]
    assert evaluate_flickr30k(annotations, unordered)["any_box"]["recall@1"] == pytest.approx(expected["recall@1"])


def sentence(boxes, types=("people",), image_id=1, sentence_id=0):
    return {
        "image_id": image_id,
        "sentence_id": sentence_id,
        "phrases": [{"phrase": "a man", "types": list(types), "boxes": boxes}] if boxes else [],
    }


def prediction(*boxes, image_id=1, sentence_id=0):
    return {"image_id": image_id, "sentence_id": sentence_id, "boxes": [list(boxes)]}


def test_half_an_overlap_is_a_hit_and_none_a_miss():
    assert first_hit(np.array([[0.0, 0, 10, 5]]), np.array([[0.0, 0, 10, 10]])) == 1
    assert first_hit(np.array([[0.0, 0, 10, 4.99]]), np.array([[0.0, 0, 10, 10]])) == np.inf
    assert first_hit(np.zeros((0, 4)), np.array([[0.0, 0, 10, 10]])) == np.inf
    assert first_hit(np.zeros((1, 4)), np.zeros((1, 4))) == np.inf


def test_any_box_and_merged_boxes_differ():
    annotations = [sentence([[0, 0, 10, 10], [90, 0, 100, 10]])]
    results = evaluate_flickr30k(annotations, [prediction([0, 0, 10, 10], [0, 0, 100, 10])])
    assert results["any_box"]["recall@1"]["people"] == 1
    assert results["merged_boxes"]["recall@1"]["people"] == 0
    assert results["merged_boxes"]["recall@5"]["people"] == 1


def test_several_types_count_once_each():
    results = evaluate_flickr30k([sentence([[0, 0, 9, 9]], ("people", "other"))], [prediction([0, 0, 9, 9])])
    assert results["phrase_counts"] == {"all": 1, "people": 1, "other": 1}


def test_no_annotations_and_no_boxes():
    assert evaluate_flickr30k([], [])["any_box"]["recall@1"]["all"] == -1
    empty = {"image_id": 1, "sentence_id": 0, "boxes": []}
    assert evaluate_flickr30k([sentence([])], [empty])["any_box"]["upper_bound"]["all"] == -1
    assert evaluate_flickr30k([sentence([[0, 0, 9, 9]])], [prediction()])["any_box"]["upper_bound"]["all"] == 0


def test_some_images_only(official):
    _, annotations, predictions = official
    image_id = predictions[0]["image_id"]
    some = [entry for entry in predictions if entry["image_id"] == image_id]
    counts = evaluate_flickr30k(annotations, some, image_ids=[image_id])["phrase_counts"]
    assert 0 < counts["all"] == sum(len(entry["boxes"]) for entry in some)


def test_refuses_what_does_not_fit():
    annotations = [sentence([[0, 0, 9, 9]])]
    good = prediction([0, 0, 9, 9])
    with pytest.raises(ValueError, match="sentence 0 of image 2, which the annotations lack"):
        evaluate_flickr30k(annotations, [good, prediction([0, 0, 9, 9], image_id=2)])
    with pytest.raises(ValueError, match="twice"):
        evaluate_flickr30k(annotations, [good, copy.deepcopy(good)])
    with pytest.raises(ValueError, match="lack 1 sentences"):
        evaluate_flickr30k(annotations, [])
    with pytest.raises(ValueError, match="2 lists of boxes for its 1 evaluated phrases"):
        evaluate_flickr30k(annotations, [{**good, "boxes": [[], []]}])
    with pytest.raises(ValueError, match="not finite"):
        evaluate_flickr30k(annotations, [prediction([0, 0, float("nan"), 9])])
