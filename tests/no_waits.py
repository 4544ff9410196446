"""
Checks that nothing makes a GPU wait, without a GPU.

A CPU runs ahead of a GPU until it needs a value: to index by a mask, to count, to turn a tensor into a number, to copy
a list or a tensor from one to the other. Each of these stops both, dozens of times a forward if nobody looks.

>>> with NoWaits():
...     model(**inputs)  # raises a WaitError at the first such operator
>>> gpu = FakeGPU()
>>> model, inputs = gpu.model(model), gpu.tensors(inputs)
>>> with gpu, NoWaits(cpu_data=True):
...     model(**inputs)  # without values: takes the branches of a GPU, and sees copies between the two
"""

import copy
import sys
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
# What neither is a view by its schema nor computes anything.
NO_KERNEL = (aten.promote_types.default, aten._unsafe_view.default)
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class WaitError(AssertionError):
    """An operator for which a GPU has to be waited for."""


class NoWaits(TorchDispatchMode):
    """
    Refuses operators that wait: those that read values (`item`, `nonzero`, `unique`, boolean indexing, `equal`, NMS),
    tensors made of Python data (`torch.tensor`, `new_tensor`), and copies between devices.

    On the CPU a read costs nothing, and some are made on the CPU alone; those, and reads that are meant, are allowed
    by naming their functions.

    Args:
        allowed: functions that may wait, in themselves and in what they call.
        cpu_data: whether Python data may become tensors on the CPU. With a `FakeGPU` they may, since a copy of them
            would be seen; without, what stays on the CPU and what would be copied look the same.
    """

    def __init__(self, allowed: Iterable[Callable] = (), cpu_data: bool = False):
        super().__init__()
        self.allowed = {code_of(function) for function in allowed}
        self.cpu_data = cpu_data

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reason = self.reason_to_wait(func, args, kwargs or {})
        if reason is not None and not self.is_allowed():
            raise WaitError(f"{reason} ({func}), {calling_line()}")
        return func(*args, **(kwargs or {}))

    def reason_to_wait(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
        if func is aten.lift_fresh.default:
            stays = self.cpu_data and args[0].device.type == "cpu"
            return None if stays else "a tensor made of Python data"
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            has_size = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None
            if not has_size and func not in INDEXING:
                return "values are read"
        if str(func) == "torchvision.nms.default":
            return "values are read"
        if func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            is_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            # A single value is filled in by `masked_fill`, which reads nothing.
            fills = func is not aten.index.Tensor and args[2].numel() == 1
            if is_mask and not fills:
                return "values of a mask are read"
            if any(index.device != args[0].device for index in indices):
                return "an index is copied to another device"
        if func in COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            target = (
                args[0].device if func is aten.copy_.default else torch.device(kwargs.get("device") or source.device)
            )
            non_blocking = kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,))
            if target.type != source.device.type and not (non_blocking and target.type != "cpu"):
                return f"a copy from {source.device.type} to {target.type}"
        return None

    def is_allowed(self) -> bool:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code in self.allowed:
                return True
            frame = frame.f_back
        return False


class CountOperators(TorchDispatchMode):
    """Counts operators that compute something: neither views nor questions about a tensor."""

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and func.namespace != "prim" and func not in NO_KERNEL:
            self.counts[str(func)] = self.counts.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


class FakeGPU:
    """
    Tensors without values that say they are on a GPU. Under it tensors made by a model are on it too, and whatever
    asks where a tensor is goes the way of a GPU.
    """

    def __init__(self):
        self.mode = FakeTensorMode()

    def __enter__(self):
        return self.mode.__enter__()

    def __exit__(self, *error):
        return self.mode.__exit__(*error)

    def tensors(self, inputs: Any) -> Any:
        """The same lists and dicts with tensors on the GPU."""
        return tree_map_only(torch.Tensor, self._moved, inputs)

    def model(self, model: nn.Module) -> nn.Module:
        """A copy of a model on the GPU; parameters that are tied stay so."""
        with FakeCopyMode(self.mode):
            model = copy.deepcopy(model)
        moved: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in moved:
                        moved[id(parameter)] = nn.Parameter(self._moved(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = moved[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self._moved(buffer)
        return model

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.mode:
            return (tensor if isinstance(tensor, FakeTensor) else self.mode.from_tensor(tensor)).to("cuda")


def code_of(function: Callable) -> CodeType:
    """The code of a function, beneath what decorates it."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__


def calling_line() -> str:
    """The innermost line of the package that is on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if "transformers_glipv2" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside of the package"
