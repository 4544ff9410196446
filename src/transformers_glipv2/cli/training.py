"""The frame of a training script: what is set up before the model, the run itself, and what is written at its end."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.image_processing_glipv2 import set_shortest_edge
from transformers_glipv2.training import (
    DataFile,
    FixedShapes,
    StepBatches,
    TrainingPlan,
    TrainingState,
    WeightAverage,
    compile_network,
    export_model,
    load_other_heads,
    load_sources,
    make_collator,
    prepare_tuning,
    push_folder,
    read_data_file,
    step_loader,
    steps_of_epochs,
    train,
)
from transformers_glipv2.training.fine_tune import make_accelerator

MakeLoader = Callable[[int], DataLoader]


def start_training(args: argparse.Namespace) -> Accelerator:
    """
    The `Accelerator` of a run, with seeds set.

    Args:
        args (`argparse.Namespace`): flags of `arguments.add_training`, and "trackers" where there are some.
    """
    trackers = getattr(args, "trackers", [])
    accelerator = make_accelerator(args.output, args.mixed_precision, args.seed, trackers)
    if trackers:
        accelerator.init_trackers("glipv2", {name: str(value) for name, value in vars(args).items()})
    return accelerator


def set_image_size(processor: GLIPv2Processor, image_size: Sequence[int] | None) -> None:
    """Lets a processor resize images to the largest of the sizes that are trained at; it is saved with the model."""
    if image_size:
        set_shortest_edge(processor, max(image_size))


def step_loaders(
    args: argparse.Namespace,
    accelerator: Accelerator,
    processor: GLIPv2Processor,
    dataset: Dataset,
    collator: Callable[..., Any],
) -> MakeLoader:
    """From the step to start at to the batches of this process; of a few shapes where the network is compiled."""
    collate = FixedShapes(collator, processor) if args.compile else collator

    def make_loader(start_step: int) -> DataLoader:
        batches = StepBatches(
            args.batch_size,
            args.num_steps,
            start_step,
            getattr(args, "gradient_accumulation_steps", 1),
            accelerator.process_index,
            accelerator.num_processes,
        )
        return step_loader(dataset, batches, collate, args.num_workers)

    return make_loader


def use_image_size(args: argparse.Namespace, data: DataFile, processor: GLIPv2Processor) -> None:
    """Where `--image_size` is given, it is used in place of the sizes of the data file and of the processor."""
    if args.image_size:
        data.sizes, data.max_size = args.image_size, None
        set_image_size(processor, args.image_size)


def language_data(
    args: argparse.Namespace, processor: GLIPv2Processor, epochs: int, num_samples: int | None = None
) -> tuple[DataFile, MixtureDataset, GroundingCollator]:
    """
    Questions or captions of a data file, without masked tokens.

    Args:
        args (`argparse.Namespace`): flags of a run; `num_steps` is set to that of `epochs` where it is `None`.
        processor (`GLIPv2Processor`): gets the image size.
        epochs (`int`): the default length of a run.
        num_samples (`int`, *optional*): of the mixture; by default as many as the steps need.

    Raises:
        ValueError: for a wrong data file, or endless data without a number of steps.
    """
    data = read_data_file(args.data, args.allow_custom_loaders)
    data.mlm_probability = 0.0
    use_image_size(args, data, processor)
    sources, weights = load_sources(data)
    if args.num_steps is None:
        args.num_steps = steps_of_epochs(sources, epochs, args.batch_size)
    length = num_samples or args.num_steps * args.batch_size
    mixture = MixtureDataset(sources, weights, seed=args.seed, length=length)
    return data, mixture, make_collator(data, processor, mixture, args.batch_size, args.seed)


def prepare_head(model: Any, way: str, source: str) -> dict[str, torch.Tensor]:
    """
    Makes trainable what `--train` says of a model with a head beside the detector's.

    Args:
        model (`nn.Module`): changed in place.
        way (`str`): "head": that head alone; else as of `prepare_tuning`.
        source (`str`): folder or Hub id of the checkpoint.

    Returns:
        `dict[str, torch.Tensor]`: the weights of the checkpoint's other heads, to be saved with the model. Empty where
        the detector learns: they would no longer fit what they read.
    """
    if way == "head":
        model.freeze_detector()
        return load_other_heads(source, model)
    prepare_tuning(model, way)
    return {}


def fit(
    args: argparse.Namespace,
    accelerator: Accelerator,
    processor: GLIPv2Processor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    make_loader: MakeLoader,
    warmup_steps: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    other_heads: Mapping[str, torch.Tensor] | None = None,
    average: WeightAverage | None = None,
    **plan: Any,
) -> TrainingState:
    """
    Trains as the flags say; the best evaluated weights are kept, or the last.

    Args:
        args (`argparse.Namespace`): flags of `arguments.add_training`.
        accelerator, model, optimizer, make_loader, evaluate, average: as of `training.train`.
        processor (`GLIPv2Processor`): saved with the weights.
        warmup_steps (`int`): over which the learning rate rises.
        other_heads (`Mapping`, *optional*): weights to save with the model.
        plan: further fields of `TrainingPlan`.
    """
    options = {"keep_checkpoints": 1, **plan}
    if args.compile:
        compile_network(accelerator.unwrap_model(model))
    return train(
        accelerator,
        model,
        optimizer,
        make_loader,
        TrainingPlan(
            args.output,
            args.num_steps,
            warmup_steps=warmup_steps,
            save_steps=args.eval_steps,
            patience=args.patience,
            seed=args.seed,
            **options,
        ),
        export=partial(export_model, accelerator, processor, other_heads=other_heads or {}),
        average=average,
        evaluate=evaluate,
        resume_from=args.resume,
        settings=vars(args),
    )


def finish_training(
    args: argparse.Namespace, accelerator: Accelerator, state: TrainingState, metrics: dict[str, Any]
) -> dict[str, Any]:
    """
    Writes `metrics.json`, prints it, uploads the folder where `--push_to_hub` says so, and ends the run. A run that a
    signal stopped is not at its end.

    Returns:
        `dict`: the metrics.
    """
    if accelerator.is_main_process and state.stopped != "signal":
        write_json(args.output / "metrics.json", metrics)
        print(json.dumps(metrics, indent=2))
        if args.push_to_hub:
            print(push_folder(args.output, args.push_to_hub))
    accelerator.end_training()
    return metrics
