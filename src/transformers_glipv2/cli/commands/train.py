"""`glipv2 train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    Compile,
    Data,
    Device,
    MaxSamples,
    Model,
    Seed,
    checked,
    command_app,
    number,
)

app = command_app()

# `transformers_glipv2.training.TRAIN_WAYS`, which would import torch.
WAYS = ("full", "frozen-backbone", "frozen-text", "frozen-encoders", "head", "prompt", "lora")


def train_way(text: str) -> str:
    """One of `WAYS`; raises ValueError for another word."""
    if text not in WAYS:
        raise ValueError(f"{text!r} is none of {', '.join(WAYS)}")
    return text


def image_sizes(text: str) -> list[int]:
    """`288` or `256,320` as shortest edges in pixels."""
    return [int(checks.positive_int(size.strip())) for size in text.split(",")]


def option(check: Any, *names: str, help: str, metavar: str) -> Any:
    """An option with a check of `cli.checks`."""
    return typer.Option(*names, parser=checked(check, names[0]), metavar=metavar, help=help, show_default=False)


@app.command()
def train(
    data: Data,
    model: Model = DEFAULT_MODEL,
    output: Annotated[
        Path | None,
        option(
            checks.OutputFolder, "--output", "-o", metavar="FOLDER", help="Default: outputs/DATA, numbered if used."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        option(
            checks.InputFolder, "--images", metavar="FOLDER", help="Of the images, where the data does not say it."
        ),
    ] = None,
    val_fraction: Annotated[
        float,
        number(
            checks.fraction_below_one, "--val_fraction", help="Of the training images, held out if there is no val."
        ),
    ] = 0.15,
    train: Annotated[
        str, option(train_way, "--train", metavar="WAY", help=f"What learns: {', '.join(WAYS)}.")
    ] = "full",
    epochs: Annotated[
        float | None, number(checks.positive_float, "--epochs", help="Passes over the images. Default: by the data.")
    ] = None,
    num_steps: Annotated[
        int | None, number(checks.positive_int, "--num_steps", help="Steps, in place of --epochs.")
    ] = None,
    batch_size: Annotated[int, number(checks.positive_int, "--batch_size", help="Images of a step.")] = 4,
    learning_rate: Annotated[
        float | None, number(checks.positive_float, "--learning_rate", help="Default: by the data and --train.")
    ] = None,
    image_size: Annotated[
        str | None,
        option(
            image_sizes,
            "--image_size",
            metavar="PIXELS",
            help="Shortest edge, or several by comma. Default: the model's.",
        ),
    ] = None,
    ema_decay: Annotated[
        float | None,
        number(checks.fraction_below_one, "--ema_decay", help="Of averaged weights; 0: none. Default: 0."),
    ] = None,
    scramble: Annotated[
        float | None,
        number(
            checks.fraction, "--scramble", help="Of images whose objects are scrambled, as negatives. Default: 0.25."
        ),
    ] = None,
    patience: Annotated[
        int,
        number(
            checks.non_negative_int, "--patience", help="End after so many evaluations without a gain in AP; 0: never."
        ),
    ] = 0,
    eval_steps: Annotated[
        int | None,
        number(checks.positive_int, "--eval_steps", help="Steps between evaluations. Default: by the data."),
    ] = None,
    eval_split: Annotated[
        str, typer.Option("--eval_split", help="Chooses the best weights; none: keep the last.")
    ] = "val",
    test_split: Annotated[
        str | None,
        typer.Option("--test_split", help="Scored at the end. Default: test, if there is one; none: do not."),
    ] = None,
    shots: Annotated[
        int | None, number(checks.positive_int, "--shots", help="Images of each class. Default: all.")
    ] = None,
    max_samples: MaxSamples = None,
    negatives: Annotated[
        Path | None,
        option(checks.InputFolder, "--negatives", metavar="FOLDER", help="Images in which none of the classes is."),
    ] = None,
    keep_vocabulary: Annotated[
        Path | None,
        option(
            checks.InputFile, "--keep_vocabulary", metavar="YAML", help="Data that is rehearsed against forgetting."
        ),
    ] = None,
    add_classes: Annotated[
        bool, typer.Option("--add_classes", help="Keep the classes that the model was fine-tuned for.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; starts it where there is none.")
    ] = False,
    seed: Seed = 0,
    num_workers: Annotated[
        int, number(checks.non_negative_int, "--num_workers", help="Processes that prepare images.")
    ] = 0,
    device: Device = "auto",
    mixed_precision: Annotated[
        str | None, typer.Option("--mixed_precision", help="no, fp16 or bf16. Default: what accelerate says, else no.")
    ] = None,
    compile: Compile = False,
    push_to_hub: Annotated[
        str | None, option(checks.repo_id, "--push_to_hub", metavar="USER/NAME", help="Upload the result.")
    ] = None,
    allow_outside_paths: Annotated[
        bool, typer.Option("--allow_outside_paths", help="Follow file names that lead out of the image folder.")
    ] = False,
) -> None:
    """
    Fine-tune a detector on your images.

    Writes a folder that every command takes as --model: weights, class names, scores, a model card and plots. What is
    not given is chosen from the data.

    Examples: glipv2 train --data my_images;
    glipv2 train --data my_images --model outputs/my_images --add_classes --epochs 20
    """
    arguments = {**locals(), "resume": "latest" if resume else None}
    import json

    from transformers_glipv2.training.fine_tune import FineTuneOptions, fine_tune

    metrics = fine_tune(FineTuneOptions(**arguments))
    print(json.dumps(metrics, indent=2))
