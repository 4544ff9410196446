"""Masks from words: equal to the original's, in batches as alone, trained in two steps, saved and loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.boxes import box_iou_inclusive
from transformers_glipv2.conversion.convert_glip_checkpoint import config_from_state_dict, convert_state_dict
from transformers_glipv2.layers.mask_head import mask_loss
from transformers_glipv2.layers.paste_masks import instance_masks
from transformers_glipv2.modeling_glipv2_segmentation import (
    GLIPv2ForInstanceSegmentation,
    GLIPv2InstanceSegmentationOutput,
)

GOLDEN = {"fcn_fpn": "before_fusion", "hourglass_fused": "after_fusion"}


# The original's numbers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=GOLDEN)
def case(request, reference_dir) -> dict:
    """A converted model with its golden tensors and facts, for each extractor and source of features."""
    name = request.param
    original = load_file(reference_dir / "mask_state.safetensors")
    if name == "hourglass_fused":
        original = {key: value for key, value in original.items() if "roi_heads" not in key}
        original.update(load_file(reference_dir / "mask_state_hourglass_fused_roi_heads_only.safetensors"))
    bert = json.loads((reference_dir / "forward.json").read_text())["spec"]["bert"]
    config = config_from_state_dict(original, text_config=bert)
    config.mask_feature_source = GOLDEN[name]
    model = GLIPv2ForInstanceSegmentation(config).eval()
    model.load_state_dict(convert_state_dict(original))
    golden = load_file(reference_dir / f"mask_{name}.safetensors")
    facts = json.loads((reference_dir / "mask.json").read_text())[name]
    height, width = facts["image_sizes_hw"][0]
    pixel_mask = torch.zeros(golden["input.pixel_values"][:, 0].shape, dtype=torch.long)
    pixel_mask[:, :height, :width] = 1
    tokenizer = BertTokenizerFast(str(reference_dir / "vocab.txt"))

    def run(caption: str, **kwargs) -> GLIPv2InstanceSegmentationOutput:
        words = tokenizer(caption, padding="max_length", max_length=256, return_tensors="pt")
        return model(
            pixel_values=golden["input.pixel_values"],
            pixel_mask=pixel_mask,
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            **kwargs,
        )

    return {"model": model, "golden": golden, "facts": facts, "run": run, "size": (height, width)}


@torch.no_grad()
def test_every_words_logits_equal_the_originals(case):
    model, golden, output = case["model"], case["golden"], case["run"](case["facts"]["caption"])
    source = output.feature_maps if model.config.mask_feature_source == "before_fusion" else output.fused_feature_maps
    for level, feature_map in enumerate(source, start=3):
        torch.testing.assert_close(feature_map, golden[f"mask.input.P{level}"], atol=1e-4, rtol=0)
    words, bias = model.mask_head.project_tokens(output.fused_text)
    pixels = model.mask_head.pixels(golden["mask.pooled"])
    logits = torch.einsum("rchw,tc->rthw", pixels, words[0]) + bias[0][:, None, None]
    torch.testing.assert_close(logits[:, :16], golden["mask.logits_subset"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.mean((2, 3)), golden["mask.logits_mean_hw"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_masks_equal_the_originals(case):
    golden, facts = case["golden"], case["facts"]
    positive_map = torch.zeros(len(golden["det.labels"]), 256)
    for row, label in zip(positive_map, golden["det.labels"].tolist(), strict=True):
        row[facts["positive_map"][str(label)]] = 1
    (logits,) = case["run"](facts["caption"]).predict_masks([golden["det.boxes"]], [positive_map])
    torch.testing.assert_close(logits.sigmoid(), golden["det.mask_prob"][:, 0], atol=1e-4, rtol=0)
    pasted = instance_masks(logits, golden["det.boxes"], case["size"])
    assert torch.equal(pasted, golden["det.mask_pasted"][:, 0].bool())


def test_loss_and_gradients_equal_the_originals(case):
    model, golden, facts = case["model"], case["golden"], case["facts"]["train"]
    model.zero_grad()
    output = case["run"](facts["caption"])
    boxes = golden["train.proposals"][golden["train.proposal_positive"].bool()]
    owners = box_iou_inclusive(boxes, golden["train.gt_boxes"]).argmax(1)
    (logits,) = model.predict_masks(output, [boxes], [golden["train.positive_map"][owners]])
    loss = mask_loss(logits, golden["train.mask_targets"].float())
    assert loss.item() == pytest.approx(facts["losses"]["loss_mask"], rel=1e-5)
    loss.backward()
    names = convert_state_dict({f"module.{name}": torch.empty(1) for name in facts["grad_norms"]})
    norms = dict(zip(names, facts["grad_norms"].values(), strict=True))
    found = {name: model.get_parameter(name).grad.norm().item() for name in norms}
    assert found == pytest.approx(norms, rel=1e-3, abs=1e-5)
    model.zero_grad()


# Small models --------------------------------------------------------------------------------------------------------


def small_model(**overrides) -> GLIPv2ForInstanceSegmentation:
    torch.manual_seed(0)
    return GLIPv2ForInstanceSegmentation(tiny_config(**overrides)).eval()


def small_labels() -> list:
    """Two objects, of which the second's mask is not known, then an image without objects."""
    masks = torch.zeros(2, 50, 70, dtype=torch.bool)
    masks[0, 10:40, 20:30] = True  # the left half of its box, which reaches from 20 to 40
    positive_map = torch.zeros(2, 9)
    positive_map[0, 1:3] = 0.5
    positive_map[1, 4] = 1
    nothing = {"boxes": torch.zeros(0, 4), "positive_map": torch.zeros(0, 9)}
    return [
        {
            "boxes": torch.tensor([[0.42, 0.49, 0.27, 0.58], [0.2, 0.2, 0.1, 0.1]]),
            "positive_map": positive_map,
            "masks": masks,
        },
        nothing,
    ]


def some_regions() -> tuple[list, list]:
    boxes = [torch.tensor([[3.0, 4.0, 40.0, 50.0], [0.0, 0.0, 90.0, 60.0]]), torch.tensor([[10.0, 5.0, 30.0, 40.0]])]
    maps = [torch.zeros(2, 9), torch.zeros(1, 9)]
    maps[0][0, 1:3] = 1
    maps[0][1, 4] = 1
    maps[1][0, 2] = 1
    return boxes, maps


@torch.no_grad()
@pytest.mark.parametrize("source", ["before_fusion", "after_fusion"])
@pytest.mark.parametrize("extractor", ["fcn", "hourglass"])
def test_a_batch_of_two_equals_two_of_one(extractor, source):
    model = small_model(mask_extractor=extractor, mask_feature_source=source)
    inputs = tiny_inputs()
    # Images of one size; texts of two.
    inputs["pixel_mask"][:] = 1
    boxes, maps = some_regions()
    together = model(**inputs).predict_masks(boxes, maps)
    for index in range(2):
        alone = model(**{name: value[index : index + 1] for name, value in inputs.items()})
        (masks,) = alone.predict_masks(boxes[index : index + 1], maps[index : index + 1])
        assert masks.shape == (len(boxes[index]), 28, 28)
        assert masks.std() > 0
        torch.testing.assert_close(together[index], masks, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_detections_are_those_of_the_detection_class(tmp_path, caplog):
    model = small_model()
    model.save_pretrained(tmp_path)
    detector, report = GLIPv2ForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert "mask_head" not in caplog.text
    inputs = tiny_inputs()
    ours, theirs = model(**inputs), detector.eval()(**inputs)
    for name in ("logits", "centerness", "pred_boxes"):
        torch.testing.assert_close(ours[name], theirs[name])


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = small_model(mask_extractor="hourglass")
    model.save_pretrained(tmp_path)
    loaded, report = GLIPv2ForInstanceSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    inputs, regions = tiny_inputs(), some_regions()
    for one, other in zip(
        model(**inputs).predict_masks(*regions), loaded.eval()(**inputs).predict_masks(*regions), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_detectors_checkpoint_gets_a_fresh_mask_head(tmp_path):
    torch.manual_seed(0)
    GLIPv2ForObjectDetection(tiny_config()).save_pretrained(tmp_path)
    model, report = GLIPv2ForInstanceSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("mask_head.") for name in report["missing_keys"])
    assert model.mask_head.log_scale.item() == 0
    assert not model.mask_head.text_bias.any()
    spread = model.mask_head.extractor[0].weight.std().item()
    assert spread == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)
    assert not model.mask_head.upsample.bias.any()


@torch.no_grad()
def test_many_regions_pass_in_chunks(monkeypatch):
    model, inputs = small_model(), tiny_inputs(batch=1)
    output = model(**inputs)
    boxes, maps = torch.rand(7, 4) * 20, torch.ones(7, 9)
    boxes[:, 2:] += boxes[:, :2] + 10
    (whole,) = output.predict_masks([boxes], [maps])
    monkeypatch.setattr("transformers_glipv2.modeling_glipv2_segmentation.REGIONS_PER_CHUNK", 3)
    (parts,) = output.predict_masks([boxes], [maps])
    torch.testing.assert_close(parts, whole)
    (none,) = output.predict_masks([boxes[:0]], [maps[:0]])
    assert none.shape == (0, 28, 28)


def test_the_mask_head_is_trained_alone_or_with_everything():
    model = small_model()
    inputs, labels = tiny_inputs(), small_labels()
    model.freeze_detector()
    model.train()
    assert model.detector_is_frozen
    assert model.mask_head.training
    assert not any(module.training for module in model.model.modules())
    output = model(**inputs, labels=labels)
    assert list(output.loss_dict) == ["loss_mask"]
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("mask_head."), name

    model = small_model().train()
    output = model(**inputs, labels=labels)
    assert list(output)[:2] == ["loss", "loss_dict"]
    assert {"loss_box", "loss_centerness", "loss_intra", "loss_mask"} == set(output.loss_dict)
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    output.loss_dict["loss_mask"].backward()
    assert model.model.neck.output_convs[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("extractor", ["fcn", "hourglass"])
def test_training_learns_a_mask(extractor):
    model = small_model(mask_extractor=extractor)
    inputs, labels = tiny_inputs(batch=1), small_labels()[:1]
    model.freeze_detector()
    model.train()
    optimizer = torch.optim.AdamW(model.mask_head.parameters(), lr=5e-3)
    for _ in range(25):
        output = model(**inputs, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    box = torch.tensor([[27.4, 12.8, 53.4, 49.9]])  # of the image's 96 x 64
    with torch.no_grad():
        logits = model.eval()(**inputs).predict_masks([box], [labels[0]["positive_map"][:1]])[0]
    pasted = instance_masks(logits, box * box.new_tensor([70 / 96, 50 / 64] * 2), (50, 70))[0]
    truth = labels[0]["masks"][0]
    assert (pasted & truth).sum() / (pasted | truth).sum() > 0.8


@pytest.mark.parametrize("extractor", ["fcn", "hourglass"])
def test_a_batch_without_masks_gives_a_loss_that_backpropagates(extractor):
    model = small_model(mask_extractor=extractor)
    model.freeze_detector()
    labels = small_labels()
    labels[0]["masks"][:] = False
    loss = model(**tiny_inputs(), labels=[labels[0], None]).loss
    assert loss == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.mask_head.parameters())


def test_objects_without_a_mask_do_not_count():
    model, inputs, labels = small_model(), tiny_inputs(batch=1), small_labels()[:1]
    model.freeze_detector()
    both = model(**inputs, labels=labels).loss
    first = {name: value if value is None else value[:1] for name, value in labels[0].items()}
    torch.testing.assert_close(model(**inputs, labels=[first]).loss, both)


@torch.no_grad()
@pytest.mark.parametrize("extractor", ["fcn", "hourglass"])
def test_half_precision_gives_nearly_the_same_masks(extractor):
    model, inputs, regions = small_model(mask_extractor=extractor), tiny_inputs(), some_regions()
    output = model(**inputs)
    expected = torch.cat(output.predict_masks(*regions))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = torch.cat(output.predict_masks(*regions))
    half_output = GLIPv2InstanceSegmentationOutput(
        feature_maps=tuple(level.bfloat16() for level in output.feature_maps),
        fused_text=output.fused_text.bfloat16(),
    )
    half = torch.cat(model.to(torch.bfloat16).predict_masks(half_output, *regions))
    for masks in (autocast, half):
        assert masks.dtype == torch.float32
        torch.testing.assert_close(masks, expected, atol=0.05 * float(expected.std()) + 0.01, rtol=0.05)


@torch.no_grad()
def test_masks_without_fusion():
    model = small_model(use_fusion=False, mask_feature_source="after_fusion")
    masks = torch.cat(model(**tiny_inputs()).predict_masks(*some_regions()))
    assert masks.shape == (3, 28, 28)
    assert masks.isfinite().all()


@torch.no_grad()
def test_copies_of_an_output_say_what_to_do():
    model, inputs, regions = small_model(), tiny_inputs(), some_regions()
    output = model(**inputs)
    copy = GLIPv2InstanceSegmentationOutput(**output)
    with pytest.raises(ValueError, match="pass `model=`"):
        copy.predict_masks(*regions)
    for one, other in zip(model.predict_masks(copy, *regions), output.predict_masks(*regions), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_tuples():
    model, inputs = small_model(), tiny_inputs()
    first, *_ = model(**inputs, return_dict=False)
    assert torch.equal(first, model(**inputs).logits)


def test_masks_that_do_not_fit_are_refused():
    labels = small_labels()
    labels[0]["masks"] = labels[0]["masks"][:1]
    with pytest.raises(ValueError, match=r"labels\[0\]\['masks'\]"):
        small_model()(**tiny_inputs(), labels=labels)
