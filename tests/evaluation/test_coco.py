"""COCO scores against pycocotools' own, and what it gets wrong or fails on."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.helpers import read
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.masks import encode_mask
from transformers_glipv2.evaluation.coco import STATISTICS, evaluate_coco, truth_entries

TOLERANCE = 1e-6


def truth(*boxes, crowd=(), first_id=1):
    """One image of 100 x 100 px, one category, boxes xywh."""
    return {
        "images": [{"id": 7, "height": 100, "width": 100}, {"id": 8, "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": first_id + index,
                "image_id": 7,
                "category_id": 3,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(index in crowd),
            }
            for index, box in enumerate(boxes)
        ],
    }


def found(*boxes, scores=None, image=7):
    scores = scores or [0.9 - 0.1 * index for index in range(len(boxes))]
    return [
        {"image_id": image, "category_id": 3, "bbox": list(box), "score": score}
        for box, score in zip(boxes, scores, strict=True)
    ]


def score(annotations, predictions, **arguments):
    return evaluate_coco(annotations, predictions, progress=False, **arguments)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("use_categories", [True, False])
def test_equals_the_official_evaluator(metrics_dir, iou_type, use_categories):
    folder = metrics_dir / "coco"
    expected = read(folder / "expected.json")[iou_type if use_categories else f"{iou_type}_class_agnostic"]
    results = score(
        read(folder / "gt.json.gz"),
        read(folder / f"{iou_type}_results.json.gz"),
        iou_type=iou_type,
        use_categories=use_categories,
    )
    assert {name: results[name] for name in STATISTICS} == pytest.approx(expected["stats"], abs=TOLERANCE)
    for category_id, numbers in expected.get("per_category", {}).items():
        ours = results["per_category"][int(category_id)]
        assert ours == pytest.approx({key: numbers[key] for key in ours}, abs=TOLERANCE)


def test_no_predictions_score_zero():
    results = score(truth((0, 0, 40, 40)), [])
    assert results["AP"] == 0 and results["AR@100"] == 0 and results["APs"] == -1


def test_no_annotations_leave_nothing_to_average():
    results = score(truth(), found((0, 0, 10, 10)))
    assert all(results[name] == -1 for name in STATISTICS)
    assert results["per_category"][3] == {"name": "cat", "AP": None, "AP50": None, "AR@100": None}


def test_crowds_take_many_and_count_for_nothing():
    annotations = truth((0, 0, 20, 20), (40, 40, 50, 50), crowd=(1,))
    inside_crowd = found((0, 0, 20, 20), (40, 40, 20, 20), (45, 45, 20, 20), (50, 50, 20, 20))
    assert score(annotations, inside_crowd)["AP"] == pytest.approx(1)
    annotations["annotations"][1]["iscrowd"] = 0
    assert score(annotations, inside_crowd)["AP"] < 0.6


def test_duplicate_boxes_are_false_positives():
    annotations = truth((0, 0, 20, 20), (60, 60, 20, 20))
    once = found((0, 0, 20, 20), (60, 60, 20, 20))
    twice = found((0, 0, 20, 20), (0, 0, 20, 20), (60, 60, 20, 20))
    assert score(annotations, once)["AP"] == pytest.approx(1)
    assert score(annotations, twice)["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_ties_keep_the_order_given():
    annotations = truth((0, 0, 20, 20))
    right, wrong = (0, 0, 20, 20), (70, 70, 20, 20)
    assert score(annotations, found(right, wrong, scores=[0.5, 0.5]))["AP"] == pytest.approx(1)
    assert score(annotations, found(wrong, right, scores=[0.5, 0.5]))["AP"] == pytest.approx(0.5)


def test_annotations_numbered_from_zero_or_twice_count():
    assert score(truth((0, 0, 20, 20), first_id=0), found((0, 0, 20, 20)))["AP"] == pytest.approx(1)
    annotations = truth((0, 0, 20, 20), (60, 60, 20, 20))
    annotations["annotations"][1]["id"] = 1
    assert score(annotations, found((0, 0, 20, 20), (60, 60, 20, 20)))["AP"] == pytest.approx(1)


def test_missing_crowd_and_area_fields_have_defaults():
    annotations = truth((0, 0, 20, 20))
    del annotations["annotations"][0]["iscrowd"], annotations["annotations"][0]["area"]
    results = score(annotations, found((0, 0, 20, 20)))
    assert results["AP"] == pytest.approx(1) and results["APs"] == pytest.approx(1) and results["APm"] == -1


def test_arguments_stay_as_they_were():
    annotations, predictions = truth((0, 0, 20, 20)), found((0, 0, 20, 20))
    before = copy.deepcopy((annotations, predictions))
    score(annotations, predictions)
    assert (annotations, predictions) == before


def test_some_images_only():
    annotations = truth((0, 0, 20, 20))
    assert score(annotations, found((0, 0, 20, 20)), image_ids=[7])["AP"] == pytest.approx(1)
    assert score(annotations, [], image_ids=[8])["AP"] == -1
    with pytest.raises(ValueError, match="image ids"):
        score(annotations, found((0, 0, 20, 20)), image_ids=[8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"1 image ids that the annotations do not list, such as \[99\]"),
        ({"category_id": 0}, r"1 category ids"),
        ({"bbox": [0, 0, -5, 10]}, "not x1, y1, x2, y2"),
        ({"bbox": [0, 0, float("nan"), 10]}, "finite"),
        ({"bbox": [0, 0, 5]}, "expected x, y, width, height"),
        ({"score": float("inf")}, "finite"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    predictions = found((0, 0, 20, 20), (0, 0, 20, 20))
    predictions[1].update(change)
    with pytest.raises(ValueError, match=message):
        score(truth((0, 0, 20, 20)), predictions)


def test_refuses_entries_and_files_without_fields():
    with pytest.raises(ValueError, match=r"`predictions\[0\]` lacks score"):
        score(truth(), [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(ValueError, match="lack categories"):
        score({"images": [], "annotations": []}, [])
    with pytest.raises(ValueError, match="`iou_type` is 'mask'"):
        score(truth(), [], iou_type="mask")


def with_masks(height=100, width=100):
    annotations = truth((10, 10, 30, 30))
    annotations["annotations"][0]["segmentation"] = [[10, 10, 40, 10, 40, 40, 10, 40]]
    mask = np.zeros((height, width), dtype=bool)
    mask[10:40, 10:40] = True
    return annotations, {"image_id": 7, "category_id": 3, "score": 0.5, "segmentation": encode_mask(mask)}


def test_mask_areas_are_those_of_masks_even_beside_boxes():
    annotations, prediction = with_masks()
    # The box alone would be large, and the unmatched mask out of the small range.
    small = np.zeros((100, 100), dtype=bool)
    small[80:90, 80:90] = True
    unmatched = {**prediction, "segmentation": encode_mask(small), "bbox": [0, 0, 100, 100], "score": 0.9}
    predictions = [unmatched, {**prediction, "bbox": [10, 10, 30, 30]}]
    assert score(annotations, predictions, iou_type="segm")["APs"] == pytest.approx(0.5)


def test_refuses_masks_of_another_size_and_boxes_without_masks():
    annotations, prediction = with_masks(50, 60)
    with pytest.raises(ValueError, match=r"\(50, 60\) \(height, width\), but image 7 is \(100, 100\)"):
        score(annotations, [prediction], iou_type="segm")
    with pytest.raises(ValueError, match="lacks segmentation"):
        score(annotations, found((0, 0, 20, 20)), iou_type="segm")
    with pytest.raises(ValueError, match="no `segmentation`"):
        score(truth((0, 0, 20, 20)), [], iou_type="segm")


def test_objects_without_a_mask_are_left_out_of_mask_scores():
    annotations, prediction = with_masks()
    annotations["annotations"].append({**annotations["annotations"][0], "id": 9, "bbox": [60, 60, 9, 9]})
    del annotations["annotations"][1]["segmentation"]
    assert score(annotations, [prediction], iou_type="segm")["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "value"),
    [("iscrowd", None), ("iscrowd", False), ("area", None), ("image_id", 7.0), ("category_id", 3.0), ("bbox", None)],
)
def test_harmless_forms_are_those_that_load_coco_accepts(change, value):
    annotations, prediction = with_masks()
    annotations["annotations"][0][change] = value
    annotations["images"][0] |= {"width": 100.0, "height": "100"}
    for iou_type in ("bbox", "segm"):
        entry = {**prediction, "bbox": [10, 10, 30, 30]}
        assert score(annotations, [entry], iou_type=iou_type)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("part", "entry", "named"),
    [
        ("annotations", None, r"annotations\[0\]"),
        ("annotations", {"iscrowd": "yes"}, "iscrowd 'yes'"),
        ("annotations", {"area": "large"}, "area 'large'"),
        ("annotations", {"bbox": "1 2 3 4"}, r"annotations\[0\].*1 2 3 4"),
        ("annotations", {"bbox": None}, r"annotations\[0\]"),
        ("images", {"id": None}, r"images\[0\]"),
        ("images", "a.jpg", r"images\[0\]"),
    ],
)
def test_entries_of_a_wrong_kind_are_named(tmp_path, part, entry, named):
    annotations = truth((10, 10, 30, 30))
    annotations[part][0] = {**annotations[part][0], **entry} if isinstance(entry, dict) else entry
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    with pytest.raises(ValueError, match=rf"truth\.json.*{named}"):
        score(tmp_path / "truth.json", [])


@pytest.mark.parametrize("counts", ["", "garbage", [], [-1, 10_001], [5000.5, 4999.5], [2**40]])
def test_predicted_run_lengths_are_checked(counts):
    annotations, prediction = with_masks()
    prediction["segmentation"] = {"size": [100, 100], "counts": counts}
    with pytest.raises(ValueError, match=r"predictions\[0\].*run length"):
        score(annotations, [prediction], iou_type="segm")


def test_truth_of_accepted_examples(tmp_path):
    """Scores of a file through `load_coco` are those of the file itself."""
    mask = np.zeros((30, 40), dtype=bool)
    mask[2:14, 1:11] = True
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    segmentations = [[[1, 2, 11, 2, 11, 14, 1, 14]], encode_mask(mask), None]
    annotations = [
        {"id": i, "image_id": 5, "category_id": 3, "bbox": [1, 2, 10, 12], "segmentation": s, "iscrowd": int(i == 1)}
        for i, s in enumerate(segmentations)
    ]
    images = [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    dataset = load_coco(tmp_path / "a.json", policy={"crowd": "keep"}, with_masks=True)
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    image, entries = truth_entries(dataset[0], ids)
    assert image == {"id": 5, "width": 40, "height": 30}
    assert [entry["iscrowd"] for entry in entries] == [0, 1, 0] and "segmentation" not in entries[2]
    assert [entry["area"] for entry in entries] == [120.0] * 3 and {entry["category_id"] for entry in entries} == {3}
    content = {"images": [image], "annotations": entries, "categories": categories}
    predictions = [{"image_id": 5, "category_id": 3, "bbox": [1, 2, 10, 12], "score": 0.5}]
    assert score(content, predictions) == score(tmp_path / "a.json", predictions)
