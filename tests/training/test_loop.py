"""One step of training: what the random numbers of dropout depend on."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from transformers_glipv2.training import StepBatches, TrainingPlan, step_loader
from transformers_glipv2.training.batches import read_batches
from transformers_glipv2.training.loop import training_step


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Dropping(nn.Module):
    """A model whose loss is decided by dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor):
        loss = (self.dropout(self.weight) * torch.arange(64) * x.mean()).sum()
        return type("Output", (), {"loss": loss, "loss_dict": None})()


def quiet(examples):
    return {"x": torch.tensor(examples, dtype=torch.float32)}


def reseeding(examples):
    """Augmentation that seeds the global stream and draws from it."""
    torch.manual_seed(7)
    torch.rand(len(examples))
    return quiet(examples)


def losses(collate, num_workers: int, accumulation_steps: int) -> list[float]:
    accelerator = Accelerator(cpu=True)
    model = Dropping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plan = TrainingPlan(Path(), 3, accumulation_steps=accumulation_steps)
    batches = StepBatches(4, 3, accumulation_steps=accumulation_steps)
    with read_batches(step_loader(list(range(12)), batches, collate, num_workers)) as loaded:
        steps = [training_step(accelerator, model, optimizer, loaded, plan, step) for step in range(3)]
    return [float(step["loss"]) for step in steps]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_dropout_follows_neither_augmentation_nor_the_number_of_workers(accumulation_steps):
    expected = losses(quiet, 0, accumulation_steps)
    assert len(set(expected)) == 3
    assert losses(reseeding, 0, accumulation_steps) == expected
    assert losses(reseeding, 2, accumulation_steps) == expected
