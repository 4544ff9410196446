"""Every model class with a small model of it and inputs that it can be trained on, for tests that hold for all."""

from typing import Any

import torch

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import (
    GLIPv2ForConditionalGeneration,
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForMaskedLM,
    GLIPv2ForObjectDetection,
    GLIPv2ForPreTraining,
    GLIPv2ForVisualQuestionAnswering,
    GLIPv2Model,
    GLIPv2PreTrainedModel,
    answer_config,
)
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining

# Two heads have an option each; joint training has both.
CASES: dict[str, tuple[type[GLIPv2PreTrainedModel], dict[str, Any]]] = {
    "model": (GLIPv2Model, {}),
    "detection": (GLIPv2ForObjectDetection, {}),
    "pre-training": (GLIPv2ForPreTraining, {}),
    "masked-lm": (GLIPv2ForMaskedLM, {}),
    "segmentation": (GLIPv2ForInstanceSegmentation, {}),
    "answers": (GLIPv2ForVisualQuestionAnswering, {}),
    "answers-evidence": (GLIPv2ForVisualQuestionAnswering, {"answer_head_type": "evidence"}),
    "captions": (GLIPv2ForConditionalGeneration, {}),
    "captions-regions": (GLIPv2ForConditionalGeneration, {"caption_region_attention": True}),
    "joint": (GLIPv2ForJointTraining, {"answer_head_type": "evidence", "caption_region_attention": True}),
}
WITH_HEAD = [name for name in CASES if name != "model"]
FREEZABLE = ["segmentation", "answers", "answers-evidence", "captions", "captions-regions"]


def build(case: str, **overrides: Any) -> GLIPv2PreTrainedModel:
    """A small model with weights large enough to matter."""
    torch.manual_seed(0)
    model_class, fields = CASES[case]
    fields = {"initializer_range": 0.1, **answer_config(["yes", "no", "red"]), **fields, **overrides}
    return model_class(tiny_config(**fields)).eval()


def training_inputs(case: str) -> dict[str, Any]:
    """Two images with boxes, masks, classes, masked tokens, answers and captions, as far as the class takes them."""
    inputs = tiny_inputs()
    tokens = inputs["input_ids"].shape[1]
    boxes = torch.tensor([[0.4, 0.4, 0.5, 0.6], [0.3, 0.6, 0.3, 0.3]])
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[:, 8:24, 10:36] = True
    label = {
        "boxes": boxes,
        "positive_map": torch.eye(tokens)[[2, 4]],
        "class_ids": torch.tensor([11, 12]),
        "masks": masks,
    }
    mlm_labels = torch.full_like(inputs["input_ids"], -100)
    mlm_labels[:, 3] = 7
    captions = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    answers = torch.tensor([[1.0, 0.0, 0.3], [0.0, 0.6, 0.0]])
    more = {
        "model": {},
        "detection": {"labels": [label, label]},
        "pre-training": {"labels": [label, label], "mlm_labels": mlm_labels},
        "masked-lm": {"labels": mlm_labels},
        "segmentation": {"labels": [label, label]},
        "answers": {"labels": [label, label], "answer_labels": answers},
        "captions": {"labels": captions},
        "joint": {
            "labels": [label, label],
            "mlm_labels": mlm_labels,
            "answer_labels": answers,
            "caption_labels": captions,
        },
    }
    return inputs | more[case.split("-evidence")[0].split("-regions")[0]]


def loss_of(model: GLIPv2PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """The model's loss; of the model without a head, a number that depends on all of its outputs."""
    output = model(**inputs)
    if output.get("loss") is not None:
        return output.loss
    return output.fused_text.square().mean() + sum(level.square().mean() for level in output.fused_feature_maps)


def gradients_of(model: GLIPv2PreTrainedModel, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients of the loss by name, of the parameters that have one."""
    model.zero_grad()
    # Segmentation chooses regions at random where there are too many.
    torch.manual_seed(0)
    loss_of(model, inputs).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
