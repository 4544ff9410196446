"""
What flags and options take: numbers in a range, files and folders, checkpoints, devices.

The parsers of the scripts and the `glipv2` command share these checks. Nothing here imports torch before it is needed,
so that `glipv2 --help` is there at once.
"""

import argparse
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

MODEL_TYPE = "glipv2"
MAX_SEED = 2**32 - 1


# Numbers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """
    The type of a numeric flag: finite, and in a range.

    Attributes:
        kind (`type`): `int` or `float`.
        low, high (`float`): the range, both ends included unless `exclude_low` or `exclude_high` says otherwise.
        multiple (`int`): what an integer must be a multiple of.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    exclude_low: bool = False
    exclude_high: bool = False
    multiple: int = 1

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
            inside = self.low <= value <= self.high and math.isfinite(value)
        except (ValueError, OverflowError):  # no number, or an integer beyond all floats
            value, inside = math.nan, False
        if not inside or (self.exclude_low and value == self.low) or (self.exclude_high and value == self.high):
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.description()}")
        if value % self.multiple and self.multiple > 1:
            below = max(value // self.multiple, 1) * self.multiple
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {self.description()}; take {below} or {below + self.multiple}"
            )
        return value

    def description(self) -> str:
        """The range in words."""
        name = "an integer" if self.kind is int else "a number"
        if self.multiple > 1:
            name += f" that is a multiple of {self.multiple}"
        if math.isfinite(self.high):
            return (
                f"{name} from {self.low:g}{' (excluded)' if self.exclude_low else ''} "
                f"to {self.high:g}{' (excluded)' if self.exclude_high else ''}"
            )
        if math.isfinite(self.low):
            return f"{name} {'above' if self.exclude_low else 'of at least'} {self.low:g}"
        return f"{name} that is finite"


def number_after(text: str, value: str, number: Number) -> int | float:
    """The number in a value such as `inter=0.5`, whose whole text the error names."""
    try:
        return number(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


positive_int = Number(int, low=1)
non_negative_int = Number(int, low=0)
seed_int = Number(int, low=0, high=MAX_SEED)
multiple_of_32 = Number(int, low=32, multiple=32)
positive_float = Number(float, low=0, exclude_low=True)
non_negative_float = Number(float, low=0)
finite_float = Number(float)
fraction = Number(float, low=0, high=1)
fraction_below_one = Number(float, low=0, high=1, exclude_high=True)


def repo_id(text: str) -> str:
    """The type of a repository on the Hub, USER/NAME."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no USER/NAME of the Hub: {error}") from error
    if text.count("/") != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no USER/NAME of the Hub; name the user or organisation too")
    return text


# Files and folders ---------------------------------------------------------------------------------------------------


class CheckedPath(type(Path())):  # type: ignore[misc]  # a Path of this system
    """A path with a check of its own, see [`check_paths`]; each subclass says what it must be."""

    def check(self, flag: str) -> None:
        """Raises ValueError or OSError, naming the flag, unless the path is what the flag takes."""
        raise NotImplementedError


class InputFile(CheckedPath):
    """A file to read."""

    def check(self, flag: str) -> None:
        if self.is_dir():
            raise ValueError(f"{flag} is {str(self)!r}, a folder; pass a file.")
        _check_readable(self, flag, "file")


class InputFolder(CheckedPath):
    """A folder to read."""

    def check(self, flag: str) -> None:
        if self.exists() and not self.is_dir():
            raise ValueError(f"{flag} is {str(self)!r}, a file; pass a folder.")
        _check_readable(self, flag, "folder")


class InputPath(CheckedPath):
    """A file or a folder to read."""

    def check(self, flag: str) -> None:
        _check_readable(self, flag, "file or folder")


class DataSource(str):
    """A data set for `open_dataset`: a file, a folder, or USER/NAME of the Hub."""

    def check(self, flag: str) -> None:
        """Raises ValueError where there is no such file or folder, and the name is none of the Hub."""
        from transformers_glipv2.data.formats.hub_data import is_hub_id

        if not is_hub_id(self) or Path(self).exists():
            _check_readable(Path(self), flag, "file or folder")


class OutputFolder(CheckedPath):
    """A folder to write into; made where it is missing."""

    def check(self, flag: str) -> None:
        if self.exists() and not self.is_dir():
            raise ValueError(f"{flag} is {str(self)!r}, a file; pass a folder to write into.")
        _check_writable(self, flag)


class OutputFile(CheckedPath):
    """A file to write."""

    def check(self, flag: str) -> None:
        if self.is_dir():
            raise ValueError(f"{flag} is {str(self)!r}, a folder; pass a file to write.")
        _check_writable(self, flag)


class OutputImage(OutputFile):
    """An image to write; its extension says in which format."""

    def check(self, flag: str) -> None:
        from PIL import Image

        Image.init()
        known = Image.registered_extensions()
        if known.get(self.suffix.lower()) not in Image.SAVE:
            raise ValueError(
                f"{flag} is {str(self)!r}, and {self.suffix or 'no extension'!r} names no format of images; take "
                ".png or .jpg."
            )
        super().check(flag)


class ModelSource(str):
    """A folder that `save_pretrained` wrote, a released name, or a name on the Hub."""

    def check(self, flag: str) -> None:
        path = Path(self)
        if "{" in self or not self:
            if not self:
                raise ValueError(f"{flag} is empty; pass a folder of a checkpoint or a Hub id such as USER/NAME.")
            return
        if path.is_file():
            if path.suffix in (".pth", ".pt"):
                remedy = f"make a folder of it: glipv2 convert {self} --output FOLDER."
            else:
                remedy = "pass the folder that it is in."
            raise ValueError(f"{flag} is {str(self)!r}, a file; {remedy}")
        if not path.is_dir():
            has_parent = path.parent != Path(".") and path.parent.is_dir()
            if has_parent or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self) or self.startswith("."):
                raise ValueError(f"{flag}: there is no folder {str(self)!r}; pass a checkpoint's folder or a Hub id.")
            return
        _check_checkpoint(path, flag)


def _check_readable(path: Path, flag: str, kind: str) -> None:
    if not path.exists():
        raise ValueError(f"{flag}: there is no {kind} {str(path)!r}; check the path.")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{flag}: {str(path)!r} cannot be read; change its permissions.")


def _check_writable(path: Path, flag: str) -> None:
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() and existing != path.absolute():
        raise ValueError(f"{flag} is {str(path)!r}, but {str(existing)!r} is a file; choose another path.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{flag}: {str(existing)!r} cannot be written to; choose another path.")


def _check_checkpoint(folder: Path, flag: str) -> None:
    """Whether a folder is a checkpoint of GLIPv2: its type, and weights that are whole."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return
        raise ValueError(f"{flag}: {str(folder)!r} holds no config.json; pass a folder that `save_pretrained` wrote.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{flag}: {str(folder / 'config.json')!r} is no settings of a model: {error}.") from error
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{flag}: {str(folder)!r} holds a model of type {model_type!r}; pass a checkpoint of {MODEL_TYPE!r}."
        )
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{flag}: {str(folder)!r} holds no .safetensors; save the model with `save_pretrained`.")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{flag}: {str(file)!r} is damaged ({error}); copy or save it again.") from error


# Devices -------------------------------------------------------------------------------------------------------------


class Device(str):
    """`cpu`, `cuda` or `cuda:1`."""

    def check(self, flag: str) -> None:
        """Raises ValueError where the machine has no such device."""
        import torch

        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(self.split(":")[0], True):
            raise ValueError(f"{flag} is {str(self)!r}, and there is none here; take cpu.")


def device_name(text: str) -> Device:
    """The type of `--device`."""
    if not re.fullmatch(r"cpu|(cuda|mps|xpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; take cpu, cuda or cuda:1")
    return Device(text)


def batch_size(text: str) -> int | str:
    """The type of `--batch_size` where boxes are found: `auto`, which the [`Detector`] finds out, or a number."""
    return "auto" if str(text) == "auto" else int(positive_int(text))


def auto_or_device(text: str) -> str:
    """The type of `--device` of the commands: `auto`, which [`pick_device`] decides, or a device."""
    return text if text == "auto" else device_name(text)
