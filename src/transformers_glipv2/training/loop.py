"""The training loop that every training script shares."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_glipv2.data.files import write_json, write_text
from transformers_glipv2.data.seeding import derive_seed
from transformers_glipv2.training.accumulation import on_device, prepare_step
from transformers_glipv2.training.averaging import WeightAverage
from transformers_glipv2.training.batches import read_batches
from transformers_glipv2.training.checkpoints import (
    TrainingState,
    checkpoint_folder,
    drop_later_checkpoints,
    find_checkpoint,
    load_checkpoint,
    read_checkpoint_info,
    refuse_started_run,
    save_checkpoint,
)
from transformers_glipv2.training.compiling import uncompiled
from transformers_glipv2.training.optimization import SCHEDULES, learning_rate_factor, set_learning_rates
from transformers_glipv2.training.settings import compare_settings, describe_settings

logger = logging.get_logger(__name__)

LOG_FILE = "training_log.jsonl"
SETTINGS_FILE = "training_args.json"


@dataclass
class TrainingPlan:
    """
    How a run goes.

    Args:
        output (`Path`): the folder for checkpoints, the log and the results.
        num_steps (`int`): optimizer steps.
        schedule (`str`, *optional*, defaults to `"cosine"`), warmup_steps (`int`, *optional*, defaults to 0):
            see `learning_rate_factor`.
        accumulation_steps (`int`, *optional*, defaults to 1): micro-batches of a process in a step.
        max_grad_norm (`float`, *optional*, defaults to 1.0): the whole gradient is clipped to this norm.
        log_steps (`int`, *optional*, defaults to 10): losses are averaged over so many steps for a line of the log.
        save_steps (`int`, *optional*, defaults to 500): steps between checkpoints.
        eval_steps (`int`, *optional*): steps between evaluations; by default at every checkpoint.
        metric (`str`, *optional*, defaults to `"AP"`): what is best when largest.
        patience (`int`, *optional*, defaults to 0): the run ends after so many evaluations in a row without a gain; 0
            never ends it.
        keep_checkpoints (`int`, *optional*, defaults to 2).
        seed (`int`, *optional*, defaults to 0): of dropout and the like.

    Raises:
        ValueError: when a number is out of range, or the schedule is unknown.
    """

    output: Path
    num_steps: int
    schedule: str = "cosine"
    warmup_steps: int = 0
    accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    log_steps: int = 10
    save_steps: int = 500
    eval_steps: int | None = None
    metric: str = "AP"
    patience: int = 0
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self):
        at_least_one = ["num_steps", "accumulation_steps", "log_steps", "save_steps", "keep_checkpoints"]
        if self.eval_steps is not None:
            at_least_one.append("eval_steps")
        limits = {**dict.fromkeys(at_least_one, 1), "warmup_steps": 0, "patience": 0}
        for name, least in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least {least}.")
        if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ValueError(f"`max_grad_norm` is {self.max_grad_norm}; expected a number above 0.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"`schedule` is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}.")


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    make_loader: Callable[[int], DataLoader],
    plan: TrainingPlan,
    export: Callable[[nn.Module, Path], None],
    average: WeightAverage | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    resume_from: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainingState:
    """
    Trains, logs, evaluates, saves, and stops in good order at SIGTERM.

    `export` writes the best evaluated weights to `plan.output`, or without evaluation the last ones. With evaluation
    it writes the last ones to `last/`. Averaged weights, where there are any, are the ones that are evaluated and
    kept. `training_log.jsonl` gets a line for every `log_steps` steps (means over steps and processes) and for
    every evaluation.

    Args:
        accelerator (`Accelerator`), model (`nn.Module`), optimizer (`Optimizer`): prepared. The model gives `loss` and
            `loss_dict`; groups have "initial_lr" as `parameter_groups` gives it.
        make_loader (`Callable[[int], DataLoader]`): from the step to start at to the micro-batches of this process, as
            `step_loader` gives them.
        plan (`TrainingPlan`): how the run goes.
        export (`Callable[[nn.Module, Path], None]`): writes the prepared model to a folder, for example
            `functools.partial(export_model, accelerator, processor)`; called by all processes.
        average (`WeightAverage`, *optional*): updated after each step.
        evaluate (`Callable[[nn.Module], dict[str, float]]`, *optional*): from the prepared model, in eval mode and
            without gradients, to metrics; called by all processes and must give all of them the same.
        resume_from (`str` or `Path`, *optional*): see `find_checkpoint`. Checkpoints and lines of the log beyond its
            step are dropped.
        settings (`Mapping[str, Any]`, *optional*): of the run, such as `vars(args)`: written to `training_args.json`,
            kept in the checkpoints, and compared with those of the checkpoint that is resumed (`compare_settings`).

    Returns:
        `TrainingState`: `stopped` says whether a signal or a lack of gains ended the run before `plan.num_steps`.

    Raises:
        FloatingPointError: when a loss is not finite.
        FileExistsError: when the output folder holds a run and `resume_from` is not given.
        FileNotFoundError, ValueError: when the checkpoint is missing, damaged, or of a run with other settings.
        OSError: when something cannot be written; what was saved before is whole.
    """
    settings = describe_settings(settings or {})
    state = TrainingState()
    checkpoint = find_checkpoint(plan.output, resume_from) if resume_from is not None else None
    if checkpoint is None:
        refuse_started_run(plan.output)
    else:
        state = _resumed(accelerator, optimizer, plan, average, checkpoint, settings)
    # The main process writes there while others may still look.
    accelerator.wait_for_everyone()
    plan.output.mkdir(parents=True, exist_ok=True)
    if settings and accelerator.is_main_process:
        write_json(plan.output / SETTINGS_FILE, settings)
    log = TrainingLog(accelerator, plan.output / LOG_FILE, state.step)
    every = plan.eval_steps or plan.save_steps
    started = time.monotonic() - state.seconds

    with (
        StopSignal(accelerator) as stop,
        tqdm(total=plan.num_steps, initial=state.step, disable=not accelerator.is_main_process, unit="step") as bar,
        read_batches(make_loader(state.step)) as batches,
    ):
        if evaluate is not None and state.evaluation_due:
            _evaluate_and_keep(accelerator, model, plan, export, average, evaluate, state, log)
        while state.step < plan.num_steps and not state.stopped:
            set_learning_rates(
                optimizer, learning_rate_factor(state.step, plan.num_steps, plan.warmup_steps, plan.schedule)
            )
            losses = training_step(accelerator, model, optimizer, batches, plan, state.step)
            state.step += 1
            if average is not None:
                average.update(accelerator.unwrap_model(model))
            log.add(losses)
            state.seconds = time.monotonic() - started
            last = state.step == plan.num_steps
            state.stopped = "signal" if stop.requested() and not last else ""
            saving = last or bool(state.stopped) or state.step % plan.save_steps == 0
            if saving or state.step % plan.log_steps == 0:
                bar.set_postfix(log.flush(state, optimizer))
            bar.update()
            state.evaluation_due = evaluate is not None and (last or state.step % every == 0)
            if evaluate is not None and state.evaluation_due and not state.stopped:
                _evaluate_and_keep(accelerator, model, plan, export, average, evaluate, state, log)
                state.seconds = time.monotonic() - started
            if saving or state.stopped:
                save_checkpoint(accelerator, plan.output, state, average, plan.keep_checkpoints, settings)

    if state.stopped != "signal":
        folder = plan.output / "last" if state.best_step is not None else plan.output
        with _averaged(accelerator, model, average):
            export(model, folder)
    else:
        logger.warning(
            f"stopped by a signal after step {state.step} of {plan.num_steps}; go on with `--resume latest` from "
            f" {checkpoint_folder(plan.output, state.step)}"
        )
    return state


def _resumed(
    accelerator: Accelerator,
    optimizer: Optimizer,
    plan: TrainingPlan,
    average: WeightAverage | None,
    checkpoint: Path,
    settings: Mapping[str, Any],
) -> TrainingState:
    """The state of a checkpoint; model, optimizer and average get what it holds, rates stay those of this run."""
    compare_settings(read_checkpoint_info(checkpoint).settings, settings)
    asked = [(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    state = load_checkpoint(accelerator, checkpoint, average)
    for group, (rate, decay) in zip(optimizer.param_groups, asked, strict=True):
        if (group["initial_lr"], group["weight_decay"]) != (rate, decay):
            logger.warning(
                f"parameters of the group {group.get('name')!r} go on with learning rate {rate:g} and weight decay "
                f"{decay:g}; they had {group['initial_lr']:g} and {group['weight_decay']:g}"
            )
        group["initial_lr"], group["weight_decay"] = rate, decay
    drop_later_checkpoints(accelerator, plan.output, state)
    # A run that a signal stopped goes on; one that ended without gains stays ended, unless it gets more patience.
    state.stopped = _lack_of_gains(state, plan)
    logger.info(f"resuming {checkpoint} at step {state.step} of {plan.num_steps}")
    return state


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[dict[str, Any]],
    plan: TrainingPlan,
    step: int,
) -> dict[str, torch.Tensor]:
    """
    One optimizer step, whose gradient does not depend on how many micro-batches it is cut into (`accumulation.py`).

    Returns:
        `dict[str, torch.Tensor]`: this process' "loss", each part of the loss, and "grad_norm" before clipping;
        on the device, detached.
    """
    model.train()
    sums: dict[str, torch.Tensor] = {}
    device, process = accelerator.device, accelerator.process_index
    # All of them before the first forward pass: what the losses are divided by is counted over the whole step.
    micro_batches = [next(batches) for _ in range(plan.accumulation_steps)]

    def seed_of(micro: int) -> int:
        # Dropout depends on the step's number alone, so a resumed run drops the same.
        return derive_seed(plan.seed, "noise", step, micro, process)

    prepared = prepare_step(accelerator, model, micro_batches, seed_of)
    for micro, (batch, whole_step) in enumerate(zip(micro_batches, prepared, strict=True)):
        # After the batches, which this process may have made: what augmentation and collation do to the global stream
        # must not reach dropout.
        torch.manual_seed(seed_of(micro))
        is_last = micro == plan.accumulation_steps - 1
        with nullcontext() if is_last else accelerator.no_sync(model):
            outputs = model(**on_device(batch, device), **whole_step.arguments())
            losses = whole_step.scaled(outputs.loss, outputs.loss_dict)
            accelerator.backward(losses["loss"])
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float()
    norm = accelerator.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return {**sums, "grad_norm": norm.detach()} if norm is not None else sums


class TrainingLog:
    """
    Means of the losses over steps and processes, as lines of JSON and to the accelerator's trackers.

    Args:
        accelerator (`Accelerator`).
        file (`Path`): appended to; lines of steps after `start_step`, left by a run that was interrupted, and damaged
            ones are dropped.
        start_step (`int`).
    """

    def __init__(self, accelerator: Accelerator, file: Path, start_step: int):
        self.accelerator = accelerator
        self.file = file
        self.seconds: float | None = None
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        if accelerator.is_main_process:
            kept = [line for line in _whole_lines(file) if json.loads(line)["step"] <= start_step]
            write_text(file, "".join(line + "\n" for line in kept))

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Take in one step of this process."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def flush(self, state: TrainingState, optimizer: Optimizer) -> dict[str, str]:
        """Write a line; called by all processes. Returns the total loss for the progress bar."""
        mine = {name: float(value) / self.steps for name, value in self.sums.items()}
        everyone = gather_object([mine])
        names = dict.fromkeys(name for one in everyone for name in one)
        # A loss that some process had no data for counts as zero there, as it does in the gradient.
        means = {name: sum(one.get(name, 0.0) for one in everyone) / len(everyone) for name in names}
        rates = {f"lr_{group.get('name', index)}": group["lr"] for index, group in enumerate(optimizer.param_groups)}
        seconds = state.seconds - (self.seconds or 0.0) if self.seconds is not None else None
        line = {"step": state.step, **means, **rates, "seconds": round(state.seconds, 3)}
        if seconds is not None:
            line["seconds_per_step"] = round(seconds / self.steps, 4)
        self.seconds, self.sums, self.steps = state.seconds, {}, 0
        self.write(line)
        if not math.isfinite(means["loss"]):
            parts = ", ".join(f"{name} {value:g}" for name, value in means.items())
            raise FloatingPointError(
                f"the loss is not finite at step {state.step}: {parts}. Lower the learning rate, warm up longer, or "
                "train in bf16 or float32 where this was fp16."
            )
        return {"loss": f"{means['loss']:.3f}"}

    def write(self, line: dict[str, float]) -> None:
        """Append a line."""
        if self.accelerator.is_main_process:
            try:
                with open(self.file, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise OSError(
                    f"could not write {self.file}: {error}. What was saved before is whole; free space, or make the "
                    "folder writable, and go on with `--resume latest`."
                ) from error
        self.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])


def _whole_lines(file: Path) -> list[str]:
    """The lines of a log up to the first that is damaged, as the last one may be after a power loss."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines):
        try:
            json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            logger.warning(f"{file}: line {number + 1} of {len(lines)} is damaged; it and what follows is dropped")
            return lines[:number]
    return lines


class StopSignal:
    """
    Within the context SIGTERM and SIGINT only ask for a stop after the step, or with several processes after the next
    one; a second SIGINT stops at once.

    Processes agree on the stop on the CPU, beside the step, so that none waits for a GPU or for the others.

    Args:
        accelerator (`Accelerator`): whose processes agree.
    """

    def __init__(self, accelerator: Accelerator):
        self.several = accelerator.num_processes > 1
        self.group: Any = dist.new_group(backend="gloo") if self.several else None
        self.asked = torch.zeros(1)
        self.agreed: tuple[torch.Tensor, Any] | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        # After an error the others may have gone.
        if self.group is not None and exception[0] is None:
            if self.agreed is not None:
                self.agreed[1].wait()
            dist.destroy_process_group(self.group)

    def requested(self) -> bool:
        """Whether any process was asked to stop; called by all processes after every step."""
        if not self.several:
            return bool(self.asked)
        stop = False
        if self.agreed is not None:
            total, work = self.agreed
            work.wait()
            stop = bool(total)
        # What they agree on now is read after the next step.
        total = self.asked.clone()
        self.agreed = total, dist.all_reduce(total, group=self.group, async_op=True)
        return stop

    def _note(self, number: int, frame: Any) -> None:
        self.asked.fill_(1)
        signal.signal(signal.SIGINT, self.previous[signal.SIGINT])


def _evaluate_and_keep(
    accelerator: Accelerator,
    model: nn.Module,
    plan: TrainingPlan,
    export: Callable[[nn.Module, Path], None],
    average: WeightAverage | None,
    evaluate: Callable[[nn.Module], dict[str, float]],
    state: TrainingState,
    log: TrainingLog,
) -> None:
    """Evaluates, keeps the weights where they are the best so far, and counts evaluations without a gain."""
    state.evaluation_due = False
    with _averaged(accelerator, model, average), uncompiled(model):
        model.eval()
        with torch.no_grad():
            metrics = evaluate(model)
        if plan.metric not in metrics:
            raise ValueError(f"`metric` is {plan.metric!r}, but the evaluation gives {', '.join(metrics)}.")
        log.write({"step": state.step, **{f"eval_{name}": value for name, value in metrics.items()}})
        if state.best_metrics is None or metrics[plan.metric] > state.best_metrics[plan.metric]:
            state.best_step, state.best_metrics, state.evaluations_without_gain = state.step, metrics, 0
            export(model, plan.output)
        else:
            state.evaluations_without_gain += 1
    state.stopped = _lack_of_gains(state, plan)


def _lack_of_gains(state: TrainingState, plan: TrainingPlan) -> str:
    """What `state.stopped` says about the last evaluations."""
    ended = plan.patience and state.evaluations_without_gain >= plan.patience and state.step < plan.num_steps
    return "no gain" if ended else ""


def _averaged(accelerator: Accelerator, model: nn.Module, average: WeightAverage | None):
    return nullcontext() if average is None else average.applied(accelerator.unwrap_model(model))
