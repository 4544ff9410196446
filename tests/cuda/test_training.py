"""Training on a GPU: mixed precision, the fused optimizer, compilation, DDP and FSDP2."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from tests.every_class import build, training_inputs
from transformers_glipv2.training import TrainingPlan, compile_network, make_optimizer, parameter_groups
from transformers_glipv2.training.loop import training_step


def step_losses(device: torch.device, mixed_precision: str, num_steps: int = 3, compiled: bool = False) -> list[float]:
    """The loss of each step of the training loop on the same batch."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed_precision)
    model = build("detection", num_fusion_layers=1)
    if compiled:
        # A compiler need not be installed for the CPU.
        compile_network(model, **({} if device.type == "cuda" else {"backend": "eager"}))
    optimizer = make_optimizer(parameter_groups(model, 3e-3))
    model, optimizer = accelerator.prepare(model, optimizer)
    plan = TrainingPlan(Path("unused"), num_steps)
    batches = iter([training_inputs("detection") for _ in range(num_steps)])
    losses = [training_step(accelerator, model, optimizer, batches, plan, step) for step in range(num_steps)]
    AcceleratorState._reset_state(True)
    return [float(one["loss"]) for one in losses]


@pytest.mark.parametrize("mixed_precision", ["bf16", "fp16"])
def test_mixed_precision_learns_as_float32_does(mixed_precision, device):
    if device.type == "cpu" and mixed_precision == "fp16":
        pytest.skip("Accelerate scales the loss of fp16 on GPUs only")
    expected = step_losses(device, "no")
    found = step_losses(device, mixed_precision)
    assert found[-1] < found[0]
    assert found == pytest.approx(expected, rel=0.05)


def test_scaled_loss_of_fp16(device):
    """What Accelerate's fp16 does, by PyTorch's own means, which the CPU has too."""
    model = build("detection").to(device).train()
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), training_inputs("detection"))
    optimizer = torch.optim.AdamW(parameter_groups(model, 3e-3), fused=True)
    # The gradients of this small model reach 33,000, half of what float16 holds.
    scaler = torch.amp.GradScaler(device.type, init_scale=0.5)
    losses = []
    for _ in range(3):
        with torch.autocast(device.type, torch.float16):
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_the_fused_optimizer_is_the_plain_one(device):
    weights = []
    for fused in (False, True):
        model = build("detection").to(device).train()
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3), fused=fused)
        inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), training_inputs("detection"))
        model(**inputs).loss.backward()
        optimizer.step()
        weights.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*weights, strict=True):
        # A gradient near 0 may have either sign, and Adam's first step is the sign.
        assert ((one - other).abs() < 1e-5).float().mean() > 0.99


def test_compiled_training_learns_the_same(device):
    assert step_losses(device, "no", 2, compiled=True) == pytest.approx(step_losses(device, "no", 2), rel=1e-3)


@pytest.fixture
def one_process(device):
    store = dist.HashStore()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_parallel_training_of_one_process(way, device, one_process):
    plain = build("pre-training").to(device).train()
    parallel = copy.deepcopy(plain)
    if way == "ddp":
        parallel = DistributedDataParallel(parallel, find_unused_parameters=True)
    else:
        mesh = init_device_mesh(device.type, (1,))
        for layer in parallel.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(parallel, mesh=mesh)
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), training_inputs("pre-training"))
    losses, steps = [], []
    for model in (plain, parallel):
        loss = model(**inputs).loss
        loss.backward()
        losses.append(float(loss))
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        steps.append([one.full_tensor() if hasattr(one, "full_tensor") else one for one in gradients])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
