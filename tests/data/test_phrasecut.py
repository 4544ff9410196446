import json

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.data.masks import stack_masks
from transformers_glipv2.data.phrasecut import load_phrasecut
from transformers_glipv2.data.schema import check_example

SQUARE = [[[1, 2], [11, 2], [11, 14], [1, 14]]]
GOOD = {
    "task_id": "7__1_2",
    "image_id": 7,
    "phrase": "red cups",
    "instance_boxes": [[1, 2, 10, 12], [20, 5, 10, 20]],
    "Polygons": [SQUARE, [[[20, 5], [30, 5], [30, 15]], [[20, 20], [30, 20], [30, 25]]]],
}


def write(folder, *tasks):
    Image.new("RGB", (40, 30)).save(folder / "7.jpg")
    (folder / "refer_train.json").write_text(json.dumps(tasks))
    (folder / "image_data_split.json").write_text(json.dumps([{"image_id": 7, "width": 40, "height": 30}]))
    return folder, folder


def test_examples(tmp_path):
    example = load_phrasecut(*write(tmp_path, GOOD))[0]
    check_example(example)
    assert example["text"] == "red cups" and example["task_id"] == "7__1_2" and example["kind"] == "grounding"
    assert (
        example["objects"]["tokens_positive"] == [[[0, 8]]] * 2
        and example["objects"]["bbox"] == GOOD["instance_boxes"]
    )
    assert example["objects"]["segmentation"][0] == [[1, 2, 11, 2, 11, 14, 1, 14]]
    masks = stack_masks(example["objects"]["segmentation"], 30, 40)
    assert masks[0].sum() == 120 and masks[0][2:14, 1:11].all()
    assert masks[1][22, 29] and not masks[1][17].any()


@pytest.mark.parametrize(
    ("problem", "task", "boxes"),
    [
        ("unknown_image", {**GOOD, "image_id": 8}, 0),
        ("bad_entry", GOOD, 0),
        ("bad_entry", {**GOOD, "task_id": None}, 0),
        ("bad_entry", {**GOOD, "task_id": "b", "instance_boxes": [[1, 2, 10, 12]]}, 0),
        ("bad_entry", {**GOOD, "task_id": "b", "Polygons": None}, 0),
        ("empty_text", {**GOOD, "task_id": "b", "phrase": " "}, 0),
        ("degenerate", {**GOOD, "task_id": "b", "instance_boxes": [[1, 2, 0, 12], [20, 5, 10, 20]]}, 1),
        ("mostly_outside", {**GOOD, "task_id": "b", "instance_boxes": [[1, 2, 10, 12], [39, 5, 30, 20]]}, 1),
        ("bad_mask", {**GOOD, "task_id": "b", "Polygons": [SQUARE, [[[20, 5], [30, 5]]]]}, 2),
        ("bad_mask", {**GOOD, "task_id": "b", "Polygons": [SQUARE, [[1, 2, 3]]]}, 2),
        ("bad_mask", {**GOOD, "task_id": "b", "Polygons": [SQUARE, []]}, 2),
    ],
)
def test_bad_tasks_are_counted_or_refused(tmp_path, problem, task, boxes):
    files = write(tmp_path, GOOD, task)
    dataset = load_phrasecut(*files)
    assert dataset.report.counts == {problem: 1}
    assert sum(len(example["objects"]["bbox"]) for example in dataset) == 2 + boxes
    with pytest.raises(ValueError, match="policy"):
        load_phrasecut(*files, policy="refuse")


def test_other_files_are_refused(tmp_path):
    write(tmp_path, GOOD)
    with pytest.raises(FileNotFoundError):
        load_phrasecut(tmp_path, tmp_path, "val")
    (tmp_path / "refer_train.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="not a file of PhraseCut"):
        load_phrasecut(tmp_path, tmp_path)


def test_real_annotations(metrics_dir, data_dir):
    root = metrics_dir / "phrasecut"
    names = {entry["image_id"]: entry["file_name"] for entry in json.loads((root / "image_files.json").read_text())}
    with_images = {key: name for key, name in names.items() if name is not None}
    images = data_dir / "coco-mini"
    policy = {"out_of_image": "keep", "wrong_size": "keep"}
    dataset = load_phrasecut(root / "VGPhraseCut_v0", images, "miniv", policy=policy, file_names=with_images)
    tasks = json.loads((root / "VGPhraseCut_v0" / "refer_miniv.json").read_text())
    known = [task for task in tasks if task["image_id"] in with_images]
    assert len(dataset) == len(known) and dataset.report.counts["unknown_image"] == len(tasks) - len(known)
    differences = []
    for task, record in zip(known, dataset.records, strict=True):
        assert record["text"] == task["phrase"] and record["objects"]["bbox"] == task["instance_boxes"]
        masks = stack_masks(record["objects"]["segmentation"], record["height"], record["width"])
        for (x, y, w, h), mask in zip(record["objects"]["bbox"], masks, strict=True):
            if mask.any() and x >= 0 and y >= 0 and x + w <= record["width"] and y + h <= record["height"]:
                rows, columns = np.nonzero(mask)
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                differences.append(np.abs(np.subtract(edges, [x, y, x + w, y + h])).max())
    # Half a pixel for rounding; the tips of a few thin shapes cover no pixel.
    assert len(differences) > 50 and np.quantile(differences, 0.9) <= 2 and max(differences) < 8
    assert dataset[0]["image"].mode == "RGB"
