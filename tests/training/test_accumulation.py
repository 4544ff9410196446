"""N micro-batches give the gradient of one batch of the same images: every loss, on one and on two processes."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2ForObjectDetection, GLIPv2ForPreTraining
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering
from transformers_glipv2.training import TrainingPlan
from transformers_glipv2.training.accumulation import _match_anchors
from transformers_glipv2.training.loop import training_step

MODELS = {
    "detection": (GLIPv2ForObjectDetection, ("loss_box", "loss_centerness", "loss_intra")),
    "pretraining": (GLIPv2ForPreTraining, ("loss_box", "loss_centerness", "loss_intra", "loss_inter", "loss_mlm")),
    "joint": (GLIPv2ForJointTraining, ("loss_box", "loss_inter", "loss_mlm", "loss_answer", "loss_caption")),
    "masks": (GLIPv2ForInstanceSegmentation, ("loss_box", "loss_intra", "loss_mask")),
    "answers": (GLIPv2ForVisualQuestionAnswering, ("loss_box", "loss_answer")),
    "captions": (GLIPv2ForConditionalGeneration, ("loss_caption",)),
}
TOKENS, ANSWERS = 8, 2


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def example(index: int, task: str) -> dict:
    """One image with its targets: 0 to 2 boxes, tokens, questions and captions that differ in number."""
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(5, 128, (1, TOKENS), generator=generator)
    tokens = TOKENS - index % 3
    mask = torch.ones(1, TOKENS, dtype=torch.long)
    mask[:, tokens:] = 0
    made = {
        "pixel_values": torch.randn(1, 3, 72, 100, generator=generator),
        "pixel_mask": torch.ones(1, 72, 100, dtype=torch.long),
        "input_ids": ids,
        "attention_mask": mask,
    }
    if task == "captions":
        return {**made, "labels": torch.where(mask.bool(), ids, -100)}
    boxes = torch.tensor([[0.3, 0.4, 0.4, 0.5], [0.6, 0.6, 0.3, 0.6]])[: index % 3]
    positive_map = torch.zeros(len(boxes), TOKENS)
    positive_map[:, 1] = 1
    prompt_map = torch.zeros(2, TOKENS)
    prompt_map[0, 1] = prompt_map[1, 3] = 1
    labels = {
        "boxes": boxes,
        "positive_map": positive_map,
        "class_ids": torch.full((len(boxes),), 5 + index % 2),
        "prompt_class_ids": torch.tensor([5 + index % 2, 5 + (index + 1) % 2]),
        "prompt_map": prompt_map,
    }
    if task == "masks":
        labels["masks"] = torch.rand(len(boxes), 20, 30, generator=generator) > 0.5
    made["labels"] = [labels]
    if task in ("pretraining", "joint"):
        made["mlm_labels"] = torch.full((1, TOKENS), -100)
        made["mlm_labels"][0, 2 : 2 + index % 4] = 7
    if task in ("joint", "answers"):
        answer = torch.tensor([[0.3, 1.0]]) if index % 2 else torch.full((1, ANSWERS), float("nan"))
        made["answer_labels"] = answer
    if task == "joint":
        made["caption_labels"] = torch.where(mask.bool() & (index % 3 == 1), ids, -100)
    return made


def joined(examples: list[dict]) -> dict:
    """The examples as one batch."""
    batch = {}
    for name, value in examples[0].items():
        values = [one[name] for one in examples]
        batch[name] = (
            [label for labels in values for label in labels] if isinstance(value, list) else torch.cat(values)
        )
    return batch


def make_model(task: str, **overrides) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[task][0](tiny_config(num_labels=ANSWERS, **overrides))


def step(task: str, indices: list[int], size: int, accelerator: Accelerator, model: nn.Module) -> tuple[dict, dict]:
    """Losses and gradients of a step on these examples in micro-batches of one size."""
    parts = [indices[first : first + size] for first in range(0, len(indices), size)]
    batches = [joined([example(index, task) for index in part]) for part in parts]
    gradients = {}

    class Optimizer:
        def step(self):
            own = accelerator.unwrap_model(model)
            gradients.update({name: p.grad.clone() for name, p in own.named_parameters() if p.grad is not None})

        def zero_grad(self):
            model.zero_grad()

    plan = TrainingPlan(Path(), 1, accumulation_steps=len(batches), max_grad_norm=1e9)
    losses = training_step(accelerator, model, Optimizer(), iter(batches), plan, 0)
    return {name: float(value) for name, value in losses.items()}, gradients


def assert_same(one: dict, other: dict) -> None:
    """The same gradients; one that is missing is zero."""
    for name in one.keys() | other.keys():
        found, expected = one.get(name), other.get(name)
        zero = torch.zeros_like(expected if found is None else found)
        found, expected = (zero if value is None else value for value in (found, expected))
        torch.testing.assert_close(
            found, expected, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("task", MODELS)
def test_micro_batches_give_the_gradient_of_one_batch(task):
    indices = list(range(6))
    accelerator = Accelerator(cpu=True)
    whole, expected = step(task, indices, 6, accelerator, make_model(task))
    assert set(MODELS[task][1]) <= whole.keys()
    for size in (1, 2, 3):
        losses, gradients = step(task, indices, size, accelerator, make_model(task))
        assert losses == pytest.approx(whole, rel=1e-5, abs=1e-5)
        assert_same(gradients, expected)


def test_the_first_pass_drops_what_the_second_does():
    # With dropout in the encoders the two passes agree only when they drop the same; then the loss of the step, from
    # the first, has the gradient of the second.
    text = {**tiny_config().text_config.to_dict(), "hidden_dropout_prob": 0.3}
    seen = []
    model = make_model("pretraining", text_config=text)
    features = model.contrastive_features

    def watched(*args):
        seen.append(features(*args))
        return seen[-1]

    model.contrastive_features = watched
    step("pretraining", [1, 2, 4, 5], 2, Accelerator(cpu=True), model)
    first, second, *again = seen
    for one, other in zip((first, second), again, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens)
        torch.testing.assert_close(one.regions, other.regions)
    whole = model.eval().encode_contrast(**joined([example(1, "detection"), example(2, "detection")]))[0]
    assert not torch.allclose(first.tokens, whole.tokens)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (72, 100), (33, 161), (200, 40)])
def test_positives_are_counted_without_a_forward_pass(height, width):
    model = make_model("detection").eval()
    batch = example(2, "detection")
    batch["pixel_values"] = torch.randn(1, 3, height, width)
    batch["pixel_mask"] = torch.ones(1, height, width, dtype=torch.long)
    shapes = model(**{name: value for name, value in batch.items() if name != "labels"}).level_shapes.tolist()
    assert shapes == [[-(-height // stride), -(-width // stride)] for stride in model.config.anchor_strides]
    assert _match_anchors(model, batch, torch.device("cpu")).is_positive.any()
    model.detector_is_frozen = True
    assert _match_anchors(model, batch, torch.device("cpu")) is None


def worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    found = {}
    for task in MODELS:
        model = accelerator.prepare(make_model(task))
        # As `StepBatches` deals them: micro-batches of two examples in turn.
        indices = [4 * micro + 2 * rank + place for micro in range(2) for place in range(2)]
        losses, gradients = step(task, indices, 2, accelerator, model)
        found[task] = (losses, gradients)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_micro_batches_give_the_gradient_of_one_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    accelerator = Accelerator(cpu=True)
    for task in MODELS:
        whole, expected = step(task, list(range(8)), 8, accelerator, make_model(task))
        for _, gradients in (one[task], other[task]):
            assert_same(gradients, expected)
        for name in MODELS[task][1]:
            mean = sum(losses.get(name, 0.0) for losses, _ in (one[task], other[task])) / 2
            assert mean == pytest.approx(whole[name], rel=1e-4, abs=1e-6), (task, name)
