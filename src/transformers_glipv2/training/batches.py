"""Which examples a step gets: its number alone decides, whatever the number of processes and workers."""

import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, Sampler


def steps_of_epochs(sources: Sequence[Any], epochs: int, batch_size: int) -> int:
    """
    Steps that see as many examples as `epochs` passes over all sources have.

    Raises:
        ValueError: when a source is endless.
    """
    if not all(hasattr(source, "__len__") for source in sources):
        raise ValueError("a source is endless, and so is an epoch; give `--num_steps`.")
    return -(-epochs * sum(len(source) for source in sources) // batch_size)


class StepBatches(Sampler[list[int]]):
    """
    The micro-batches of one process: step s of the run gets the sample indices s * batch_size to
    (s + 1) * batch_size - 1.

    A step's examples are cut into micro-batches in order and dealt to the processes in turn. So the same `batch_size`
    trains on the same examples on one process and on many, and a run that resumes at a step reads what the interrupted
    one would have read.

    Args:
        batch_size (`int`): examples of one optimizer step, over all processes and accumulated micro-batches.
        num_steps (`int`): of the whole run.
        start_step (`int`, *optional*, defaults to 0): steps already made.
        accumulation_steps (`int`, *optional*, defaults to 1): micro-batches that each process takes a step.
        process_index (`int`, *optional*, defaults to 0), num_processes (`int`, *optional*, defaults to 1).

    Raises:
        ValueError: when a number is out of range, or `batch_size` cannot be dealt evenly.
    """

    def __init__(
        self,
        batch_size: int,
        num_steps: int,
        start_step: int = 0,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        for name, value, least in (
            ("accumulation_steps", accumulation_steps, 1),
            ("num_processes", num_processes, 1),
            ("num_steps", num_steps, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` is {value}; expected at least {least}.")
        parts = accumulation_steps * num_processes
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"`batch_size`={batch_size} is the number of images of one optimizer step over all processes; it "
                f"must be a multiple of {num_processes} processes x {accumulation_steps} accumulated batches."
            )
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.start_step = start_step
        self.accumulation_steps = accumulation_steps
        self.process_index = process_index
        self.num_processes = num_processes

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size // (self.accumulation_steps * self.num_processes)
        for step in range(self.start_step, self.num_steps):
            for micro in range(self.accumulation_steps):
                start = step * self.batch_size + (micro * self.num_processes + self.process_index) * size
                yield list(range(start, start + size))


def step_loader(
    dataset: Dataset,
    batches: StepBatches,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    num_workers: int = 0,
) -> DataLoader:
    """A data loader of the micro-batches that neither reads nor moves the global random streams."""
    return _StepLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_PackingCollate(collate),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=ignore_stop_signals,
        # Without a generator of its own the loader would draw from the global stream, and dropout with it.
        generator=torch.Generator().manual_seed(0),
    )


class _PackingCollate:
    """
    Sends the labels of a batch as one string of bytes. As hundreds of small tensors, each shared and pinned
    separately, they can take longer than a GPU's step.
    """

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], Any]):
        self.collate = collate

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        batch = self.collate(examples)
        if isinstance(batch, dict) and isinstance(batch.get("labels"), list):
            labels = tree_map_only(torch.Tensor, torch.Tensor.numpy, batch["labels"])
            batch = {**batch, "labels": pickle.dumps(labels, protocol=pickle.HIGHEST_PROTOCOL)}
        return batch


class _StepLoader(DataLoader):
    """Unpacks what `_PackingCollate` packed."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch declares its private iterator class
        for batch in super().__iter__():
            if isinstance(batch, dict) and isinstance(batch.get("labels"), bytes):
                batch["labels"] = tree_map_only(np.ndarray, torch.from_numpy, pickle.loads(batch["labels"]))
            yield batch


def ignore_stop_signals(worker: int) -> None:
    """A signal sent to the whole process group must not kill the workers before the last step is done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def read_batches(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """
    The batches of a loader, whose workers end with the context.

    A run that fails would otherwise never end: its error holds the frame that reads, and at its exit Python waits for
    workers that a signal does not end (`ignore_stop_signals`).
    """
    with closing(batch for batch in loader) as batches:
        yield batches
