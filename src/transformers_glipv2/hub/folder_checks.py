"""What must not be published: secrets, pickles, paths of this machine, strays, and weights of another model."""

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

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

TEXT_SUFFIXES = (".json", ".jsonl", ".py", ".md", ".txt", ".jinja", ".yaml", ".csv")
ALLOWED_SUFFIXES = (*TEXT_SUFFIXES, ".safetensors", ".png", ".jpg", ".jpeg")
ALLOWED_NAMES = ("LICENSE", ".gitattributes")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
# Not uploaded: caches of Python, what training keeps to go on with, and its settings with paths of this machine.
IGNORED = ("__pycache__", "checkpoints", "last", "runs", "tracking", "training_args.json")
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

# Forms that are secrets wherever they are, also in the bytes of images and weights. Each begins with its letters, and
# says behind them that none is before: to search for letters takes a hundredth of the time of a search for `\b`.
SECRETS = {
    "a Hugging Face token": r"hf_(?<!\whf_)[A-Za-z0-9]{20,}",
    "a GitHub token": r"g(?<!\wg)(?:h[pousr]_[A-Za-z0-9]{30,}|ithub_pat_[A-Za-z0-9_]{30,})",
    "an OpenAI or Anthropic key": r"sk-(?<!\wsk-)[A-Za-z0-9_-]{24,}",
    "an AWS key": r"A(?<!\wA)(?:KIA|SIA)[A-Z0-9]{16}\b",
    "a Google key": r"AIza(?<!\wAIza)[A-Za-z0-9_-]{30,}",
    "a Slack token": r"xox(?<!\wxox)[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"http(?<!\whttp)s?://[^\s/:@\x00-\x1f\x7f-\xff]+:[^\s/@\x00-\x1f\x7f-\xff]+@",
}
# Values that are given to names of secrets, in text only: quoted, or as in an environment file.
_SECRET_NAME = (
    r"(?:token|secret|passw(?:or)?d|passphrase|pwd|credentials?|(?:api|access|account|auth|secret|private)_?key)"
)
NAMED_SECRETS = (
    rf"(?i){_SECRET_NAME}['\"]?\s*[:=]\s*['\"](?=[^'\"]*\d)[A-Za-z0-9_\-+/=.]{{16,}}['\"]",
    rf"(?i){_SECRET_NAME}\s*=\s*(?=[^\s'\"]*\d)[A-Za-z0-9_\-+/=.]{{16,}}(?![\w(\[.])",
    r"(?m)^\s*(?:export\s+)?[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PWD|CREDENTIALS?|KEY)=['\"]?"
    r"[^\s'\"$<{(\[]{4,}",
)
# Keys of clouds are long random text: letters of both cases and digits, more evenly spread than in words and paths.
_RANDOM = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{40,}={0,2}(?![A-Za-z0-9+/=])")
MIN_ENTROPY = 4.4  # bits a character; random base64 of 40 characters has 4.7, an English path about 4
# Scanned in pieces that overlap by more than the longest form.
CHUNK, OVERLAP = 1 << 24, 1 << 12
CODE_SUFFIXES = (".py", ".sh", ".so", ".exe", ".dll")
CODE_STARTS = (b"#!", b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Where a path begins: not inside an address or another path.
ABSOLUTE_PATH = re.compile(r"(?:^|[\s\"'`(=,\[])((?:/(?:[\w.+@-]+/)+|[A-Za-z]:\\{1,2}\w)[\w.+@-]*)")


def find_problems(folder: Path, max_file_mb: float) -> list[str]:
    """
    Everything in a folder that must not be published; what is `IGNORED` is left out, as it is not uploaded.

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
        if file.is_symlink() and (file.is_dir() or folder.resolve() not in file.resolve().parents):
            problems.append(f"{name} is a link that leads out of the folder; put the file itself there.")
        elif is_pickle(file):
            problems.append(f"{name} is a pickle, which runs code when it is loaded; save as safetensors instead.")
        elif "/" in name and is_code(file):
            problems.append(f"{name} is code or executable in a sub-folder; take it away.")
        elif file.name not in ALLOWED_NAMES and file.suffix not in ALLOWED_SUFFIXES:
            problems.append(f"{name} is not part of a checkpoint ({', '.join(ALLOWED_SUFFIXES)}); take it away.")
        elif size > max_file_mb * 1e6:
            problems.append(
                f"{name} has {size / 1e6:.1f} MB, more than the limit of {max_file_mb:g}; save in smaller shards "
                "(`save_pretrained(max_shard_size=...)`) or raise --max_file_mb."
            )
        else:
            problems += find_in_file(name, file)
    return problems


def files_of(folder: Path) -> Iterator[Path]:
    """The files that an upload takes, in order of their names, and links to folders."""
    for file in sorted(folder.rglob("*")):
        if (file.is_symlink() or not file.is_dir()) and not set(IGNORED) & set(file.relative_to(folder).parts):
            yield file


def is_pickle(file: Path) -> bool:
    """By its name or by its content: a pickle's first bytes, or PyTorch's archive with one inside."""
    if file.suffix in PICKLE_SUFFIXES:
        return True
    start = first_bytes(file)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return True
    if start != b"PK\x03\x04" or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(member.endswith(".pkl") for member in archive.namelist())


def is_code(file: Path) -> bool:
    """By its name, its permissions or its first bytes."""
    is_executable = bool(file.stat().st_mode & 0o111)
    return file.suffix in CODE_SUFFIXES or is_executable or first_bytes(file).startswith(CODE_STARTS)


def first_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(4)


def find_in_file(name: str, file: Path) -> list[str]:
    """What is wrong with the content of a file; a secret is not repeated in the message."""
    problems = [f"{name} has {kind} in its name; rename it and revoke that." for kind in secrets_of(name)]
    if file.suffix in TEXT_SUFFIXES or file.name in ALLOWED_NAMES:
        return problems + find_in_text(name, file)
    for where, text in embedded_texts(file):
        if text is None:
            problems.append(f"{name} is damaged: {where}; save it again.")
        else:
            problems += [f"{name}, {where}, holds {kind}; take it out and revoke it." for kind in secrets_of(text)]
    kinds = {kind for chunk in chunks_of(file) for kind in secrets_of(chunk.decode("latin-1"), in_text=False)}
    # What was found in a text is in the bytes as well.
    new = [kind for kind in sorted(kinds) if not any(kind in problem for problem in problems)]
    return problems + [f"{name} holds {kind} in its bytes; take it out and revoke it." for kind in new]


def embedded_texts(file: Path) -> Iterator[tuple[str, str | None]]:
    """The texts in images and weights, compressed ones too, with where they are; `None` where the file is damaged."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as weights:
                yield "metadata", json.dumps(weights.metadata() or {}, ensure_ascii=False)
        except SafetensorError as error:
            yield str(error), None
    elif file.suffix in IMAGE_SUFFIXES:
        try:
            with Image.open(file) as image:
                image.load()
                entries = {**image.info, **getattr(image, "text", {})}
                exif = image.getexif()
                for part in (exif, exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)):
                    entries |= {f"EXIF {tag}": value for tag, value in part.items()}
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            yield str(error), None
            return
        for key, value in entries.items():
            value = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            yield f"text {key!r}", f"{key}: {value}"


def chunks_of(file: Path) -> Iterator[bytes]:
    """All bytes of a file, in pieces that overlap."""
    with file.open("rb") as stream:
        kept = b""
        while chunk := stream.read(CHUNK):
            yield kept + chunk
            kept = chunk[-OVERLAP:]


def find_in_text(name: str, file: Path) -> list[str]:
    """Secrets and absolute paths in a text file, and code of other repositories."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return [f"{name} is no UTF-8 text; write it again as UTF-8."]
    problems = find_foreign_code(name, file, text)
    # The whole text at once is much quicker than its lines, which tell where something is.
    has_secrets = bool(secrets_of(text))
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}, line {number},"
        found = secrets_of(line) if has_secrets else []
        problems += [f"{where} holds {kind}; take it out and revoke it." for kind in found]
        # Vocabularies hold words with slashes, and no paths.
        if file.name != "tokenizer.json":
            paths = ABSOLUTE_PATH.findall(line)
            problems += [f"{where} has the absolute path {path}; make it relative or take it out." for path in paths]
    return problems


def find_foreign_code(name: str, file: Path, text: str) -> list[str]:
    """References of an `auto_map` that are not to a module in the same folder, and so would run other code."""
    if file.suffix != ".json" or "auto_map" not in text:
        return []
    try:
        content = json.loads(text)
    except ValueError as error:
        return [f"{name} is no JSON ({error}); save it again."]
    return [
        f"{name} has the `auto_map` reference {one!r}, which is no class of a module in this folder; save the model "
        "again."
        for one in leaves_of([part["auto_map"] for part in parts_of(content) if "auto_map" in part])
        if not re.fullmatch(r"\w+\.\w+", one) or not (file.parent / f"{one.split('.')[0]}.py").is_file()
    ]


def parts_of(content: Any) -> Iterator[dict[str, Any]]:
    """All dicts in a JSON value."""
    if isinstance(content, dict):
        yield content
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    for child in children:
        yield from parts_of(child)


def leaves_of(content: Any) -> Iterator[str]:
    """All texts in a JSON value, without the keys."""
    if isinstance(content, dict | list):
        for child in content.values() if isinstance(content, dict) else content:
            yield from leaves_of(child)
    elif content is not None:
        yield str(content)


def secrets_of(text: str, in_text: bool = True) -> list[str]:
    """The kinds of secrets in a line of text, or in bytes read as Latin-1."""
    kinds = [kind for kind, pattern in SECRETS.items() if re.search(pattern, text)]
    if in_text and not kinds:
        if any(re.search(pattern, text) for pattern in NAMED_SECRETS):
            kinds.append("a secret")
        elif any(is_random(found) for found in _RANDOM.findall(text)):
            kinds.append("what looks like a key of a cloud")
    return kinds


def is_random(text: str) -> bool:
    """Whether a text without spaces is random rather than words: by its kinds of characters and its entropy."""
    text = text.rstrip("=")
    counts = Counter(text)
    entropy = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    has_all = all(any(kind(char) for char in counts) for kind in (str.islower, str.isupper, str.isdigit))
    return has_all and entropy >= MIN_ENTROPY


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
    config: Any = GLIPv2Config.from_pretrained(folder)
    processor = GLIPv2Processor.from_pretrained(folder)
    words = config.text_config.vocab_size
    if len(processor.tokenizer) > words:
        raise ValueError(
            f"The tokenizer of '{folder}' has {len(processor.tokenizer)} tokens and the model {words}; resize the "
            "embeddings, or save the tokenizer that the model was trained with."
        )
    shapes: dict[str, tuple[int, ...]] = {}
    counts: dict[str, int] = {}
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


def loading_problem(folder: Path, kind: type[PreTrainedModel], head: str, stored: list[str]) -> str | None:
    """
    What is wrong with a head of a folder, or with what all heads share.

    Args:
        folder: with config and weights.
        kind: the class that reads the head. A class leaves other heads' weights alone, its own unknown ones too.
        head: how the names of its weights begin.
        stored: those in the folder.
    """
    # Names on disk may be those of older versions, so loading alone tells whether all is there.
    loaded: Any = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    model, loading = loaded
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
