"""Losses, assignments and gradients of a training step equal the original code's."""

import ast
import json

import pytest
import torch
from safetensors.torch import load_file

from transformers_glipv2.boxes import assign_atss, centerness_targets, normalize_boxes
from transformers_glipv2.conversion.convert_glip_checkpoint import config_from_state_dict
from transformers_glipv2.conversion.glip_original_names import translate
from transformers_glipv2.layers.feature_maps import flatten_levels
from transformers_glipv2.losses import inter_image_loss
from transformers_glipv2.modeling_glipv2_pretraining import GLIPv2ForPreTraining

LEVELS = ("P3", "P4", "P5", "P6", "P7")


@pytest.fixture(scope="module")
def golden(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "train.safetensors")


@pytest.fixture(scope="module")
def expected(reference_dir) -> dict:
    return json.loads((reference_dir / "train.json").read_text())


@pytest.fixture(scope="module")
def original(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "state.safetensors")


@pytest.fixture(scope="module")
def model(reference_dir, original) -> GLIPv2ForPreTraining:
    spec = json.loads((reference_dir / "forward.json").read_text())
    original_config = {
        "MODEL": ast.literal_eval(spec["config"]) if isinstance(spec["config"], str) else spec["config"],
        "INPUT": spec["config_input"],
        "DATALOADER": {"SIZE_DIVISIBILITY": spec["size_divisibility"]},
    }
    config = config_from_state_dict(original, original_config, spec["spec"]["bert"])
    model = GLIPv2ForPreTraining(config)
    model.load_state_dict(translate(original).state, strict=True)
    return model


@pytest.fixture(scope="module")
def labels(golden, expected) -> list[dict]:
    return [
        {
            "boxes": normalize_boxes(golden[f"input.boxes.{index}"], torch.tensor(target["image_size_wh"][::-1])),
            "positive_map": golden[f"input.positive_map_normalized.{index}"],
        }
        for index, target in enumerate(expected["targets"])
    ]


@pytest.fixture(scope="module")
def pixel_mask(golden, expected) -> torch.Tensor:
    mask = torch.zeros_like(golden["input.pixel_values"][:, 0], dtype=torch.long)
    for row, target in zip(mask, expected["targets"], strict=True):
        width, height = target["image_size_wh"]
        row[:height, :width] = 1
    return mask


@pytest.fixture(scope="module")
def step(model, golden, expected, labels, pixel_mask) -> dict[str, torch.Tensor]:
    """One forward and backward pass: losses with L_inter in the released form; gradients stay in the model."""
    output = model.eval()(
        pixel_values=golden["input.pixel_values"],
        pixel_mask=pixel_mask,
        input_ids=golden["input.input_ids"],
        attention_mask=golden["input.attention_mask"],
        labels=labels,
        mlm_labels=golden["input.mlm_labels"],
    )
    losses = {**output.loss_dict, "loss_inter": released_inter_image_loss(model, output, golden)}
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def released_inter_image_loss(model, output, golden) -> torch.Tensor:
    """
    The released form of L_inter: words after fusion, and regions of all boxes but each image's first.
    """
    count = max(len(golden[f"shallow.positive_indices.{index}"]) for index in (0, 1))
    maps = flatten_levels(output.feature_maps)
    regions, own_words, region_mask, classes = [], [], [], []
    for index in (0, 1):
        anchors = golden[f"shallow.positive_indices.{index}"]
        box = golden[f"assign.matched_gt_index.{index}"][anchors]
        missing = count - len(anchors)
        pad = torch.nn.functional.pad
        regions.append(pad(maps[index][anchors], (0, 0, 0, missing)))
        own_words.append(pad(golden[f"input.positive_map_normalized.{index}"][box] > 0, (0, 0, 0, missing)))
        region_mask.append(pad(torch.ones(len(anchors), dtype=torch.bool), (0, missing)))
        classes.append(pad(golden[f"input.original_od_label.{index}"][box], (0, missing)))
    word_classes = torch.stack([golden[f"shallow.od_label_of_tokens.{index}"] for index in (0, 1)])
    text = torch.nn.functional.normalize(output.fused_text, dim=-1)
    regions, words, log_temperature = model.contrastive_head(torch.stack(regions), text)
    return inter_image_loss(
        regions,
        words,
        torch.stack(own_words),
        torch.stack(region_mask),
        golden["input.attention_mask"].bool(),
        torch.stack(classes),
        word_classes.long().clamp(min=0),
        log_temperature,
        torch.tensor(69.0),
    )


def test_assignment_is_identical(golden):
    levels = [golden[f"train.anchors.{level}"] for level in LEVELS]
    anchors = torch.cat(levels)
    targets = []
    for index in (0, 1):
        boxes = golden[f"input.boxes.{index}"]
        image = torch.zeros(len(boxes), dtype=torch.long)
        matched = assign_atss(anchors, [len(level) for level in levels], boxes, image, 1)[0][0]
        torch.testing.assert_close(matched, golden[f"assign.matched_gt_index.{index}"], rtol=0, atol=0)
        positive = matched >= 0
        targets.append(centerness_targets(boxes[matched[positive]], anchors[positive]))
    torch.testing.assert_close(torch.cat(targets), golden["assign.centerness_targets"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("loss_box", "loss_reg"),
        ("loss_centerness", "loss_centerness"),
        ("loss_intra", "loss_dot_product_token"),
        ("loss_mlm", "mlm_loss"),
        ("loss_inter", "loss_shallow_contrastive"),
    ],
)
def test_loss(step, expected, ours, theirs):
    assert float(step[ours]) == pytest.approx(expected["zero_pads"]["losses"][theirs], rel=1e-5)


def test_gradients(model, step, golden):
    prefix = "grad.zero_pads."
    gradients = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    parameters = dict(model.named_parameters())
    compared = 0
    for name, expected in translate(gradients).state.items():
        actual = parameters[name].grad
        if name == "detection_head.level_scales":
            actual = actual[[0, 3]]
        # Sums over thousands of locations: relative to the largest entry.
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(
            actual / scale, expected / scale, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
        compared += 1
    assert compared > 15


def test_gradient_norms(model, step, expected, original):
    norms = expected["zero_pads"]["grad_norms"]
    parameters = dict(model.named_parameters())
    # A name alone does not tell that the model has a fusion.
    fusion = {name: value for name, value in original.items() if name.endswith("dyhead_tower.0.b_attn.gamma_v")}
    always = set(translate(fusion).state)
    compared = 0
    for name, expected_norm in norms.items():
        if expected_norm is None or ".scales." in name:
            continue
        ours = set(translate({**fusion, name: original[name]}).state)
        ours = ours if name in fusion else ours - always
        gradients = [parameters[key].grad for key in ours if "swin.layernorm" not in key]
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        # Keys' biases have no effect, so theirs are noise.
        assert norm == pytest.approx(expected_norm, rel=1e-3, abs=1e-4), name
        compared += 1
    assert compared > 200
