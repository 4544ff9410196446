"""LVIS scores against the lvis package and GLIP's fixed AP, and the matching against a plain loop."""

import numpy as np
import pytest

from tests.evaluation.helpers import read
from transformers_glipv2.data.masks import encode_mask
from transformers_glipv2.evaluation.average_precision import IOU_THRESHOLDS, match_detections
from transformers_glipv2.evaluation.lvis import evaluate_lvis, evaluate_lvis_fixed, top_of_each

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def official(metrics_dir):
    folder = metrics_dir / "lvis"
    return [read(folder / name) for name in ("gt.json.gz", "detections.json.gz", "expected.json")]


@pytest.mark.parametrize(
    ("name", "evaluate", "arguments"),
    [
        ("classic_ap", evaluate_lvis, {}),
        ("fixed_ap", evaluate_lvis_fixed, {}),
        ("fixed_ap_top30", evaluate_lvis_fixed, {"per_category": 30}),
    ],
)
def test_equals_the_official_evaluators(official, name, evaluate, arguments):
    annotations, detections, expected = official
    results = evaluate(annotations, detections, progress=False, **arguments)
    per_category = {
        str(category_id): entry["AP"]
        for category_id, entry in results.pop("per_category").items()
        if entry["AP"] is not None
    }
    assert results == pytest.approx(expected[name]["results"], abs=TOLERANCE)
    assert per_category == pytest.approx(expected[name]["per_category_AP"], abs=TOLERANCE)


def match_one_by_one(ious, ignored, threshold):
    """The official loop, for one area and threshold."""
    order = np.argsort(ignored, kind="stable")
    taken, matches, on_ignored = set(), [], []
    for row in ious:
        best, limit = None, min(threshold, 1 - 1e-10)
        for truth in order:
            if truth in taken:
                continue
            if best is not None and not ignored[best] and ignored[truth]:
                break
            if row[truth] >= limit:
                best, limit = truth, row[truth]
        if best is not None:
            taken.add(best)
        matches.append(best is not None)
        on_ignored.append(best is not None and bool(ignored[best]))
    return matches, on_ignored


@pytest.mark.parametrize("seed", range(20))
def test_matching_equals_a_plain_loop(seed):
    generator = np.random.default_rng(seed)
    detections, truths = generator.integers(0, 9), generator.integers(1, 6)
    # Few values, so that many overlaps are equal, to each other and to thresholds.
    ious = generator.choice([0.0, 0.3, 0.5, 0.6, 0.75, 1.0], size=(detections, truths))
    ignored = generator.random((4, truths)) < 0.4
    matched, matched_ignored = match_detections(ious, ignored)
    for area in range(4):
        for index, threshold in enumerate(IOU_THRESHOLDS):
            expected = match_one_by_one(ious, ignored[area], threshold)
            assert (matched[area, index].tolist(), matched_ignored[area, index].tolist()) == expected


def test_top_of_each_keeps_the_earlier_of_equal_scores():
    groups = np.array([5, 2, 5, 5, 2, 5])
    scores = np.array([0.1, 0.3, 0.7, 0.7, 0.9, 0.7])
    assert top_of_each(groups, scores, 2).tolist() == [1, 2, 3, 4]
    assert top_of_each(groups, scores, 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert top_of_each(np.array([], dtype=int), np.array([]), 2).tolist() == []


def drawn_file(seed):
    """Annotations with the fields `ignore` and `iscrowd` and areas of zero, and detections on and beside them."""
    generator = np.random.default_rng(seed)
    images, annotations, detections = [], [], []
    for image in range(1, 9):
        lists = generator.permutation(5)[:2].tolist()
        fields = {"neg_category_ids": [lists[0] + 1], "not_exhaustive_category_ids": [lists[1] + 1]}
        images.append({"id": image, "height": 300, "width": 400, **fields})
        for _ in range(generator.integers(1, 9)):
            category = int(generator.integers(1, 6))
            w, h = (round(float(side), 2) for side in generator.choice([8, 30, 60, 140], size=2) * generator.random(2))
            x, y = round(float(generator.random() * 200), 2), round(float(generator.random() * 150), 2)
            area = 0.0 if generator.random() < 0.1 else w * h
            flags = {"ignore": int(generator.random() < 0.3), "iscrowd": int(generator.random() < 0.2)}
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "area": area}
            annotations.append({**entry, "bbox": [x, y, w, h], **(flags if generator.random() < 0.8 else {})})
            for _ in range(generator.integers(0, 3)):
                dx, dy = (round(float(shift), 2) for shift in generator.choice([0, 0.05, 0.3], size=2) * (w, h))
                score = round(float(generator.random()), 3)
                box = [x + dx, y + dy, w, h]
                kind = category if generator.random() < 0.8 else int(generator.integers(1, 6))
                detections.append({"image_id": image, "category_id": kind, "bbox": box, "score": score})
    categories = [{"id": i + 1, "name": f"class {i}", "frequency": "rccff"[i]} for i in range(5)]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


# What the lvis package (0.5.3) says of `drawn_file`: AP, AP50, AP75, APs, APm, APl, APr, APc, APf and AR.
OFFICIAL = {
    0: "0.20029137 0.29997171 0.23016973 0.31137624 0.09594059 -1.0 0.13538425 0.34318482 0.08985149 0.29416667",
    1: "0.37584158 0.52079208 0.44092409 0.30066007 0.85 -1.0 0.85049505 0.16485149 0.34950495 0.422",
    3: "0.20178218 0.38217822 0.23861386 0.18950495 0.19108911 0.1 0.0 0.14405941 0.36039604 0.212",
    7: "0.3358958 0.46867044 0.40654173 0.32519331 0.63333333 0.9 0.5679868 0.35426096 0.20148515 0.48255556",
}


@pytest.mark.parametrize("seed", OFFICIAL)
def test_ignored_annotations_crowds_and_zero_areas(seed):
    annotations, detections = drawn_file(seed)
    results = evaluate_lvis(annotations, detections, progress=False)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR")
    assert [results[name] for name in names] == pytest.approx([*map(float, OFFICIAL[seed].split())], abs=TOLERANCE)
    without = {**annotations, "annotations": [{**a, "ignore": 0} for a in annotations["annotations"]]}
    assert evaluate_lvis(without, detections, progress=False)["AP"] != pytest.approx(results["AP"], abs=1e-3)


def test_an_ignored_annotation_need_not_be_found():
    annotations = lvis_file()
    annotations["annotations"].append(
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [40, 5, 10, 10], "area": 100, "ignore": 1}
    )
    on_ignored, hit = detection(1, [40, 5, 10, 10], 0.9), detection(1, [5, 5, 20, 20], 0.5)
    for detections in ([hit], [on_ignored, hit]):
        assert evaluate_lvis(annotations, detections, progress=False)["AP"] == pytest.approx(1)
        assert evaluate_lvis_fixed(annotations, detections, progress=False)["AP"] == pytest.approx(1)


def lvis_file(negative=(), not_exhaustive=()):
    return {
        "images": [
            {
                "id": 1,
                "height": 50,
                "width": 60,
                "neg_category_ids": list(negative),
                "not_exhaustive_category_ids": list(not_exhaustive),
            }
        ],
        "categories": [
            {"id": 1, "name": "axe", "frequency": "r"},
            {"id": 2, "name": "bee", "frequency": "c"},
            {"id": 3, "name": "cat", "frequency": "f"},
        ],
        "annotations": [
            {"id": 4, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400},
        ],
    }


def detection(category, box, score):
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


def test_federated_rules():
    hit, miss = detection(1, [5, 5, 20, 20], 0.5), detection(1, [40, 5, 10, 10], 0.9)
    elsewhere = detection(2, [5, 5, 20, 20], 0.9)
    assert evaluate_lvis(lvis_file(), [miss, hit], progress=False)["APr"] == pytest.approx(0.5)
    assert evaluate_lvis(lvis_file(not_exhaustive=[1]), [miss, hit], progress=False)["APr"] == pytest.approx(1)
    results = evaluate_lvis(lvis_file(negative=[2]), [hit, elsewhere], progress=False)
    assert results["APr"] == pytest.approx(1) and results["APc"] == -1 and results["per_category"][3]["AP"] is None


def test_limits_apply_before_detections_of_unlisted_categories_go():
    unlisted = [detection(3, [0, 0, 9, 9], 0.9), detection(3, [0, 0, 8, 8], 0.8)]
    hit = detection(1, [5, 5, 20, 20], 0.5)
    assert evaluate_lvis(lvis_file(), [*unlisted, hit], per_image=2, progress=False)["AP"] == 0
    assert evaluate_lvis_fixed(lvis_file(), [*unlisted, hit], per_category=1, progress=False)["AP"] == pytest.approx(1)


def test_nothing_predicted_and_nothing_annotated():
    assert evaluate_lvis(lvis_file(), [], progress=False)["AP"] == 0
    empty = {**lvis_file(), "annotations": []}
    assert evaluate_lvis_fixed(empty, [detection(1, [0, 0, 9, 9], 0.5)], progress=False)["AP"] == -1


def test_objects_without_area_do_not_count():
    annotations = lvis_file()
    annotations["annotations"].append({"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 0], "area": 0})
    detections = [detection(1, [40, 5, 0, 10], 0.9), detection(1, [5, 5, 20, 20], 0.5)]
    assert evaluate_lvis(annotations, detections, progress=False)["AP"] == pytest.approx(1)


def test_masks():
    annotations = lvis_file()
    annotations["annotations"][0]["segmentation"] = [[5, 5, 25, 5, 25, 25, 5, 25]]
    mask = np.zeros((50, 60), dtype=bool)
    mask[5:25, 5:25] = True
    prediction = {"image_id": 1, "category_id": 1, "segmentation": encode_mask(mask), "score": 0.5}
    assert evaluate_lvis(annotations, [prediction], "segm", progress=False)["AP"] == pytest.approx(1)
    shifted = {**prediction, "segmentation": encode_mask(np.roll(mask, 15, axis=1))}
    assert evaluate_lvis(annotations, [shifted], "segm", progress=False)["AP"] == 0
    wrong_size = {**prediction, "segmentation": encode_mask(mask.T)}
    with pytest.raises(ValueError, match="resize masks"):
        evaluate_lvis(annotations, [wrong_size], "segm", progress=False)


def test_refuses_unknown_images_and_files_that_are_not_lvis():
    with pytest.raises(ValueError, match="image ids"):
        evaluate_lvis(lvis_file(), [{**detection(1, [0, 0, 9, 9], 0.5), "image_id": 2}], progress=False)
    annotations = lvis_file()
    del annotations["images"][0]["neg_category_ids"]
    with pytest.raises(ValueError, match="lacks a list of neg_category_ids; is this an LVIS file"):
        evaluate_lvis(annotations, [], progress=False)
    with pytest.raises(ValueError, match="`per_category` is 0"):
        evaluate_lvis_fixed(lvis_file(), [], per_category=0, progress=False)
