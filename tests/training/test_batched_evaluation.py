"""Evaluation in batches of images of one size: what one image at a time gives."""

import json
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.tiny_detector import natural_image
from tests.tiny_training import drawn_coco, tiny_processor
from tests.training.test_sharded_evaluation import make_model
from transformers_glipv2.training import AnswerEvaluator, CaptionEvaluator, DetectionEvaluator


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_boxes_and_masks(tmp_path):
    folder = drawn_coco(tmp_path / "coco", val=5)
    content = json.loads((folder / "val.json").read_text())
    for index, image in enumerate(content["images"]):
        height = 64 if index % 2 else 48
        image["height"] = height
        natural_image(height, 96).rotate(9 * index).save(folder / image["file_name"])
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    (folder / "val.json").write_text(json.dumps(content))
    # One that cannot be read, in the middle of a batch.
    (folder / "val" / "2.png").write_bytes(b"")
    found = []
    for batch_size in (1, 3):
        options = {"masks": True, "batch_size": batch_size, "progress": False}
        evaluator = DetectionEvaluator(Accelerator(cpu=True), tiny_processor(), folder, "val", **options)
        scores = evaluator(make_model("masks"))
        found.append((scores, evaluator.content, evaluator.predictions))
    (scores, truth, predictions), (batched_scores, batched_truth, batched) = found
    assert batched_scores == pytest.approx(scores, abs=1e-5)
    assert batched_truth == truth and len(truth["images"]) == 4
    assert len(batched) == len(predictions) > 4
    for one, other in zip(batched, predictions, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def evaluate(task: str, batch_size: int | str, with_images: bool = True) -> Any:
    images = [natural_image(90 if index % 3 else 60, 130).rotate(9 * index) for index in range(5)]
    questions = ["a cat", "a dog", "a cat and a dog", "a cat " * 60, "a"]
    options = {"batch_size": batch_size, "with_images": with_images, "progress": False}
    accelerator, processor = Accelerator(cpu=True), tiny_processor()
    if task == "captions":
        examples = [{"kind": "caption", "image": image, "text": "a cat"} for image in images]
        evaluator = CaptionEvaluator(
            Accelerator(cpu=True), tiny_processor(), examples, "a", max_new_tokens=8, **options
        )
        evaluator(make_model(task))
        return evaluator.captions
    answers = ["yes", "no", "red", "blue"]
    found = []
    for answer in answers:
        examples = [
            {"image": image, "question": text, "answers": [answer], "question_type": str(index)}
            for index, (image, text) in enumerate(zip(images, questions, strict=True))
        ]
        found.append(AnswerEvaluator(accelerator, processor, examples, **options)(make_model(task)))
    return found


@pytest.mark.parametrize("task", ["captions", "answers"])
def test_captions_and_answers(task):
    one_by_one = evaluate(task, 1)
    assert evaluate(task, 3) == one_by_one
    assert evaluate(task, "auto") == one_by_one


def test_images_are_ablated_in_batches_too():
    captions = evaluate("captions", 3, with_images=False)
    # Of one size all alike, whatever is on them.
    assert captions[1] == captions[2] == captions[4]
    assert len(set(evaluate("captions", 3))) > len(set(captions))


@pytest.mark.parametrize("evaluator", [CaptionEvaluator, AnswerEvaluator])
def test_refuses_a_batch_that_is_none(evaluator):
    with pytest.raises(ValueError, match="batch_size"):
        evaluator(Accelerator(cpu=True), tiny_processor(), [], batch_size=0)
