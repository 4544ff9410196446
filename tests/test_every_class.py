"""What holds for every model class: freezing, one pass through each part, checkpointing, replaced layers."""

import inspect
from collections import Counter

import pytest
import torch
from torch import nn

from tests.every_class import CASES, FREEZABLE, WITH_HEAD, build, gradients_of, loss_of, training_inputs
from transformers_glipv2 import distributed, losses, modeling_glipv2
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


def test_processes_agree_on_shapes_in_one_reduction(monkeypatch):
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    reduced = []
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor, op: reduced.append(tensor) or tensor.add_(1))
    assert distributed.max_over_processes([3, 5], torch.device("cpu")) == [4, 6]
    assert len(reduced) == 1


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


# Signatures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL)
def test_forward_names_its_arguments(case):
    """So that `Trainer` finds the columns of a data set, and a misspelt argument is an error."""
    model, inputs = build(case), training_inputs(case)
    parameters = inspect.signature(model.forward).parameters
    assert set(inputs) <= set(parameters)
    with pytest.raises(TypeError, match="pixel_masks"):
        model(**inputs, pixel_masks=inputs["pixel_mask"])
