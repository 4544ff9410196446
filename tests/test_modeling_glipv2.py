"""The model on small random weights: shapes, round trips, invariances, bad input."""

import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForObjectDetection


@pytest.fixture(scope="module")
def model() -> GLIPv2ForObjectDetection:
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config()).eval()


@torch.no_grad()
def test_output_shapes_follow_the_levels(model):
    output = model(**tiny_inputs())
    anchors = int(output.level_shapes.prod(1).sum())
    assert output.logits.shape == (2, anchors, 9)
    assert output.centerness.shape == (2, anchors)
    assert output.box_deltas.shape == output.pred_boxes.shape == (2, anchors, 4)
    assert output.pred_boxes.min() >= 0
    assert output.pred_boxes.max() <= 1


@torch.no_grad()
def test_save_and_load_through_the_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path).eval()
    inputs = tiny_inputs()
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_one_image_meets_many_prompts(model):
    inputs = tiny_inputs()
    image = {name: inputs[name][:1] for name in ("pixel_values", "pixel_mask")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    repeated = model(**{name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in image.items()}, **words)
    shared = model(image_features=model.get_image_features(**image), **words)
    torch.testing.assert_close(shared.logits, repeated.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shared.pred_boxes, repeated.pred_boxes, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_the_text_changes_nothing(model):
    inputs = tiny_inputs(batch=1)
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        padded[name] = torch.nn.functional.pad(inputs[name], (0, 5))
    short, long = model(**inputs), model(**padded)
    torch.testing.assert_close(long.logits[:, :, :9], short.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(long.pred_boxes, short.pred_boxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_text_features_are_made_anew_at_each_call():
    """Weights, adapters and autocast change between calls, so a model keeps nothing."""
    torch.manual_seed(0)
    model = GLIPv2ForObjectDetection(tiny_config()).eval()
    inputs = tiny_inputs(batch=1)
    first = model.get_text_features(inputs["input_ids"]).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model.get_text_features(inputs["input_ids"]).last_hidden_state, first)
    model.get_input_embeddings().weight.mul_(2)
    assert not torch.equal(model.get_text_features(inputs["input_ids"]).last_hidden_state, first)


def test_integer_pixels_are_refused(model):
    inputs = tiny_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.uint8)
    with pytest.raises(TypeError, match="floating point"):
        model(**inputs)


def test_batches_that_do_not_fit_are_refused(model):
    inputs = tiny_inputs(batch=3)
    inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][:2], inputs["attention_mask"][:2]
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        model(**inputs)


def test_too_long_a_text_is_refused(model):
    with pytest.raises(ValueError, match="65 tokens"):
        model(**tiny_inputs(batch=1, tokens=65))
