"""`glipv2 evaluate`."""

import argparse
from pathlib import Path
from typing import Annotated, Literal

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    Backend,
    BatchSize,
    Compile,
    DataOrNone,
    Device,
    ImagesPerFile,
    MaxSamples,
    MixedPrecision,
    Model,
    NmsThreshold,
    NumWorkers,
    OutputFolder,
    Threshold,
    checked,
    command_app,
    number,
    split_numbers,
)

app = command_app()


@app.command()
def evaluate(
    data: DataOrNone = None,
    benchmark: Annotated[Literal["coco", "lvis", "odinw"], typer.Option("--benchmark", help="How to score.")] = "coco",
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            parser=checked(checks.InputFile, "--annotations"),
            metavar="FILE",
            help="coco, lvis: the official JSON file, in place of --data.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            parser=checked(checks.InputFolder, "--images"),
            metavar="FOLDER",
            help="Of the images; odinw: of all data sets.",
        ),
    ] = None,
    sets: Annotated[str, typer.Option("--sets", help="odinw: 13, 35, or names by comma.")] = "13",
    split: Annotated[
        str | None, typer.Option("--split", help="To score. Default: test; of --data else val, else all.")
    ] = None,
    val_fraction: Annotated[
        float,
        number(checks.fraction_below_one, "--val_fraction", help="Held out as val where the data has no such split."),
    ] = 0.0,
    masks: Annotated[bool, typer.Option("--masks", help="Predict masks and score them too.")] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Detect at several sizes and mirrored, and merge boxes.")] = False,
    image_size: Annotated[
        list[str] | None,
        typer.Option(
            "--image_size",
            metavar="PIXELS",
            callback=split_numbers(checks.positive_int),
            help="Shortest edge; with --tta several, by comma.",
        ),
    ] = None,
    labels_per_prompt: Annotated[
        int | None, number(checks.positive_int, "--labels_per_prompt", help="Default: as many as fit; lvis: 40.")
    ] = None,
    max_detections: Annotated[
        int | None,
        number(checks.positive_int, "--max_detections", help="Boxes of an image. Default: 100; lvis: 300 a prompt."),
    ] = None,
    output: OutputFolder = Path("outputs/evaluation"),
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.0,
    pre_nms_threshold: Annotated[
        float, number(checks.fraction, "--pre_nms_threshold", help="Label score of a candidate box.")
    ] = 0.05,
    nms_threshold: NmsThreshold = 0.6,
    max_samples: MaxSamples = None,
    batch_size: BatchSize = 1,
    num_workers: NumWorkers = 0,
    images_per_file: ImagesPerFile = 32,
    mixed_precision: MixedPrecision = None,
    allow_outside_paths: Annotated[
        bool, typer.Option("--allow_outside_paths", help="Follow file names that lead out of the folder of images.")
    ] = False,
    device: Device = "auto",
    backend: Backend = "torch",
    compile: Compile = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON, and nothing else.")] = False,
) -> None:
    """
    Score a detector on data of your own, or on COCO, LVIS or ODinW.

    Predictions are written as they come; after an interruption the same command goes on where it was. Needs
    `pip install "transformers-glipv2[eval]"`.

    Example: glipv2 evaluate --data raccoon --split test --model outputs/raccoon
    """
    args = argparse.Namespace(**locals())
    import json
    import sys
    from contextlib import redirect_stdout

    from transformers_glipv2.cli.detection_evaluation import complete, evaluate_detector
    from transformers_glipv2.cli.devices import use_device
    from transformers_glipv2.conversion.released import resolve_model

    args.sets = sets.split(",")
    complete(args)
    use_device(device, backend)
    args.model = resolve_model(model)
    with redirect_stdout(sys.stderr) if as_json else redirect_stdout(sys.stdout):
        scores = evaluate_detector(args)
    if as_json:
        print(json.dumps(scores))
