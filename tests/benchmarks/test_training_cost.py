"""benchmarks/training_cost.py: what counts memory and operations, and what a step of a small model comes to."""

import pytest
import torch

from tests.scripts import load_script
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2Config


@pytest.fixture(scope="module")
def script():
    return load_script("benchmarks/training_cost.py")


def test_memory_counts_what_is_alive_at_once(script):
    memory = script.LiveMemory()
    with memory:
        kept = torch.zeros(1000)
        freed = kept + 1
        view = freed[:10]
        assert memory.now == 8000
        del freed, view
        assert memory.now == 4000
        kept += 1
    assert (memory.now, memory.peak) == (4000, 8000)


def test_a_step_without_values(script, monkeypatch):
    overrides = {}

    def from_size(size, **fields):
        overrides.update(fields)
        return tiny_config(max_text_length=32, **fields)

    monkeypatch.setattr(GLIPv2Config, "from_size", from_size)
    found = {
        (bf16, checkpointing): script.calculate("tiny", 2, (256, 256), bf16, checkpointing, 10)
        for bf16, checkpointing in ((False, False), (False, True), (True, False))
    }
    plain, checkpointed, half = found.values()
    assert overrides == {"fusion_dropout": 0.0}
    assert plain["peak"] > 16 * plain["parameters"]
    # Less is kept and more is computed; half the digits need less memory for the same operations.
    assert checkpointed["peak"] < plain["peak"] and checkpointed["flops"] > plain["flops"]
    assert half["peak"] < plain["peak"] and half["flops"] == plain["flops"]


def test_attention_is_counted(script):
    shape = (1, 4, 50, 16)
    assert script.attention_flops(shape, shape, shape) == 2 * 2 * 4 * 50 * 50 * 16
    assert script.attention_backward_flops(shape, shape, shape, shape) > script.attention_flops(shape, shape, shape)
