"""Checkpoints to go on from, and folders to use: written to a temporary name first, so none is ever half there."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import nn
from transformers.utils import logging

from transformers_glipv2.data.files import write_json
from transformers_glipv2.layers.prompt_tuning import has_prompt_tuning, save_prompt_tuning
from transformers_glipv2.training.averaging import WeightAverage

logger = logging.get_logger(__name__)

STATE_FILE = "training_state.json"
AVERAGE_FILE = "weight_average.safetensors"


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


def checkpoint_folder(output: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(output) / "checkpoints" / f"step-{step:07d}"


def find_checkpoint(output: str | Path, resume_from: str | Path) -> Path | None:
    """
    The checkpoint that a user means.

    Args:
        output (`str` or `Path`): the run's output folder.
        resume_from (`str` or `Path`): a checkpoint folder, or "latest": the one with the most steps under `output`.

    Returns:
        `Path` or `None`: `None` where "latest" finds none, so that one command starts a run and takes it up again.

    Raises:
        FileNotFoundError: when the folder is no checkpoint.
    """
    if str(resume_from) == "latest":
        return max((Path(output) / "checkpoints").glob("step-*"), default=None)
    if not (Path(resume_from) / STATE_FILE).is_file():
        found = [path.name for path in sorted((Path(output) / "checkpoints").glob("step-*"))]
        raise FileNotFoundError(
            f"{resume_from} holds no {STATE_FILE}; pass a checkpoint folder or `latest`. "
            f"Checkpoints of {output}: {', '.join(found) or 'none'}."
        )
    return Path(resume_from)


def save_checkpoint(
    accelerator: Accelerator,
    output: str | Path,
    state: TrainingState,
    average: WeightAverage | None = None,
    keep: int = 2,
) -> Path:
    """
    Writes everything that the run needs to go on exactly; called by all processes.

    Args:
        accelerator (`Accelerator`): has prepared model and optimizer.
        output (`str` or `Path`): the run's output folder.
        state (`TrainingState`): how far the run is.
        average (`WeightAverage`, *optional*).
        keep (`int`, *optional*, defaults to 2): older checkpoints beyond this many are deleted.

    Returns:
        `Path`: the folder, `OUTPUT/checkpoints/step-NNNNNNN`.
    """
    folder = checkpoint_folder(output, state.step)
    partial = folder.with_name(f".{folder.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    averaged = average.state_dict() if average is not None else None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if averaged is not None:
            save_file(averaged, partial / AVERAGE_FILE)
        write_json(partial / STATE_FILE, asdict(state))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        for old in sorted(folder.parent.glob("step-*"))[: -max(1, keep)]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator, folder: str | Path, average: WeightAverage | None = None
) -> TrainingState:
    """
    Takes up the run that `save_checkpoint` wrote.

    Raises:
        ValueError: when the averaged weights are missing or belong to another model.
    """
    folder = Path(folder)
    accelerator.load_state(str(folder))
    if average is not None:
        if not (folder / AVERAGE_FILE).is_file():
            raise ValueError(f"{folder} holds no averaged weights; resume without averaging (`--ema_decay 0`).")
        average.load(folder / AVERAGE_FILE)
    with open(folder / STATE_FILE, encoding="utf-8") as file:
        return TrainingState(**json.load(file))


def export_model(
    accelerator: Accelerator,
    processor: Any,
    model: nn.Module,
    folder: str | Path,
    other_heads: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """
    Writes the model (of whatever class, also a PEFT one) and its processor as `from_pretrained` takes them; of a model
    with a tuned prompt the prompt alone. Called by all processes. Files replace older ones one by one, each whole.

    Args:
        accelerator (`Accelerator`): has prepared the model.
        processor (`GLIPv2Processor`): saved beside it.
        model (`nn.Module`): prepared.
        folder (`str` or `Path`).
        other_heads (`Mapping[str, torch.Tensor]`, *optional*): tensors of heads that the class does not have, to be
            kept in the checkpoint; see `load_other_heads`.
    """
    state_dict = {**accelerator.get_state_dict(model), **(other_heads or {})}
    if accelerator.is_main_process:
        folder = Path(folder)
        partial = folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        own = accelerator.unwrap_model(model)
        if has_prompt_tuning(own):
            save_prompt_tuning(own, partial)
        else:
            own.save_pretrained(partial, state_dict=state_dict)
        processor.save_pretrained(partial)
        for path in sorted(partial.iterdir()):
            os.replace(path, folder / path.name)
        partial.rmdir()
    accelerator.wait_for_everyone()


def push_folder(folder: str | Path, repo_id: str) -> str:
    """Uploads an output folder to the Hub, without checkpoints and tracker files; returns the address."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        ignore_patterns=["checkpoints/**", "last/**", "runs/**", "tracking/**", ".*"],
    )
    return f"{api.endpoint}/{repo_id}"
