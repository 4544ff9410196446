"""Nothing waits for a GPU: forward passes, post-processing but in its two named places, and training steps."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.cuda.waits import no_waits
from tests.every_class import CASES, build, training_inputs
from transformers_glipv2 import post_processing
from transformers_glipv2.post_processing import batch_detections
from transformers_glipv2.training import TrainingPlan, parameter_groups
from transformers_glipv2.training.loop import training_step

INPUTS = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")


@pytest.mark.parametrize("case", CASES)
def test_forward(case, device, monkeypatch):
    model = build(case).to(device)
    inputs = {name: value.to(device) for name, value in training_inputs(case).items() if name in INPUTS}
    with torch.no_grad():
        model(**inputs)  # what is made once
        with no_waits(device, monkeypatch):
            model(**inputs)


def test_post_processing(device, monkeypatch):
    model = build("detection").to(device)
    inputs = {name: value.to(device) for name, value in training_inputs("detection").items() if name in INPUTS}
    with torch.no_grad():
        outputs = model(**inputs)
        label_maps = [torch.eye(9, dtype=torch.bool)[1:5]] * 2
        with no_waits(device, monkeypatch, (post_processing, "suppressed"), (post_processing, "fetch")):
            found = batch_detections(outputs, label_maps)
    assert all(result["boxes"].device.type == "cpu" for result in found)


@pytest.mark.parametrize("case", ["detection", "pre-training", "segmentation", "answers", "captions"])
def test_training_step(case, device, monkeypatch):
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=device.type == "cpu")
    model = build(case)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3), fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    plan = TrainingPlan(Path("unused"), 2)
    batches = iter([training_inputs(case)] * 2)
    training_step(accelerator, model, optimizer, batches, plan, 0)
    with no_waits(device, monkeypatch):
        losses = training_step(accelerator, model, optimizer, batches, plan, 1)
    assert all(loss.isfinite() for loss in losses.values())
    AcceleratorState._reset_state(True)
