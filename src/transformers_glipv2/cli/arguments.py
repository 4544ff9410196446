"""
The flags of all scripts, each defined once: one name, one meaning, one range.

Numbers are checked when they are parsed. Files and folders are checked by [`check_paths`], which a script calls once
before it loads anything, so that a command line can be parsed where its files are not.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

import torch

from transformers_glipv2.cli.checks import (  # noqa: F401  the checks that scripts import with the flags
    CheckedPath,
    DataSource,
    Device,
    InputFile,
    InputFolder,
    InputPath,
    ModelSource,
    Number,
    OutputFile,
    OutputFolder,
    OutputImage,
    device_name,
    finite_float,
    fraction,
    fraction_below_one,
    multiple_of_32,
    non_negative_float,
    non_negative_int,
    number_after,
    positive_float,
    positive_int,
    repo_id,
    seed_int,
)
from transformers_glipv2.cli.checks import batch_size as batch_size_type
from transformers_glipv2.conversion.released import resolve_model

NANO = "hub_upload/glipv2-nano"
MIXED_PRECISION = ("no", "fp16", "bf16")


class ScriptParser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2, and which takes no abbreviated flags."""

    def __init__(self, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--\S+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            message += f"; did you mean {near[0]}?" if near else "; --help lists the flags"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def check_paths(args: argparse.Namespace) -> argparse.Namespace:
    """
    Checks the files and folders of a command line, and downloads the models that it names.

    Args:
        args (`argparse.Namespace`): what [`ScriptParser`] gave.

    Returns:
        `argparse.Namespace`: the same; released names are replaced by their folders.

    Raises:
        ValueError: names the flag, the path, what is wrong with it and what to do.
    """
    for name, value in vars(args).items():
        for entry in value if isinstance(value, list | tuple) else (value,):
            if isinstance(entry, CheckedPath | DataSource | ModelSource | Device):
                entry.check(f"--{name}")
    sources = {name: value for name, value in vars(args).items() if isinstance(value, ModelSource)}
    for name, source in sources.items():
        setattr(args, name, ModelSource(resolve_model(source)))
    return args


# Groups of flags -----------------------------------------------------------------------------------------------------


def add_model(
    parser: argparse.ArgumentParser, help: str = "released name, folder or Hub id", default: str | None = None
) -> None:
    """`--model`."""
    if default is not None:
        help += f" (default: {default})"
    default_source = None if default is None else ModelSource(default)
    parser.add_argument("--model", type=ModelSource, required=default is None, default=default_source, help=help)


def add_threshold(
    parser: argparse.ArgumentParser, default: float = 0.3, help: str = "score of a box at least"
) -> None:
    """`--threshold`, on the score that is returned and drawn."""
    parser.add_argument("--threshold", type=fraction, default=default, help=f"{help} (default: {default:g})")


def add_nms_threshold(parser: argparse.ArgumentParser) -> None:
    """`--nms_threshold`."""
    help = "IoU above which the lower-scoring of two boxes of a label is suppressed (default: 0.6)"
    parser.add_argument("--nms_threshold", type=fraction, default=0.6, help=help)


def add_image(parser: argparse.ArgumentParser, required: bool = True, help: str = "image to look at") -> None:
    """`--image`."""
    parser.add_argument("--image", type=InputFile, required=required, help=help)


def add_drawing(parser: argparse.ArgumentParser, default: str) -> None:
    """`--output`, an image to write."""
    parser.add_argument("--output", type=OutputImage, default=OutputImage(default), help=f"image (default: {default})")


def add_output_file(parser: argparse.ArgumentParser, help: str = "JSON file to write the scores to") -> None:
    """`--output`, a file, optional."""
    parser.add_argument("--output", type=OutputFile, help=help)


def add_output_folder(parser: argparse.ArgumentParser, help: str) -> None:
    """`--output`, a folder."""
    parser.add_argument("--output", type=OutputFolder, required=True, help=help)


def add_max_samples(parser: argparse.ArgumentParser, help: str, default: int | None = None) -> None:
    """`--max_samples`."""
    if default is not None:
        help += f" (default: {default})"
    parser.add_argument("--max_samples", type=positive_int, default=default, help=help)


def add_image_size(parser: argparse.ArgumentParser, help: str, default: Sequence[int] | None = None) -> None:
    """`--image_size`, one or several shortest edges in pixels."""
    shown = "the processor's" if default is None else " ".join(map(str, default))
    parser.add_argument(
        "--image_size",
        type=positive_int,
        nargs="+",
        default=None if default is None else list(default),
        metavar="PIXELS",
        help=f"shortest edges in pixels: {help} (default: {shown})",
    )


def add_seed(parser: argparse.ArgumentParser, help: str, default: int = 0) -> None:
    """`--seed`."""
    parser.add_argument("--seed", type=seed_int, default=default, help=f"{help} (default: {default})")


def add_mixed_precision(parser: argparse.ArgumentParser) -> None:
    """`--mixed_precision`."""
    parser.add_argument(
        "--mixed_precision", choices=MIXED_PRECISION, help="(default: what `accelerate launch` says, else no)"
    )


def add_num_workers(parser: argparse.ArgumentParser) -> None:
    """`--num_workers`."""
    parser.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=0,
        help="processes that prepare images, for each process (default: 0)",
    )


def add_num_beams(parser: argparse.ArgumentParser) -> None:
    """`--num_beams` of captions."""
    help = "captions: beams of beam search; 1 is greedy decoding (default: 5)"
    parser.add_argument("--num_beams", type=positive_int, default=5, help=help)


def add_generation(parser: argparse.ArgumentParser, max_new_tokens: int = 30) -> None:
    """`--num_beams` and `--max_new_tokens` of captions."""
    add_num_beams(parser)
    parser.add_argument(
        "--max_new_tokens",
        type=positive_int,
        default=max_new_tokens,
        help=f"captions: tokens at most (default: {max_new_tokens})",
    )


def add_prediction(parser: argparse.ArgumentParser, batch_size: bool = True) -> None:
    """What all scripts that predict many images take: how many, how fast, and how often predictions are written."""
    add_max_samples(parser, "only the first so many images (of each data set)")
    if batch_size:
        help = "images at once; auto: as many as fit (default: 1)"
        parser.add_argument("--batch_size", type=batch_size_type, default=1, help=help)
    add_num_workers(parser)
    parser.add_argument(
        "--images_per_file",
        type=positive_int,
        default=32,
        help="images of a file of predictions; a kill loses at most so many for each process (default: 32)",
    )
    add_mixed_precision(parser)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """`--backend`."""
    help = "onnx: find boxes with ONNX Runtime on the CPU (default: torch)"
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch", help=help)


def add_compile(parser: argparse.ArgumentParser) -> None:
    """`--compile` of detectors."""
    help = "compile the model (torch.compile): minutes at the start, then faster on a GPU"
    parser.add_argument("--compile", action="store_true", help=help)


def add_scenes(parser: argparse.ArgumentParser) -> None:
    """The composite scenes that `fetch_scene_assets.py` has the parts of."""
    add = parser.add_argument
    add("--assets", type=InputFolder, required=True, help="folder that fetch_scene_assets.py wrote")
    add(
        "--background_folder",
        type=InputFolder,
        help="COCO-format folder with train.json that gave training further backgrounds; a quarter is for the test",
    )
    add_seed(parser, "of the scenes")


def add_device(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """`--device`."""
    if default is None:
        default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device_name, default=default, help=f"cpu or cuda (default: {default})")


def add_timing(parser: argparse.ArgumentParser, repeats: int, help: str) -> None:
    """`--repeats` and `--threads` of benchmarks."""
    add = parser.add_argument
    add("--repeats", type=positive_int, default=repeats, help=f"{help} (default: {repeats})")
    add("--threads", type=positive_int, default=2, help="CPU threads (default: 2)")


def add_data_file(parser: argparse.ArgumentParser, type: type = InputFile, help: str = "data file (YAML)") -> None:
    """`--data`, which is or may be a data file, and `--allow_custom_loaders`."""
    parser.add_argument("--data", required=True, type=type, help=help)
    add_custom_loaders(parser)


def add_custom_loaders(parser: argparse.ArgumentParser) -> None:
    """`--allow_custom_loaders`."""
    parser.add_argument(
        "--allow_custom_loaders",
        action="store_true",
        help="let the data file name loaders of your own, `module:name`, which are imported and called",
    )


def add_val_fraction(parser: argparse.ArgumentParser, default: float = 0.15) -> None:
    """`--val_fraction`."""
    help = f"of the training images, held out as val where the data has no such split; 0: none (default: {default:g})"
    parser.add_argument("--val_fraction", type=fraction_below_one, default=default, help=help)


def add_outside_paths(parser: argparse.ArgumentParser) -> None:
    """`--allow_outside_paths`."""
    parser.add_argument(
        "--allow_outside_paths",
        action="store_true",
        help="follow file names and links that lead out of the folder of images, where you trust the annotation file",
    )


def add_training(
    parser: argparse.ArgumentParser,
    batch_size: int,
    batch_help: str,
    eval_steps: int | None,
    train: Sequence[str],
    num_steps: int | None = None,
    num_steps_help: str = "optimizer steps",
) -> None:
    """
    What all training scripts take but `--data`, `--learning_rate` and `--image_size`, whose help differs.

    Args:
        parser (`argparse.ArgumentParser`).
        batch_size (`int`), num_steps (`int`, *optional*), eval_steps (`int`, *optional*): defaults.
        batch_help, num_steps_help (`str`).
        train (`Sequence[str]`): what `--train` offers, the default first; see `training.tuning`.
    """
    add = parser.add_argument
    add_output_folder(parser, "folder for weights, checkpoints and logs")
    add("--train", choices=list(train), default=train[0], help=f"what learns (default: {train[0]})")
    shown = "" if num_steps is None else f" (default: {num_steps})"
    add("--num_steps", type=positive_int, default=num_steps, help=num_steps_help + shown)
    add("--batch_size", type=positive_int, default=batch_size, help=f"{batch_help} (default: {batch_size})")
    add(
        "--eval_steps",
        type=positive_int,
        default=eval_steps,
        help=f"steps between evaluations, each with a checkpoint (default: {eval_steps or 'by the data'})",
    )
    add(
        "--patience",
        type=non_negative_int,
        default=0,
        help="end after so many evaluations without a gain; 0: never (default: 0)",
    )
    add_num_workers(parser)
    add_mixed_precision(parser)
    add(
        "--compile",
        action="store_true",
        help="compile the network (torch.compile): minutes at the start for each size of images, then faster on a GPU",
    )
    add_seed(parser, "of data order, augmentation and dropout")
    add(
        "--resume",
        metavar="CHECKPOINT",
        help="a checkpoint folder, or `latest`, which also starts where there is none",
    )
    add("--push_to_hub", type=repo_id, metavar="USER/NAME", help="upload the result to this Hub repository")
