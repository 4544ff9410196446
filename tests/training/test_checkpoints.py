"""Checkpoints: which one is meant, which are kept, what is said of damaged ones and of full disks; settings; logs."""

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tests.tiny import tiny_config
from tests.tiny_training import tiny_processor
from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.training import (
    TrainingPlan,
    TrainingState,
    WeightAverage,
    export_model,
    find_checkpoint,
    make_optimizer,
    parameter_groups,
    push_folder,
    train,
)
from transformers_glipv2.training import checkpoints as checkpoints_module
from transformers_glipv2.training.loop import TrainingLog
from transformers_glipv2.training.settings import compare_settings, describe_settings


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def warnings(caplog):
    """What was warned of so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Parabola(nn.Module):
    """A model whose loss falls when its weights do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: torch.Tensor):
        loss = (self.weight * x).square().sum()
        return type("Output", (), {"loss": loss, "loss_dict": {"loss_square": loss}})()


def run(
    output: Path,
    num_steps: int,
    resume: str | Path | None = None,
    learning_rate: float = 0.1,
    metrics=None,
    settings=None,
    model: nn.Module | None = None,
    **plan,
) -> TrainingState:
    """A run of a few milliseconds with a checkpoint at every step."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    model = model or Parabola()
    optimizer = make_optimizer(parameter_groups(model, learning_rate))
    model, optimizer = accelerator.prepare(model, optimizer)

    def loader(start: int):
        return [{"x": torch.full((1,), 1.0 + step)} for step in range(start, num_steps)]

    def export(model: nn.Module, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(accelerator.unwrap_model(model).state_dict(), folder / "weights.bin")

    plan = TrainingPlan(output, num_steps, save_steps=1, log_steps=1, schedule="constant", **plan)
    evaluate = None if metrics is None else lambda model: {"AP": metrics.pop(0)}
    average = WeightAverage(model, 0.5)
    return train(accelerator, model, optimizer, loader, plan, export, average, evaluate, resume, settings)


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]


# Which checkpoint ----------------------------------------------------------------------------------------------------


def test_finds_the_checkpoint_that_is_meant(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    run(tmp_path, 11, keep_checkpoints=3)
    latest = tmp_path / "checkpoints" / "step-0000011"
    assert find_checkpoint(tmp_path, "latest") == latest
    assert find_checkpoint(tmp_path, latest) == latest
    with pytest.raises(FileNotFoundError, match="step-0000009, step-0000010, step-0000011"):
        find_checkpoint(tmp_path, tmp_path)


def test_resuming_an_earlier_checkpoint_drops_what_is_beyond(tmp_path, warnings):
    whole = run(tmp_path / "whole", 6, keep_checkpoints=1)
    run(tmp_path / "run", 5, keep_checkpoints=5)
    state = run(tmp_path / "run", 3, tmp_path / "run" / "checkpoints" / "step-0000002", keep_checkpoints=2)
    assert state.step == 3
    assert names(tmp_path / "run") == ["step-0000002", "step-0000003"]
    assert any("drops step-0000003, step-0000004, step-0000005" in message for message in warnings())
    assert find_checkpoint(tmp_path / "run", "latest").name == "step-0000003"
    assert run(tmp_path / "run", 6, "latest").step == whole.step
    one, other = (torch.load(tmp_path / name / "weights.bin") for name in ("whole", "run"))
    assert torch.equal(one["weight"], other["weight"])
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_best_weights_of_an_abandoned_course_are_replaced(tmp_path):
    state = run(tmp_path, 3, metrics=[1.0, 2.0, 3.0], keep_checkpoints=3)
    assert state.best_step == 3
    state = run(tmp_path, 3, tmp_path / "checkpoints" / "step-0000001", metrics=[0.5, 0.7])
    assert (state.best_step, state.best_metrics) == (3, {"AP": 0.7})


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    run(tmp_path, 2)
    before = (tmp_path / "training_log.jsonl").read_text()
    with pytest.raises(
        FileExistsError, match=r"checkpoints of a run up to step 2; go on with it \(`--resume latest`\)"
    ):
        run(tmp_path, 2)
    assert (tmp_path / "training_log.jsonl").read_text() == before
    assert names(tmp_path) == ["step-0000001", "step-0000002"]


@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.bin", "training_state.json", "weight_average.safetensors"]
)
def test_a_damaged_checkpoint_is_named_and_latest_takes_the_one_before(tmp_path, warnings, name, damage):
    run(tmp_path, 2)
    newest = tmp_path / "checkpoints" / "step-0000002"
    file = newest / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:50] if damage == "cut" else b"")
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name}.*others of .*: step-0000001"):
        find_checkpoint(tmp_path, newest)
    assert find_checkpoint(tmp_path, "latest").name == "step-0000001"
    assert any("step-0000002 cannot be used and is skipped" in message and name in message for message in warnings())
    assert run(tmp_path, 3, "latest").step == 3
    assert names(tmp_path) == ["step-0000002", "step-0000003"]


def test_an_empty_folder_is_no_checkpoint_and_none_whole_is_an_error(tmp_path):
    run(tmp_path, 2)
    (tmp_path / "checkpoints" / "step-0000003").mkdir()
    assert find_checkpoint(tmp_path, "latest").name == "step-0000002"
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step-000000{step}" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"none of the 3 checkpoints of .* is whole"):
        find_checkpoint(tmp_path, "latest")


def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(tmp_path):
    run(tmp_path, 1)
    other = Parabola()
    other.bias = nn.Parameter(torch.zeros(2))
    other.forward = lambda x: Parabola.forward(other, x)
    with pytest.raises(ValueError, match=r"cannot be resumed by this run: .*that the run began with") as failure:
        run(tmp_path, 2, "latest", model=other)
    assert "\n" not in str(failure.value)


# Settings ------------------------------------------------------------------------------------------------------------


def test_settings_that_make_another_run_are_refused_and_the_others_are_applied(tmp_path, warnings):
    settings = {"batch_size": 4, "seed": 0, "train": "full", "learning_rate": 0.1, "num_steps": 1, "output": "a"}
    run(tmp_path, 1, settings=settings)
    assert json.loads((tmp_path / "training_args.json").read_text()) == settings
    other = {**settings, "batch_size": 8, "seed": 1, "train": "head", "num_steps": 2}
    with pytest.raises(
        ValueError, match="batch_size was 4, now 8; seed was 0, now 1; train was full, now head"
    ) as error:
        run(tmp_path, 2, "latest", settings=other)
    assert "num_steps" not in str(error.value)
    assert json.loads((tmp_path / "training_args.json").read_text()) == settings
    other = {**settings, "learning_rate": 0.01, "num_steps": 2, "output": "b"}
    run(tmp_path, 2, "latest", learning_rate=0.01, settings=other)
    (said,) = (message for message in warnings() if "goes on with other settings" in message)
    assert "learning_rate was 0.1, now 0.01; num_steps was 1, now 2" in said and "output" not in said
    assert [line["lr_base"] for line in lines(tmp_path)] == [0.1, 0.01]
    assert json.loads((tmp_path / "training_args.json").read_text()) == other


def test_a_data_file_with_another_content_is_another_run(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("a")
    saved = describe_settings({"data": file, "output": tmp_path / "out"})
    compare_settings(saved, describe_settings({"data": Path(f"{tmp_path}/./data.yaml"), "output": "elsewhere"}))
    file.write_text("b")
    with pytest.raises(ValueError, match="content of data was"):
        compare_settings(saved, describe_settings({"data": file}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` is 0; expected a whole number of at least 1"),
        ({"num_steps": -3}, "`num_steps` is -3"),
        ({"num_steps": 1.5}, "`num_steps` is 1.5"),
        ({"accumulation_steps": 0}, "`accumulation_steps` is 0; expected a whole number of at least 1"),
        ({"save_steps": 0}, "`save_steps` is 0"),
        ({"eval_steps": -1}, "`eval_steps` is -1"),
        ({"log_steps": 0}, "`log_steps` is 0"),
        ({"keep_checkpoints": 0}, "`keep_checkpoints` is 0"),
        ({"patience": -1}, "`patience` is -1; expected a whole number of at least 0"),
        ({"warmup_steps": -1}, "`warmup_steps` is -1"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` is 0"),
        ({"schedule": "linear"}, "`schedule` is 'linear'"),
    ],
)
def test_plans_refuse_numbers_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan(tmp_path, **{"num_steps": 1, **options})


# Logs ----------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    log = TrainingLog(Accelerator(), tmp_path / "log.jsonl", 0)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "name": "base"}], lr=0.1)
    log.add({"loss": torch.tensor(2.0)})
    log.add({"loss": torch.tensor(4.0)})
    log.flush(TrainingState(step=2, seconds=1.0), optimizer)
    log.add({"loss": torch.tensor(float("nan")), "loss_box": torch.tensor(1.0)})
    with pytest.raises(FloatingPointError, match="not finite at step 3: loss nan, loss_box 1"):
        log.flush(TrainingState(step=3, seconds=2.0), optimizer)
    found = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert found[0] == {"step": 2, "loss": 3.0, "lr_base": 0.1, "seconds": 1.0}
    assert found[1]["seconds_per_step"] == 1.0


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\x00\x00\x00\x00", b"\xff\xfe{", b"[]\n", b'{"loss": 1.0}\n'])
def test_the_broken_tail_of_a_log_is_dropped_and_the_run_goes_on(tmp_path, warnings, tail):
    run(tmp_path, 2)
    with open(tmp_path / "training_log.jsonl", "ab") as file:
        file.write(tail)
    run(tmp_path, 3, "latest")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert any("line 3 of 3 is damaged" in message for message in warnings())


# Disks ---------------------------------------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["accelerate.checkpointing.save", "accelerate.accelerator.save_accelerator_state"])
def test_a_full_disk_ends_with_one_sentence_and_what_was_saved_stays(tmp_path, monkeypatch, where):
    run(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(
            OSError, match=r"could not write the checkpoint of step 3 .*No space left.*--resume latest"
        ) as error:
            run(tmp_path, 4, "latest")
        assert "\n" not in str(error.value)
        assert "MB are free on that disk" in str(error.value)
    assert names(tmp_path) == ["step-0000001", "step-0000002"]
    assert run(tmp_path, 4, "latest").step == 4
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_while_the_average_or_the_state_is_written(tmp_path, monkeypatch):
    run(tmp_path, 1)
    for name in ("save_file", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints_module, name, full)
            with pytest.raises(OSError, match=r"could not write the checkpoint of step 2"):
                run(tmp_path, 2, "latest")
        assert names(tmp_path) == ["step-0000001"]


def test_a_full_disk_while_a_model_is_exported_leaves_the_one_before(tmp_path, monkeypatch):
    torch.manual_seed(0)
    accelerator, processor = Accelerator(cpu=True), tiny_processor()
    model = GLIPv2ForObjectDetection(tiny_config())
    export_model(accelerator, processor, model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        model.detection_head.log_scale.add_(1)
    with monkeypatch.context() as patch:
        # The last file that is written.
        patch.setattr(type(processor), "save_pretrained", full)
        with pytest.raises(OSError, match=rf"could not write the model to {tmp_path}: .*No space left on device"):
            export_model(accelerator, processor, model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_while_the_log_is_written(tmp_path, monkeypatch):
    log = TrainingLog(Accelerator(), tmp_path / "log.jsonl", 0)
    monkeypatch.setattr("transformers_glipv2.training.loop.open", full, raising=False)
    with pytest.raises(OSError, match=r"could not write .*log.jsonl: .*No space left"):
        log.write({"step": 1, "loss": 1.0})


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(tmp_path / "file" / "run", 1)


# Uploads -------------------------------------------------------------------------------------------------------------


def test_pushes_results_but_no_checkpoints(tmp_path, monkeypatch):
    calls = []

    class Api:
        endpoint = "https://hub"

        def create_repo(self, repo_id, exist_ok):
            return type("Repo", (), {"repo_id": f"user/{repo_id}"})

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(checkpoints_module, "HfApi", Api)
    assert push_folder(tmp_path, "nano") == "https://hub/user/nano"
    assert calls[0]["repo_id"] == "user/nano"
    assert {"checkpoints/**", "last/**"} <= set(calls[0]["ignore_patterns"])
