"""The processor: images, texts and annotations in; boxes of labels and phrases out."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.boxes import coco_to_inclusive_xyxy, denormalize_boxes
from transformers_glipv2.image_processing_glipv2 import GLIPv2ImageProcessor
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.processing_glipv2 import GLIPv2Processor
from transformers_glipv2.prompts import class_ids

SIZE = {"shortest_edge": 64, "longest_edge": 128}
LABELS = ["dog", "traffic light", "teddy bear"]
# Everything is a candidate, and no score too low.
ALL = {"threshold": 0.0, "pre_nms_threshold": 0.0}


def make_image(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def processor() -> GLIPv2Processor:
    return GLIPv2Processor(GLIPv2ImageProcessor(size=SIZE), tiny_tokenizer())


@pytest.fixture(scope="module")
def model() -> GLIPv2ForObjectDetection:
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config()).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [make_image(60, 40, seed=1), make_image(30, 50, seed=2)]


@pytest.fixture(scope="module")
def outputs(processor, model, images) -> GLIPv2ObjectDetectionOutput:
    with torch.no_grad():
        return model(**processor(images=images, text=[LABELS]))


# Inputs --------------------------------------------------------------------------------------------------------------


def test_a_batch(processor, images):
    inputs = processor(images=images, text=["a dog left of the cat", "person"])
    assert set(inputs) == {"pixel_values", "pixel_mask", "input_ids", "attention_mask"}
    assert inputs["pixel_values"].shape == (2, 3, 128, 96)
    assert inputs["pixel_mask"].sum((1, 2)).tolist() == [64 * 96, 106 * 64]
    assert inputs["attention_mask"].sum(1).tolist() == [8, 3] and inputs["input_ids"].shape == (2, 8)


def test_labels_in_every_form(processor, images):
    one = processor(images=images[0], text=LABELS)
    for text in ([LABELS], [tuple(LABELS)], "dog. traffic light. teddy bear"):
        assert processor(images=images[0], text=text)["input_ids"].tolist() == one["input_ids"].tolist()
    shared = processor(images=images, text=[LABELS])
    assert shared["input_ids"].tolist() == one["input_ids"].tolist() * 2
    own = processor(images=images, text=[LABELS, ["cat"]])
    assert own["input_ids"][0].tolist() == one["input_ids"][0].tolist()
    assert own["attention_mask"].sum(1).tolist() == [9, 3]


def test_one_side_alone(processor, images):
    assert set(processor(text=[LABELS, ["cat"]])) == {"input_ids", "attention_mask"}
    assert set(processor(images=images)) == {"pixel_values", "pixel_mask"}
    with pytest.raises(ValueError, match="Pass `images`, `text`, or both"):
        processor()


def test_options_reach_their_part(processor, images):
    inputs = processor(
        images=images, text="dog", size={"shortest_edge": 32, "longest_edge": 64}, padding="max_length", max_length=9
    )
    assert inputs["pixel_values"].shape[-2:] == (64, 64)
    assert processor(text=["dog", "a dog"], padding_side="left")["attention_mask"].tolist() == [[0, 1, 1, 1], [1] * 4]
    assert processor(text="dog cat zebra", truncation=True, max_length=4)["input_ids"].shape == (1, 4)
    assert processor(text="dog cat zebra", text_kwargs={"truncation": True, "max_length": 4})["input_ids"].shape == (
        1,
        4,
    )
    assert isinstance(processor(images=images, text="dog", return_tensors="np")["input_ids"], np.ndarray)


def test_padding_and_lengths(processor, recwarn):
    for kwargs in (
        {"padding": "max_length", "max_length": 20},
        {"text_kwargs": {"padding": "max_length", "max_length": 20}},
    ):
        inputs = processor(text=["dog", "a cat"], **kwargs)
        assert inputs["input_ids"].shape == (2, 20) and inputs["attention_mask"].sum(1).tolist() == [3, 4]
    assert processor(text="dog", padding="max_length")["input_ids"].shape == (1, processor.max_tokens)
    assert processor(text="dog cat zebra", padding="max_length", max_length=4, truncation=True)["input_ids"].shape == (
        1,
        4,
    )
    with pytest.raises(ValueError, match="has 5 tokens, at most 4 fit"):
        processor(text="dog cat zebra", max_length=4)
    for wrong in (0, -3, 2):
        with pytest.raises(ValueError, match=f"`max_length` must be an integer of at least 3, got {wrong}"):
            processor(text="dog", max_length=wrong)
    own_length = tiny_tokenizer()
    own_length.init_kwargs["max_length"] = 30
    plain = GLIPv2Processor(processor.image_processor, own_length)
    assert plain(text=["dog", "a cat"])["input_ids"].shape == (2, 4)
    assert not [str(one.message) for one in recwarn if "max_length" in str(one.message)]


def test_names_of_inputs(processor, images):
    assert list(processor(images=images, text="dog")) == ["input_ids", "attention_mask", "pixel_values", "pixel_mask"]
    assert set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values", "pixel_mask"}


def test_labels_that_the_tokenizer_does_not_know(processor, images, caplog):
    """The model would give all of them the same scores."""
    with pytest.raises(ValueError, match="knows no part of 2 labels: '\u732b', '\U0001f697 \u72d7'"):
        processor(images=images, text=[["dog", "\u732b"], ["\U0001f697 \u72d7", "cat"]])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            processor(images=images, text=[["dog", "cat \u732b"]])
    assert caplog.text.count("knows only a part of 1 labels: 'cat \u732b'") == 1
    processor(images=images, text="\u732b")  # a sentence may have such words


def test_long_texts(processor):
    words = " ".join(["dog"] * 70)
    with pytest.raises(ValueError, match=r"image 1 has 72 tokens, at most 64 fit: 'dog dog.*`truncation=True`"):
        processor(text=["cat", words])
    with pytest.raises(ValueError, match=r"has 81 tokens, at most 64 fit.*40 labels over several prompts"):
        processor(text=[["dog"] * 40])
    short = GLIPv2Processor(processor.image_processor, processor.tokenizer, max_text_length=8)
    with pytest.raises(ValueError, match="has 9 tokens, at most 8 fit"):
        short(text=[LABELS])


@pytest.mark.parametrize(
    ("count", "text", "message"),
    [
        (3, ["a dog", "a cat"], "`text` has 2 sentences for 3 images"),
        (2, ["a dog", "a cat", "a zebra"], "`text` has 3 sentences for 2 images"),
        (3, [["dog"], ["cat"]], "`text` has 2 lists of labels for 3 images"),
        (1, [], "`text` is empty"),
        (1, "", "`text` is ''"),
        (1, ["dog", ""], r"`text\[1\]` is ''"),
    ],
)
def test_texts_that_do_not_fit(processor, count, text, message):
    with pytest.raises(ValueError, match=message):
        processor(images=[make_image()] * count, text=text)


# Annotations ---------------------------------------------------------------------------------------------------------


def test_boxes_are_those_of_the_original(processor, images):
    """Resized by it, inclusive corners are multiplied by the ratio of the sizes; normalised by us, they come back."""
    boxes = torch.tensor([[3.0, 5, 20, 10], [0, 0, 60, 40], [50, 30, 0.5, 0.5]])
    for size in (SIZE, {"shortest_edge": 100, "longest_edge": 131}):
        inputs = processor(
            images=images[0], text=["dog"], annotations={"boxes": boxes, "spans": [[(0, 3)]] * 3}, size=size
        )
        mask = inputs["pixel_mask"][0]
        resized = torch.tensor([int(mask[:, 0].sum()), int(mask[0].sum())])
        found = denormalize_boxes(inputs["labels"][0]["boxes"], resized)
        ratio = (resized / torch.tensor([40, 60])).flip(0).repeat(2)
        torch.testing.assert_close(found, coco_to_inclusive_xyxy(boxes) * ratio, atol=1e-4, rtol=0)


def test_boxes_are_clipped_to_the_image(processor, images):
    annotation = {"boxes": [[-10, -10, 30, 30], [50, 30, 100, 100]], "spans": [[], []]}
    (labels,) = processor(images=images[0], text="dog", annotations=annotation)["labels"]
    found = denormalize_boxes(labels["boxes"], torch.tensor([40, 60]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0, 19, 19], [50, 30, 59, 39]]), atol=1e-4, rtol=0)
    assert labels["positive_map"].abs().sum() == 0


def test_what_the_boxes_show(processor, images):
    annotations = [
        {
            "boxes": torch.tensor([[1.0, 2, 10, 11], [0, 0, 5, 5]]),
            "spans": [[(0, 5)], [(0, 5), (18, 21)]],
            "class_names": None,
            "masks": np.ones((2, 40, 60), dtype=np.uint8),
        },
        None,
    ]
    first, second = processor(images=images, text=["a dog left of the cat", "person"], annotations=annotations)[
        "labels"
    ]
    assert second is None
    expected = torch.zeros(2, 8)
    expected[0, 1:3], expected[1, [1, 2, 6]] = 1 / 2, 1 / 3
    torch.testing.assert_close(first["positive_map"], expected, atol=1e-6, rtol=0)
    assert "class_ids" not in first
    assert first["masks"].dtype == torch.bool and first["masks"].shape == (2, 40, 60)


def test_labels_by_index(processor, images):
    (labels,) = processor(
        images=images[0], text=LABELS, annotations=[{"boxes": [[1, 2, 3, 4]] * 2, "labels": [2, 0]}]
    )["labels"]
    assert labels["class_ids"].equal(class_ids(["Teddy bear", "dog"])) and len(set(labels["class_ids"].tolist())) == 2
    assert (labels["positive_map"] > 0).nonzero().tolist() == [[0, 6], [0, 7], [1, 1]]
    assert "masks" not in labels


def test_no_boxes(processor, images):
    (labels,) = processor(images=images[0], text=LABELS, annotations=[{"boxes": [], "spans": []}])["labels"]
    assert labels["boxes"].shape == (0, 4) and labels["positive_map"].shape == (0, 9)


def test_a_long_sentence_that_teaches_is_cut(processor, images, caplog):
    text = "dog " * 70 + "cat"
    annotation = {"boxes": [[1, 2, 3, 4]] * 2, "spans": [[(0, 3)], [(280, 283)]]}
    with caplog.at_level(logging.WARNING):
        inputs = processor(images=images[0], text=text, annotations=[annotation])
    assert inputs["input_ids"].shape == (1, 64)
    assert inputs["labels"][0]["positive_map"].gt(0).sum(1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="40 labels over several prompts"):
        processor(images=images[0], text=[["dog"] * 40], annotations=[{"boxes": [], "labels": []}])


@pytest.mark.parametrize(
    ("annotation", "error", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]]}, ValueError, r"`annotations\[0\]` has no \"boxes\" \(its keys are \['bbox'\]\)"),
        ({"boxes": [[1, 2, 3]], "spans": [[]]}, ValueError, r"must have shape \(n, 4\), got \(1, 3\)"),
        ({"boxes": [[1, 2, 3, 4]]}, ValueError, 'does not say what its boxes show: pass "spans"'),
        ({"boxes": [[1, 2, 3, 4]], "spans": []}, ValueError, "has 1 boxes but 0 spans"),
        ({"boxes": [[1, 2, 3, 4]], "spans": [[(0, 99)]]}, ValueError, r"\['spans'\]\[0\]\[0\]` is \[0, 99\]"),
        ({"boxes": [[1, 2, -3, 4]], "spans": [[]]}, ValueError, r"is \[1.0, 2.0, -3.0, 4.0\]"),
        ({"boxes": [[1, 2, 3, 4]], "labels": [3]}, ValueError, "holds 3; expected an index of the image's 3 labels"),
        ({"boxes": [[1, 2, 3, 4]], "labels": [0, 1]}, ValueError, "has 1 boxes but 2 spans"),
        ({"boxes": [[1, 2, 3, 4]], "spans": [[]], "class_names": []}, ValueError, "but 0 class_names"),
        (
            {"boxes": [[1, 2, 3, 4]], "spans": [[]], "masks": np.ones((1, 60, 40))},
            ValueError,
            r"expected \(n, 40, 60\)",
        ),
        (5, TypeError, r"`annotations\[0\]` must be a dict or None, got int"),
    ],
)
def test_bad_annotations(processor, annotation, error, message):
    with pytest.raises(error, match=message):
        processor(images=make_image(), text=[LABELS], annotations=[annotation])


def test_annotations_of_another_batch(processor, images):
    annotation = {"boxes": [], "spans": []}
    with pytest.raises(ValueError, match="`annotations` has 1 entries for 2 images"):
        processor(images=images, text="dog", annotations=[annotation])
    with pytest.raises(ValueError, match="pass `images` and `text` with them"):
        processor(text="dog", annotations=[annotation])
    with pytest.raises(ValueError, match="need `return_tensors=\"pt\"`, got 'np'"):
        processor(images=images[0], text="dog", annotations=[annotation], return_tensors="np")


# Saving --------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(processor, images, tmp_path):
    short = GLIPv2Processor(processor.image_processor, processor.tokenizer, max_text_length=40)
    short.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "processor_config.json" in names and "preprocessor_config.json" not in names
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert settings["max_text_length"] == 40 and settings["image_processor"]["size"] == SIZE
    expected = processor(images=images, text=[LABELS])
    for loaded in (GLIPv2Processor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, GLIPv2Processor) and loaded.max_tokens == 40
        inputs = loaded(images=images, text=[LABELS])
        for name, tensor in expected.items():
            torch.testing.assert_close(inputs[name], tensor, atol=0, rtol=0)


def test_bad_parts(processor):
    with pytest.raises(TypeError, match=r"must be a fast one .*, got SimpleTokenizer"):
        GLIPv2Processor(processor.image_processor, type("SimpleTokenizer", (), {})())
    with pytest.raises(ValueError, match="`max_text_length` must be an integer of at least 3, got 2"):
        GLIPv2Processor(processor.image_processor, processor.tokenizer, max_text_length=2)


# Boxes of labels -----------------------------------------------------------------------------------------------------


def test_detections(processor, outputs, images):
    sizes = [(image.height, image.width) for image in images]
    results = processor.post_process_grounded_object_detection(
        outputs, text_labels=[LABELS, LABELS], target_sizes=sizes, max_detections=20, **ALL
    )
    for result, (height, width) in zip(results, sizes, strict=True):
        assert set(result) == {"scores", "labels", "text_labels", "boxes"}
        count = len(result["scores"])
        assert count >= 20 and result["boxes"].shape == (count, 4)
        assert result["scores"].tolist() == sorted(result["scores"].tolist(), reverse=True)
        assert result["text_labels"] == [LABELS[label] for label in result["labels"].tolist()]
        limit = torch.tensor([width, height, width, height])
        assert (result["boxes"] >= 0).all() and (result["boxes"] < limit).all()
    as_tensor = processor.post_process_grounded_object_detection(
        outputs, text_labels=LABELS, target_sizes=torch.tensor(sizes), max_detections=20, **ALL
    )
    torch.testing.assert_close(as_tensor[1]["boxes"], results[1]["boxes"], atol=0, rtol=0)


@torch.no_grad()
def test_own_labels_of_each_image(processor, model, images):
    """A shorter prompt in a batch is padded; its labels are found all the same."""
    model.config.mask_padded_pixels = True
    labels = [LABELS, ["cat"]]
    try:
        together = model(**processor(images=[images[0]] * 2, text=labels))
        alone = model(**processor(images=images[0], text=[["cat"]]))
        left = model(**processor(images=[images[0]] * 2, text=labels, padding_side="left"))
    finally:
        model.config.mask_padded_pixels = False
    settings = {**ALL, "max_detections": 10}
    (_, batched) = processor.post_process_grounded_object_detection(together, text_labels=labels, **settings)
    (single,) = processor.post_process_grounded_object_detection(alone, text_labels=["cat"], **settings)
    torch.testing.assert_close(batched["scores"], single["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(batched["boxes"], single["boxes"], atol=1e-3, rtol=0)
    (_, padded_left) = processor.post_process_grounded_object_detection(left, text_labels=labels, **settings)
    assert set(padded_left["text_labels"]) == {"cat"}


def test_a_label_that_is_listed_twice_is_answered_under_its_first_index(processor, model, images):
    labels = ["cat", "dog", "dog"]
    with torch.no_grad():
        outputs = model(**processor(images=images[0], text=labels))
    (result,) = processor.post_process_grounded_object_detection(outputs, text_labels=labels, **ALL)
    assert set(result["labels"].tolist()) == {0, 1}
    assert result["text_labels"] == [labels[label] for label in result["labels"].tolist()]


@pytest.mark.parametrize(
    ("target_sizes", "error", "message"),
    [
        ([(40, 60)], ValueError, "`target_sizes` has 1 entries for 2 images"),
        ([(40, 60), (50, -30)], ValueError, r"`target_sizes\[1\]` is \[50, -30\]; height and width .* above 0"),
        ([(40, 60), (0, 30)], ValueError, r"`target_sizes\[1\]` is \[0, 30\]"),
        ([(40, 60), (float("nan"), 30)], ValueError, r"`target_sizes\[1\]`"),
        (
            [(60, 40), (50, 30)],
            ValueError,
            r"is \[60, 40\], but the resized image is 64 high and 96 wide; pass \(height",
        ),
        ([(40, 60), (50, 30, 3)], ValueError, r"`target_sizes\[1\]` is \(50, 30, 3\); pass a pair"),
        ([40, 60], ValueError, r"`target_sizes\[0\]` is 40; pass a pair"),
        (5, TypeError, "`target_sizes` must be a list of .* got int"),
    ],
)
def test_bad_target_sizes(processor, outputs, target_sizes, error, message):
    with pytest.raises(error, match=message):
        processor.post_process_grounded_object_detection(outputs, text_labels=LABELS, target_sizes=target_sizes)
    with pytest.raises(error, match=message):
        processor.post_process_phrase_grounding(outputs, "dog. traffic light. teddy bear", target_sizes=target_sizes)


@pytest.mark.parametrize(
    ("text_labels", "error", "message"),
    [
        ([], ValueError, "`text_labels` has 0 entries for 2 images"),
        ([[], []], ValueError, r"`text_labels\[0\]` is empty"),
        (["dog", "", "cat"], ValueError, r"`text_labels\[0\]\[1\]` is ''"),
        ([LABELS] * 3, ValueError, "`text_labels` has 3 entries for 2 images"),
        (["dog"], ValueError, "image 0 has 3 tokens, but the model was given 9; pass the same labels"),
        ([*LABELS[1:], LABELS[0]], ValueError, "The text of image 0 is not the one that the model was given"),
        ("dog", TypeError, "`text_labels` must be a list with an entry for each image, got str"),
        ([LABELS, 5], TypeError, r"`text_labels\[1\]` must be a list of strings, got int"),
    ],
)
def test_bad_text_labels(processor, outputs, text_labels, error, message):
    with pytest.raises(error, match=message):
        processor.post_process_grounded_object_detection(outputs, text_labels=text_labels)


@torch.no_grad()
def test_a_full_stop_at_the_end_makes_no_difference(processor, model, images):
    """`"dog. cat."` as the sentence, and then the labels; any other sentence is refused."""
    outputs = model(**processor(images=images[0], text="dog. cat."))
    every = {"threshold": 0.0, "pre_nms_threshold": 0.0}
    (found,) = processor.post_process_grounded_object_detection(outputs, text_labels=["dog", "cat"], **every)
    assert set(found["text_labels"]) == {"dog", "cat"}
    (phrases,) = processor.post_process_phrase_grounding(outputs, "dog. cat", phrases=[(0, 3), (5, 8)], top_k=1000)
    for index, phrase in enumerate(phrases):
        best = found["scores"][found["labels"] == index].max()
        torch.testing.assert_close(phrase["scores"].max(), best)
    for other in (["cat", "dog"], ["dog", "cat", "man"], ["dog"], ["dog", "zebra"]):
        with pytest.raises(ValueError, match="pass the same labels"):
            processor.post_process_grounded_object_detection(outputs, text_labels=other)


def test_bad_limits(processor, outputs):
    for name, value in (
        ("threshold", 1.5),
        ("threshold", float("nan")),
        ("nms_threshold", -0.1),
        ("pre_nms_threshold", 2),
        ("max_detections", 0),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
            processor.post_process_grounded_object_detection(outputs, text_labels=LABELS, **{name: value})
    for name, value in (("threshold", None), ("nms_threshold", "0.5"), ("max_detections", 1.5), ("threshold", True)):
        with pytest.raises(TypeError, match=f"`{name}` must be .*, got {type(value).__name__}"):
            processor.post_process_grounded_object_detection(outputs, text_labels=LABELS, **{name: value})
    with pytest.raises(TypeError, match="`top_k` must be a whole number"):
        processor.post_process_phrase_grounding(outputs, "dog. traffic light. teddy bear", top_k=1.5)
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        processor.post_process_phrase_grounding(outputs, "dog. traffic light. teddy bear", top_k=0)


def test_outputs_of_another_model(processor):
    with pytest.raises(TypeError, match=r"`outputs` \(dict\) has no logits, centerness"):
        processor.post_process_grounded_object_detection({}, text_labels=LABELS)


# Boxes of phrases ----------------------------------------------------------------------------------------------------

SENTENCE = "a dog left of the red dog"


@pytest.fixture(scope="module")
def grounded(processor, model, images) -> GLIPv2ObjectDetectionOutput:
    with torch.no_grad():
        return model(**processor(images=images, text=SENTENCE))


def test_phrases_of_a_sentence(processor, grounded, images):
    sizes = [(image.height, image.width) for image in images]
    results = processor.post_process_phrase_grounding(grounded, SENTENCE, target_sizes=sizes, top_k=5)
    assert len(results) == 2
    for found in results:
        assert [(phrase["phrase"], phrase["span"]) for phrase in found] == [
            ("a dog", (0, 5)),
            ("the red dog", (14, 25)),
        ]
        for phrase in found:
            assert len(phrase["scores"]) >= 5 and phrase["boxes"].shape == (len(phrase["scores"]), 4)
            assert phrase["scores"].tolist() == sorted(phrase["scores"].tolist(), reverse=True)


def test_repeated_words_have_scores_of_their_own(processor, grounded):
    first, last, both = processor.post_process_phrase_grounding(
        grounded, SENTENCE, phrases=[(2, 5), (22, 25), (0, 25)], top_k=3
    )[0]
    assert first["phrase"] == last["phrase"] == "dog" and both["phrase"] == SENTENCE
    assert not torch.equal(first["scores"], last["scores"])


def test_phrases_equal_labels(processor, outputs):
    """The same words asked for as labels and as phrases of the sentence have the same boxes."""
    text = ". ".join(LABELS)
    spans = [(0, 3), (5, 18), (20, 30)]
    phrases = processor.post_process_phrase_grounding(outputs, text, phrases=spans, top_k=1000, threshold=0.0)
    results = processor.post_process_grounded_object_detection(
        outputs, text_labels=LABELS, max_detections=10000, **ALL
    )
    for found, result in zip(phrases, results, strict=True):
        for index, phrase in enumerate(found):
            own = result["labels"] == index
            torch.testing.assert_close(phrase["scores"], result["scores"][own], atol=1e-6, rtol=0)
            torch.testing.assert_close(phrase["boxes"], result["boxes"][own], atol=1e-6, rtol=0)


def test_own_sentence_of_each_image(processor, model, images):
    sentences = ["a dog left of the cat", "red wine"]
    with torch.no_grad():
        outputs = model(**processor(images=images, text=sentences))
    found = processor.post_process_phrase_grounding(outputs, sentences, phrases=[[(2, 5), (18, 21)], []])
    assert [[phrase["phrase"] for phrase in own] for own in found] == [["dog", "cat"], []]
    by_rules = processor.post_process_phrase_grounding(outputs, sentences, threshold=1.0)
    assert [[phrase["phrase"] for phrase in own] for own in by_rules] == [["a dog", "the cat"], ["red wine"]]
    assert all(phrase["boxes"].shape == (0, 4) for own in by_rules for phrase in own)


@pytest.mark.parametrize(
    ("text", "phrases", "error", "message"),
    [
        (SENTENCE, [(0, 99)], ValueError, r"`phrases\[0\]\[0\]` is \[0, 99\]; expected .*<= 25"),
        (SENTENCE, [(5, 6)], ValueError, r"has the span \[5, 6\], ' ', in which the tokenizer finds no word"),
        (SENTENCE, ["dog"], TypeError, r"`phrases\[0\]\[0\]` must be a pair of characters .* got 'dog'"),
        (SENTENCE, "dog", TypeError, r"`phrases\[0\]` must be a list of character spans, got str"),
        ([SENTENCE] * 2, [[(0, 5)]] * 3, ValueError, "`phrases` has 3 entries for 2 images"),
        ([SENTENCE] * 3, None, ValueError, "`text` has 3 entries for 2 images"),
        ("a dog", None, ValueError, "image 0 has 4 tokens, but the model was given 9"),
        ("", None, ValueError, r"`text\[0\]` is ''"),
        (5, None, TypeError, "`text` must be a list with an entry for each image, got int"),
    ],
)
def test_bad_phrases(processor, grounded, text, phrases, error, message):
    with pytest.raises(error, match=message):
        processor.post_process_phrase_grounding(grounded, text, phrases)
