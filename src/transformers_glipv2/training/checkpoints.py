"""Checkpoints to resume from and folders to use: written to a temporary name first, so none is ever incomplete."""

import copy
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, logging

from transformers_glipv2.data.files import write_json
from transformers_glipv2.training.averaging import WeightAverage

logger = logging.get_logger(__name__)

STATE_FILE = "training_state.json"
AVERAGE_FILE = "weight_average.safetensors"
ADAPTER_FOLDER = "adapter"
# What readers and writers of weights raise, for example where a disk is full.
_FILE_ERRORS = (OSError, RuntimeError, SafetensorError)


@dataclass
class TrainingState:
    """
    How far a run is.

    Attributes:
        step (`int`): optimizer steps made.
        seconds (`float`): spent in training and evaluation, over all parts of an interrupted run.
        best_step (`int` or `None`), best_metrics (`dict[str, float]`): the best evaluation so far.
        evaluations_without_gain (`int`): since then.
        stopped (`str`): why the run ended early: "", "signal" or "no gain".
        evaluation_due (`bool`): whether a signal came before the evaluation of this step.
    """

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    evaluations_without_gain: int = 0
    stopped: str = ""
    evaluation_due: bool = False


@dataclass
class CheckpointInfo:
    """
    What `training_state.json` of a checkpoint holds.

    Attributes:
        state (`TrainingState`): how far the run was.
        settings (`dict[str, Any]`): of the run; see `describe_settings`.
        files (`dict[str, int]`): name and size in bytes of every other file of the checkpoint.
    """

    state: TrainingState
    settings: dict[str, Any]
    files: dict[str, int]


# Finding -------------------------------------------------------------------------------------------------------------


def checkpoint_folder(output: str | Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return Path(output) / "checkpoints" / f"step-{step:07d}"


def list_checkpoints(output: str | Path) -> list[Path]:
    """The checkpoint folders under a run's output, whole or not, by their steps."""
    found = (Path(output) / "checkpoints").glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=_step_of)


def read_checkpoint_info(folder: str | Path) -> CheckpointInfo:
    """
    What a checkpoint says about itself; all its files are there in their full size.

    Raises:
        FileNotFoundError: when the folder is no checkpoint.
        ValueError: when a file of it is missing, cut off or damaged; names the file.
    """
    folder = Path(folder)
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {STATE_FILE}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        info = CheckpointInfo(TrainingState(**content["state"]), content["settings"], content["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    for name, size in info.files.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing.")
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, {size} when it was saved.")
    return info


def find_checkpoint(output: str | Path, resume_from: str | Path) -> Path | None:
    """
    The checkpoint that a user means.

    Args:
        output (`str` or `Path`): the run's output folder.
        resume_from (`str` or `Path`): a checkpoint folder, or "latest": the newest whole one under `output`; damaged
            ones are skipped with a warning.

    Returns:
        `Path` or `None`: `None` where "latest" finds none, so that one command starts a run and resumes it.

    Raises:
        FileNotFoundError: when the folder is no checkpoint.
        ValueError: when it is damaged, or "latest" finds damaged ones alone.
    """
    found = list_checkpoints(output)
    if str(resume_from) != "latest":
        others = ", ".join(path.name for path in found if path != Path(resume_from)) or "none"
        try:
            read_checkpoint_info(resume_from)
        except (FileNotFoundError, ValueError) as error:
            message = f"{error} Pass a whole checkpoint folder or `latest`; others of {output}: {others}."
            raise type(error)(message) from error
        return Path(resume_from)
    problem: Exception | None = None
    for path in reversed(found):
        try:
            read_checkpoint_info(path)
        except (FileNotFoundError, ValueError) as error:
            logger.warning(f"the checkpoint {path.name} cannot be used and is skipped: {error}")
            problem = problem or error
            continue
        return path
    if problem is not None:
        raise ValueError(
            f"none of the {len(found)} checkpoints of {output} is whole: {problem} Delete {output}/checkpoints to "
            "start anew."
        )
    return None


def refuse_started_run(output: str | Path) -> None:
    """
    Raises:
        FileExistsError: when a folder holds checkpoints, so that a new run would mix with the old one.
    """
    found = list_checkpoints(output)
    if found:
        raise FileExistsError(
            f"{output} holds checkpoints of a run up to step {_step_of(found[-1])}; go on with it (`--resume "
            f"latest`), choose another `--output`, or delete {Path(output) / 'checkpoints'}."
        )


def drop_later_checkpoints(accelerator: Accelerator, output: str | Path, state: TrainingState) -> None:
    """
    Deletes the checkpoints beyond the step that a run resumes at: they belong to a course that is abandoned, and
    `latest` must not take them. Called by all processes. Where the best weights in `output` are of that course, the
    state forgets them, so that the next evaluation replaces them.
    """
    later = [path for path in list_checkpoints(output) if _step_of(path) > state.step]
    for path in later:
        try:
            best = read_checkpoint_info(path).state.best_step
        except (FileNotFoundError, ValueError):
            continue
        if best is not None and best > state.step:
            state.best_step, state.best_metrics, state.evaluations_without_gain = None, None, 0
    accelerator.wait_for_everyone()
    if later and accelerator.is_main_process:
        logger.warning(f"resuming at step {state.step} drops {', '.join(path.name for path in later)} of {output}")
        for path in later:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()


# Saving and loading --------------------------------------------------------------------------------------------------


def save_checkpoint(
    accelerator: Accelerator,
    output: str | Path,
    state: TrainingState,
    average: WeightAverage | None = None,
    keep: int = 2,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """
    Writes everything that the run needs to go on exactly; called by all processes.

    Args:
        accelerator (`Accelerator`): has prepared model and optimizer.
        output (`str` or `Path`): the run's output folder.
        state (`TrainingState`): how far the run is.
        average (`WeightAverage`, *optional*).
        keep (`int`, *optional*, defaults to 2): older checkpoints beyond this many are deleted; this one stays.
        settings (`Mapping[str, Any]`, *optional*): of the run, for `compare_settings` when it is resumed.

    Returns:
        `Path`: the folder, `OUTPUT/checkpoints/step-NNNNNNN`.

    Raises:
        OSError: on all processes, when one cannot write, for example because the disk is full. Earlier checkpoints
            stay whole.
    """
    folder = checkpoint_folder(output, state.step)
    partial = folder.with_name(f".{folder.name}.partial")

    def start() -> None:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def finish() -> None:
        if averaged is not None and accelerator.is_main_process:
            save_file(averaged, partial / AVERAGE_FILE)
        if accelerator.is_main_process:
            files = {str(path.relative_to(partial)): _synced(path) for path in partial.rglob("*") if path.is_file()}
            content = CheckpointInfo(state, dict(settings or {}), files)
            write_json(partial / STATE_FILE, asdict(content))
            _synced(partial / STATE_FILE)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)

    def discard() -> None:
        shutil.rmtree(partial, ignore_errors=True)

    what = f"the checkpoint of step {state.step}"
    _written(accelerator, start, what, output, discard)
    averaged = average.state_dict() if average is not None else None
    _written(accelerator, lambda: accelerator.save_state(str(partial)), what, output, discard)
    _written(accelerator, finish, what, output, discard)
    if accelerator.is_main_process:
        earlier = [path for path in list_checkpoints(output) if _step_of(path) < state.step]
        for old in earlier[: max(0, len(earlier) - max(1, keep) + 1)]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator, folder: str | Path, average: WeightAverage | None = None
) -> TrainingState:
    """
    Restores the run that `save_checkpoint` wrote.

    Raises:
        FileNotFoundError: when the folder is no checkpoint.
        ValueError: when a file is missing or damaged, or belongs to another model or other trained parts.
    """
    folder = Path(folder)
    state = read_checkpoint_info(folder).state
    try:
        accelerator.load_state(str(folder))
    except (*_FILE_ERRORS, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{folder} cannot be resumed by this run: {reason} Resume with the model, and what is trained of it, that "
            "the run began with, or choose another `--output`."
        ) from error
    if average is not None:
        if not (folder / AVERAGE_FILE).is_file():
            raise ValueError(f"{folder} holds no averaged weights; resume without averaging (`--ema_decay 0`).")
        average.load(folder / AVERAGE_FILE)
    return state


def export_model(
    accelerator: Accelerator,
    processor: Any,
    model: nn.Module,
    folder: str | Path,
    other_heads: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """
    Writes the model (of whatever class) and its processor as `from_pretrained` takes them: a tuned prompt in a file of
    its own beside the weights, LoRA adapters merged into the weights and alone under `adapter/`. Called by all
    processes. Files replace older ones one by one, each whole.

    Args:
        accelerator (`Accelerator`): has prepared the model.
        processor (`GLIPv2Processor`): saved beside it.
        model (`nn.Module`): prepared.
        folder (`str` or `Path`).
        other_heads (`Mapping[str, torch.Tensor]`, *optional*): tensors of heads that the class does not have, to be
            kept in the checkpoint; see `load_other_heads`.

    Raises:
        OSError: on all processes, when the main one cannot write. What was in the folder stays whole.
    """
    gathered = accelerator.get_state_dict(model)
    folder = Path(folder)
    partial = folder / ".partial"

    def write() -> None:
        if not accelerator.is_main_process:
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        own, weights = accelerator.unwrap_model(model), gathered
        if hasattr(own, "peft_config"):
            _save_adapter(own, partial / ADAPTER_FOLDER, weights)
            own = copy.deepcopy(own).merge_and_unload()
            weights = own.state_dict()
        own.save_pretrained(partial, state_dict={**weights, **(other_heads or {})})
        processor.save_pretrained(partial)
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        shutil.rmtree(partial)

    _written(accelerator, write, "the model", folder, lambda: shutil.rmtree(partial, ignore_errors=True))


def _save_adapter(model: Any, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """The adapters of a PEFT model alone, without this machine's path to the model that they are for."""
    model.save_pretrained(folder, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if base and Path(base).is_absolute():
        write_json(file, {**config, "base_model_name_or_path": Path(base).name})


def copy_generation_config(source: str, folder: str | Path) -> None:
    """Copies the `generation_config.json` of a checkpoint, which captions need, to a folder."""
    file = cached_file(source, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    if file is not None and Path(file).resolve() != (Path(folder) / GENERATION_CONFIG_NAME).resolve():
        shutil.copyfile(file, Path(folder) / GENERATION_CONFIG_NAME)


def _written(
    accelerator: Accelerator, write: Callable[[], Any], what: str, folder: str | Path, discard: Callable[[], None]
) -> None:
    """
    Calls `write` on this process. Where it failed on any, all raise the same error, so that none waits for the others.
    """
    reason = ""
    try:
        write()
    except _FILE_ERRORS as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        # Writers of tensors do not say that the disk is full.
        reason += f" ({_free_megabytes(Path(folder)):.0f} MB are free on that disk)"
    reasons = [each for each in gather_object([reason]) if each]
    if reasons:
        if accelerator.is_main_process:
            discard()
        raise OSError(
            f"could not write {what} to {folder}: {reasons[0]}. What was saved before is whole; free space, or make "
            "the folder writable, and go on with `--resume latest`."
        )


def _free_megabytes(folder: Path) -> float:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free / 1e6


def _synced(path: Path) -> int:
    """Has a file written to the disk, so that it survives a power loss; returns its size in bytes."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def push_folder(folder: str | Path, repo_id: str) -> str:
    """Uploads an output folder to the Hub, without checkpoints and tracker files; returns the address."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        ignore_patterns=["checkpoints/**", "last/**", "runs/**", "tracking/**", "training_args.json", ".*"],
    )
    return f"{api.endpoint}/{repo_id}"
