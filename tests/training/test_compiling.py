"""`--compile`: the same losses and gradients, one compilation for each shape, and checkpoints as without it."""

from functools import partial
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch._dynamo.testing import CompileCounter

from tests.every_class import WITH_HEAD, build, gradients_of, training_inputs
from tests.scripts import load_script
from tests.tiny_training import drawn_coco, read_log, tiny_checkpoint, tiny_processor
from transformers_glipv2.cli import training as cli_training
from transformers_glipv2.training import FixedShapes, compile_network, fine_tune
from transformers_glipv2.training.compiling import uncompiled
from transformers_glipv2.training.tuning import prepare_tuning

TRAINED = [case for case in WITH_HEAD if case != "masked-lm"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compilations and the settings of Accelerate are kept for the life of a process."""
    torch._dynamo.reset()
    AcceleratorState._reset_state(True)
    yield
    torch._dynamo.reset()
    AcceleratorState._reset_state(True)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close = torch.isclose(found[name], gradient, atol=tolerance, rtol=10 * tolerance)
        assert close.all(), (name, found[name], gradient)


def fixed(inputs: dict[str, Any]) -> dict[str, Any]:
    return FixedShapes(lambda examples: examples, tiny_processor())(inputs)


@pytest.mark.parametrize("case", TRAINED)
def test_longer_texts_change_no_loss(case):
    model, inputs = build(case), training_inputs(case)
    longer = fixed(inputs)
    assert longer["input_ids"].shape[1] == 16 > inputs["input_ids"].shape[1]
    # Wider images change it a little, as padding takes part; these have a usual size already.
    assert longer["pixel_values"].shape == inputs["pixel_values"].shape
    assert_same(gradients_of(model, longer), gradients_of(model, inputs), 1e-4)


def test_images_are_padded_to_usual_sides():
    inputs = training_inputs("detection")
    inputs["pixel_values"], inputs["pixel_mask"] = torch.ones(2, 3, 70, 90), torch.ones(2, 70, 90, dtype=torch.long)
    padded = fixed(inputs)
    assert padded["pixel_values"].shape == (2, 3, 96, 96)
    assert padded["pixel_values"].sum() == 2 * 3 * 70 * 90 and padded["pixel_mask"].sum() == 2 * 70 * 90


# Each has the encoders, the tower and the detection head; joint training has all the other heads too.
@pytest.mark.parametrize("case", ["detection", "joint"])
def test_compiled_losses_and_gradients_are_the_plain_ones(case):
    inputs = fixed(training_inputs(case))
    plain, compiled = (build(case, num_fusion_layers=1) for _ in range(2))
    compile_network(compiled, backend="eager")
    assert_same(gradients_of(compiled, inputs), gradients_of(plain, inputs), 1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_compiled_once_for_each_shape_and_not_for_evaluation():
    counter = CompileCounter()
    model = build("detection", num_fusion_layers=3)
    compile_network(model, backend=counter)
    inputs = training_inputs("detection")
    model(**fixed(inputs))
    # Backbone, pyramid, texts, the first layer of the tower, all the others, and the head.
    assert counter.frame_count == 6
    shorter = {name: inputs[name][:, :7] for name in ("input_ids", "attention_mask")}
    labels = [{**label, "positive_map": label["positive_map"][:, :7]} for label in inputs["labels"]]
    model(**fixed({**inputs, **shorter, "labels": labels}))
    assert counter.frame_count == 6
    with uncompiled(model), torch.no_grad():
        model(**inputs | {"labels": None})
    assert counter.frame_count == 6


@pytest.mark.parametrize("way", ["prompt", "lora"])
def test_tuned_parts_compile(way):
    inputs = fixed(training_inputs("detection"))
    models = [build("detection", num_fusion_layers=1) for _ in range(2)]
    models = [prepare_tuning(model, way, tiny_processor(), "cat. dog.") for model in models]
    torch.manual_seed(0)
    expected = models[0](**inputs).loss
    compile_network(models[1], backend="eager")
    found = models[1](**inputs).loss
    found.backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_refuses_a_model_that_cuts_padding_away():
    with pytest.raises(ValueError, match="mask_padded_pixels"):
        compile_network(build("detection", mask_padded_pixels=True))


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Traces the network as always, and runs what it traced as it is: compilers take a minute."""
    for module in (cli_training, fine_tune):
        monkeypatch.setattr(module, "compile_network", partial(compile_network, backend="eager"))


def test_a_compiled_run_goes_on_exactly(tmp_path, quick):
    pretrain = load_script("examples/pretrain.py")
    tiny_checkpoint(tmp_path / "model", fusion_dropout=0.1, num_fusion_layers=1)
    drawn_coco(tmp_path / "coco", train=4, val=2)
    lines = ["sources: [{kind: coco, path: coco, split: train}]", "evaluation: {path: coco, split: val}"]
    (tmp_path / "data.yaml").write_text("\n".join(lines))

    def run(output: str, *more: str) -> list[dict]:
        AcceleratorState._reset_state(True)
        arguments = ["--model", tmp_path / "model", "--data", tmp_path / "data.yaml", "--output", tmp_path / output]
        arguments += ["--batch_size", 2, "--eval_steps", 2, "--warmup_steps", 1, "--gradient_checkpointing", *more]
        pretrain.main([str(value) for value in arguments])
        return [line for line in read_log(tmp_path / output) if "loss" in line]

    run("whole", "--num_steps", "4", "--compile", "--schedule", "constant")
    run("parts", "--num_steps", "2", "--compile", "--schedule", "constant")
    run("parts", "--num_steps", "4", "--compile", "--schedule", "constant", "--resume", "latest")
    weights = []
    for name in ("whole", "parts"):
        with safe_open(tmp_path / name / "checkpoints" / "step-0000004" / "model.safetensors", "pt") as file:
            weights.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    assert not any("_orig_mod" in name for name in weights[0])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_the_command_fine_tunes_compiled(tmp_path, quick):
    script = load_script("examples/finetune_detection.py")
    tiny_checkpoint(tmp_path / "model", num_fusion_layers=1)
    drawn_coco(tmp_path / "coco", train=4, val=2)
    losses = {}
    for name, more in (("compiled", ["--compile"]), ("plain", [])):
        AcceleratorState._reset_state(True)
        arguments = ["--model", tmp_path / "model", "--data", tmp_path / "coco", "--output", tmp_path / name]
        arguments += ["--num_steps", 2, "--batch_size", 2, "--image_size", 64, *more]
        script.main([str(value) for value in arguments])
        losses[name] = [line["loss"] for line in read_log(tmp_path / name) if "loss" in line]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
