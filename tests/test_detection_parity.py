"""Detections equal the original code's: from its golden head, and from the whole converted model."""

import ast
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.boxes import anchor_grid, clip_boxes, decode_boxes, normalize_boxes
from transformers_glipv2.convert_glip_checkpoint import config_from_state_dict, convert_state_dict
from transformers_glipv2.image_processing_glipv2 import GLIPv2ImageProcessor
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.processing_glipv2 import GLIPv2Processor

LEVELS = ("P3", "P4", "P5", "P6", "P7")
# What the original was run with beside its defaults.
LOW = {"threshold": 0.0, "pre_nms_top_n": 100, "max_detections": 50}
# File of tensors, file that describes it, prefix of its detections -> pictures and settings.
CASES = [
    ("forward", "forward", "det.default", 2, {}),
    ("forward", "forward", "det.low", 2, LOW),
    ("small", "forward", "det.default", 1, {}),
    ("glip_a_forward", "glip_a", "det.default", 1, {}),
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
    name, about, prefix, pictures, settings = case
    labels = facts["forward"]["label_list"]
    outputs = golden_outputs(tensors[name], image_sizes(facts[about], name), attention_mask(tensors, name))
    results = processor.post_process_grounded_object_detection(outputs, text_labels=labels, **settings)
    assert len(results) == pictures
    for index, result in enumerate(results):
        assert_same_detections(result, tensors[name], f"{prefix}.{index}", labels)
