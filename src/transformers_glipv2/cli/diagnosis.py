"""What `glipv2 doctor` says of an installation: versions, devices, extras, caches, and what to install."""

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from packaging.requirements import Requirement

PACKAGE = "transformers-glipv2"
MAIN_PACKAGES = (PACKAGE, "torch", "torchvision", "transformers", "timm", "huggingface-hub", "safetensors", "pillow")
# Extra -> what it is for; those for work on the package itself (`docs`, `dev`) are left out.
EXTRAS = {
    "train": "`glipv2 train` and `glipv2 predict`",
    "eval": "`glipv2 evaluate`",
    "export": "`glipv2 export` and `--backend onnx`",
    "phrases": "noun phrases by spaCy",
    "supervision": "`to_supervision`",
    "ray": "`glipv2 predict --engine ray`",
    "serve": "`examples/serve.py`",
    "demo": "the Space",
}


def diagnose(check_hub: bool = False) -> dict[str, Any]:
    """
    The state of this installation, as JSON values.

    Args:
        check_hub (`bool`, *optional*, defaults to `False`): ask the Hub whether it is there; nothing else goes over
            the network.

    Returns:
        `dict`: "system", "versions" (package -> version, `None` where it is not installed), "devices", "memory_gb",
        "extras" (extra -> packages that are missing or too old), "cache" (of the Hub), and "hub" (where asked).
    """
    cache = Path(constants.HF_HUB_CACHE)
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in MAIN_PACKAGES},
        "devices": devices(),
        "cpus": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "extras": {extra: missing_of(extra) for extra in EXTRAS},
        "cache": {
            "folder": str(cache),
            "free_gb": round(shutil.disk_usage(_existing(cache)).free / 1e9, 1),
            "offline": constants.HF_HUB_OFFLINE,
        },
    }
    if check_hub:
        found["hub"] = _ask_hub()
    return found


def devices() -> list[dict[str, Any]]:
    """The devices that `--device auto` may take, the first one first."""
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_gb": round(properties.total_memory / 1e9, 1),
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return [*found, {"device": "cpu", "name": platform.processor() or platform.machine()}]


def missing_of(extra: str) -> list[str]:
    """The requirements of an extra that are not met."""
    missing = []
    for line in requires(PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == PACKAGE:
            for inner in requirement.extras:
                missing += missing_of(inner)
            continue
        # Requirements of every installation hold whatever the extra.
        if requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def advice(found: Mapping[str, Any]) -> list[str]:
    """What to do about what [`diagnose`] found, a sentence each."""
    sentences = [
        f'pip install "{PACKAGE}[{extra}]" for {EXTRAS[extra]} (missing: {", ".join(missing)})'
        for extra, missing in found["extras"].items()
        if missing
    ]
    if found["devices"][0]["device"] == "cpu" and shutil.which("nvidia-smi"):
        sentences.append("there is an NVIDIA driver, and this torch sees no GPU; install torch for CUDA (pytorch.org)")
    if found["cache"]["free_gb"] < 5:
        sentences.append(f"less than 5 GB are free at {found['cache']['folder']}; set HF_HOME to a larger disk")
    if found["cache"]["offline"]:
        sentences.append("HF_HUB_OFFLINE is set, so nothing is downloaded; unset it to fetch weights")
    if found.get("hub", "reachable") != "reachable":
        sentences.append("the Hub cannot be reached; check the network, HTTPS_PROXY and HF_ENDPOINT")
    return sentences


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """What [`diagnose`] found and [`advice`] says, for people."""
    lines = [f"Python {found['python']} on {found['system']}, {found['executable']}", ""]
    lines += [f"{name:<22}{number or 'not installed'}" for name, number in found["versions"].items()]
    lines.append("")
    for device in found["devices"]:
        memory = f", {device['memory_gb']} GB" if "memory_gb" in device else ""
        lines.append(f"{device['device']:<22}{device['name']}{memory}")
    memory = "" if found["memory_gb"] is None else f", {found['memory_gb']} GB of memory"
    lines += [f"{'':<22}{found['cpus']} CPUs{memory}", ""]
    for extra, missing in found["extras"].items():
        lines.append(f"{f'[{extra}]':<22}{'installed' if not missing else 'missing: ' + ', '.join(missing)}")
    cache = found["cache"]
    lines += ["", f"{'cache of the Hub':<22}{cache['folder']}, {cache['free_gb']} GB free"]
    if "hub" in found:
        lines.append(f"{'Hub':<22}{found['hub']}")
    return [*lines, "", *(f"- {sentence}" for sentence in found["advice"] or ["nothing is missing"])]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _ask_hub() -> str:
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # of whichever HTTP library the Hub's client uses
        return f"not reachable at {constants.ENDPOINT} ({type(error).__name__})"
    return "reachable"
