"""`glipv2 predict`."""

import argparse
from pathlib import Path
from typing import Annotated, Literal

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AgnosticNms,
    Backend,
    BatchSize,
    Compile,
    Device,
    ImagesOrNone,
    ImagesPerFile,
    LabelsOrNone,
    MaxDetections,
    MaxNewTokens,
    MaxSamples,
    MixedPrecision,
    Model,
    NmsThreshold,
    NumBeams,
    NumWorkers,
    OutputFolder,
    Threshold,
    checked,
    command_app,
    number,
)

app = command_app()


@app.command()
def predict(
    images: ImagesOrNone = None,
    labels: LabelsOrNone = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            "--labels_file",
            parser=checked(checks.InputFile, "--labels_file"),
            metavar="FILE",
            help="A label a line, in place of --labels.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="In place of IMAGES: a Hub id or folder that `datasets` loads."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of the data set.")] = "train",
    image_column: Annotated[str, typer.Option("--image_column", help="Of the data set.")] = "image",
    task: Annotated[
        Literal["boxes", "masks", "captions"], typer.Option("--task", help="What is predicted.")
    ] = "boxes",
    format: Annotated[
        Literal["parquet", "coco", "csv", "yolo", "labelstudio", "cvat", "fiftyone"],
        typer.Option("--format", help="Of the file. csv holds no masks; captions: parquet, coco, csv."),
    ] = "parquet",
    output: OutputFolder = Path("outputs/predictions"),
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.3,
    nms_threshold: NmsThreshold = 0.6,
    agnostic_nms: AgnosticNms = False,
    max_detections: MaxDetections = 100,
    num_beams: NumBeams = 5,
    max_new_tokens: MaxNewTokens = 30,
    max_samples: MaxSamples = None,
    batch_size: BatchSize = 1,
    num_workers: NumWorkers = 0,
    images_per_file: ImagesPerFile = 32,
    mixed_precision: MixedPrecision = None,
    device: Device = "auto",
    backend: Backend = "torch",
    compile: Compile = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="ray: the actors of a Ray cluster.")
    ] = "local",
    actors: Annotated[int, number(checks.positive_int, "--actors", help="ray: models at work.")] = 1,
    gpus_per_actor: Annotated[
        float, number(checks.non_negative_float, "--gpus_per_actor", help="ray: 0: CPUs; 0.5: two on a GPU.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """
    Label many images, or a data set, into one file.

    Predictions are written as they come; after an interruption the same command goes on where it was, and with another
    --format it writes that file too. Needs `pip install "transformers-glipv2[train]"`.

    Example: glipv2 predict images --labels "cat,dog" --format coco --output outputs/labelled
    """
    if bool(images) == bool(dataset):
        raise typer.BadParameter("give images, or a data set by --dataset", param_hint="IMAGES")
    if bool(labels) + bool(labels_file) > (task != "captions"):
        raise typer.BadParameter(
            "boxes and masks take --labels or --labels_file, and captions take none", param_hint="--labels"
        )
    if task == "captions" and backend == "onnx":
        raise typer.BadParameter("captions are made by PyTorch only; leave it out", param_hint="--backend")
    args = argparse.Namespace(**locals())
    import json
    import sys
    from contextlib import redirect_stdout

    from transformers_glipv2.cli.devices import use_device
    from transformers_glipv2.cli.folder import label_images
    from transformers_glipv2.conversion.released import resolve_model

    use_device(device, backend)
    args.model = resolve_model(model)
    with redirect_stdout(sys.stderr) if as_json else redirect_stdout(sys.stdout):
        path = label_images(args)
    if as_json:
        failures = json.loads((output / "failures.json").read_text(encoding="utf-8"))
        print(json.dumps({"file": str(path), "failures": failures}))
