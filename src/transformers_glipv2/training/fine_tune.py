"""Fine-tuning of a detector on a data set: what `glipv2 train` and `examples/finetune_detection.py` do."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils import logging

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.conversion.released import resolve_model
from transformers_glipv2.data.augment import Compose, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.few_shot import few_shot
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.formats.open import open_dataset
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.data.negatives import ScrambleObjects, images_without_objects
from transformers_glipv2.image_processing_glipv2 import set_shortest_edge
from transformers_glipv2.prompts import clean_labels, label_prompt
from transformers_glipv2.training.averaging import WeightAverage
from transformers_glipv2.training.batches import StepBatches, step_loader
from transformers_glipv2.training.checkpoints import TrainingState, copy_generation_config, export_model, push_folder
from transformers_glipv2.training.compiling import FixedShapes, compile_network
from transformers_glipv2.training.data_file import SamplerBySource, load_sources, read_data_file
from transformers_glipv2.training.evaluation import DetectionEvaluator, make_evaluator
from transformers_glipv2.training.heads import load_other_heads
from transformers_glipv2.training.known_classes import label_known_classes
from transformers_glipv2.training.learnable import require_learnable
from transformers_glipv2.training.loop import TrainingPlan, train
from transformers_glipv2.training.optimization import make_optimizer, parameter_groups
from transformers_glipv2.training.recipe import Recipe, choose_recipe
from transformers_glipv2.training.report import write_report
from transformers_glipv2.training.tuning import prepare_tuning

logger = logging.get_logger(__name__)

METRICS_FILE = "metrics.json"
# What a folder holds that a run or a model is in.
_USED = ("config.json", METRICS_FILE, "training_log.jsonl", "checkpoints", "adapter_config.json")


@dataclass
class FineTuneOptions:
    """
    A fine-tuning run. What is `None` is chosen by `choose_recipe` from the data.

    Args:
        model (`str`): folder, Hub id or released name (`glip-tiny`) to start from.
        data (`str` or `Path`), images (`str` or `Path`, *optional*), val_fraction (`float`, *optional*, defaults to
            0.15): the data set, see `open_dataset`.
        output (`Path`, *optional*): folder for weights, checkpoints, card and plots; by default `outputs/NAME` after
            the data, or `outputs/NAME-2` and so on where that is used.
        train (`str`, *optional*, defaults to `"full"`): what learns, see `training.tuning.prepare_tuning`.
        epochs (`float`, *optional*), num_steps (`int`, *optional*): the length of the run, by passes over the images
            or by optimizer steps.
        batch_size (`int`, *optional*, defaults to 4): images of a step, over all processes.
        learning_rate (`float`, *optional*), image_size (`Sequence[int]`, *optional*): shortest edges in pixels,
            ema_decay (`float`, *optional*), eval_steps (`int`, *optional*), scramble (`float`, *optional*): see
            `Recipe`.
        shots (`int`, *optional*), empty_images (`int`, *optional*, defaults to 0): see `few_shot`.
        max_samples (`int`, *optional*): the first so many images of each split.
        negatives (`Path`, *optional*): folder of images in which none of the classes is.
        negative_fraction (`float`, *optional*, defaults to 0.2): of examples, from `negatives`.
        keep_vocabulary (`Path`, *optional*): data file (YAML) that is rehearsed against forgetting.
        rehearsal_fraction (`float`, *optional*, defaults to 0.25): of such examples; 0 only measures forgetting.
        add_classes (`bool`, *optional*, defaults to `False`): keep the classes that the start was fine-tuned for.
        eval_split (`str`, *optional*, defaults to `"val"`): chooses the best weights; "none" keeps the last.
        test_split (`str`, *optional*): that the best weights are scored on at the end; by default "test" where there
            is one, "none" for none.
        patience (`int`, *optional*, defaults to 0): evaluations without a gain in AP that end the run; 0 for never.
        resume (`str`, *optional*): a checkpoint folder, or "latest".
        seed (`int`, *optional*, defaults to 0), num_workers (`int`, *optional*, defaults to 0), mixed_precision
            (`str`, *optional*), compile (`bool`, *optional*, defaults to `False`: see `training.compiling`), device
            (`str`, *optional*, defaults to `"auto"`: what accelerate chooses, or "cpu"), push_to_hub (`str`,
            *optional*), allow_outside_paths, allow_custom_loaders (`bool`).
    """

    model: str
    data: str | Path
    output: Path | None = None
    images: str | Path | None = None
    val_fraction: float = 0.15
    train: str = "full"
    epochs: float | None = None
    num_steps: int | None = None
    batch_size: int = 4
    learning_rate: float | None = None
    image_size: Sequence[int] | None = None
    ema_decay: float | None = None
    eval_steps: int | None = None
    scramble: float | None = None
    shots: int | None = None
    empty_images: int = 0
    max_samples: int | None = None
    negatives: Path | None = None
    negative_fraction: float = 0.2
    keep_vocabulary: Path | None = None
    rehearsal_fraction: float = 0.25
    add_classes: bool = False
    eval_split: str = "val"
    test_split: str | None = None
    patience: int = 0
    resume: str | None = None
    seed: int = 0
    num_workers: int = 0
    mixed_precision: str | None = None
    compile: bool = False
    device: str = "auto"
    push_to_hub: str | None = None
    allow_outside_paths: bool = False
    allow_custom_loaders: bool = False

    def __post_init__(self):
        if self.epochs is not None and self.num_steps is not None:
            raise ValueError("`epochs` and `num_steps` both give the length of the run; pass one of them.")


@dataclass
class Data:
    """
    The images of a run.

    Attributes:
        train, val, test (`ImageDataset`): the last two may be `None`.
        labels (`list[str]`): the classes of the prompt, in its order.
        new_labels (`list[str]`): those of the data set.
    """

    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset | None
    labels: list[str]
    new_labels: list[str]


# The run -------------------------------------------------------------------------------------------------------------


def fine_tune(options: FineTuneOptions) -> dict[str, Any]:
    """
    Fine-tunes a detector and writes a folder that every command and `from_pretrained` take.

    The folder gets the weights that are best on the evaluation split (or the last), with all heads of the start,
    the class names as `config.labels`, `metrics.json`, `training_log.jsonl`, a model card `README.md` and plots.

    Args:
        options (`FineTuneOptions`).

    Returns:
        `dict`: the metrics, as in `metrics.json`, and "output", the folder.

    Raises:
        FileExistsError: when the output folder is used and the run is not resumed.
        FileNotFoundError, ValueError: when the data set, the start or the options cannot be used.
    """
    options = dataclasses.replace(options, output=output_folder(options), model=resolve_model(options.model))
    accelerator = make_accelerator(options.output, options.mixed_precision, options.seed, cpu=options.device == "cpu")
    processor = GLIPv2Processor.from_pretrained(options.model)
    model = GLIPv2ForObjectDetection.from_pretrained(options.model)
    data = read_data(options, known_labels(model, options))
    recipe = _recipe(options, data, processor, model.config.backbone_config.model_type)
    set_shortest_edge(processor, max(recipe.image_size))
    if options.add_classes:
        data.train = label_known_classes(model, processor, data.train, data.labels, data.new_labels)

    other_heads = load_other_heads(options.model, model)
    model.config.labels = data.labels
    model = prepare_tuning(model, options.train, processor, label_prompt(data.labels).text)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # A pretrained text encoder learns slowly; a new head, offsets and adapters do not.
    text_factor = 1.0 if options.train in ("head", "prompt", "lora") else 0.1
    groups = parameter_groups(model, recipe.learning_rate, text_learning_rate_factor=text_factor)
    model, optimizer = accelerator.prepare(model, make_optimizer(groups))
    average = WeightAverage(accelerator.unwrap_model(model), recipe.ema_decay) if recipe.ema_decay else None

    metrics: dict[str, Any] = {
        "train": options.train,
        "labels": data.labels,
        "shots": options.shots,
        "seed": options.seed,
        "trainable_parameters": trainable,
        "recipe": described(recipe) | {"batch_size": options.batch_size},
    }
    rehearsal = (
        read_data_file(options.keep_vocabulary, options.allow_custom_loaders) if options.keep_vocabulary else None
    )
    kept = make_evaluator(rehearsal, accelerator, processor) if rehearsal is not None else None
    if kept is not None:
        metrics["kept_vocabulary_before"] = kept(model.eval())
    score = _evaluator(accelerator, processor, data.val, data)
    state = _train(
        options, accelerator, processor, model, optimizer, average, recipe, data, rehearsal, score, other_heads
    )
    if state.stopped == "signal":
        return metrics | {"output": str(options.output)}

    # The kept weights, read back from the output folder.
    best = GLIPv2ForObjectDetection.from_pretrained(options.output)
    best = accelerator.prepare_model(best, evaluation_mode=True).eval()
    metrics["steps"], metrics["seconds"] = state.step, round(state.seconds, 2)
    if score is not None:
        metrics["best_step"] = state.best_step
        metrics[options.eval_split] = score(best)
    test = _evaluator(accelerator, processor, data.test, data)
    if test is not None:
        metrics[options.test_split or "test"] = test(best)
    if kept is not None:
        metrics["kept_vocabulary_after"] = kept(best)
    _finish(options, accelerator, metrics, data, score or test, sorted({name.split(".")[0] for name in other_heads}))
    return metrics | {"output": str(options.output)}


def _train(
    options: FineTuneOptions,
    accelerator: Accelerator,
    processor: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    recipe: Recipe,
    data: Data,
    rehearsal: Any,
    score: DetectionEvaluator | None,
    other_heads: Mapping[str, torch.Tensor],
) -> TrainingState:
    mixture, num_own = make_mixture(options, data, rehearsal, recipe)
    collator = GroundingCollator(
        processor,
        # Images of the data set are asked for all its classes in order, as they will be in use.
        sampler=SamplerBySource(processor, len(data.labels), num_own),
        augment=Compose([HorizontalFlip(), PhotometricDistortion(), ScrambleObjects(recipe.scramble)]),
        sizes=recipe.image_size,
        size_period=options.batch_size,
        max_text_length=processor.max_tokens,
        seed=options.seed,
    )

    if options.compile:
        compile_network(accelerator.unwrap_model(model))

    def make_loader(start_step: int) -> DataLoader:
        batches = StepBatches(
            options.batch_size,
            recipe.num_steps,
            start_step,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        collate = FixedShapes(collator, processor) if options.compile else collator
        return step_loader(mixture, batches, collate, options.num_workers)

    def export(model: nn.Module, folder: Path) -> None:
        export_model(accelerator, processor, model, folder, other_heads)
        if accelerator.is_main_process:
            copy_generation_config(options.model, folder)

    assert options.output is not None
    return train(
        accelerator,
        model,
        optimizer,
        make_loader,
        TrainingPlan(
            options.output,
            recipe.num_steps,
            warmup_steps=min(20, recipe.num_steps // 10),
            save_steps=recipe.eval_steps,
            patience=options.patience,
            keep_checkpoints=1,
            seed=options.seed,
        ),
        export=export,
        average=average,
        evaluate=score,
        resume_from=options.resume,
        settings=settings_of(options, recipe),
    )


def _finish(
    options: FineTuneOptions,
    accelerator: Accelerator,
    metrics: dict[str, Any],
    data: Data,
    scored: DetectionEvaluator | None,
    other_heads: Sequence[str],
) -> None:
    """Writes metrics, card and plots, and uploads the folder where that is asked for."""
    if accelerator.is_main_process:
        assert options.output is not None
        if scored is not None:
            metrics["threshold"] = scored.best_threshold()
        write_json(options.output / METRICS_FILE, metrics)
        write_report(options, metrics, scored, len(data.train), other_heads)
        if options.push_to_hub:
            logger.warning(f"uploaded to {push_folder(options.output, options.push_to_hub)}")
    accelerator.end_training()


# Parts ---------------------------------------------------------------------------------------------------------------


def make_accelerator(
    output: Path | None,
    mixed_precision: str | None,
    seed: int,
    trackers: Sequence[str] = (),
    cpu: bool = False,
) -> Accelerator:
    """The `Accelerator` of a run, with seeds set."""
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(str(output), str(Path(output or ".") / "tracking")),
        # A batch without masks or captions, or a detector that is frozen, leaves parameters without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(seed)
    return accelerator


def output_folder(options: FineTuneOptions) -> Path:
    """
    The folder of a run: the one that is asked for, or a new `outputs/NAME`, numbered where the name is used. A run
    that is resumed without a folder goes on in the newest of these.

    Raises:
        FileExistsError: when the folder that is asked for holds a run or a model, and the run is not resumed.
    """
    if options.output is not None:
        output = Path(options.output)
        if options.resume is None and is_used(output):
            raise FileExistsError(
                f"{output} holds a model or a run; go on with the run (`--resume`) or choose another `--output`, such "
                f"as {_numbered(output)}."
            )
        return output
    path = Path(options.data)
    name = re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.absolute().name) or "fine-tuned"
    first = Path("outputs") / name
    if not is_used(first):
        return first
    following = _numbered(first)
    if options.resume is None:
        return following
    number = int(following.name.removeprefix(f"{name}-")) - 1
    return first if number == 1 else first.with_name(f"{name}-{number}")


def is_used(folder: Path) -> bool:
    """Whether a folder holds a model or a run."""
    return any((folder / name).exists() for name in _USED) or any(folder.glob("*.safetensors"))


def _numbered(folder: Path) -> Path:
    """`mine-2` after `mine`, `mine-3` after `mine-2`, the first that is not used."""
    stem, number = folder.name, 1
    if match := re.fullmatch(r"(.+)-(\d+)", folder.name):
        stem, number = match[1], int(match[2])
    while True:
        number += 1
        following = folder.with_name(f"{stem}-{number}")
        if not is_used(following):
            return following


def known_labels(model: PreTrainedModel, options: FineTuneOptions) -> list[str]:
    """
    The classes of the start that are kept.

    Raises:
        ValueError: when `add_classes` is asked for and the start was not fine-tuned for classes.
    """
    if not options.add_classes:
        return []
    labels = model.config.labels
    if not labels:
        raise ValueError(
            f"{options.model} was not fine-tuned for classes of its own, so there are none to keep; train without "
            "`--add_classes`."
        )
    return list(labels)


def read_data(options: FineTuneOptions, known: Sequence[str] = ()) -> Data:
    """
    The splits of the data set.

    Args:
        options (`FineTuneOptions`).
        known (`Sequence[str]`): classes that come before those of the data set.

    Raises:
        FileNotFoundError, ValueError: when a split is not there, or there is nothing to learn.
    """

    dataset = open_dataset(
        options.data,
        options.images,
        0.0 if options.eval_split == "none" else options.val_fraction,
        allow_outside_paths=options.allow_outside_paths,
    )

    def read(split: str | None, flag: str, for_scoring: bool = True) -> ImageDataset | None:
        if split is None or split == "none":
            return None
        found = dataset.split(split, flag, for_scoring)
        return found if options.max_samples is None else found.select(range(min(options.max_samples, len(found))))

    train_set = read("train", "--data", for_scoring=False)
    val, test = read(options.eval_split, "--eval_split"), read(options.test_split, "--test_split")
    if options.test_split is None and "test" in dataset.split_names:
        test = read("test", "--test_split")
    logger.info(str(dataset.report))
    assert train_set is not None
    new = clean_labels(train_set.class_names or [])
    if options.shots is not None:
        train_set = few_shot(train_set, options.shots, options.seed, empty_images=options.empty_images)
    require_learnable([train_set], ["boxes"])
    return Data(train_set, val, test, list(dict.fromkeys([*known, *new])), new)


def make_mixture(options: FineTuneOptions, data: Data, rehearsal: Any, recipe: Recipe) -> tuple[MixtureDataset, int]:
    """
    What the run sees, and how many of its sources, the first ones, are asked for all classes: the data set, images
    without its classes, and what is rehearsed.
    """
    sources: list[Any] = [data.train]
    weights = [1.0]

    def add(new: Sequence[Any], new_weights: Sequence[float], fraction: float) -> None:
        weights[:] = [(1 - fraction) * weight for weight in weights]
        sources.extend(new)
        weights.extend(fraction * weight / sum(new_weights) for weight in new_weights)

    if options.negatives is not None and options.negative_fraction:
        add([images_without_objects(options.negatives, data.labels)], [1.0], options.negative_fraction)
    num_own = len(sources)
    if rehearsal is not None and options.rehearsal_fraction:
        others, own = load_sources(rehearsal)
        add(others, own, options.rehearsal_fraction)
    length = recipe.num_steps * options.batch_size
    return MixtureDataset(sources, weights, seed=options.seed, length=length), num_own


def settings_of(options: FineTuneOptions, recipe: Recipe) -> dict[str, Any]:
    """The settings of a run with all that was chosen, for its checkpoints."""
    return {**dataclasses.asdict(options), **described(recipe)}


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON holds it."""
    return {**dataclasses.asdict(recipe), "image_size": list(recipe.image_size)}


def _recipe(options: FineTuneOptions, data: Data, processor: Any, backbone: str) -> Recipe:
    recipe = choose_recipe(
        options.train,
        len(data.train),
        len(data.val) if data.val is not None else 0,
        processor.image_processor.size["shortest_edge"],
        backbone,
        options.batch_size,
        options.epochs,
        options.num_steps,
    )
    given = {name: getattr(options, name) for name in ("learning_rate", "ema_decay", "eval_steps", "scramble")}
    if options.image_size:
        given["image_size"] = tuple(options.image_size)
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})
    logger.info(f"training as {json.dumps(described(recipe))}")
    return recipe


def _evaluator(
    accelerator: Accelerator, processor: Any, dataset: ImageDataset | None, data: Data
) -> DetectionEvaluator | None:
    return None if dataset is None else DetectionEvaluator(accelerator, processor, dataset, labels=data.labels)
