"""How scripts end when something foreseeable goes wrong: one line on stderr, and exit code 2."""

import dis
import errno
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from PIL import Image
from safetensors import SafetensorError

from transformers_glipv2.cli.streams import print_all_characters

TRACEBACK = "GLIPV2_TRACEBACK"
INTERRUPTED = 130
_PACKAGE = Path(__file__).resolve().parents[1]
# Libraries whose `raise` statements are about what the user gave: names on the Hub, splits, precision.
_LIBRARIES = ("accelerate", "datasets", "huggingface_hub")
# What readers of files raise, whoever calls them.
_FILE_ERRORS = (
    OSError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    yaml.YAMLError,
    SafetensorError,
    pickle.UnpicklingError,
    Image.DecompressionBombError,
)
# Extra -> names to import; the first that has a package is advised, where a command does not name its own.
_EXTRAS = {
    "train": ("accelerate", "datasets", "peft", "pyarrow", "pycocotools", "tensorboard", "trackio"),
    "eval": ("accelerate", "datasets", "evaluate", "pyarrow", "pycocoevalcap", "pycocotools"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "phrases": ("spacy",),
    "demo": ("skimage", "gradio"),
    "supervision": ("supervision",),
    "ray": ("ray",),
    "serve": ("fastapi", "uvicorn", "python_multipart"),
}
_REMEDIES = {
    errno.ENOSPC: "no space left on the disk; free some or choose another output, and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another output",
    errno.EACCES: "no permission; change it or choose another path",
    errno.EPERM: "no permission; change it or choose another path",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EISDIR: "this is a folder; pass a file",
    errno.ENOTDIR: "this is no folder; check the path",
}


def run(main: Callable[[], Any]) -> None:
    """
    Calls a script's `main`; a foreseeable error ends in one line on stderr and exit code 2.

    Foreseeable are errors of files, of memory, of missing packages, and those that this package and the script raise
    on purpose. Anything else is a fault of the program and keeps its traceback, as everything does where the
    environment variable GLIPV2_TRACEBACK is set.

    Args:
        main (`Callable`): takes no argument, or only optional ones.
    """
    print_all_characters()
    try:
        main()
    except KeyboardInterrupt:
        if os.environ.get(TRACEBACK):
            raise
        _end("interrupted; the same command goes on where it can", INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK) or not is_foreseeable(error):
            raise
        _end(f"error: {message_of(error)}", 2)


def is_foreseeable(error: BaseException) -> bool:
    """Whether an error is about what the user gave, rather than a fault of the program."""
    if isinstance(error, _FILE_ERRORS) or is_out_of_memory(error):
        return True
    if isinstance(error, ModuleNotFoundError):
        return (error.name or "").split(".")[0] != _PACKAGE.name
    if isinstance(error, AssertionError) or error.__traceback__ is None:
        return False
    return is_raised_on_purpose(error.__traceback__)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the computer or the GPU; by name, so that nothing need import torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_raised_on_purpose(traceback: TracebackType) -> bool:
    """Whether an error comes from a `raise` statement of this package, the script, or a library that checks input."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    if dis.opname[code.co_code[traceback.tb_lasti]] != "RAISE_VARARGS":
        return False
    file = Path(code.co_filename).resolve()
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if _PACKAGE in file.parents or (script is not None and Path(script).resolve().parent == file.parent):
        return True
    module = traceback.tb_frame.f_globals.get("__name__", "")
    return module.split(".")[0] in _LIBRARIES


def message_of(error: BaseException, extra: str | None = None) -> str:
    """
    An error in one line, with the way out where its kind has one.

    Args:
        error (`BaseException`): as it was raised.
        extra (`str`, *optional*): that is advised for a missing package, where it has it.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{error.filename}: {_REMEDIES[error.errno]}" if error.filename else _REMEDIES[error.errno]
    if is_out_of_memory(error):
        return f"out of memory; take a smaller --batch_size or --image_size ({text[:200]})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        extras = [name for name, packages in _EXTRAS.items() if package in packages]
        extra = extra if extra in extras else next(iter(extras), None)
        remedy = "install it with pip" if extra is None else f'run `pip install "transformers-glipv2[{extra}]"`'
        return f"the package {package!r} is needed here and not installed; {remedy}"
    return text or type(error).__name__


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    sys.exit(code)
