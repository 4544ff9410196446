import json

import pytest
from PIL import Image

from transformers_glipv2.data.masks import encode_mask, stack_masks
from transformers_glipv2.data.mixed_grounding import load_mixed_grounding
from transformers_glipv2.data.schema import check_example

IMAGE = {
    "id": 0,
    "original_img_id": 7,
    "file_name": "COCO_train2014_7.jpg",
    "width": "40",
    "height": "30",
    "caption": "a dog on the sofa",
    "dataset_name": "mixed",
    "tokens_negative": [[0, 17]],
}
GOOD = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 10, 12], "tokens_positive": [[0, 5]], "iscrowd": 0}


def write(folder, annotations=(GOOD,), images=(IMAGE,)):
    for name in ("coco/COCO_train2014_7.jpg", "vg/8.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)
    entries = [{"id": index, **entry} for index, entry in enumerate(annotations)]
    (folder / "mixed.json").write_text(json.dumps({"images": list(images), "annotations": entries}))
    return folder / "mixed.json", [folder / "coco", folder / "vg"]


def test_rows_of_images_in_two_folders(tmp_path):
    images = [IMAGE, {**IMAGE, "id": 1, "file_name": "8.jpg"}, {**IMAGE, "id": 2, "caption": "the dog left"}]
    parts = {**GOOD, "tokens_positive": [[2, 5], [13, 17]], "image_id": 1}
    dataset = load_mixed_grounding(*write(tmp_path, [parts, GOOD], images))
    examples = list(dataset)
    assert [example["image_id"] for example in examples] == [0, 1, 2] and examples[0]["original_image_id"] == 7
    assert examples[1]["objects"]["phrase"] == ["dog sofa"] and examples[1]["objects"]["tokens_positive"] == [
        [[2, 5], [13, 17]]
    ]
    assert (
        examples[0]["width"] == 40 and examples[0]["dataset_name"] == "mixed" and examples[2]["objects"]["bbox"] == []
    )
    for example in examples:
        check_example(example)
    assert len(load_mixed_grounding(*write(tmp_path, [parts, GOOD], images), keep_empty=False)) == 2
    assert list(dataset.stream()) == examples


def test_scores_and_masks(tmp_path):
    polygon = [[1, 2, 11, 2, 11, 14]]
    annotations = [{**GOOD, "score": 0.9, "segmentation": polygon}, {**GOOD, "score": 0.2}, GOOD]
    files = write(tmp_path, annotations)
    assert len(load_mixed_grounding(*files)[0]["objects"]["bbox"]) == 3
    example = load_mixed_grounding(*files, min_score=0.5, with_masks=True)[0]
    assert example["objects"]["segmentation"] == [polygon, None]
    masks = stack_masks(example["objects"]["segmentation"], 30, 40)
    assert 40 < masks[0].sum() < 80 and not masks[1].any()


def mask_of(size):
    return encode_mask(stack_masks([[[1, 2, 11, 2, 11, 14]]], *size)[0])


@pytest.mark.parametrize(
    ("problem", "annotations", "images"),
    [
        ("bad_span", [GOOD, {**GOOD, "tokens_positive": [[10, 18]]}], [IMAGE]),
        ("bad_span", [GOOD, {**GOOD, "tokens_positive": [[5, 5]]}], [IMAGE]),
        ("bad_span", [GOOD, {**GOOD, "tokens_positive": []}], [IMAGE]),
        ("bad_span", [GOOD, {**GOOD, "tokens_positive": [5]}], [IMAGE]),
        ("bad_span", [GOOD, {**GOOD, "tokens_positive": None}], [IMAGE]),
        ("bad_span", [GOOD, {**GOOD, "tokens_positive": [[0.5, 3]]}], [IMAGE]),
        ("not_a_number", [GOOD, {**GOOD, "bbox": None}], [IMAGE]),
        ("not_a_number", [GOOD, {**GOOD, "bbox": [1, 2, 3]}], [IMAGE]),
        ("degenerate", [GOOD, {**GOOD, "bbox": [1, 2, -3, 4]}], [IMAGE]),
        ("mostly_outside", [GOOD, {**GOOD, "bbox": [39, 2, 60, 4]}], [IMAGE]),
        ("crowd", [GOOD, {**GOOD, "iscrowd": 1}], [IMAGE]),
        ("bad_mask", [{**GOOD, "segmentation": [[1, 2, 11, 2, 11]]}], [IMAGE]),
        ("bad_mask", [{**GOOD, "segmentation": "polygon"}], [IMAGE]),
        ("bad_mask", [{**GOOD, "segmentation": mask_of((30, 41))}], [IMAGE]),
        ("unknown_image", [GOOD, {**GOOD, "image_id": 5}], [IMAGE]),
        ("empty_text", [GOOD], [IMAGE, {**IMAGE, "id": 1, "caption": " "}]),
        ("empty_text", [GOOD], [IMAGE, {**IMAGE, "id": 1, "caption": None}]),
        ("bad_entry", [GOOD], [IMAGE, {**IMAGE, "id": 1, "file_name": ""}]),
        ("bad_entry", [GOOD], [IMAGE, {**IMAGE, "id": 1, "width": "wide"}]),
        ("bad_entry", [GOOD], [IMAGE, IMAGE]),
    ],
)
def test_bad_entries_are_counted_or_refused(tmp_path, problem, annotations, images):
    files = write(tmp_path, annotations, images)
    dataset = load_mixed_grounding(*files, with_masks=True)
    assert dataset.report.counts == {problem: 1}
    assert len(dataset) == 1 and dataset[0]["objects"]["bbox"] == [GOOD["bbox"]]
    with pytest.raises(ValueError, match="policy"):
        load_mixed_grounding(*files, with_masks=True, policy={problem: "refuse"})


def test_run_length_masks_are_kept(tmp_path):
    files = write(tmp_path, [{**GOOD, "segmentation": mask_of((30, 40))}])
    example = load_mixed_grounding(*files, with_masks=True)[0]
    assert example["objects"]["segmentation"] == [mask_of((30, 40))]


def test_wrong_arguments(tmp_path):
    path, _ = write(tmp_path)
    with pytest.raises(ValueError, match="image_folder"):
        load_mixed_grounding(path, [])
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks a list of annotations"):
        load_mixed_grounding(path, tmp_path)
