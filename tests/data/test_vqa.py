import json

import pytest
from PIL import Image

from transformers_glipv2.data.augment import flip_example
from transformers_glipv2.data.schema import check_example
from transformers_glipv2.data.vqa import load_image_questions, load_vqa

QUESTION = {"question_id": 42000, "image_id": 42, "question": "Is the cup left of the dog?"}
OTHER = {**QUESTION, "question_id": 3}
ANSWER = {
    "question_id": 42000,
    "image_id": 42,
    "multiple_choice_answer": "yes",
    "question_type": "is the",
    "answer_type": "yes/no",
    "answers": [{"answer": "yes", "answer_id": place, "answer_confidence": "yes"} for place in range(1, 10)]
    + [{"answer": "no", "answer_id": 10}],
}


def write(folder, questions=(QUESTION,), answers=(ANSWER,), image="val2014/COCO_val2014_000000000042.jpg"):
    (folder / image).parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / image)
    (folder / "questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": list(questions)}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": list(answers)}))
    return folder / "questions.json", folder / "annotations.json", folder


@pytest.mark.parametrize(
    "image", ["val2014/COCO_val2014_000000000042.jpg", "COCO_val2014_000000000042.jpg", "000000000042.jpg"]
)
def test_examples(tmp_path, image):
    dataset = load_vqa(*write(tmp_path, image=image))
    example = dataset[0]
    check_example(example)
    assert example["question"] == QUESTION["question"] and example["answers"] == ["yes"] * 9 + ["no"]
    assert example["question_id"] == 42000 and example["image_id"] == 42 and example["answer"] == "yes"
    assert example["question_type"] == "is the" and example["answer_type"] == "yes/no"
    assert flip_example(example)["question"] == "Is the cup right of the dog?"


def test_questions_without_published_answers(tmp_path):
    questions, _, folder = write(tmp_path, image="q/42.png")
    example = load_vqa(questions, None, folder / "q", file_name=lambda image_id: f"{image_id}.png")[0]
    assert example["answers"] == [] and "answer" not in example


@pytest.mark.parametrize(
    ("problem", "questions", "answers"),
    [
        ("bad_entry", [QUESTION, QUESTION], [ANSWER]),
        ("bad_entry", [QUESTION, {**QUESTION, "question_id": None}], [ANSWER]),
        ("bad_entry", [QUESTION, {**QUESTION, "question_id": 2, "image_id": None}], [ANSWER]),
        ("bad_entry", [QUESTION], [ANSWER, {**ANSWER, "question_id": 3}]),
        (
            "bad_entry",
            [QUESTION, OTHER],
            [ANSWER, {**ANSWER, "question_id": 3, "answers": [1]}],
        ),
        ("bad_entry", [QUESTION, OTHER], [ANSWER, {"question_id": 3, "answers": [{}]}]),
        ("empty_text", [QUESTION, {**OTHER, "question": " "}], [ANSWER]),
        ("empty_text", [QUESTION, OTHER], [ANSWER]),
        ("empty_text", [QUESTION, OTHER], [ANSWER, {"question_id": 3, "answers": []}]),
    ],
)
def test_bad_entries_are_counted_or_refused(tmp_path, problem, questions, answers):
    files = write(tmp_path, questions, answers)
    dataset = load_vqa(*files)
    assert dataset.report.counts == {problem: 1} and len(dataset) == 1
    with pytest.raises(ValueError, match="policy"):
        load_vqa(*files, policy={problem: "refuse"})


def test_other_files_are_refused(tmp_path):
    questions, annotations, folder = write(tmp_path)
    with pytest.raises(ValueError, match="not a VQA question file"):
        load_vqa(annotations, annotations, folder)
    with pytest.raises(ValueError, match="not a VQA annotation file"):
        load_vqa(questions, questions, folder)


def test_real_annotations(metrics_dir):
    root = metrics_dir / "vqa"
    dataset = load_vqa(root / "questions.json", root / "annotations.json", root)
    annotations = json.loads((root / "annotations.json").read_text())["annotations"]
    assert len(dataset) == len(annotations) == 100 and dataset.report.counts == {}
    expected = {entry["question_id"]: [item["answer"] for item in entry["answers"]] for entry in annotations}
    assert {record["question_id"]: record["answers"] for record in dataset.records} == expected
    assert dataset.records[0]["image_path"].endswith("000000262148.jpg")


def write_image_questions(folder, questions, file_name="1.png"):
    Image.new("RGB", (40, 30)).save(folder / "1.png")
    content = {"images": [{"id": 1, "file_name": file_name}], "questions": questions}
    (folder / "questions.json").write_text(json.dumps(content))
    return folder / "questions.json"


def test_images_and_questions_in_one_file(tmp_path):
    asked = {"image_id": 1, "question": "what is on the desk ?", "answers": ["book", "cup"]}
    dataset = load_image_questions(write_image_questions(tmp_path, [asked]), tmp_path)
    example = dataset[0]
    check_example(example)
    assert example["answers"] == ["book", "cup"] * 5 and example["answer"] == "book"
    assert example["question_type"] == "what is" and example["image"].size == (40, 30)


@pytest.mark.parametrize(
    ("problem", "broken"),
    [
        ("bad_entry", {"image_id": 2, "question": "what?", "answers": ["a"]}),
        ("empty_text", {"image_id": 1, "question": " ", "answers": ["a"]}),
        ("empty_text", {"image_id": 1, "question": "what?", "answers": []}),
        ("empty_text", {"image_id": 1, "question": "what?", "answers": [3]}),
        ("bad_entry", "what?"),
    ],
)
def test_broken_questions_are_counted(tmp_path, problem, broken):
    whole = {"image_id": 1, "question": "what?", "answers": ["a"]}
    path = write_image_questions(tmp_path, [broken, whole])
    dataset = load_image_questions(path)
    assert len(dataset) == 1 and dataset.report.counts[problem] == 1
    with pytest.raises(ValueError):
        load_image_questions(path, policy="refuse")
