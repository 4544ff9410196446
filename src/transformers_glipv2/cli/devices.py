"""The device of a command."""

import torch

from transformers_glipv2.cli.checks import Device


def pick_device(name: str, backend: str = "torch") -> torch.device:
    """
    The device that is meant.

    Args:
        name (`str`): `auto` (CUDA where there is one, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        backend (`str`): of the detector; with `"onnx"` the CPU is what `auto` means.

    Raises:
        ValueError: where the machine has no such device.
    """
    if name == "auto" and backend == "onnx":
        name = "cpu"
    elif name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    Device(name).check("--device")
    if name.startswith("cuda:") and int(name.split(":")[1]) >= torch.cuda.device_count():
        raise ValueError(f"--device is {name!r}, and there are {torch.cuda.device_count()} GPUs; they count from 0.")
    return torch.device(name)


def use_device(name: str, backend: str = "torch") -> None:
    """Makes Accelerate take the device that is meant, see [`pick_device`]; before the first `Accelerator`."""
    device = pick_device(name, backend)
    if name == "auto" and backend == "torch":  # or as `accelerate launch` says
        return
    from accelerate import PartialState

    PartialState(cpu=device.type == "cpu")
    if device.index is not None:
        torch.cuda.set_device(device)
