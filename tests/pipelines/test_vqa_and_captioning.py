"""Pipelines for answers and captions, and the functions behind them: same results by every way, boxes on request."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering, pipeline

from tests.tiny import tiny_config
from tests.tiny_training import tiny_processor
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection
from transformers_glipv2.inference.detector import Detector
from transformers_glipv2.inference.language import answer_and_ground, caption_and_ground
from transformers_glipv2.inference.text_results import fitting_part, top_answers
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config
from transformers_glipv2.pipelines import register_pipelines
from transformers_glipv2.pipelines.image_text_to_text import GLIPv2ImageTextToTextPipeline
from transformers_glipv2.pipelines.visual_question_answering import GLIPv2VisualQuestionAnsweringPipeline
from transformers_glipv2.training.heads import load_other_heads

ANSWERS = ["yes", "no", "red", "left"]
# Everything is a candidate, and no score too low.
ALL = {"threshold": 0.0, "pre_nms_threshold": 0.0}
QUESTION = "the red cat left of the dog?"

AutoModelForVisualQuestionAnswering.register(GLIPv2Config, GLIPv2ForVisualQuestionAnswering, exist_ok=True)
AutoModelForImageTextToText.register(GLIPv2Config, GLIPv2ForConditionalGeneration, exist_ok=True)
register_pipelines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One checkpoint with answers and captions over the same shared weights."""
    path = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    config = tiny_config(
        text_config={**tiny_config().text_config.to_dict(), "vocab_size": len(processor.tokenizer)},
        initializer_range=0.3,
        **answer_config(ANSWERS),
    )
    torch.manual_seed(0)
    answers = GLIPv2ForVisualQuestionAnswering(config)
    answers.save_pretrained(path / "answers")
    captions = GLIPv2ForConditionalGeneration(config)
    captions.set_special_tokens(processor.tokenizer)
    captions.model.load_state_dict(answers.model.state_dict())
    captions.detection_head.load_state_dict(answers.detection_head.state_dict())
    heads = load_other_heads(path / "answers", captions)
    captions.save_pretrained(path, state_dict={**captions.state_dict(), **heads})
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images():
    """Of different sizes, so that a padded batch would show."""
    colours = ("red", "blue", "green")
    made = []
    for index, colour in enumerate(colours):
        image = Image.new("RGB", (120, 80 + 20 * index), "white")
        image.paste(Image.new("RGB", (40, 30), colour), (10 + 20 * index, 20))
        made.append(image)
    return made


@pytest.fixture(scope="module")
def ask(folder):
    return pipeline("visual-question-answering", model=str(folder))


@pytest.fixture(scope="module")
def describe(folder):
    return pipeline("image-text-to-text", model=str(folder), max_new_tokens=6)


# Answers -------------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model(ask, images):
    assert isinstance(ask, GLIPv2VisualQuestionAnsweringPipeline)
    assert isinstance(ask.model, GLIPv2ForVisualQuestionAnswering)
    found = ask(images[0], QUESTION, top_k=3)
    with torch.no_grad():
        outputs = ask.model(**ask.processor(images=images[0], text=QUESTION))
    scores, indices = outputs.answer_logits[0].sigmoid().topk(3)
    assert [entry["answer"] for entry in found] == [ANSWERS[index] for index in indices]
    assert [entry["score"] for entry in found] == pytest.approx(scores.tolist(), rel=1e-5)
    assert len(ask(images[0], QUESTION)) == len(ANSWERS)


def test_every_way_to_call_gives_the_same_answers(ask, images, tmp_path):
    alone = [ask(image, QUESTION) for image in images]
    images[0].save(tmp_path / "one.png")
    assert ask(str(tmp_path / "one.png"), QUESTION) == alone[0]
    assert ask({"image": images[0], "question": QUESTION}) == alone[0]
    assert ask(images, QUESTION) == alone
    assert_close(ask(images, [QUESTION] * 3, batch_size=2), alone)
    assert list(ask({"image": image, "question": QUESTION} for image in images)) == alone
    several = ask(images[0], [QUESTION, "a dog"])
    assert several[0] == alone[0]
    assert several[1] != alone[0]


def assert_close(found, expected):
    """Equal answers, and scores as equal as arithmetic on batches is."""
    for one, other in zip(found, expected, strict=True):
        assert [entry["answer"] for entry in one] == [entry["answer"] for entry in other]
        assert [entry["score"] for entry in one] == pytest.approx([entry["score"] for entry in other], abs=1e-5)


def test_boxes_of_the_question_come_from_the_same_forward(ask, images):
    calls = []
    handle = ask.model.register_forward_hook(lambda *_: calls.append(1))
    found = ask(images[1], QUESTION, ground=True, boxes_per_phrase=2, **ALL)
    handle.remove()
    assert len(calls) == 1
    assert found["answers"] == ask(images[1], QUESTION)
    assert [phrase["phrase"] for phrase in found["phrases"]] == ["the red cat", "the dog"]
    for phrase in found["phrases"]:
        start, end = phrase["span"]
        assert QUESTION[start:end] == phrase["phrase"]
        assert len(phrase["boxes"]) == 2
        for entry in phrase["boxes"]:
            assert 0 <= entry["box"]["xmin"] <= entry["box"]["xmax"] <= 120
            assert 0 <= entry["box"]["ymin"] <= entry["box"]["ymax"] <= 100
    (direct,) = answer_and_ground(
        ask.model,
        ask.processor,
        images[1],
        QUESTION,
        boxes_per_phrase=2,
        **ALL,
        progress=False,
    )
    assert direct["answers"] == found["answers"]
    scores = [phrase["scores"].tolist() for phrase in direct["phrases"]]
    assert scores == [[entry["score"] for entry in phrase["boxes"]] for phrase in found["phrases"]]


def test_bad_questions_are_refused(ask, folder, images):
    with pytest.raises(ValueError, match="2 questions for 3 images"):
        ask(images, ["a", "b"])
    with pytest.raises(ValueError, match="question"):
        ask(images[0])
    with pytest.raises(ValueError, match="top_k"):
        top_answers(torch.zeros(1, 2), {0: "a", 1: "b"}, 0)
    with pytest.raises(ValueError, match="1 entries for 3"):
        answer_and_ground(ask.model, ask.processor, images, ["a cat"])
    detector = GLIPv2ForObjectDetection.from_pretrained(folder)
    with pytest.raises(TypeError, match="predicts no answers"):
        GLIPv2VisualQuestionAnsweringPipeline(model=detector, processor=ask.processor)


# Captions ------------------------------------------------------------------------------------------------------------


def test_captions_are_those_of_the_model(describe, images):
    assert isinstance(describe, GLIPv2ImageTextToTextPipeline)
    assert isinstance(describe.model, GLIPv2ForConditionalGeneration)
    for text in ("", "a red"):
        prefix = describe.tokenizer([text], return_tensors="pt", return_token_type_ids=False)
        pixels = describe.processor.image_processor(images[0], return_tensors="pt")
        tokens = describe.model.generate(**prefix, **pixels, max_new_tokens=6)
        (expected,) = describe.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        (found,) = describe(images[0], text=text)
        assert found["input_text"] == text
        assert found["generated_text"].split() == expected.split()
    assert describe(images[0]) == describe(images[0], text="")


def test_several_images_and_beginnings(describe, images):
    same = [image.resize((120, 80)) for image in images]
    texts = ["a red", "the", ""]
    alone = [describe(image, text=text)[0] for image, text in zip(same, texts, strict=True)]
    assert describe(same, text=texts) == alone
    assert [entry["generated_text"] for entry in describe(same)] == [
        describe(image)[0]["generated_text"] for image in same
    ]
    beams = describe(same[0], text="a", generate_kwargs={"num_beams": 4, "num_return_sequences": 2})
    assert len(beams) == 2


def test_grounded_captions_have_boxes_and_spans(describe, images):
    # A noun phrase, whatever words follow it; another noun lengthens it.
    (found,) = describe(images[1], text="the red cat", ground=True, boxes_per_phrase=1, **ALL)
    assert found["generated_text"].replace(" ", "") == found["caption"].replace(" ", "")
    assert found["phrases"][0]["phrase"].startswith("the red cat")
    for phrase in found["phrases"]:
        start, end = phrase["span"]
        assert found["caption"][start:end] == phrase["phrase"]
        (entry,) = phrase["boxes"]
        assert 0 <= entry["box"]["xmin"] <= entry["box"]["xmax"] <= 120
    with pytest.raises(ValueError, match="one an image"):
        describe(images[1], ground=True, generate_kwargs={"num_beams": 2, "num_return_sequences": 2})


def test_caption_and_ground_runs_the_backbone_once_and_finds_what_a_detector_finds(describe, folder, images):
    model, processor = describe.model, describe.processor
    calls = []
    handle = model.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    generate_kwargs = {"max_new_tokens": 6, "num_beams": 2}
    results = caption_and_ground(model, processor, images, "the red cat", generate_kwargs, **ALL, progress=False)
    handle.remove()
    assert len(calls) == len(results) == 3
    detector = GLIPv2ForObjectDetection.from_pretrained(folder)
    for image, result in zip(images, results, strict=True):
        assert result["caption"].startswith("the red cat")
        with torch.no_grad():
            outputs = detector(**processor(images=image, text=result["caption"]))
        (expected,) = processor.post_process_phrase_grounding(
            outputs, text=result["caption"], target_sizes=[(image.height, image.width)], top_k=1
        )
        assert [phrase["span"] for phrase in result["phrases"]] == [phrase["span"] for phrase in expected]
        for own, other in zip(result["phrases"], expected, strict=True):
            torch.testing.assert_close(own["boxes"], other["boxes"], atol=1e-2, rtol=1e-3)


def test_an_empty_caption_has_no_phrases(describe, images):
    tokenizer = describe.tokenizer
    stop = {"max_new_tokens": 2, "prefix_allowed_tokens_fn": lambda row, ids: [tokenizer.sep_token_id]}
    results = caption_and_ground(
        describe.model, describe.processor, images[:2], ["", "a cat"], stop, batch_size=2, progress=False
    )
    assert [result["caption"] for result in results] == ["", "a cat"]
    assert results[0]["phrases"] == []
    assert [phrase["phrase"] for phrase in results[1]["phrases"]] == ["a cat"]


def test_a_caption_that_reads_longer_than_it_was_written_is_grounded_in_part(describe, images):
    model, processor = describe.model, describe.processor
    text = "the red cat " + "q" * 70
    part = fitting_part(text, processor)
    assert text.startswith(part)
    assert len(processor.tokenizer(part)["input_ids"]) == processor.max_tokens
    assert fitting_part("a cat", processor) == "a cat"
    features = model.get_image_features(**processor.image_processor(images[0], return_tensors="pt"))
    limits = {"top_k": 1, "threshold": 0.0, "pre_nms_threshold": 0.0}
    (result,) = Detector(model, processor).ground_captions(features, [text], [(80, 120)], limits)
    assert result["caption"] == text
    start, end = result["phrases"][0]["span"]
    assert text[start:end].startswith("the red cat")


def test_bad_captions_are_refused(describe, images):
    with pytest.raises(ValueError, match="2 texts for 3 images"):
        describe(images, text=["a", "b"])
    with pytest.raises(ValueError, match="no chats"):
        describe(text="a cat")
    with pytest.raises(ValueError, match="2 entries for 3"):
        caption_and_ground(describe.model, describe.processor, images, ["a", "b"])
