"""A checkpoint's folder with other weights, for scripts that change weights without training."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def save_with_weights(source: str | Path, weights: Mapping[str, Tensor], output: str | Path) -> None:
    """
    Writes a folder with the configuration, the processor and the tokenizer of another, and weights of its own; whole
    or not at all.

    Args:
        source (`str` or `Path`): folder of a checkpoint.
        weights (`Mapping[str, Tensor]`): all weights, by name.
        output (`str` or `Path`): folder to write.

    Raises:
        ValueError: when `output` exists.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        raise ValueError(f"{output} exists; choose a new folder.")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt"):
            shutil.copyfile(file, partial / file.name)
    save_file(dict(weights), partial / WEIGHTS, metadata={"format": "pt"})
    os.replace(partial, output)
