"""Forward passes and the Detector on a GPU: what the CPU finds, in each precision, compiled, and without waits."""

import copy

import pytest
import torch

from tests.every_class import CASES, build, training_inputs
from tests.tiny import tiny_config
from tests.tiny_detector import LABELS, natural_image, save_tiny_heads, tiny_detector, tiny_processor
from transformers_glipv2 import (
    Detector,
    GLIPv2ForConditionalGeneration,
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForVisualQuestionAnswering,
)
from transformers_glipv2.boxes import suppress
from transformers_glipv2.layers import dyhead
from transformers_glipv2.layers.fusion import GLIPv2BiAttention

INPUTS = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
OUTPUTS = ("fused_text", "logits", "pred_boxes", "centerness", "answer_logits", "caption_logits")
# Of a label's score, on average over all locations and tokens.
HALF_PRECISION = {torch.bfloat16: 0.01, torch.float16: 0.002}


@torch.no_grad()
def forward(model, inputs: dict, device: torch.device) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).to(device)
    output = model(**{name: value.to(device) for name, value in inputs.items()})
    return {name: output[name].float().cpu() for name in OUTPUTS if output.get(name) is not None}


@pytest.mark.parametrize("case", CASES)
def test_float32_agrees_with_the_cpu(case, device):
    model = build(case)
    inputs = {name: value for name, value in training_inputs(case).items() if name in INPUTS}
    found, expected = forward(model, inputs, device), forward(model, inputs, torch.device("cpu"))
    assert found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-3, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
def test_half_precision_is_close(dtype, device):
    model = tiny_detector()
    inputs = {name: value for name, value in training_inputs("detection").items() if name in INPUTS}
    expected = forward(model, inputs, torch.device("cpu"))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    found = forward(model.to(dtype), inputs, device)
    difference = (found["logits"].sigmoid() - expected["logits"].sigmoid()).abs().mean()
    assert difference < HALF_PRECISION[dtype]
    assert (found["pred_boxes"] - expected["pred_boxes"]).abs().mean() < 0.005


# Detector ------------------------------------------------------------------------------------------------------------


def segmenter() -> GLIPv2ForInstanceSegmentation:
    torch.manual_seed(0)
    model = GLIPv2ForInstanceSegmentation(tiny_config()).eval()
    model.load_state_dict(tiny_detector().state_dict(), strict=False)
    torch.nn.init.normal_(model.mask_head.token_projection.weight)
    return model


def images(count: int = 4) -> list:
    return [natural_image(90 if index % 3 else 60, 130).rotate(9 * index) for index in range(count)]


def assert_same(found: dict, expected: dict) -> None:
    assert len(expected["scores"]) > 3
    assert found["text_labels"] == expected["text_labels"]
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=0.5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"batch_size": 4, "num_workers": 2}, {"batch_size": "auto"}], ids=str)
def test_detections_agree_with_the_cpu(options, device):
    on_cpu = Detector(tiny_detector(), tiny_processor(), threshold=0.3)
    on_device = Detector(tiny_detector().to(device), tiny_processor(), threshold=0.3, **options)
    pairs = zip(on_device.detect(images(), LABELS), on_cpu.detect(images(), LABELS), strict=True)
    for found, expected in pairs:
        assert_same(found, expected)


def test_masks_agree_with_the_cpu(device):
    options = {"threshold": 0.3, "max_detections": 10, "return_rle": False}
    (expected,) = Detector(segmenter(), tiny_processor(), **options).segment(natural_image(), LABELS)
    (found,) = Detector(segmenter().to(device), tiny_processor(), **options).segment(natural_image(), LABELS)
    assert_same(found, expected)
    assert (found["masks"] == expected["masks"]).float().mean() > 0.99


def test_compiled_detections_agree(device):
    # A compiler need not be installed for the CPU; on a GPU this is Inductor with CUDA graphs.
    compile = True if device.type == "cuda" else {"backend": "eager"}
    compiled = Detector(segmenter().to(device), tiny_processor(), compile=compile, threshold=0.3, batch_size=4)
    plain = Detector(segmenter().to(device), tiny_processor(), threshold=0.3)
    same_size = [natural_image().rotate(9 * index) for index in range(4)]
    for _ in range(3):  # the first turns of a CUDA graph warm it up and record it
        for found, expected in zip(compiled.detect(same_size, LABELS), plain.detect(same_size, LABELS), strict=True):
            assert_same(found, expected)


def test_captions_and_answers_agree_with_the_cpu(device, tmp_path):
    save_tiny_heads(tmp_path)
    said = []
    for where in ("cpu", device):
        captioner = Detector.from_pretrained(tmp_path / "model", GLIPv2ForConditionalGeneration, device=where)
        (caption,) = captioner.caption(natural_image(), generate_kwargs={"max_new_tokens": 6})
        answerer = Detector.from_pretrained(tmp_path / "model", GLIPv2ForVisualQuestionAnswering, device=where)
        (answer,) = answerer.answer(natural_image(), "is it a dog?")
        said.append((caption["caption"], [one["answer"] for one in answer["answers"]]))
    assert said[0] == said[1]


# Operators -----------------------------------------------------------------------------------------------------------


def test_suppression_agrees_with_the_cpu(device):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5000, 2, generator=generator) * 700
    boxes = torch.cat([corners, corners + 10 + torch.rand(5000, 2, generator=generator) * 90], dim=1)
    scores, groups = torch.rand(5000, generator=generator), torch.randint(0, 80, (5000,), generator=generator)
    expected = suppress(boxes, scores, groups, 0.6)
    assert torch.equal(suppress(*(tensor.to(device) for tensor in (boxes, scores, groups)), 0.6).cpu(), expected)


@pytest.mark.parametrize("offset_mode", ["released", "resized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_both_forms_of_the_deformable_convolution_agree(dtype, offset_mode, device, monkeypatch):
    if device.type == "cpu" and dtype != torch.float32:
        pytest.skip("torchvision's operator for the CPU has no half precision")
    config = tiny_config(dyconv_offset_mode=offset_mode)
    block = dyhead.GLIPv2DyConv(config).to(device, dtype)
    torch.nn.init.normal_(block.offset.weight, std=0.1)
    maps = tuple(torch.randn(2, 32, side, side, device=device, dtype=dtype) for side in (16, 8, 4, 2, 1))
    results = []
    for devices in ({"cpu", "cuda"}, set()):
        monkeypatch.setattr(dyhead, "SAMPLING_DEVICES", devices)
        with torch.no_grad():
            results.append(block(maps))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 if dtype == torch.float32 else 2e-2, rtol=1e-2)


def test_the_forms_of_the_fusion_agree(device):
    fusion = GLIPv2BiAttention(tiny_config()).to(device).eval()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vision, text = torch.randn(2, 60, 32, device=device), torch.randn(2, 9, 32, device=device)
    with torch.no_grad():
        direct = fusion.attend_by_sdpa(vision, text, None, True)
        for form in (fusion.attend_by_chunk, fusion.attend_by_head):
            for one, other in zip(form(vision, text, None, True)[:2], direct, strict=True):
                torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
