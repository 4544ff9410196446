"""Every metric folder loads offline and gives what its function gives."""

from collections import defaultdict
from pathlib import Path

import datasets
import evaluate
import pytest

import transformers_glipv2.evaluation
from tests.evaluation.helpers import read
from transformers_glipv2.data.masks import decode_mask, encode_mask
from transformers_glipv2.evaluation.flickr30k import flickr30k_annotations

FOLDER = Path(transformers_glipv2.evaluation.__file__).parent / "metrics"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """`evaluate.load` of a folder, without a network and with a cache of the test's own."""
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def load_folder(name, config=None):
        return evaluate.load(str(FOLDER / name), config, cache_dir=str(tmp_path))

    return load_folder


def examples(content, entries, fields, image_fields=()):
    """A example an image."""
    by_image = defaultdict(list)
    for entry in entries:
        by_image[entry["image_id"]].append(entry)
    return [
        {"image_id": image["id"]}
        | {name: image[name] for name in image_fields}
        | {name: [entry[name] for entry in by_image[image["id"]]] for name in fields}
        for image in content["images"]
    ]


def test_all_folders_are_tested():
    folders = {path.parent.name for path in FOLDER.glob("*/*.py")}
    assert folders == {
        "coco_detection",
        "lvis_detection",
        "flickr30k_entities",
        "phrasecut",
        "vqa_v2",
        "coco_captions",
    }


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_detection(load, metrics_dir, iou_type):
    content = read(metrics_dir / "coco" / "gt.json.gz")
    found = read(metrics_dir / "coco" / f"{iou_type}_results.json.gz")
    field = "bbox" if iou_type == "bbox" else "segmentation"
    true_fields, found_fields = ["category_id", "bbox", "area", "iscrowd"], ["category_id", "score", "bbox"]
    if iou_type == "segm":
        true_fields.append(field)
        found_fields.append(field)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for entry in content["annotations"]:
            entry[field] = encode_mask(decode_mask(entry[field], *sizes[entry["image_id"]]))
        for entry in found:
            entry["bbox"] = [0, 0, 1, 1]  # not read
    scores = load("coco_detection", iou_type).compute(
        predictions=examples(content, found, found_fields),
        references=examples(content, content["annotations"], true_fields, ("height", "width")),
        categories=[{"id": entry["id"], "name": entry["name"]} for entry in content["categories"]],
    )
    expected = read(metrics_dir / "coco" / "expected.json")[iou_type]["stats"]
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_lvis_detection(load, metrics_dir):
    content = read(metrics_dir / "lvis" / "gt.json.gz")
    found = read(metrics_dir / "lvis" / "detections.json.gz")
    ids = ("neg_category_ids", "not_exhaustive_category_ids")
    arguments = {
        "predictions": examples(content, found, ["category_id", "score", "bbox"]),
        "references": examples(
            content, content["annotations"], ["category_id", "bbox", "area"], ("height", "width", *ids)
        ),
        "categories": content["categories"],
    }
    expected = read(metrics_dir / "lvis" / "expected.json")
    metric = load("lvis_detection")
    for protocol in ("fixed", "classic"):
        scores = metric.compute(**arguments, protocol=protocol)
        wanted = expected[f"{protocol}_ap"]["results"]
        assert {name: scores[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match="choose fixed or classic"):
        metric.compute(**arguments, protocol="other")


def test_flickr30k_entities(load, metrics_dir):
    folder = metrics_dir / "flickr30k"
    found = [
        {
            "image_id": entry["image_id"],
            "sentence_id": entry["sentence_id"],
            "boxes": [phrase["pred_boxes"] for phrase in entry["phrases"]],
        }
        for entry in read(folder / "predictions.json.gz")
    ]
    true = [
        {
            "image_id": entry["image_id"],
            "sentence_id": entry["sentence_id"],
            "phrases": [{"types": phrase["types"], "boxes": phrase["boxes"]} for phrase in entry["phrases"]],
        }
        for entry in flickr30k_annotations(folder / "flickr30k_entities", progress=False)
        if entry["phrases"]
    ]
    scores = load("flickr30k_entities").compute(predictions=found, references=true)
    expected = read(folder / "expected.json")["any_box"]["recall@1"]
    assert scores["any_box"]["recall@1"] == pytest.approx(expected, abs=1e-9)


def test_phrasecut(load, metrics_dir):
    folder = metrics_dir / "phrasecut"
    sizes = {image["image_id"]: image for image in read(folder / "VGPhraseCut_v0" / "image_data_split.json")}
    true = [
        {
            "task_id": task["task_id"],
            "height": sizes[task["image_id"]]["height"],
            "width": sizes[task["image_id"]]["width"],
            "polygons": task["Polygons"],
        }
        for task in read(folder / "VGPhraseCut_v0" / "refer_miniv.json")
    ]
    found = [
        {"task_id": example["task_id"], "mask": example["mask"]} for example in read(folder / "predictions.json.gz")
    ]
    scores = load("phrasecut").compute(predictions=found, references=true)
    expected = read(folder / "expected.json")["subsets"]["all"]
    assert scores["mean_mask_iou"] == pytest.approx(expected["mean_mask_iou"], abs=1e-6)


def test_vqa_v2(load, metrics_dir):
    folder = metrics_dir / "vqa"
    fields = ("question_id", "question_type", "answer_type")
    true = [
        {name: entry[name] for name in fields} | {"answers": [answer["answer"] for answer in entry["answers"]]}
        for entry in read(folder / "annotations.json")["annotations"]
    ]
    found = sorted(read(folder / "results.json"), key=lambda entry: str(entry["question_id"]))
    scores = load("vqa_v2").compute(predictions=found, references=true)
    assert round(scores["overall"], 2) == 70.2


def test_coco_captions(load, metrics_dir):
    mini = read(metrics_dir / "captions" / "scorer_mini.json")
    scores = load("coco_captions").compute(
        predictions=[{"image_id": int(key), "caption": texts[0]} for key, texts in mini["results"].items()],
        references=[{"image_id": int(key), "captions": texts} for key, texts in mini["refs"].items()],
        metrics=["BLEU", "CIDEr"],
        tokenize=False,
    )
    assert scores["CIDEr"] == pytest.approx(mini["corpus"]["CIDEr"], abs=1e-6)


def test_batches_may_be_added_one_by_one(load):
    metric = load("vqa_v2")
    for question_id, answer in ((1, "yes"), (2, "no")):
        metric.add(
            prediction={"question_id": question_id, "answer": answer},
            reference={
                "question_id": question_id,
                "answers": ["yes"] * 10,
                "question_type": "is",
                "answer_type": "yes/no",
            },
        )
    assert metric.compute()["overall"] == pytest.approx(50)
