"""Evaluation while a model trains is on what `load_coco` accepts: what training tolerates does not end it."""

import json

import pytest
from accelerate import Accelerator
from PIL import Image
from transformers import set_seed

from tests.tiny import tiny_config
from tests.tiny_training import tiny_processor
from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2ForObjectDetection
from transformers_glipv2.training import DetectionEvaluator

BOX = {"image_id": 1, "category_id": 5, "bbox": [4, 5, 20, 30], "segmentation": [[4, 5, 24, 5, 24, 35, 4, 35]]}


def write(folder, annotations, images=4, change=None):
    for index in range(images):
        Image.new("RGB", (64, 48), (50 * index, 80, 90)).save(folder / f"{index}.png")
    entries = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(images)]
    entries = entries if change is None else change(folder, entries)
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 5, "name": "cat"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def evaluate(path, **options):
    evaluator = DetectionEvaluator(Accelerator(cpu=True), tiny_processor(), path, progress=False, **options)
    set_seed(0)
    model_class = GLIPv2ForInstanceSegmentation if options.get("masks") else GLIPv2ForObjectDetection
    return evaluator(model_class(tiny_config()).eval()), evaluator.dataset.report.counts


def truncated(folder, entries):
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])
    return entries


def missing(folder, entries):
    (folder / "2.png").unlink()
    return entries


@pytest.mark.parametrize("change", [truncated, missing])
def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path, change):
    scores, counts = evaluate(write(tmp_path, [BOX, {**BOX, "image_id": 2}], change=change))
    assert counts == {"unreadable_image": 1} and scores["AP"] >= 0
    # As if the file did not list it.
    alone = tmp_path / "alone"
    alone.mkdir()
    expected, _ = evaluate(write(alone, [BOX], change=lambda _, entries: [e for e in entries if e["id"] != 2]))
    assert scores == expected


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    def empty(folder, entries):
        for entry in entries:
            (folder / entry["file_name"]).write_bytes(b"")
        return entries

    with pytest.raises(ValueError, match=r"no image of the evaluation can be read: a\.json: 4 times"):
        evaluate(write(tmp_path, [BOX], change=empty))

    def gone(folder, entries):
        return [{**entry, "file_name": f"none/{entry['id']}.jpg"} for entry in entries]

    with pytest.raises(FileNotFoundError, match="none of the 4 images"):
        evaluate(write(tmp_path, [BOX], change=gone))


def test_harmless_annotations_are_scored(tmp_path):
    odd = [{**BOX, "iscrowd": None, "area": None}, {**BOX, "bbox": None}, {**BOX, "bbox": [4, 5, 900, 30]}]

    def sizes(folder, entries):
        return [{**entries[0], "width": 64.0}, {"id": 1, "file_name": "1.png"}, *entries[2:]]

    scores, counts = evaluate(write(tmp_path, odd, change=sizes))
    assert scores["AP"] >= 0 and counts == {"mostly_outside": 1}


def test_ids_may_be_words(tmp_path):
    def named(folder, entries):
        return [{**entry, "id": f"image {entry['id']}"} for entry in entries]

    scores, counts = evaluate(write(tmp_path, [{**BOX, "image_id": "image 1"}], change=named))
    assert scores["AP"] >= 0 and counts == {}


def test_objects_without_a_mask_are_left_out_of_both_scores(tmp_path):
    without = {**BOX, "image_id": 2}
    del without["segmentation"]
    scores, counts = evaluate(write(tmp_path, [BOX, without]), masks=True)
    assert scores["AP"] >= 0 and scores["box_AP"] >= 0 and counts == {}
    with pytest.raises(ValueError, match=r"no object of .* has a `segmentation`"):
        evaluate(write(tmp_path, [without]), masks=True)
