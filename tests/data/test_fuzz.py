"""
Random annotation files and masks: never a crash of the process, never a result that is not finite, never an error
that does not name the file. Seeded, so that every run tries the same.
"""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_glipv2.data.captions import load_coco_captions, load_karpathy_captions
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.lvis import load_lvis
from transformers_glipv2.data.masks import decode_mask, encode_mask, mask_problem, segmentation_box, stack_masks
from transformers_glipv2.data.mixed_grounding import load_mixed_grounding
from transformers_glipv2.data.phrasecut import load_phrasecut
from transformers_glipv2.data.pseudo_boxes import load_pseudo_boxes
from transformers_glipv2.data.vqa import load_vqa
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.lvis import evaluate_lvis

HEIGHT, WIDTH = 12, 16
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[2:8, 1:9] = True
fuzz = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

NUMBERS = st.one_of(
    st.integers(-5, 40),
    st.sampled_from([10**12, -(10**12), 2**31, 2**63, 10**400, 1e12, -1e12, 1e308, 0.5, 3.0, 1e-320]),
    st.floats(allow_nan=True, allow_infinity=True),
)
TEXTS = st.one_of(st.sampled_from(["", "a.png", "../a.png", "/etc/passwd", "a\\b.png", "1", "x" * 300]), st.text())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
POLYGONS = st.lists(st.lists(NUMBERS, max_size=10), max_size=3)
RUN_LENGTHS = st.fixed_dictionaries(
    {
        "size": st.one_of(st.just([HEIGHT, WIDTH]), st.lists(NUMBERS, max_size=3)),
        "counts": st.one_of(
            st.lists(st.integers(-3, HEIGHT * WIDTH), max_size=6),
            st.lists(NUMBERS, max_size=5),
            st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12),
            st.binary(max_size=12),
            TEXTS,
        ),
    }
)
SEGMENTATIONS = st.one_of(POLYGONS, RUN_LENGTHS, VALUES)


def nodes(value, path=()):
    """Where a JSON value has parts."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from nodes(part, (*path, key))


@st.composite
def changed(draw, content):
    """A good file in which a few parts are replaced, removed or doubled."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 4))):
        places = list(nodes(content))
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        parent = content
        for key in path:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "segmentation", "remove", "double"]))
        if what == "remove":
            del parent[last]
        elif what == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            # A copy: strategies may give one object many times, and it may be changed further.
            parent[last] = copy.deepcopy(draw(SEGMENTATIONS if what == "segmentation" else VALUES))
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(path / f"{name}.png")
    Image.new("RGB", (HEIGHT, WIDTH)).save(path / "turned.png", exif=exif)
    return path


def write(path: Path, content) -> Path:
    # `default` for bytes, which no JSON file has.
    path.write_text(json.dumps(content, default=repr), encoding="utf-8", errors="replace")
    return path


def check(load, path: Path) -> None:
    """A data set whose examples are as the schema has them, or an error that names the file."""
    try:
        dataset = load(path)
    except (ValueError, FileNotFoundError) as error:
        assert path.name in str(error), f"{type(error).__name__} without the file: {error}"
        return
    for example in dataset:
        width, height = example["image"].size
        objects = example.get("objects") or {"bbox": []}
        for box in objects["bbox"]:
            assert len(box) == 4 and all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0
            assert -1 <= box[0] < width and -1 <= box[1] < height
            assert box[0] + box[2] <= width + 1 and box[1] + box[3] <= height + 1
        assert all(isinstance(name, str) for name in objects.get("category", ()))
        assert all(math.isfinite(area) for area in objects.get("area", ()))
        if "segmentation" in objects:
            masks = stack_masks(objects["segmentation"], height, width)
            assert masks.shape == (len(objects["bbox"]), height, width)
    assert len(dataset.report.summary().splitlines()) == sum(1 for count in dataset.report.counts.values() if count)


IMAGES = [
    {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
    {"id": 2, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
    {"id": 3, "file_name": "turned.png", "width": HEIGHT, "height": WIDTH},
]
BOX = {"image_id": 1, "category_id": 5, "bbox": [1, 2, 8, 6], "area": 48.0, "iscrowd": 0}
COCO = {
    "images": IMAGES,
    "annotations": [
        {**BOX, "id": 1, "segmentation": [[1, 2, 9, 2, 9, 8, 1, 8]]},
        {**BOX, "id": 2, "image_id": 2, "segmentation": encode_mask(MASK)},
        {**BOX, "id": 3, "image_id": 3, "category_id": 6},
    ],
    "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog", "supercategory": "animal"}],
}
LVIS = {
    **COCO,
    "images": [{**image, "neg_category_ids": [6], "not_exhaustive_category_ids": []} for image in IMAGES],
    "categories": [{**category, "frequency": "f"} for category in COCO["categories"]],
}
GROUNDING = {
    "images": [{**image, "caption": "a cat on a mat"} for image in IMAGES],
    "annotations": [{**entry, "tokens_positive": [[0, 5]]} for entry in COCO["annotations"]],
}
CAPTIONS = {"images": IMAGES, "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}
SENTENCES = [{"raw": "a cat"}]
KARPATHY = {"images": [{"cocoid": 1, "filename": "a.png", "filepath": "", "split": "train", "sentences": SENTENCES}]}


@given(content=changed(COCO), boxes_on=st.sampled_from(["auto", "stored", "upright"]), with_masks=st.booleans())
@fuzz
def test_coco_files(folder, content, boxes_on, with_masks):
    path = write(folder / "coco.json", content)
    check(lambda path: load_coco(path, boxes_on=boxes_on, with_masks=with_masks), path)


@given(content=changed(COCO), iou_type=st.sampled_from(["bbox", "segm"]))
@fuzz
def test_coco_files_in_evaluation(folder, content, iou_type):
    path = write(folder / "coco.json", content)
    try:
        scores = evaluate_coco(path, [], iou_type, progress=False)
    except ValueError as error:
        assert "coco.json" in str(error) or "annotation" in str(error), f"an error without the entry: {error}"
        return
    assert all(math.isfinite(value) for name, value in scores.items() if name != "per_category")


@given(content=changed(LVIS), with_masks=st.booleans())
@fuzz
def test_lvis_files(folder, content, with_masks):
    path = write(folder / "lvis.json", content)
    check(lambda path: load_lvis(path, folder, with_masks=with_masks), path)


@given(content=changed(LVIS), iou_type=st.sampled_from(["bbox", "segm"]))
@fuzz
def test_lvis_files_in_evaluation(folder, content, iou_type):
    path = write(folder / "lvis.json", content)
    try:
        evaluate_lvis(path, [], iou_type, progress=False)
    except ValueError as error:
        named = ("lvis.json", "annotation", "image ", "category ")
        assert any(name in str(error) for name in named), f"an error without the entry: {error}"


@given(content=changed(GROUNDING), with_masks=st.booleans())
@fuzz
def test_grounding_files(folder, content, with_masks):
    path = write(folder / "grounding.json", content)
    check(lambda path: load_mixed_grounding(path, folder, with_masks=with_masks), path)


@given(content=changed(CAPTIONS), per_image=st.booleans())
@fuzz
def test_caption_files(folder, content, per_image):
    path = write(folder / "captions.json", content)
    check(lambda path: load_coco_captions(path, per_image=per_image), path)


@given(content=changed(KARPATHY))
@fuzz
def test_karpathy_files(folder, content):
    path = write(folder / "karpathy.json", content)
    check(lambda path: load_karpathy_captions(path, folder), path)


QUESTIONS = {"questions": [{"question_id": 1, "image_id": "a", "question": "is this a cat?"}]}
ANSWERS = {
    "annotations": [
        {"question_id": 1, "image_id": "a", "multiple_choice_answer": "yes", "answers": [{"answer": "yes"}] * 10}
    ]
}


@given(questions=changed(QUESTIONS), answers=changed(ANSWERS))
@fuzz
def test_question_files(folder, questions, answers):
    path = write(folder / "questions.json", questions)
    other = write(folder / "answers.json", answers)

    def load(path):
        try:
            return load_vqa(path, other, folder, file_name=lambda image_id: f"{image_id}.png")
        except ValueError as error:
            raise ValueError(str(error).replace("answers.json", "questions.json")) from error

    check(load, path)


LINE = {"image": "a.png", "caption": "a cat on a mat", "boxes": [[1, 2, 9, 8]], "spans": [[[0, 5]]], "scores": [0.9]}


@given(lines=st.lists(changed(LINE), min_size=1, max_size=3), garbage=st.text(max_size=9))
@fuzz
def test_lines_of_pseudo_boxes(folder, lines, garbage):
    path = folder / "lines.jsonl"
    text = "\n".join([*(json.dumps(line, default=repr) for line in lines), garbage])
    path.write_text(text, encoding="utf-8", errors="replace")
    check(lambda path: load_pseudo_boxes(path, folder), path)


TASK = {
    "task_id": "1__1",
    "image_id": 1,
    "phrase": "a cat",
    "instance_boxes": [[1, 2, 8, 6]],
    "Polygons": [[[[1, 2], [9, 2], [9, 8]]]],
}


@given(
    tasks=changed([TASK, {**copy.deepcopy(TASK), "task_id": "1__2"}]),
    sizes=changed([{"image_id": 1, "width": 16, "height": 12}]),
)
@fuzz
def test_phrasecut_files(folder, tasks, sizes):
    path = write(folder / "refer_train.json", tasks)
    write(folder / "image_data_split.json", sizes)

    def load(path):
        try:
            return load_phrasecut(folder, folder, file_names={1: "a.png"})
        except ValueError as error:
            raise ValueError(str(error).replace("image_data_split.json", path.name)) from error

    check(load, path)


@given(segmentation=SEGMENTATIONS)
@settings(fuzz, max_examples=500)
def test_masks(segmentation):
    problem = mask_problem(segmentation, HEIGHT, WIDTH)
    if problem:
        if segmentation != []:  # which means no mask
            with pytest.raises(ValueError, match="expected polygons, COCO RLE or an array"):
                decode_mask(segmentation, HEIGHT, WIDTH)
        return
    mask = decode_mask(segmentation, HEIGHT, WIDTH)
    if mask is not None:
        assert mask.shape == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask, decode_mask(segmentation, HEIGHT, WIDTH))
        box = segmentation_box(segmentation, HEIGHT, WIDTH)
        assert box is None or all(map(math.isfinite, box))
