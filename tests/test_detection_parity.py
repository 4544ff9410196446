"""Detections equal the original code's: from its golden head, and from the whole converted model."""

import ast
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.boxes import anchor_grid, clip_boxes, decode_boxes, normalize_boxes
from transformers_glipv2.conversion.convert_glip_checkpoint import config_from_state_dict, convert_state_dict
from transformers_glipv2.image_processing_glipv2 import GLIPv2ImageProcessor
from transformers_glipv2.image_processing_pil_glipv2 import GLIPv2ImageProcessorPil
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.processing_glipv2 import GLIPv2Processor

LEVELS = ("P3", "P4", "P5", "P6", "P7")
# What the original was run with beside its defaults.
DEFAULT = {"threshold": 0.0, "pre_nms_threshold": 0.05}
LOW = {"threshold": 0.0, "pre_nms_threshold": 0.0, "pre_nms_top_n": 100, "max_detections": 50}
# File of tensors, file that describes it, prefix of its detections -> images and settings.
CASES = [
    ("forward", "forward", "det.default", 2, DEFAULT),
    ("forward", "forward", "det.low", 2, LOW),
    ("small", "forward", "det.default", 1, DEFAULT),
    ("glip_a_forward", "glip_a", "det.default", 1, DEFAULT),
    ("glip_a_forward", "glip_a", "det.low", 1, LOW),
]
IDS = [f"{tensors}-{prefix}" for tensors, _, prefix, _, _ in CASES]


@pytest.fixture(scope="module")
def tokenizer(reference_dir) -> BertTokenizerFast:
    return BertTokenizerFast(vocab=str(reference_dir / "text" / "vocab.txt"), model_max_length=512)


@pytest.fixture(scope="module")
def processor(tokenizer) -> GLIPv2Processor:
    return GLIPv2Processor(GLIPv2ImageProcessor(size={"shortest_edge": 256, "longest_edge": 384}), tokenizer)


@pytest.fixture(scope="module")
def tensors(reference_dir):
    names = {name for name, *_ in CASES}
    return {name: load_file(reference_dir / f"{name}.safetensors") for name in names}


@pytest.fixture(scope="module")
def facts(reference_dir):
    return {name: json.loads((reference_dir / f"{name}.json").read_text()) for name in ("forward", "glip_a")}


def image_sizes(facts: dict, name: str) -> torch.Tensor:
    sizes = facts["small"]["image_sizes_hw"] if name == "small" else facts["image_sizes_hw"]
    return torch.tensor(sizes)


def golden_outputs(golden: dict, sizes: torch.Tensor, attention_mask: torch.Tensor) -> GLIPv2ObjectDetectionOutput:
    """The outputs of the model that the original's head stands for."""
    deltas = [golden[f"head.bbox_reg.{level}"] for level in LEVELS]
    shapes = [tuple(delta.shape[-2:]) for delta in deltas]
    deltas = torch.cat([delta.flatten(2).transpose(1, 2) for delta in deltas], dim=1)
    anchors = anchor_grid(shapes, (8, 16, 32, 64, 128), (64, 128, 256, 512, 1024))
    boxes = clip_boxes(decode_boxes(deltas, anchors), sizes[:, :1], sizes[:, 1:])
    return GLIPv2ObjectDetectionOutput(
        logits=torch.cat([golden[f"head.dot_product_logits.{level}"] for level in LEVELS], dim=1),
        centerness=torch.cat([golden[f"head.centerness.{level}"].flatten(1) for level in LEVELS], dim=1),
        box_deltas=deltas,
        pred_boxes=normalize_boxes(boxes, sizes),
        level_shapes=torch.tensor(shapes),
        image_sizes=sizes,
        attention_mask=attention_mask,
    )


def assert_same_detections(result: dict, golden: dict, prefix: str, label_list: list[str]):
    """The same labels in the same order, and numbers as near as float32 on two machines."""
    expected = golden[f"{prefix}.labels"] - 1
    assert result["labels"].tolist() == expected.tolist()
    assert result["text_labels"] == [label_list[label] for label in expected.tolist()]
    torch.testing.assert_close(result["scores"], golden[f"{prefix}.scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(result["boxes"], golden[f"{prefix}.boxes"], atol=5e-3, rtol=0)


def attention_mask(tensors: dict, name: str) -> torch.Tensor:
    mask = tensors["forward" if name == "small" else name]["input.attention_mask"]
    return mask[: len(tensors[name]["head.centerness.P3"])]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_detections_of_the_golden_head(processor, tensors, facts, case):
    name, about, prefix, images, settings = case
    labels = facts["forward"]["label_list"]
    outputs = golden_outputs(tensors[name], image_sizes(facts[about], name), attention_mask(tensors, name))
    results = processor.post_process_grounded_object_detection(outputs, text_labels=labels, **settings)
    assert len(results) == images
    for index, result in enumerate(results):
        assert_same_detections(result, tensors[name], f"{prefix}.{index}", labels)


def test_boxes_in_the_raw_image(processor, tensors, facts):
    golden = tensors["forward"]
    outputs = golden_outputs(golden, image_sizes(facts["forward"], "forward"), attention_mask(tensors, "forward"))
    results = processor.post_process_grounded_object_detection(
        outputs, facts["forward"]["label_list"], target_sizes=facts["forward"]["raw_sizes_hw"], **DEFAULT
    )
    for index, result in enumerate(results):
        expected = golden[f"det.default.{index}.boxes_in_raw_image"]
        torch.testing.assert_close(result["boxes"], expected, atol=1e-3, rtol=0)


# The whole model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(reference_dir, facts):
    """The converted models, by the name of the forward's description."""
    config = facts["forward"]["config"]
    settings = {
        "MODEL": ast.literal_eval(config) if isinstance(config, str) else config,
        "INPUT": facts["forward"]["config_input"],
        "DATALOADER": {"SIZE_DIVISIBILITY": facts["forward"]["size_divisibility"]},
    }
    made = {}
    # GLIP-T (A) differs in what its tensors' names and shapes tell.
    for about, weights, original_config in (("forward", "state", settings), ("glip_a", "glip_a_state", None)):
        original = load_file(reference_dir / f"{weights}.safetensors")
        text_config = facts["forward"]["spec"]["bert"]
        model = GLIPv2ForObjectDetection(config_from_state_dict(original, original_config, text_config))
        own = model.state_dict()
        model.load_state_dict({name: tensor for name, tensor in convert_state_dict(original).items() if name in own})
        made[about] = model.eval()
    return made


@pytest.mark.parametrize("case", CASES, ids=IDS)
@torch.no_grad()
def test_detections_of_the_whole_model(processor, models, tensors, facts, case):
    """Without the original's padding of texts to 256 tokens."""
    name, about, prefix, images, settings = case
    labels = facts["forward"]["label_list"]
    pixel_values = tensors[name]["input.pixel_values"]
    pixel_mask = torch.zeros(images, *pixel_values.shape[-2:], dtype=torch.long)
    for mask, (height, width) in zip(pixel_mask, image_sizes(facts[about], name).tolist(), strict=True):
        mask[:height, :width] = 1
    text = processor(text=[labels] * images)
    assert text["input_ids"].shape[1] == 17
    outputs = models[about](pixel_values=pixel_values, pixel_mask=pixel_mask, **text)
    results = processor.post_process_grounded_object_detection(outputs, text_labels=labels, **settings)
    for index, result in enumerate(results):
        assert_same_detections(result, tensors[name], f"{prefix}.{index}", labels)


@torch.no_grad()
def test_detections_from_the_raw_images(models, tokenizer, tensors, facts):
    """Image and text in, boxes in the image's pixels out; PIL resizes as the original did."""
    golden = tensors["forward"]
    processor = GLIPv2Processor(GLIPv2ImageProcessorPil(size={"shortest_edge": 256, "longest_edge": 384}), tokenizer)
    images = [golden[f"input.raw_rgb.{index}"].numpy() for index in range(2)]
    labels = facts["forward"]["label_list"]
    inputs = processor(images=images, text=[labels])
    torch.testing.assert_close(inputs["pixel_values"], golden["input.pixel_values"], atol=1e-5, rtol=0)
    results = processor.post_process_grounded_object_detection(
        models["forward"](**inputs), labels, target_sizes=[image.shape[:2] for image in images], **DEFAULT
    )
    for index, result in enumerate(results):
        assert result["labels"].tolist() == (golden[f"det.default.{index}.labels"] - 1).tolist()
        expected = golden[f"det.default.{index}.boxes_in_raw_image"]
        torch.testing.assert_close(result["boxes"], expected, atol=5e-3, rtol=0)
