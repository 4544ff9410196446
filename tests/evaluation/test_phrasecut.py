"""PhraseCut scores against the official evaluator."""

import numpy as np
import pytest

from tests.evaluation.helpers import read
from transformers_glipv2.data.masks import encode_mask
from transformers_glipv2.evaluation.phrasecut import evaluate_phrasecut, mask_iou, phrase_mask

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def official(metrics_dir):
    folder = metrics_dir / "phrasecut"
    data = folder / "VGPhraseCut_v0"
    arguments = [read(data / "refer_miniv.json"), read(data / "image_data_split.json")]
    return folder, arguments, read(data / "name_att_rel_count.json")


@pytest.mark.parametrize("source", ["predictions.json.gz", "predictions_png"])
def test_equals_the_official_evaluator(official, source):
    folder, arguments, counts = official
    predictions = read(folder / source) if source.endswith(".gz") else folder / source
    results = evaluate_phrasecut(*arguments, predictions, name_counts=counts, progress=False)
    for name, expected in read(folder / "expected.json")["subsets"].items():
        ours = results[name]
        assert ours["count"] == expected["count"], name
        assert ours["mean_mask_iou"] == pytest.approx(expected["mean_mask_iou"], abs=TOLERANCE)
        assert ours["cum_mask_iou"] == pytest.approx(expected["cum_mask_iou"], abs=TOLERANCE)
        precision = {str(threshold): value for threshold, value in ours["mask_precision"].items()}
        assert precision == pytest.approx(expected["pred_mask_acc"], abs=TOLERANCE)
        if source.endswith(".gz"):
            assert ours["mean_box_iou"] == pytest.approx(expected["mean_box_iou"], abs=TOLERANCE)
            precision = {str(threshold): value for threshold, value in ours["box_precision"].items()}
            assert precision == pytest.approx(expected["pred_box_acc"], abs=TOLERANCE)


def test_missing_predictions_are_left_out_and_counted(official):
    folder, arguments, _ = official
    expected = read(folder / "expected.json")["second_result_with_missing_predictions"]
    predictions = [
        entry for entry in read(folder / "predictions.json.gz") if entry["task_id"] not in expected["missing_task_ids"]
    ]
    results = evaluate_phrasecut(*arguments, predictions, progress=False)
    assert results["all"]["mean_mask_iou"] == pytest.approx(expected["all"]["mean_mask_iou"], abs=TOLERANCE)
    assert results["all"]["cum_mask_iou"] == pytest.approx(expected["all"]["cum_mask_iou"], abs=TOLERANCE)
    assert (results["tasks"], results["evaluated_tasks"]) == (64, 59)
    assert results["mean_mask_iou_over_all_tasks"] == pytest.approx(
        expected["mean_mask_iou_assuming_empty_for_missing"], abs=TOLERANCE
    )


def task(polygons, task_id="1__2", boxes=((0, 0, 4, 4),)):
    structure = {"name": "cat", "attributes": [], "relation_descriptions": [], "type": "name"}
    return {
        "task_id": task_id,
        "image_id": 1,
        "Polygons": polygons,
        "instance_boxes": list(boxes),
        "phrase_structure": structure,
    }


IMAGES = [{"image_id": 1, "height": 20, "width": 30}]
SQUARE = [[[[2, 2], [11.9, 2], [11.9, 11.9], [2, 11.9]]]]


def test_coordinates_are_truncated_and_borders_drawn():
    mask = phrase_mask(SQUARE, 20, 30)
    assert mask.sum() == 100 and mask[2:12, 2:12].all()
    assert phrase_mask([[[[5, 5]]]], 20, 30).sum() == 0
    assert phrase_mask([[[[-5, -5], [3, -5], [3, 3], [-5, 3]]]], 20, 30).sum() == 16


def test_empty_masks():
    empty, full = np.zeros((20, 30), dtype=bool), np.ones((20, 30), dtype=bool)
    assert mask_iou(empty, empty)[0] == 0 and mask_iou(empty, full)[0] == 0 and mask_iou(full, full)[0] == 1
    results = evaluate_phrasecut([task([])], IMAGES, [{"task_id": "1__2", "mask": empty}], progress=False)
    assert results["all"]["mean_mask_iou"] == 0 and results["all"]["cum_mask_iou"] == 0


def test_precision_is_strictly_above_the_threshold():
    half = np.zeros((20, 30), dtype=bool)
    half[2:7, 2:12] = True
    results = evaluate_phrasecut([task(SQUARE)], IMAGES, [{"task_id": "1__2", "mask": half}], progress=False)
    assert results["all"]["mean_mask_iou"] == 0.5 and results["all"]["mask_precision"][0.5] == 0


def test_nothing_predicted():
    results = evaluate_phrasecut([task(SQUARE)], IMAGES, [], progress=False)
    assert results["all"] == {"count": 0} and results["mean_mask_iou_over_all_tasks"] == 0


def test_refuses_what_does_not_fit():
    good = {"task_id": "1__2", "mask": encode_mask(np.zeros((20, 30), dtype=bool))}
    with pytest.raises(ValueError, match="'1__3', which the tasks lack"):
        evaluate_phrasecut([task(SQUARE)], IMAGES, [{**good, "task_id": "1__3"}], progress=False)
    with pytest.raises(ValueError, match="twice"):
        evaluate_phrasecut([task(SQUARE)], IMAGES, [good, good], progress=False)
    wrong = {**good, "mask": encode_mask(np.zeros((30, 20), dtype=bool))}
    with pytest.raises(ValueError, match=r"'1__2': a mask of \(height, width\) \(30, 20\)"):
        evaluate_phrasecut([task(SQUARE)], IMAGES, [wrong], progress=False)
    with pytest.raises(ValueError, match="lack"):
        evaluate_phrasecut([task(SQUARE)], IMAGES, [good], task_ids=[], progress=False)


@pytest.mark.parametrize("point", [[1e12, 1], [float("nan"), 1], [1, -(10**30)]])
def test_points_far_outside_are_refused_before_they_are_drawn(point):
    task = {
        "task_id": "1__a",
        "image_id": 1,
        "Polygons": [[[[1, 1], [5, 1], [5, 5]]]],
        "instance_boxes": [[1, 1, 4, 4]],
    }
    image = {"image_id": 1, "height": 10, "width": 12}
    prediction = {"task_id": "1__a", "mask": np.zeros((10, 12), dtype=bool)}
    for wrong in (
        ({**task, "Polygons": [[[[1, 1], point, [5, 5]]]]}, prediction),
        (task, {**prediction, "boxes": [[*point, 2, 2]]}),
    ):
        with pytest.raises(ValueError, match="phrase '1__a' has the point"):
            evaluate_phrasecut([wrong[0]], [image], [wrong[1]], progress=False)
