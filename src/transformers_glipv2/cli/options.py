"""
The options of the `glipv2` commands, each defined once: one name, one meaning, one check, the same as in the scripts.

    def detect(images: Images, labels: Labels, threshold: Threshold = 0.3): ...
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.images.image_download import is_url

# A released name, see `transformers_glipv2.conversion.released`.
DEFAULT_MODEL = "glip-tiny"


def command_app(help: str | None = None) -> typer.Typer:
    """The `app` of a file of `cli/commands`."""
    return typer.Typer(help=help, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def checked(check: Callable[[str], Any], flag: str = "") -> Callable[[Any], Any]:
    """What parses an option by a check of `cli.checks`, whose sentence becomes typer's error; `flag` names a path."""

    def parse(value: Any) -> Any:
        try:
            parsed = check(value)
            if isinstance(parsed, checks.CheckedPath | checks.DataSource | checks.ModelSource):
                parsed.check(flag)
            return parsed
        except (argparse.ArgumentTypeError, ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from error

    return parse


def number(check: checks.Number, *names: str, help: str) -> Any:
    """A numeric option with the range of `cli.checks`."""
    return typer.Option(*names, parser=checked(check), metavar="N", help=help)


def split_labels(values: Sequence[str] | None) -> list[str] | None:
    """
    Labels of one or several values, by comma.

    A label with a comma in it is written in double quotes, `'"salt, coarse",cup'`, or with a backslash before the
    comma, `'salt\\, coarse,cup'`.

    Raises:
        typer.BadParameter: for an empty label.
    """
    if values is None:
        return None
    labels = [
        label.strip()
        for value in values
        for row in csv.reader([value], escapechar="\\", skipinitialspace=True)
        for label in row or [""]
    ]
    if not all(labels):
        raise typer.BadParameter(f"{', '.join(map(repr, values))} holds an empty label; write `cat,dog`.")
    return labels


def split_numbers(check: checks.Number) -> Callable[[Any], Any]:
    """From numbers by comma or by repetition to a list, each with the range of `check`."""

    def split(values: Sequence[str] | None) -> list[Any] | None:
        numbers = [checked(check)(part.strip()) for value in values or () for part in str(value).split(",")]
        return numbers or None

    return split


def existing_images(values: Sequence[str] | None) -> list[str]:
    """Files, folders and URLs that may be there; raises typer.BadParameter for a path that is not."""
    for value in values or ():
        if not is_url(value) and not Path(value).exists():
            raise typer.BadParameter(
                f"there is no file or folder {value!r}, and it is no http(s) URL; check the path.",
                param_hint="IMAGES",
            )
    return list(values or ())


# What is looked at ---------------------------------------------------------------------------------------------------

_IMAGES = typer.Argument(
    metavar="IMAGES", callback=existing_images, help="Files, folders or http(s) URLs.", show_default=False
)
Images = Annotated[list[str], _IMAGES]
ImagesOrNone = Annotated[list[str] | None, _IMAGES]
_LABELS_HELP = r"Names to look for, by comma, or the option several times. A comma in a label is written \,"
Labels = Annotated[
    list[str],
    typer.Option("--labels", metavar="LABELS", callback=split_labels, help=_LABELS_HELP, show_default=False),
]
LabelsOrNone = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="LABELS",
        callback=split_labels,
        help=f"{_LABELS_HELP} Default: the classes that the model was fine-tuned for.",
        show_default=False,
    ),
]
_DATA = typer.Option(
    "--data",
    parser=checked(checks.DataSource, "--data"),
    metavar="DATA",
    help="Images with boxes: COCO, YOLO, Pascal VOC, CSV, an image folder, or a data set of the Hub.",
    show_default=False,
)
Data = Annotated[str, _DATA]
DataOrNone = Annotated[str | None, _DATA]
AllowPrivateUrls = Annotated[
    bool, typer.Option("--allow_private_urls", help="Also ask this machine and hosts of private networks.")
]

# With what -----------------------------------------------------------------------------------------------------------

Model = Annotated[
    str,
    typer.Option(
        "--model",
        parser=checked(checks.ModelSource, "--model"),
        metavar="MODEL",
        help="A released name (glip-tiny, glip-large), a folder, or a Hub id.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        parser=checked(checks.auto_or_device),
        metavar="DEVICE",
        help="auto, cpu, cuda (or cuda:1) or mps. auto: a GPU where there is one.",
    ),
]
Backend = Annotated[
    Literal["torch", "onnx"],
    typer.Option(
        "--backend",
        help="onnx: find boxes with ONNX Runtime on the CPU, faster for small models (extra `export`).",
    ),
]
# `Any`, as typer takes no union of a number and a word.
BatchSize = Annotated[
    Any,
    typer.Option(
        "--batch_size",
        parser=checked(checks.batch_size),
        metavar="N",
        help="Images at once; auto: as many as fit.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the model (torch.compile): minutes at the start, then faster on a GPU."),
]
MaxSamples = Annotated[int | None, number(checks.positive_int, "--max_samples", help="Only the first so many images.")]
NumWorkers = Annotated[
    int, number(checks.non_negative_int, "--num_workers", help="Processes that prepare images, for each process.")
]
ImagesPerFile = Annotated[
    int,
    number(
        checks.positive_int,
        "--images_per_file",
        help="Images of a file of predictions; a kill loses at most so many for each process.",
    ),
]
MixedPrecision = Annotated[
    Literal["no", "fp16", "bf16"] | None,
    typer.Option("--mixed_precision", help="Default: what `accelerate launch` says, else no."),
]
Seed = Annotated[int, number(checks.seed_int, "--seed", help="Of everything that is random.")]

# Which boxes ---------------------------------------------------------------------------------------------------------

Threshold = Annotated[float, number(checks.fraction, "--threshold", help="Lowest score of a box.")]
NmsThreshold = Annotated[
    float,
    number(
        checks.fraction,
        "--nms_threshold",
        help="IoU above which the lower-scoring of two boxes of a label is suppressed.",
    ),
]
AgnosticNms = Annotated[
    bool, typer.Option("--agnostic_nms", help="Suppress overlapping boxes of different labels too.")
]
MaxDetections = Annotated[int, number(checks.positive_int, "--max_detections", help="Boxes of an image at most.")]

# Captions ------------------------------------------------------------------------------------------------------------

NumBeams = Annotated[
    int, number(checks.positive_int, "--num_beams", help="Beams of beam search; 1 is greedy decoding.")
]
MaxNewTokens = Annotated[int, number(checks.positive_int, "--max_new_tokens", help="Tokens of a caption at most.")]

# What comes out ------------------------------------------------------------------------------------------------------

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="The drawing of one image (.png, .jpg), or a folder for drawings of several. Default: outputs/COMMAND.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON, an object a line for each image, and nothing else. Drawings only with --output."
    ),
]
OutputFolder = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        parser=checked(checks.OutputFolder, "--output"),
        metavar="FOLDER",
        help="Folder to write to; made where it is missing.",
    ),
]
