"""examples/pretrain.py on drawn images: goes on exactly, stops in good order, does the same on two processes."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.scripts import load_script
from tests.tiny import tiny_config
from tests.tiny_training import drawn_coco, read_log, tiny_checkpoint
from transformers_glipv2 import GLIPv2ForPreTraining, GLIPv2Processor
from transformers_glipv2.training import loop

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LOSSES = ("loss", "loss_box", "loss_centerness", "loss_intra", "loss_inter", "loss_mlm")


pretrain = load_script("examples/pretrain.py")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny checkpoint with dropout, drawn images and a data file."""
    folder = tmp_path_factory.mktemp("pretrain")
    tiny_checkpoint(folder / "model", fusion_dropout=0.1)
    tiny_checkpoint(folder / "no_dropout")
    drawn_coco(folder / "coco", train=8, val=2)
    lines = ["sources:", "  - {kind: coco, path: coco, split: train}", "augment: {flip: 0.5, photometric: 0.5}"]
    lines += ["sizes: [64, 80]", "max_size: 96", "mlm_probability: 0.5"]
    (folder / "data.yaml").write_text("\n".join(lines))
    (folder / "data_eval.yaml").write_text("\n".join([*lines, "evaluation: {path: coco, split: val}"]))
    return folder


def arguments(folder: Path, output: str, *more: str, model: str = "model", data: str = "data.yaml") -> list[str]:
    """Four steps of four images, a checkpoint and a line of the log at each."""
    given = ["--model", folder / model, "--data", folder / data, "--output", folder / output, "--num_steps", "4"]
    given += ["--batch_size", "4", "--eval_steps", "1", "--warmup_steps", "1", "--learning_rate", "1e-3", *more]
    return [str(value) for value in given]


@pytest.fixture(scope="module")
def uninterrupted(folder) -> list[dict]:
    state = pretrain.main(arguments(folder, "uninterrupted"))
    assert (state.step, state.stopped) == (4, "")
    return read_log(folder / "uninterrupted")


def test_logs_every_loss_and_leaves_a_model(folder, uninterrupted):
    assert [line["step"] for line in uninterrupted] == [1, 2, 3, 4]
    for line in uninterrupted:
        assert all(name in line for name in (*LOSSES, "grad_norm", "lr_base", "lr_text", "seconds"))
        assert line["loss"] == pytest.approx(sum(line[name] for name in LOSSES[1:]), rel=1e-5)
        assert line["lr_text"] == pytest.approx(0.1 * line["lr_base"])
    output = folder / "uninterrupted"
    model = GLIPv2ForPreTraining.from_pretrained(output)
    GLIPv2Processor.from_pretrained(output)
    assert json.loads((output / "training_args.json").read_text())["num_steps"] == 4
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-0000003", "step-0000004"]
    # What is left is the average of the weights, not the last ones.
    average = load_file(output / "checkpoints" / "step-0000004" / "weight_average.safetensors")
    last = load_file(output / "checkpoints" / "step-0000004" / "model.safetensors")
    name = "detection_head.box_predictor.weight"
    assert torch.equal(model.state_dict()[name], average[name])
    assert not torch.equal(average[name], last[name])


@pytest.fixture
def signal_in_step_2(monkeypatch):
    """Within the context a signal comes while the second step is made."""
    step = loop.training_step

    def step_with_signal(*args):
        if args[-1] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    @contextmanager
    def patched():
        with monkeypatch.context() as patch:
            patch.setattr(loop, "training_step", step_with_signal)
            yield

    return patched


def test_a_signal_finishes_the_step_and_the_run_goes_on_exactly(folder, uninterrupted, signal_in_step_2):
    before = signal.getsignal(signal.SIGTERM)
    with signal_in_step_2():
        state = pretrain.main(arguments(folder, "cut", "--resume", "latest"))
    assert (state.step, state.stopped) == (2, "signal")
    assert not (folder / "cut" / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == before

    state = pretrain.main(arguments(folder, "cut", "--resume", "latest", "--num_workers", "1"))
    assert (state.step, state.stopped) == (4, "")
    for line, other in zip(read_log(folder / "cut"), uninterrupted, strict=True):
        assert {name: line[name] for name in LOSSES} == {name: other[name] for name in LOSSES}
    resumed, whole = (load_file(folder / name / "model.safetensors") for name in ("cut", "uninterrupted"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_an_evaluation_that_a_signal_prevents_is_made_up_for(folder, signal_in_step_2):
    resume = ("--resume", "latest")
    with signal_in_step_2():
        state = pretrain.main(arguments(folder, "due", *resume, data="data_eval.yaml"))
    assert (state.step, state.stopped) == (2, "signal")
    pretrain.main(arguments(folder, "due", *resume, data="data_eval.yaml"))
    assert [line["step"] for line in read_log(folder / "due") if "eval_AP" in line] == [1, 2, 3, 4]


def test_resuming_from_an_earlier_checkpoint_drops_later_lines(folder, uninterrupted):
    output = folder / "uninterrupted"
    checkpoint = output / "checkpoints" / "step-0000003"
    pretrain.main(arguments(folder, "uninterrupted", "--resume", str(checkpoint)))
    lines = read_log(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] == uninterrupted[-1]["loss"]


def test_two_processes_go_on_exactly_with_what_one_began(folder, signal_in_step_2):
    pretrain.main(arguments(folder, "one", model="no_dropout", data="data_eval.yaml"))
    AcceleratorState._reset_state(True)
    with signal_in_step_2():
        state = pretrain.main(arguments(folder, "two", model="no_dropout", data="data_eval.yaml"))
    assert (state.step, state.stopped) == (2, "signal")
    # What `accelerate launch` starts for several GPUs; for CPUs it starts one process, whatever number it is given.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(EXAMPLES / "pretrain.py"), *arguments(folder, "two", model="no_dropout", data="data_eval.yaml")]
    command += ["--resume", "latest"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / "two" / "checkpoints" / "step-0000004" / "random_states_1.pkl").exists()  # of the second process
    one, two = read_log(folder / "one"), read_log(folder / "two")
    assert len(one) == len(two) == 8
    for line, other in zip(one, two, strict=True):
        assert line.keys() - {"seconds_per_step"} == other.keys() - {"seconds_per_step"}
        for name in line.keys() - {"seconds", "seconds_per_step", "grad_norm"}:
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (line["step"], name)


def test_checkpointing_changes_no_loss_and_frozen_parts_stay(folder):
    pretrain.main(arguments(folder, "plain", "--num_steps", "2", "--ema_decay", "0", model="no_dropout"))
    more = ("--num_steps", "2", "--ema_decay", "0", "--gradient_checkpointing")
    more += ("--train", "frozen-encoders", "--trackers", "tensorboard")
    pretrain.main(arguments(folder, "saving", *more, model="no_dropout"))
    plain, saving = read_log(folder / "plain")[0], read_log(folder / "saving")[0]
    assert saving["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert list((folder / "saving" / "tracking").rglob("events.out.*"))
    before, after = (load_file(folder / name / "model.safetensors") for name in ("no_dropout", "saving"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = ("model.text_encoder.", "model.backbone.embeddings.", "model.backbone.encoder.layers.0.")
    assert any(name.startswith(frozen) for name in before)
    assert not any(name.startswith(frozen) for name in changed)
    assert any(name.startswith("model.backbone.encoder.layers.3.") for name in changed)
    assert {"model.neck.p6.weight", "mlm_head.dense.weight", "contrastive_head.log_scale"} <= changed


def test_ends_without_gains_and_keeps_best_and_last(folder):
    state = pretrain.main(arguments(folder, "stopped", "--patience", "1", data="data_eval.yaml"))
    # Nothing is found so early, so the second evaluation is no better than the first.
    assert (state.step, state.stopped, state.best_step) == (2, "no gain", 1)
    lines = read_log(folder / "stopped")
    assert [("loss" in line, "eval_AP" in line) for line in lines] == [(True, False), (False, True)] * 2
    best, last = (load_file(folder / "stopped" / name / "model.safetensors") for name in (".", "last"))
    assert not torch.equal(best["detection_head.bias"], last["detection_head.bias"])
    # It stays ended, unless there is more patience.
    resume = ("--resume", "latest", "--patience")
    state = pretrain.main(arguments(folder, "stopped", *resume, "1", data="data_eval.yaml"))
    assert (state.step, state.stopped) == (2, "no gain")
    state = pretrain.main(arguments(folder, "stopped", *resume, "9", data="data_eval.yaml"))
    assert (state.step, state.stopped, state.best_step) == (4, "", 1)


def test_accumulated_steps_are_those_of_whole_batches(folder):
    more = ("--num_steps", "2", "--gradient_accumulation_steps")
    for parts in ("1", "2", "4"):
        AcceleratorState._reset_state(True)
        pretrain.main(arguments(folder, f"parts-{parts}", *more, parts, model="no_dropout"))
    whole, *others = (read_log(folder / f"parts-{parts}") for parts in (1, 2, 4))
    for log in others:
        for line, expected in zip(log, whole, strict=True):
            for name in (*LOSSES, "grad_norm"):
                assert line[name] == pytest.approx(expected[name], rel=1e-3), (line["step"], name)


def test_accumulates_in_half_precision(folder):
    more = ("--num_steps", "2", "--gradient_accumulation_steps", "2", "--mixed_precision", "bf16")
    pretrain.main(arguments(folder, "half", *more, model="no_dropout"))
    AcceleratorState._reset_state(True)
    pretrain.main(arguments(folder, "full", "--num_steps", "2", model="no_dropout"))
    half, full = read_log(folder / "half")[0], read_log(folder / "full")[0]
    for name in LOSSES:
        assert half[name] == pytest.approx(full[name], rel=0.05), name
    assert half["loss_intra"] != full["loss_intra"]


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [("one_gpu", "NO", 1), ("ddp", "MULTI_GPU", 8), ("fsdp2", "FSDP", 8), ("cpu", "NO", 1)],
)
def test_configs_are_what_accelerate_takes(name, kind, processes):
    # Accelerate refuses keys that it does not know.
    config = load_config_from_file(str(EXAMPLES / "configs" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes) == (kind, processes)
    if name == "fsdp2":
        modules = {type(module).__name__ for module in GLIPv2ForPreTraining(tiny_config()).modules()}
        assert set(config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")) <= modules


def test_weights_of_losses_end_up_in_log_and_checkpoint(folder, uninterrupted):
    pretrain.main(arguments(folder, "weighted", "--num_steps", "1", "--loss_weights", "inter=0", "mlm=0.5"))
    (weighted,), plain = read_log(folder / "weighted"), uninterrupted[0]
    assert weighted["loss_inter"] == 0
    assert weighted["loss_mlm"] == pytest.approx(0.5 * plain["loss_mlm"], rel=1e-5)
    assert weighted["loss_box"] == pytest.approx(plain["loss_box"], rel=1e-5)
    config = GLIPv2ForPreTraining.from_pretrained(folder / "weighted").config
    assert (config.inter_loss_weight, config.mlm_loss_weight, config.intra_loss_weight) == (0, 0.5, 1)


def test_refuses_an_unknown_loss(folder, capsys):
    with pytest.raises(SystemExit):
        pretrain.main(arguments(folder, "unknown", "--loss_weights", "itm=1"))
    assert "'itm=1' names none of the losses box, centerness, intra, inter, mlm" in capsys.readouterr().err


def test_weights_of_heads_need_the_heads(folder, capsys):
    with pytest.raises(SystemExit):
        pretrain.main(arguments(folder, "headless", "--loss_weights", "inter=1", "answer=0.1"))
    assert "answer=0.1 weighs a loss that only --vqa_captioning has" in capsys.readouterr().err


def test_refuses_a_batch_that_cannot_be_dealt(folder):
    with pytest.raises(ValueError, match="must be a multiple of 1 processes x 3"):
        pretrain.main(arguments(folder, "odd", "--gradient_accumulation_steps", "3"))
