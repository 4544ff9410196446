"""What may not leave the machine: secrets, pickles, paths of this machine, strays, and weights of no GLIPv2."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from transformers_glipv2 import (
    GLIPv2Config,
    GLIPv2ForConditionalGeneration,
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForMaskedLM,
    GLIPv2ForObjectDetection,
    GLIPv2ForPreTraining,
    GLIPv2ForVisualQuestionAnswering,
    GLIPv2Processor,
)

TEXT_SUFFIXES = (".json", ".py", ".md", ".txt", ".jinja")
ALLOWED_SUFFIXES = (*TEXT_SUFFIXES, ".safetensors", ".png", ".jpg", ".jpeg")
ALLOWED_NAMES = ("LICENSE", ".gitattributes")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
MODEL_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")

# Which class reads each part of a checkpoint.
CLASS_OF_HEAD = {
    "detection_head": GLIPv2ForObjectDetection,
    "mask_head": GLIPv2ForInstanceSegmentation,
    "answer_head": GLIPv2ForVisualQuestionAnswering,
    "caption_head": GLIPv2ForConditionalGeneration,
    "mlm_head": GLIPv2ForMaskedLM,
    "contrastive_head": GLIPv2ForPreTraining,
}

SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{24,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{30,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\bhttps?://[^\s/:@]+:[^\s/@]+@",
    "a secret": (
        r"(?i)(?:token|secret|passw(?:or)?d|api_?key)['\"]?\s*[:=]\s*['\"](?=[^'\"]*\d)[A-Za-z0-9_\-+/=.]{16,}['\"]"
    ),
}
# Where a path begins: not inside an address or another path.
ABSOLUTE_PATH = re.compile(r"(?:^|[\s\"'`(=,\[])((?:/(?:[\w.+@-]+/)+|[A-Za-z]:\\{1,2}\w)[\w.+@-]*)")


def find_problems(folder: Path, max_file_mb: float) -> list[str]:
    """
    Everything in a folder that must not be published; caches of Python are left out, as they are not uploaded.

    Args:
        folder: with what is to be uploaded.
        max_file_mb: size of a file at most, in millions of bytes.

    Returns:
        A sentence a problem, with the file and the remedy; none where all is well.
    """
    problems = []
    for file in files_of(folder):
        name = file.relative_to(folder).as_posix()
        size = file.stat().st_size
        if file.is_symlink() and folder.resolve() not in file.resolve().parents:
            problems.append(f"{name} is a link that leads out of the folder; put the file itself there.")
        elif is_pickle(file):
            problems.append(f"{name} is a pickle, which runs code when it is loaded; save as safetensors instead.")
        elif file.name not in ALLOWED_NAMES and file.suffix not in ALLOWED_SUFFIXES:
            problems.append(f"{name} is not part of a checkpoint ({', '.join(ALLOWED_SUFFIXES)}); take it away.")
        elif size > max_file_mb * 1e6:
            problems.append(
                f"{name} has {size / 1e6:.1f} MB, more than the limit of {max_file_mb:g}; save in smaller shards "
                "(`save_pretrained(max_shard_size=...)`) or raise --max_file_mb."
            )
        elif file.suffix in TEXT_SUFFIXES or file.name in ALLOWED_NAMES:
            problems += find_in_text(name, file)
    return problems


def files_of(folder: Path) -> Iterator[Path]:
    """The files that an upload takes, in order of their names."""
    for file in sorted(folder.rglob("*")):
        if not file.is_dir() and "__pycache__" not in file.parts:
            yield file


def is_pickle(file: Path) -> bool:
    """By its name or by its content: a pickle's first bytes, or PyTorch's archive with one inside."""
    if file.suffix in PICKLE_SUFFIXES:
        return True
    with file.open("rb") as stream:
        start = stream.read(4)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return True
    if start != b"PK\x03\x04" or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(member.endswith(".pkl") for member in archive.namelist())


def find_in_text(name: str, file: Path) -> list[str]:
    """Secrets and absolute paths in a text file; a secret is not repeated in the message."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return [f"{name} is no UTF-8 text; write it again as UTF-8."]
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{name}, line {number},"
        problems += [f"{place} holds {kind}; take it out and revoke it." for kind in secrets_of(line)]
        # Vocabularies hold words with slashes, and no paths.
        if file.name != "tokenizer.json":
            found = ABSOLUTE_PATH.findall(line)
            problems += [f"{place} has the absolute path {path}; make it relative or take it out." for path in found]
    return problems


def secrets_of(line: str) -> list[str]:
    """The kinds of secrets in a line of text."""
    return [kind for kind, pattern in SECRETS.items() if re.search(pattern, line)]


def check_model(folder: Path) -> dict[str, int]:
    """
    Whether the folder is a whole GLIPv2 that loads.

    Returns:
        Parameters of each part of the checkpoint: "model", "detection_head", and what other heads it holds.

    Raises:
        FileNotFoundError: for files that are missing.
        ValueError: for weights that are missing, of another shape, of no part, or not finite, and for settings of
            another model.
    """
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' has no {', '.join(missing)}; call `save_pretrained` of the model and of the processor first."
        )
    config = GLIPv2Config.from_pretrained(folder)
    processor = GLIPv2Processor.from_pretrained(folder)
    words = config.text_config.vocab_size
    if len(processor.tokenizer) > words:
        raise ValueError(
            f"The tokenizer of '{folder}' knows {len(processor.tokenizer)} words and the model {words}; resize the "
            "embeddings, or save the tokenizer that the model was trained with."
        )
    shapes, counts = {}, {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        broken = [name for name, tensor in load_file(file).items() if not tensor.isfinite().all()]
        if broken:
            raise ValueError(f"'{file}' holds NaN or infinity in {', '.join(broken[:5])}; take an earlier checkpoint.")
    for name, shape in shapes.items():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + torch.Size(shape).numel()
    for head, kind in CLASS_OF_HEAD.items():
        if head in counts or head == "detection_head":
            problem = loading_problem(folder, kind, head, [name for name in shapes if name.startswith(f"{head}.")])
            if problem:
                raise ValueError(
                    f"'{folder}' does not hold the {head} of its config: {problem}; save the model again beside its "
                    "config."
                )
    return counts


def loading_problem(folder: Path, kind: type[torch.nn.Module], head: str, stored: list[str]) -> str | None:
    """
    What is wrong with a head of a folder, or with what all heads share.

    Args:
        folder: with config and weights.
        kind: the class that reads the head. A class leaves other heads' weights alone, its own unknown ones too.
        head: how the names of its weights begin.
        stored: those in the folder.
    """
    # Names on disk may be those of older versions, so loading alone tells whether all is there.
    model, loading = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    known = model.state_dict().keys()
    loading["unexpected_keys"] = {*loading["unexpected_keys"], *(name for name in stored if name not in known)}
    for what, keys in loading.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in keys)
        others = tuple(f"{name}." for name in CLASS_OF_HEAD if name not in (head, "detection_head"))
        names = [name for name in names if not name.startswith(others)]
        if names:
            return f"{what.replace('_', ' ')} {', '.join(names[:5])}"
    return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, every shard of its index."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"'{folder}' has no {', '.join(missing)}; save the model again.")
    return [folder / name for name in names]
