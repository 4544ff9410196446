"""No forward pass makes a GPU wait: checked on tensors that say they are on one, and have no values to be read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import masking_utils

from tests.every_class import CASES, build, training_inputs
from tests.no_waits import CountOperators, FakeGPU, NoWaits, WaitError
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection
from transformers_glipv2.boxes import to_device
from transformers_glipv2.layers import dyhead, input_checks, mask_head
from transformers_glipv2.layers.fusion import GLIPv2BiAttention
from transformers_glipv2.layers.input_checks import (
    additive_mask,
    check_has_tokens,
    check_pixels,
    check_text,
    read_sizes,
)
from transformers_glipv2.layers.mask_head import count_masked_objects, masked_objects
from transformers_glipv2.layers.prompt_tuning import GLIPv2PromptTunedTextEncoder
from transformers_glipv2.losses import OnHost, classes_of_tokens, join_labels, masked_tokens
from transformers_glipv2.modeling_glipv2_joint import examples_of_head
from transformers_glipv2.training import TrainingPlan, WeightAverage, parameter_groups
from transformers_glipv2.training.loop import training_step

INPUTS = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")


def run(case: str, gradients: bool = False, **overrides: Any):
    """The forward pass of a small model of a class, where waiting raises."""
    gpu = FakeGPU()
    model = gpu.model(build(case, **overrides).train(gradients))
    inputs = gpu.tensors({name: value for name, value in training_inputs(case).items() if name in INPUTS})
    with gpu, torch.set_grad_enabled(gradients), NoWaits(cpu_data=True):
        return model(**inputs)


@pytest.fixture(autouse=True)
def no_look_at_the_text_mask(monkeypatch):
    """transformers asks whether a text is padded, which waits, but not of tensors without values."""
    ask = masking_utils._ignore_bidirectional_mask_sdpa

    def refuse(padding_mask, *args, **kwargs):
        if padding_mask is not None and padding_mask.device.type != "cpu":
            raise WaitError("the mask of the text is read")
        return ask(padding_mask, *args, **kwargs)

    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", refuse)


@pytest.mark.parametrize("case", CASES)
def test_forward(case):
    output = run(case)
    tensors = [value for value in output.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.device.type == "cuda" for tensor in tensors if tensor is not output.get("level_shapes"))


@pytest.mark.parametrize("case", ["detection", "captions-regions"])
def test_forward_with_gradients(case):
    run(case, gradients=True)


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"model"}))
def test_training_step(case, monkeypatch):
    """
    Loss and gradients, of labels that are on the CPU. On real tensors, as labels have values: so what reads labels is
    allowed by name, and whatever asks whether a tensor can be read is told that it cannot, as on a GPU.
    """
    for module in (input_checks, mask_head):
        monkeypatch.setattr(module, "can_read", lambda tensor: False)
    model, inputs = build(case).train(), training_inputs(case)
    for name in ("labels", "mlm_labels", "answer_labels", "caption_labels"):
        if isinstance(inputs.get(name), list) or (name in inputs and name != "labels"):
            inputs[name] = OnHost(inputs[name])
    of_labels = [join_labels, classes_of_tokens, masked_tokens, masked_objects, examples_of_head]
    of_texts = [masking_utils.create_bidirectional_mask, masking_utils._ignore_bidirectional_mask_sdpa]
    with NoWaits([to_device, *of_labels, *of_texts], cpu_data=True):
        output = model(**inputs)
        output.loss.backward()


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("case", ["detection", "pre-training", "segmentation", "answers"])
def test_optimizer_step(case, accumulation_steps, monkeypatch):
    """Of the training loop: counts over micro-batches, gradients, clipping, the fused optimizer and the average."""
    for module in (input_checks, mask_head):
        monkeypatch.setattr(module, "can_read", lambda tensor: False)
    accelerator = Accelerator(cpu=True)
    model = build(case)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3), fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    average = WeightAverage(model, 0.9)
    plan = TrainingPlan(Path("unused"), 1, accumulation_steps=accumulation_steps)
    before = model.detection_head.box_predictor.weight.detach().clone()
    of_labels = [join_labels, classes_of_tokens, masked_tokens, masked_objects, count_masked_objects]
    of_texts = [masking_utils.create_bidirectional_mask, masking_utils._ignore_bidirectional_mask_sdpa]
    with NoWaits([to_device, *of_labels, *of_texts], cpu_data=True):
        batches = iter([training_inputs(case)] * accumulation_steps)
        training_step(accelerator, model, optimizer, batches, plan, 0)
        average.update(model)
    assert not torch.equal(before, model.detection_head.box_predictor.weight)


@pytest.mark.parametrize("overrides", [{"dyconv_offset_mode": "resized"}, {"use_fusion": False}])
def test_forward_of_other_towers(overrides):
    run("detection", **overrides)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x * torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.ones(2).to(x.device),
    ],
)
def test_waits_are_noticed(wait):
    gpu = FakeGPU()
    x = gpu.tensors(torch.ones(2))
    with gpu, pytest.raises(WaitError), NoWaits(cpu_data=True):
        wait(x)


def test_what_does_not_wait_passes():
    gpu = FakeGPU()
    x = gpu.tensors(torch.ones(2))
    with gpu, NoWaits(cpu_data=True):
        x[x > 0] = 2.0
        x.masked_fill(x > 0, 0.0) + torch.full((2,), 3.0, device=x.device) + 4
        torch.ones(2).to(x.device, non_blocking=True)


def test_named_places_may_wait():
    def meant(x):
        return x.sum().item()

    with NoWaits(allowed=[meant]):
        assert meant(torch.ones(2)) == 2
        with pytest.raises(WaitError, match="values are read"):
            torch.ones(2).sum().item()


@pytest.mark.parametrize("case", ["detection", "captions-regions"])
def test_images_without_their_padding_are_waited_for_once(case):
    """Fake tensors have no sizes to cut by, so on the CPU, where inputs are also checked by their values."""
    model = build(case, mask_padded_pixels=True)
    inputs = {name: value for name, value in training_inputs(case).items() if name in INPUTS}
    allowed = [read_sizes, check_pixels, check_text, check_has_tokens, masking_utils.create_bidirectional_mask]
    with torch.no_grad(), NoWaits(allowed, cpu_data=True):
        model(**inputs, output_attentions=True)


def test_a_tuned_prompt():
    model = build("detection")
    encoder = GLIPv2PromptTunedTextEncoder(model.model.text_encoder, torch.tensor([5, 6, 7]), "a prompt")
    ids, mask = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    torch.nn.init.ones_(encoder.offsets)
    with torch.no_grad():
        # A mask as it is made for a GPU.
        output = encoder(ids, additive_mask(mask, torch.float32)[:, None, None, :]).last_hidden_state
        torch.testing.assert_close(output, encoder(ids, mask).last_hidden_state)
    gpu = FakeGPU()
    model.model.text_encoder = encoder
    model, ids, mask = gpu.model(model), gpu.tensors(ids), gpu.tensors(mask)
    with gpu, torch.no_grad(), NoWaits(cpu_data=True):
        model.get_text_features(ids, mask)


@pytest.mark.parametrize("model_type", ["roberta", "electra", "xlm-roberta", "glipv2_clip_text"])
def test_other_text_encoders(model_type):
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    run("model", text_config={"model_type": model_type, "vocab_size": 128, "max_position_embeddings": 80, **fields})


def test_a_forward_pass_takes_few_operators(monkeypatch):
    """Of the tiny size, at any size of the image: a GPU may compute faster than Python can ask it to."""
    # The ways of a GPU, on the CPU: there attention is one operator, while tensors without values take it apart.
    monkeypatch.setattr(GLIPv2BiAttention, "attend_by_chunk", GLIPv2BiAttention.attend_by_sdpa)
    monkeypatch.setitem(dyhead.OUTPUTS_PER_CHUNK, "cpu", 1 << 20)
    model = GLIPv2ForObjectDetection(GLIPv2Config.from_size("tiny")).eval()
    # 2,267 when each level and branch was computed alone.
    assert operators_of(model, (128, 160)) <= 1500


def test_a_forward_pass_of_the_nano_takes_few_operators():
    """On the CPU, where small maps take less time than calling operators does."""
    # 11,800 when each level and tap was computed alone.
    assert operators_of(GLIPv2ForObjectDetection.from_pretrained("hub_upload/glipv2-nano"), (256, 256)) <= 920


def operators_of(model: GLIPv2ForObjectDetection, size: tuple[int, int]) -> int:
    """Of a forward pass of one image and 22 tokens."""
    input_ids = torch.randint(2000, model.config.text_config.vocab_size, (1, 22))
    with torch.no_grad(), CountOperators() as counted:
        model(torch.randn(1, 3, *size), input_ids, attention_mask=torch.ones_like(input_ids))
    return counted.total
