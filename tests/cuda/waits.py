"""Waits of a GPU as errors, but for those that are meant."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch


@contextmanager
def no_waits(device: torch.device, monkeypatch: pytest.MonkeyPatch, *meant: tuple[ModuleType, str]) -> Iterator[None]:
    """
    Within the context PyTorch raises an error where a GPU is waited for; on a CPU it changes nothing.

    Args:
        device: of the tensors.
        monkeypatch: marks the functions.
        meant: modules and names of functions that may wait.
    """
    if device.type != "cuda":
        yield
        return
    for module, name in meant:
        monkeypatch.setattr(module, name, _allowed(getattr(module, name)))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _allowed(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return call
