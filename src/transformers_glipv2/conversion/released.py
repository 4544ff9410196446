"""
Released checkpoints by name: `glip-tiny`, `glip-large` and others are downloaded, converted and kept.

    model, processor = load_pretrained("glip-tiny")
    detector = pipeline("zero-shot-object-detection", model=resolve_model("glip-tiny"))

The weights are those of microsoft/GLIP, and those that mmdetection fine-tuned on COCO. A name is downloaded once, with
the text encoder's tokenizer; afterwards no network is needed.
"""

import difflib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from transformers import PreTrainedModel
from transformers.utils import logging

from transformers_glipv2.conversion.download import (
    RemoteFile,
    check_space,
    download,
    find_at_url,
    find_on_hub,
    missing_bytes,
)

logger = logging.get_logger(__name__)

DEFAULT_MODEL = "glip-tiny"
HUB_REPO = "GLIPModel/GLIP"
# Beside the converted weights: where they come from. Another format is converted again.
SOURCE_FILE = "source.json"
_FORMAT = 1
_BERT_VOCAB_SIZE = 30522
_MMDETECTION = "https://download.openmmlab.com/mmdetection/v3.0/glip/"


@dataclass(frozen=True)
class ReleasedModel:
    """
    A checkpoint that can be had by name.

    Args:
        name: as it is written instead of a folder.
        file: the file in `GLIPModel/GLIP` on the Hub, or its whole address.
        sha256: the first digits of its SHA-256, where they are known beforehand; of its own files the Hub says it.
        parameters: of the network, without parts that GLIP does not use.
        coco_ap: box AP on COCO val2017, as the README of mmdetection's `configs/glip` gives it.
        is_zero_shot: whether COCO was no part of the training.
        training_data: what the network was trained on.
        license: of the repository that released it.
    """

    name: str
    file: str
    parameters: int
    coco_ap: float
    training_data: str
    is_zero_shot: bool = True
    license: str = "MIT (microsoft/GLIP)"
    sha256: str = ""

    @property
    def url(self) -> str:
        """Where a reader finds the file."""
        return self.file if "://" in self.file else f"{constants.ENDPOINT}/{HUB_REPO}/blob/main/{self.file}"

    def find(self) -> RemoteFile:
        """The file at its server."""
        if "://" in self.file:
            return find_at_url(self.file, self.sha256)
        return find_on_hub(HUB_REPO, self.file)


def _fine_tuned(name: str, stem: str, sha256: str, parameters: int, coco_ap: float, data: str) -> ReleasedModel:
    """A checkpoint that mmdetection fine-tuned; the names of its files end in the first digits of their SHA-256."""
    folder = stem.rsplit("_", 2)[0]
    return ReleasedModel(
        name=name,
        file=f"{_MMDETECTION}{folder}/{stem}-{sha256}.pth",
        parameters=parameters,
        coco_ap=coco_ap,
        training_data=f"{data}, COCO",
        is_zero_shot=False,
        license="Apache-2.0 (open-mmlab/mmdetection)",
        sha256=sha256,
    )


_TINY_A, _TINY, _LARGE = 151_430_000, 231_780_000, 430_420_000
_O365, _GOLDG = "Objects365", "Objects365, GoldG"
_TINY_DATA = "Objects365, GoldG, CC3M, SBU"
_LARGE_DATA = "FourODs, GoldG, CC3M, CC12M, SBU"
_MODELS = [
    ReleasedModel("glip-tiny-a", "glip_a_tiny_o365.pth", _TINY_A, 43.0, _O365),
    ReleasedModel("glip-tiny-b", "glip_tiny_model_o365.pth", _TINY, 44.9, _O365),
    ReleasedModel("glip-tiny-c", "glip_tiny_model_o365_goldg.pth", _TINY, 46.7, _GOLDG),
    ReleasedModel("glip-tiny", "glip_tiny_model_o365_goldg_cc_sbu.pth", _TINY, 46.4, _TINY_DATA),
    ReleasedModel("glip-large", "glip_large_model.pth", _LARGE, 51.3, _LARGE_DATA),
    _fine_tuned(
        "glip-tiny-a-coco",
        "glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco_20230908_091856",
        "39f01d03",
        _TINY_A,
        53.1,
        _O365,
    ),
    _fine_tuned(
        "glip-tiny-b-coco",
        "glip_atss_swin-t_b_fpn_dyhead_16xb2_ms-2x_funtune_coco_20230909_175354",
        "e0c0c6d7",
        _TINY,
        54.1,
        _O365,
    ),
    _fine_tuned(
        "glip-tiny-c-coco",
        "glip_atss_swin-t_c_fpn_dyhead_16xb2_ms-2x_funtune_coco_20230909_175543",
        "5fcb4b97",
        _TINY,
        55.2,
        _GOLDG,
    ),
    _fine_tuned(
        "glip-tiny-coco",
        "glip_atss_swin-t_fpn_dyhead_16xb2_ms-2x_funtune_coco_20230910_125111",
        "ad1025a0",
        _TINY,
        55.2,
        _TINY_DATA,
    ),
    _fine_tuned(
        "glip-large-coco",
        "glip_atss_swin-l_fpn_dyhead_16xb2_ms-2x_funtune_coco_20230910_100800",
        "e9be4274",
        _LARGE,
        59.4,
        _LARGE_DATA,
    ),
]
RELEASED: dict[str, ReleasedModel] = {model.name: model for model in _MODELS}


def cache_folder() -> Path:
    """Where converted checkpoints are: `GLIPV2_CACHE`, or `glipv2` in `HF_HOME`."""
    return Path(os.environ.get("GLIPV2_CACHE") or Path(constants.HF_HOME) / "glipv2").expanduser()


def resolve_model(name_or_path: str | os.PathLike) -> str:
    """
    The folder of a released checkpoint by its name; anything else unchanged.

    The first time, the file is downloaded (an interrupted download goes on where it was), compared with the size and
    the SHA-256 that the server states, and converted. Later calls need no network. Processes that ask for the same
    name wait for each other. A folder of that name in the working directory comes first, as in transformers.

    Args:
        name_or_path (`str`): one of `RELEASED`, a folder, or a Hub id.

    Returns:
        `str`: what `from_pretrained` and `pipeline` take.

    Raises:
        ConnectionError: when a name is not in the cache and its server cannot be reached.
        ValueError: when the file is not the one that was announced, or for a name that is close to a released one.
        OSError: when the disk is too small.
    """
    source = os.fspath(name_or_path)
    if Path(source).exists():
        if source in RELEASED:
            logger.info(f"'{source}' is a folder here, and is taken instead of the released checkpoint of that name.")
        return source
    if source in RELEASED:
        return str(fetch_released(source))
    if source.startswith("glip-") and "/" not in source:
        close = difflib.get_close_matches(source, RELEASED, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"There is no released checkpoint '{source}': {hint}The names are {', '.join(RELEASED)}. For your own "
            "checkpoint pass its folder."
        )
    return source


def load_pretrained(
    name_or_path: str | os.PathLike = DEFAULT_MODEL,
    model_class: type[PreTrainedModel] | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """
    A model in evaluation mode, and its processor, by the name of a released checkpoint, a folder or a Hub id.

    Args:
        name_or_path (`str`, *optional*, defaults to `"glip-tiny"`): as [`resolve_model`] takes it.
        model_class (`type`, *optional*): the class to load; `GLIPv2ForObjectDetection` by default. Released
            checkpoints have the weights of boxes only; other heads start at random, to be trained.
        kwargs: of the class's `from_pretrained`, such as `dtype` or `device_map`.

    Returns:
        `tuple`: the model and the `GLIPv2Processor`.

    Raises:
        ConnectionError, ValueError, OSError: as [`resolve_model`] and `from_pretrained` do.

    Example:
        >>> model, processor = load_pretrained("glip-tiny")
        >>> results = detect_labels(model, processor, "street.jpg", ["person", "traffic light"])
    """
    from transformers_glipv2.modeling_glipv2 import GLIPv2ForObjectDetection
    from transformers_glipv2.processing_glipv2 import GLIPv2Processor

    folder = resolve_model(name_or_path)
    model = (model_class or GLIPv2ForObjectDetection).from_pretrained(folder, **kwargs)
    return model.eval(), GLIPv2Processor.from_pretrained(folder)


def fetch_released(name: str) -> Path:
    """
    The folder of a released checkpoint in the cache, downloaded and converted if need be.

    Args:
        name (`str`): one of `RELEASED`.

    Raises:
        ConnectionError, ValueError, OSError: as [`resolve_model`] does.
    """
    model = RELEASED[name]
    folder = cache_folder() / model.name
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_name(f".{model.name}.lock")):
        if not _is_whole(folder):
            _fetch(model, folder)
    return folder


def save_released(name: str, output: str | os.PathLike | None = None) -> Path:
    """
    The folder of a released checkpoint; with `output` a copy of it there.

    Args:
        name (`str`): one of `RELEASED`.
        output (`str` or `os.PathLike`, *optional*): a folder that is empty or not there.

    Raises:
        ConnectionError, ValueError, OSError: as [`resolve_model`] does.
        ValueError: when `output` holds files.
    """
    if output is None:
        return fetch_released(name)
    target = Path(output)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"The output '{target}' is there already; pass a folder that is new or empty.")
    return Path(shutil.copytree(fetch_released(name), target, dirs_exist_ok=True))


def table() -> str:
    """The released checkpoints: name, millions of parameters, box AP on COCO val2017, training data, licence."""
    rows = [("name", "parameters", "COCO AP", "trained on", "licence")]
    rows += [
        (model.name, f"{model.parameters / 1e6:.0f} M", f"{model.coco_ap:.1f}", model.training_data, model.license)
        for model in RELEASED.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _is_whole(folder: Path) -> bool:
    """A folder appears under its name only when it is whole; its source is written by this or another version."""
    try:
        return json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch(model: ReleasedModel, folder: Path) -> None:
    """Downloads, converts, and puts the result under its name."""
    from transformers_glipv2.conversion.convert_glip_checkpoint import convert_checkpoint, load_tokenizer

    file = folder.parent / "downloads" / Path(model.file).name
    try:
        remote = model.find()
        # Weights are converted to as many bytes again; the download is deleted when that is done.
        check_space(folder.parent, missing_bytes(remote, file) + 4 * model.parameters, f"'{model.name}'")
        # Small and needed in any case, so before the large file.
        tokenizer = load_tokenizer(None, _BERT_VOCAB_SIZE)
        size = f", {remote.size / 1e9:.1f} GB" if remote.size else ""
        logger.warning(f"Downloading '{model.name}' ({model.url}{size}). Its licence: {model.license}.")
        download(remote, file)
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            f"'{model.name}' is not in the cache ({folder.parent}) yet. {error} Connect once, set HF_ENDPOINT to a "
            f"mirror of the Hub, or get {model.url} on another machine and run `glipv2 convert {file.name} --output "
            f"FOLDER`. What has arrived so far is kept."
        ) from error
    _remove_leftovers(model, folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{model.name}.", dir=folder.parent))
    try:
        convert_checkpoint(file, temporary, tokenizer=tokenizer)
        source = {"format": _FORMAT, "name": model.name, "url": remote.url, "license": model.license}
        source |= {"size": remote.size, "sha256": remote.sha256}
        (temporary / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        # As readable as other files, so that several users may share a cache.
        temporary.chmod(0o755)
        for written in temporary.iterdir():
            shutil.copymode(temporary / SOURCE_FILE, written)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except ValueError:
        # Not what its name says: the next call downloads it again.
        file.unlink()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    file.unlink(missing_ok=True)


def _remove_leftovers(model: ReleasedModel, cache: Path) -> None:
    """Folders of conversions that were killed a day ago or earlier."""
    for folder in cache.glob(f".{model.name}.*/"):
        if folder.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(folder, ignore_errors=True)


__all__ = [
    "DEFAULT_MODEL",
    "RELEASED",
    "ReleasedModel",
    "cache_folder",
    "fetch_released",
    "load_pretrained",
    "resolve_model",
    "save_released",
    "table",
]
