"""Vocabularies of any length over shared features, and phrases, equal separate calls of model and processor."""

import string
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch

from tests.tiny_detector import LABELS, SIZE, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ImageProcessor,
    GLIPv2ImageProcessorPil,
    GLIPv2Processor,
    detect_labels,
    ground_phrases,
)
from transformers_glipv2.inference.detector import Detector, encode_labels
from transformers_glipv2.post_processing import merge_detections
from transformers_glipv2.prompts import split_labels


@pytest.fixture(scope="module")
def model() -> GLIPv2ForObjectDetection:
    return tiny_detector()


@pytest.fixture(scope="module")
def processor() -> GLIPv2Processor:
    return tiny_processor()


@torch.no_grad()
def separate_call(model, processor, image, labels, **options):
    """Processor, model, post-processing, as the README has it."""
    inputs = processor(images=image, text=[labels])
    return processor.post_process_grounded_object_detection(
        model(**inputs), text_labels=[labels], target_sizes=[(image.height, image.width)], **options
    )[0]


def assert_same(found, expected, atol=1e-5):
    assert len(expected["scores"]) > 0
    assert found["text_labels"] == expected["text_labels"]
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], atol=atol, rtol=0)
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=0)


def test_labels_of_one_prompt_equal_a_plain_call(model, processor):
    image = natural_image()
    (found,) = detect_labels(model, processor, image, LABELS)
    assert_same(found, separate_call(model, processor, image, LABELS), atol=0)
    (few,) = detect_labels(model, processor, image, LABELS, threshold=0.4, nms_threshold=0.3, max_detections=5)
    options = {"threshold": 0.4, "nms_threshold": 0.3, "max_detections": 5}
    assert_same(few, separate_call(model, processor, image, LABELS, **options), atol=0)


def test_images_of_many_sizes_and_forms(model, processor, tmp_path):
    images = [natural_image(), natural_image(50, 200), natural_image(33, 20)]
    labels = [LABELS, ["cat"], LABELS[::-1]]
    expected = [separate_call(model, processor, *pair) for pair in zip(images, labels, strict=True)]
    images[2].save(tmp_path / "image.png")
    forms = [images[0], np.array(images[1]), tmp_path / "image.png"]
    for found, one in zip(detect_labels(model, processor, forms, labels), expected, strict=True):
        assert_same(found, one)
    generated = detect_labels(model, processor, (form for form in forms), labels)
    for found, one in zip(generated, expected, strict=True):
        assert_same(found, one)


def test_images_in_batches(model, processor):
    """Of one size, so that no padding takes part."""
    images = [natural_image(), natural_image().transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), natural_image()]
    alone = detect_labels(model, processor, images, LABELS)
    for one, other in zip(alone, detect_labels(model, processor, images, LABELS, batch_size=2), strict=True):
        assert_same(other, one)


def test_size_of_the_resized_image(model, processor):
    size = {"shortest_edge": 32, "longest_edge": 48}
    (found,) = detect_labels(model, processor, natural_image(), LABELS, size=size)
    small = GLIPv2Processor(GLIPv2ImageProcessor(size=size), processor.tokenizer, max_text_length=64)
    assert_same(found, separate_call(model, small, natural_image(), LABELS))


def test_a_vocabulary_of_1203_labels_equals_separate_calls(model, processor):
    words = [f"{first} {second}" for first in string.ascii_lowercase for second in string.ascii_lowercase]
    labels = (words + [f"{word} light" for word in words])[:1203]
    image = natural_image()
    prompts = split_labels(labels, processor.tokenizer, 64)
    assert len(prompts) > 20
    results = [
        separate_call(model, processor, image, [labels[index] for index in prompt.indices], threshold=0.6)
        for prompt in prompts
    ]
    expected = merge_detections(results, [prompt.indices for prompt in prompts])
    calls = []
    hook = model.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        (found,) = detect_labels(model, processor, image, labels, threshold=0.6, progress=False)
        (batched,) = detect_labels(model, processor, image, labels, threshold=0.6, prompts_per_batch=7, progress=False)
    finally:
        hook.remove()
    assert len(calls) == 2  # one for each call, however many prompts
    assert_same(found, expected)
    torch.testing.assert_close(batched["scores"], found["scores"], atol=1e-5, rtol=0)
    assert len(set(found["labels"].tolist())) > 5


def test_order_of_labels_in_prompts_of_their_own_does_not_matter(model, processor):
    order = [2, 0, 3, 1]
    (found,) = detect_labels(model, processor, natural_image(), LABELS, labels_per_prompt=1)
    shuffled = [LABELS[index] for index in order]
    (other,) = detect_labels(model, processor, natural_image(), shuffled, labels_per_prompt=1)
    for index, label in enumerate(LABELS):
        mine, theirs = found["labels"] == index, other["labels"] == order.index(index)
        assert torch.equal(found["scores"][mine], other["scores"][theirs])
        assert torch.equal(found["boxes"][mine], other["boxes"][theirs])
        names = [name for name, kept in zip(other["text_labels"], theirs.tolist(), strict=True) if kept]
        assert set(names) <= {label}


def test_a_label_that_is_listed_twice_is_answered_under_its_first_index(model, processor):
    (found,) = detect_labels(model, processor, natural_image(), ["dog", "cat", "dog", "zebra"])
    (once,) = detect_labels(model, processor, natural_image(), ["dog", "cat", "zebra"])
    assert_same(found, {**once, "labels": torch.tensor([0, 1, 3])[once["labels"]]}, atol=0)
    assert {0, 1} <= set(found["labels"].tolist()) <= {0, 1, 3}


def test_prompts_are_padded_on_the_right(model, processor):
    prompts = encode_labels(LABELS, processor.tokenizer, 64, labels_per_prompt=3)
    with torch.no_grad():
        batch = Detector(model, processor)._prompt_inputs(prompts)
    lengths = [len(prompt.input_ids) for prompt in prompts]
    assert batch["attention_mask"].tolist() == [[1] * lengths[0], [1] * lengths[1] + [0] * (lengths[0] - lengths[1])]
    assert [prompt.indices for prompt in prompts] == [[0, 1, 2], [3]]
    assert prompts[0].label_map.sum(1).tolist() == [1, 2, 2]


def test_text_features_are_kept_from_image_to_image(model, processor):
    calls = []
    hook = model.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        detect_labels(model, processor, [natural_image()] * 3, LABELS, labels_per_prompt=2)
    finally:
        hook.remove()
    assert len(calls) == 2


def test_progress_bar_shows_when_it_is_long(model, processor, capsys):
    detect_labels(model, processor, natural_image(), LABELS)
    assert capsys.readouterr().err == ""
    detect_labels(model, processor, [natural_image()] * 6, LABELS, labels_per_prompt=2)
    assert "12/12" in capsys.readouterr().err
    detect_labels(model, processor, [natural_image()] * 6, LABELS, labels_per_prompt=2, progress=False)
    assert capsys.readouterr().err == ""


def test_image_processors_give_near_equal_detections(model, processor):
    pil = GLIPv2Processor(GLIPv2ImageProcessorPil(size=SIZE), processor.tokenizer, max_text_length=64)
    (found,), (other,) = (detect_labels(model, one, natural_image(), LABELS) for one in (processor, pil))
    torch.testing.assert_close(found["scores"][:10], other["scores"][:10], atol=2e-2, rtol=0)


def test_threads_give_what_one_thread_gives(model, processor):
    images = [natural_image(40 + 10 * index, 90) for index in range(4)]
    labels = [LABELS, ["cat"], ["red wine glass", "dog"], LABELS[:2]]
    expected = [detect_labels(model, processor, *pair)[0] for pair in zip(images, labels, strict=True)]
    sentences = ["a man left of the dog"] * 4
    phrases = ground_phrases(model, processor, images, sentences, [[(0, 5)]] * 4)

    def work(index: int):
        found = detect_labels(model, processor, images[index], labels[index])[0]
        return found, ground_phrases(model, processor, images[index], sentences[:1], [[(0, 5)]])[0]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, list(range(4)) * 4))
    for place, (found, grounded) in enumerate(results):
        assert_same(found, expected[place % 4])
        torch.testing.assert_close(grounded[0]["scores"], phrases[place % 4][0]["scores"])


def test_phrases_equal_a_plain_call(model, processor):
    images = [natural_image(), natural_image(50, 100)]
    sentences = ["the man left of a dog", "a red umbrella"]
    spans = [[(0, 7), (16, 21)], [(0, 14)]]
    found = ground_phrases(model, processor, images, sentences, spans, top_k=3)
    for index, image in enumerate(images):
        with torch.no_grad():
            outputs = model(**processor(images=image, text=sentences[index]))
        (expected,) = processor.post_process_phrase_grounding(
            outputs,
            text=sentences[index],
            phrases=spans[index],
            target_sizes=[(image.height, image.width)],
            top_k=3,
        )
        assert [entry["phrase"] for entry in found[index]] == [entry["phrase"] for entry in expected]
        for one, other in zip(found[index], expected, strict=True):
            assert 0 < len(one["scores"]) <= 3
            torch.testing.assert_close(one["scores"], other["scores"])
            torch.testing.assert_close(one["boxes"], other["boxes"])
    together = ground_phrases(model, processor, images, sentences[0], spans[0])
    assert [[entry["phrase"] for entry in entries] for entries in together] == [["the man", "a dog"]] * 2
    assert ground_phrases(model, processor, images[0], "a dog")[0][0]["phrase"] == "a dog"


def test_no_gradients_are_kept(model, processor):
    (found,) = detect_labels(model, processor, natural_image(), LABELS)
    assert not found["scores"].requires_grad


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "message"),
    [
        (natural_image(), [], {}, ValueError, "text_labels.*empty"),
        (natural_image(), "person", {}, TypeError, "text_labels.*list"),
        (natural_image(), ["person", " "], {}, ValueError, r"text_labels\[1\]"),
        (natural_image(), ["person", 3], {}, TypeError, r"text_labels\[1\]"),
        (natural_image(), [["person"], ["dog"]], {}, ValueError, "`text_labels` has 2 entries for 1 images"),
        ([natural_image()] * 2, [["person"], []], {}, ValueError, r"text_labels\[1\].*empty"),
        (natural_image(), ["z" * 100], {}, ValueError, "100 tokens long"),
        ([], LABELS, {}, ValueError, "images.*empty"),
        (PIL.Image.new("RGB", (0, 4)), LABELS, {}, ValueError, "empty"),
        (3, LABELS, {}, TypeError, "int"),
        ("absent.jpg", LABELS, {}, FileNotFoundError, "absent.jpg"),
        (natural_image(), LABELS, {"batch_size": 0}, ValueError, "batch_size.*at least 1"),
        (natural_image(), LABELS, {"prompts_per_batch": 0}, ValueError, "prompts_per_batch.*at least 1"),
        (natural_image(), LABELS, {"labels_per_prompt": 0}, ValueError, "labels_per_prompt.*at least 1"),
        (natural_image(), LABELS, {"threshold": 1.5}, ValueError, "threshold"),
        (natural_image(), LABELS, {"max_detections": 0}, ValueError, "max_detections"),
    ],
)
def test_bad_calls(model, processor, images, labels, options, error, message):
    with pytest.raises(error, match=message):
        detect_labels(model, processor, images, labels, **options)


def test_more_images_than_lists_of_labels(model, processor):
    images = (natural_image() for _ in range(2))
    with pytest.raises(ValueError, match="`text_labels` has 1 entries for more images"):
        detect_labels(model, processor, images, [["person"]])


def test_bad_sentences(model, processor):
    with pytest.raises(ValueError, match="`sentences` has 2 entries for 1 images"):
        ground_phrases(model, processor, natural_image(), ["a dog", "a cat"])
    with pytest.raises(ValueError, match="`phrases` has 2 entries for 1 images"):
        ground_phrases(model, processor, natural_image(), ["a dog"], [[(0, 5)], [(0, 5)]])
    with pytest.raises(ValueError, match="batch_size"):
        ground_phrases(model, processor, natural_image(), "a dog", batch_size=0)
