"""What holds for every model class: freezing, one pass through each part, checkpointing, replaced layers."""

import functools
import inspect
from collections import Counter

import pytest
import torch
from torch import nn

from tests.every_class import CASES, FREEZABLE, WITH_HEAD, build, gradients_of, loss_of, training_inputs
from transformers_glipv2 import losses, modeling_glipv2
from transformers_glipv2.layers.fusion import GLIPv2BiAttention

ALL = sorted(CASES)
LOSSES = {
    "detection": {"loss_box", "loss_centerness", "loss_intra"},
    "pre-training": {"loss_box", "loss_centerness", "loss_intra", "loss_inter", "loss_mlm"},
    "segmentation": {"loss_box", "loss_centerness", "loss_intra", "loss_mask"},
    "answers": {"loss_box", "loss_centerness", "loss_intra", "loss_answer"},
    "answers-evidence": {"loss_box", "loss_centerness", "loss_intra", "loss_answer"},
    "captions": {"loss_caption"},
    "captions-regions": {"loss_caption"},
    "joint": {"loss_box", "loss_centerness", "loss_intra", "loss_inter", "loss_mlm", "loss_answer", "loss_caption"},
}


def assert_equal_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Reentrant checkpointing gives zeros where nothing is learned, in place of no gradient."""
    for name in one.keys() | other.keys():
        if name in one and name in other:
            difference = (one[name] - other[name]).norm()
            # Layers run in chunks where autograd is off, as in the first pass of a checkpointed layer, and samples may
            # sit at a kink of the bilinear interpolation.
            assert difference <= 1e-3 * one[name].norm() + 1e-6, name
        else:
            assert not (one if name in one else other)[name].any(), name


# Freezing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WITH_HEAD)
def test_what_requires_grad_says_changes_no_loss(case):
    model, inputs = build(case).train(), training_inputs(case)
    torch.manual_seed(0)
    expected = model(**inputs)
    if case in LOSSES:
        assert set(expected.loss_dict) == LOSSES[case]

    def encoders_only():
        model.model.requires_grad_(False)

    def detector_only():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("model.", "detection_head.")))

    for freeze in (encoders_only, detector_only, lambda: model.requires_grad_(False)):
        model.requires_grad_(True)
        freeze()
        torch.manual_seed(0)
        output = model.train()(**inputs)
        assert model.model.training
        torch.testing.assert_close(output.loss, expected.loss)
        if case in LOSSES:
            assert output.loss_dict.keys() == expected.loss_dict.keys()


@pytest.mark.parametrize("case", FREEZABLE)
def test_a_frozen_detector_gives_its_own_losses_and_gradients_no_more(case):
    model, inputs = build(case), training_inputs(case)
    model.freeze_detector()
    model.train()
    # The flag alone counts: parameters that learn all the same, such as adapters, bring no loss back.
    model.model.neck.p6.bias.requires_grad_(True)
    output = model(**inputs)
    assert set(output.loss_dict) == LOSSES[case] - {"loss_box", "loss_centerness", "loss_intra"}
    assert not any(module.training for part in (model.model, model.detection_head) for module in part.modules())
    output.loss.backward()
    learned = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned and not learned & {"model", "detection_head"}


@pytest.mark.parametrize("case", WITH_HEAD)
def test_losses_are_in_dictionaries_and_tuples(case):
    model, inputs = build(case), training_inputs(case)
    torch.manual_seed(0)
    output = model(**inputs)
    torch.manual_seed(0)
    as_tuple = model(**inputs, return_dict=False)
    assert next(iter(output)) == "loss"
    torch.testing.assert_close(as_tuple[0], output.loss)
    if case in LOSSES:
        torch.testing.assert_close(output.loss, sum(output["loss_dict"].values()))


# Once a step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["detection", "pre-training", "segmentation", "answers-evidence"])
def test_a_training_step_makes_anchors_and_counts_positives_once(case, monkeypatch):
    model, inputs, calls = build(case).train(), training_inputs(case), Counter()

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.update([name]) or original(*args, **kwargs))

    for module, name in ((modeling_glipv2, "anchor_grid"), (modeling_glipv2, "match_anchors")):
        counted(module, name)
    counted(losses, "mean_over_processes")
    model.model.backbone.register_forward_hook(lambda *_: calls.update(["backbone"]))
    model.model.text_encoder.register_forward_hook(lambda *_: calls.update(["text_encoder"]))
    model.detection_head.register_forward_hook(lambda *_: calls.update(["detection_head"]))
    model(**inputs)
    # Masked tokens and answers are counted beside the positives.
    counts = {"detection": 1, "pre-training": 2, "segmentation": 1, "answers-evidence": 2}
    assert calls.pop("mean_over_processes") == counts[case]
    assert set(calls.values()) == {1} and len(calls) == 5


# Checkpointing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL)
def test_checkpointing_gives_the_same_gradients_in_both_modes(case):
    model, inputs = build(case).train(), training_inputs(case)
    expected = gradients_of(model, inputs)
    assert {"neck", "text_encoder", "layers"} <= {name.removeprefix("model.").split(".")[0] for name in expected}
    assert all(gradient.isfinite().all() for gradient in expected.values())
    for use_reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        assert_equal_gradients(expected, gradients_of(model, inputs))


BACKBONES = {
    "swin": {},
    "coswin": {
        "backbone_config": {
            "model_type": "glipv2_coswin",
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 3, 4],
            "window_size": 4,
            "out_indices": [2, 3, 4],
        }
    },
    "timm": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "mobilenetv3_small_050",
            "out_indices": [2, 3, 4],
        }
    },
}


@pytest.mark.parametrize("case", ALL)
def test_gradients_can_start_at_the_inputs(case):
    """As adapters under reentrant checkpointing need it: everything is frozen but one layer deep inside."""
    model, inputs = build(case).train(), training_inputs(case)
    model.requires_grad_(False)
    adapted = model.get_submodule("layers.0" if case == "model" else "model.layers.0").text_layer.output
    adapted.weight.requires_grad_(True)
    (expected,) = gradients_of(model, inputs).values()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    (gradient,) = gradients_of(model, inputs).values()
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    model.disable_input_require_grads()
    assert not model._require_grads_hooks


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_reach_an_adapted_backbone(backbone):
    model, inputs = build("detection", **BACKBONES[backbone]).train(), training_inputs("detection")
    for module in model.modules():
        # Batch statistics would be updated twice.
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.requires_grad_(False)
    last = [module for module in model.model.backbone.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    last.weight.requires_grad_(True)
    (expected,) = gradients_of(model, inputs).values()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    (gradient,) = gradients_of(model, inputs).values()
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


# Replaced layers -----------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """As an adapter or a quantised layer: computes the same, has no usable `weight`, and can only be called."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.base = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.base(states)


@pytest.mark.parametrize(("case", "implementation"), [*((case, "sdpa") for case in ALL), ("detection", "eager")])
def test_every_linear_of_the_tower_can_be_replaced(case, implementation):
    model, inputs = build(case), training_inputs(case)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = loss_of(model, inputs) if case != "segmentation" else model(**inputs).logits
    tower = model.layers if case == "model" else model.model.layers
    for parent in list(tower.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Wrapped(child))
    assert any(isinstance(module, Wrapped) for module in tower.modules())
    with torch.no_grad():
        got = loss_of(model, inputs) if case != "segmentation" else model(**inputs).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    loss_of(model, inputs).backward()
    gradient = tower[0].fusion.vision_value.base.weight.grad
    assert gradient is not None and gradient.any()


@torch.no_grad()
def test_a_hook_on_a_projection_is_called_and_takes_part():
    model, inputs = build("detection"), training_inputs("detection")
    inputs.pop("labels")
    before = model(**inputs).logits
    for fusion in (module for module in model.modules() if isinstance(module, GLIPv2BiAttention)):
        fusion.vision_query.register_forward_hook(lambda module, args, output: output + 1)
    assert (model(**inputs).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("case", "targets"), [*((case, "all-linear") for case in ALL), ("detection", ["vision_query"])]
)
def test_lora_starts_as_the_model_and_learns(case, targets):
    peft = pytest.importorskip("peft")
    model, inputs = build(case), training_inputs(case)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = loss_of(model, inputs)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(adapted, inputs), expected, atol=1e-4, rtol=1e-4)
    loss_of(adapted, inputs).backward()
    learned = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert learned and all("lora_" in name for name in learned)
    assert any("vision_query" in name for name in learned)


@torch.no_grad()
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("case", ["detection", "answers-evidence", "captions-regions"])
def test_int8_weights(case, config):
    quantization = pytest.importorskip("torchao.quantization")
    model, inputs = build(case), training_inputs(case)
    name = "answer_logits" if case.startswith("answers") else "logits"
    expected = model(**inputs)[name]
    quantization.quantize_(model, getattr(quantization, config)())
    assert (model(**inputs)[name] - expected).abs().mean() < 0.15 * expected.std()


# Signatures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL)
def test_forward_names_its_arguments(case):
    """So that `Trainer` finds the columns of a data set, and a misspelt argument is an error."""
    model, inputs = build(case), training_inputs(case)
    parameters = inspect.signature(model.forward).parameters
    assert set(inputs) <= set(parameters)
    with pytest.raises(TypeError, match="pixel_masks"):
        model(**inputs, pixel_masks=inputs["pixel_mask"])


# Features and hidden states ------------------------------------------------------------------------------------------

WITH_FEATURES = [case for case in ALL if case != "masked-lm"]


@torch.no_grad()
@pytest.mark.parametrize("case", WITH_FEATURES)
def test_features_are_model_outputs_and_stand_for_their_inputs(case):
    model, inputs = build(case), training_inputs(case)
    images = {name: inputs[name] for name in ("pixel_values", "pixel_mask")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    image_features = model.get_image_features(**images, output_hidden_states=True)
    text_features = model.get_text_features(**words, output_hidden_states=True, output_attentions=True)
    # Three maps of the backbone: strides 8, 16 and 32 of 64 x 96 pixels; the last as a sequence.
    assert [tuple(level.shape[-2:]) for level in image_features.hidden_states] == [(8, 12), (4, 6), (2, 3)]
    assert image_features.last_hidden_state.shape == (2, 6, image_features.hidden_states[-1].shape[1])
    assert image_features.image_sizes.tolist() == [[64, 96], [44, 84]]
    assert text_features.last_hidden_state.shape == (2, 9, 32)
    assert len(text_features.hidden_states) == 3
    assert image_features.pooler_output is text_features.pooler_output is None
    chosen = model.get_text_features(**words, output_hidden_states=[0, -1]).hidden_states
    assert [states is None for states in chosen] == [False, True, False]
    assert isinstance(model.get_text_features(**words, return_dict=False), tuple)
    assert isinstance(model.get_image_features(**images, return_dict=False), tuple)
    if case.startswith("captions"):
        return
    expected = model(**images, **words).fused_text
    mask = inputs["attention_mask"]
    for text in (text_features, text_features.last_hidden_state):
        output = model(image_features=image_features, text_features=text, attention_mask=mask)
        torch.testing.assert_close(output.fused_text, expected)


@torch.no_grad()
def test_attentions_of_the_encoders():
    model, inputs = build("detection"), training_inputs("detection")
    model.set_attn_implementation("eager")
    found = model.get_text_features(inputs["input_ids"], inputs["attention_mask"], output_attentions=True)
    assert [one.shape for one in found.attentions] == [(2, 4, 9, 9)] * 2
    found = model.get_image_features(inputs["pixel_values"], output_attentions=True)
    assert len(found.attentions) == 2


@pytest.mark.parametrize("case", ["model", "detection", "pre-training", "masked-lm", "segmentation", "answers"])
def test_hidden_states_are_chosen_and_attentions_take_part_in_the_graph(case):
    model, inputs = build(case), training_inputs(case)
    output = model(**inputs, output_hidden_states=[0, 2], output_attentions=True)
    assert [states is None for states in output.hidden_states] == [False, True, False]
    assert [maps is None for maps in output.vision_hidden_states] == [False, True, False]
    attentions = [one for pair in output.attentions for one in pair]
    # The maps after the last layer see the text; the tokens before it see the image.
    output.fused_text.square().mean().backward(retain_graph=True, inputs=attentions[:2])
    assert all(one.grad is not None and one.grad.any() for one in attentions[:2])
    one_state = model(**inputs, output_hidden_states=-1)
    assert [states is None for states in one_state.hidden_states] == [True, True, False]
    torch.testing.assert_close(one_state.hidden_states[-1], output.fused_text)


# Half precision ------------------------------------------------------------------------------------------------------


def finite(output) -> bool:
    """Whether every number of an output is finite."""
    tensors = [value for value in output.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return len(tensors) > 0 and all(tensor.isfinite().all() for tensor in tensors)


@torch.no_grad()
@pytest.mark.parametrize("case", ALL)
def test_channels_beyond_float16_do_not_overflow(case):
    """Trained models have such channels in P6 and P7, before fusion normalises them."""
    model, inputs = build(case), training_inputs(case)
    inner = model if case == "model" else model.model
    inner.neck.output_convs[2].weight.mul_(100)
    inner.neck.p6.weight.mul_(3000)
    expected = model(**inputs)
    features = model.get_image_features(inputs["pixel_values"]) if case in WITH_FEATURES else None
    assert features is None or features.feature_maps[3].abs().max() > 65504
    name = "answer_logits" if case.startswith("answers") else "fused_text" if case == "model" else "logits"
    with torch.autocast("cpu", torch.float16):
        autocast = model(**inputs)
    half = model.half()(**{name: value for name, value in inputs.items() if "labels" not in name})
    for output in (autocast, half):
        assert finite(output)
        spread = expected[name].float().std()
        assert (output[name].float() - expected[name].float()).abs().mean() < 0.05 * spread + 0.01


@pytest.mark.parametrize("case", ALL)
def test_a_step_under_bfloat16_autocast(case):
    model, inputs = build(case).train(), training_inputs(case)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    assert finite(output)
    if "loss" in output:
        output["loss"].backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_masks_and_contrast_of_large_channels_in_float16():
    model = build("segmentation")
    inputs = {name: value for name, value in training_inputs("segmentation").items() if name != "labels"}
    model.model.neck.output_convs[2].weight.mul_(100)
    model.model.neck.p6.weight.mul_(3000)
    # Two boxes that are pooled from P6, which 64 x 96 pixels do not need otherwise.
    boxes = [torch.tensor([[0.0, 0.0, 1200.0, 900.0]])] * 2
    words = [torch.eye(9)[2:3]] * 2
    expected = torch.cat(model(**inputs).predict_masks(boxes, words))
    with torch.autocast("cpu", torch.float16):
        autocast = torch.cat(model(**inputs).predict_masks(boxes, words))
    half = torch.cat(model.half()(**inputs).predict_masks(boxes, words))
    for masks in (autocast, half):
        assert masks.isfinite().all()
        assert (masks - expected).abs().mean() < 0.05 * expected.std() + 0.01


def test_the_dtype_of_a_file_is_that_of_its_model(tmp_path):
    model = build("detection").half()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


# Inputs --------------------------------------------------------------------------------------------------------------


def zeros(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(mask)


def stripes(mask: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(mask)
    mask[:, ::2] = 0
    return mask


BAD_INPUTS = {
    "no image in the mask": (lambda i: {"pixel_mask": zeros(i["pixel_mask"])}, r"pixel_mask\[0\]"),
    "stripes": (lambda i: {"pixel_mask": stripes(i["pixel_mask"])}, r"pixel_mask\[0\]"),
    "one channel": (lambda i: {"pixel_values": i["pixel_values"][:, :1]}, "3 channels"),
    "no images": (lambda i: {"pixel_values": i["pixel_values"][:0], "pixel_mask": None}, "at least one image"),
    "ids beyond the vocabulary": (lambda i: {"input_ids": i["input_ids"] + 128}, "not in the vocabulary"),
    "negative ids": (lambda i: {"input_ids": i["input_ids"] - 500}, "not in the vocabulary"),
    "no token in the mask": (lambda i: {"attention_mask": zeros(i["attention_mask"])}, r"attention_mask\[0\]"),
    "too long a text": (
        lambda i: {"input_ids": torch.full((2, 21), 7), "attention_mask": None},
        "21 tokens and `max_text_length` is 20",
    ),
}


@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("case", [case for case in ALL if "-" not in case or case in ("pre-training", "masked-lm")])
def test_inputs_that_no_processor_makes_are_refused(case, bad):
    model, inputs = cached_model(case), training_inputs(case)
    change, message = BAD_INPUTS[bad]
    kept = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
    inputs = {name: inputs[name] for name in kept} | change(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@functools.cache
def cached_model(case: str) -> nn.Module:
    return build(case, max_text_length=20)
