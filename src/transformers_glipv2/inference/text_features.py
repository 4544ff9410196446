"""A bounded cache of text features that never gives features of another state of the model."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..layers.input_checks import can_read

# Values of each parameter that a fingerprint holds, spread evenly over it.
SAMPLES = 16
# What PEFT's layers hold beside parameters: which adapters are on, merged, and how strong they are.
_ADAPTER_STATE = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that hold a tensor's values: itself, its shard, or the integers and scales that quantise it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    parts = (getattr(tensor, name) for name in names)
    # A shard also holds the mesh of devices that it belongs to.
    return [plain for part in parts if isinstance(part, torch.Tensor) for plain in plain_tensors(part)]


def sample_values(tensor: torch.Tensor) -> torch.Tensor:
    """At most `SAMPLES` values of a tensor, spread evenly over it; a shard's own values where it is sharded."""
    flat = plain_tensors(tensor)[0].detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


def weights_fingerprint(module: nn.Module) -> Hashable | None:
    """
    A value that changes whenever what a module computes may have changed.

    In-place updates (an optimizer step, `load_state_dict`) raise a tensor's version counter; moving, casting or
    replacing a parameter changes its storage or dtype; writing through `.data`, which has no counter, changes sampled
    values. Adapters that are switched, merged or scaled, training mode, and autocast are part of it.

    Values on a GPU are left out, as it would be waited for; see [`values_of`].

    Returns:
        A hashable value; `None` where the weights cannot be read (on the meta device, as of offloaded models), so that
        nothing may be kept.
    """
    tensors = [plain for tensor in (*module.parameters(), *module.buffers()) for plain in plain_tensors(tensor)]
    if any(tensor.is_meta for tensor in tensors):
        return None
    parts = list(module.modules())
    states = tuple((id(part), part.training) for part in parts)
    adapters = tuple(repr(part.__dict__[name]) for part in parts for name in _ADAPTER_STATE if name in part.__dict__)
    storages = tuple(
        # Tensors made in inference mode have no counter; they cannot be updated in place outside of it either.
        (tensor.data_ptr(), tensor.dtype, tensor.device, -1 if tensor.is_inference() else tensor._version)
        for tensor in tensors
    )
    devices = tuple(dict.fromkeys(tensor.device.type for tensor in tensors))
    return (
        states,
        adapters,
        storages,
        values_of(tensor for tensor in tensors if can_read(tensor)),
        tuple(map(autocast_state, devices)),
    )


def values_of(tensors: Iterable[torch.Tensor]) -> tuple[bytes, ...]:
    """Sampled values of tensors; one copy from each device for each dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(sample_values(tensor))
    return tuple(torch.cat(samples).double().cpu().numpy().tobytes() for samples in alike.values())


def autocast_state(device_type: str) -> tuple[str, bool, torch.dtype]:
    """Whether autocast is on for a type of device, and to which dtype."""
    return device_type, torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


class TextFeatureCache:
    """
    The last `max_entries` results of a text encoder, by token ids; emptied when what the encoder computes changes.

    Safe to use from several threads. Only for inference: results carry no gradients.
    """

    def __init__(self, max_entries: int):
        self.max_entries = max_entries
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._fingerprint: Hashable = None
        self._device_values: tuple[bytes, ...] = ()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict) -> "TextFeatureCache":
        # A copied model has parameters of its own, and a lock cannot be copied.
        return TextFeatureCache(self.max_entries)

    def __getstate__(self) -> dict:
        return {"max_entries": self.max_entries}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["max_entries"])

    def clear(self) -> None:
        """Forgets every entry."""
        with self._lock:
            self._entries.clear()

    def forget_changed(self, encoder: nn.Module) -> None:
        """
        Forgets every entry where values on a GPU changed unseen, as by writing through `.data`. Waits for the GPU, so
        it is for the beginning of a call, when that has nothing to do yet.
        """
        tensors = [plain for tensor in (*encoder.parameters(), *encoder.buffers()) for plain in plain_tensors(tensor)]
        values = values_of(tensor for tensor in tensors if not can_read(tensor) and not tensor.is_meta)
        with self._lock:
            if values != self._device_values:
                self._entries.clear()
                self._device_values = values

    def get_or_encode(
        self, keys: Sequence[Hashable], encoder: nn.Module, encode: Callable[[Hashable], Any]
    ) -> list[Any]:
        """
        For each key the features kept under it, or those that `encode` gives, which are kept from then on.

        Args:
            keys: what the features depend on beside the encoder: token ids and attention mask as Python ints.
            encoder: the module that they depend on; what it computes is looked at once for all keys.
            encode: makes those of a key; called outside of the lock, so that threads encode side by side.
        """
        fingerprint = weights_fingerprint(encoder)
        if fingerprint is None or encoder.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return [encode(key) for key in keys]
        found: dict[Hashable, Any] = {}
        with self._lock:
            if fingerprint != self._fingerprint:
                self._entries.clear()
                self._fingerprint = fingerprint
            for key in keys:
                if key in self._entries:
                    self._entries.move_to_end(key)
                    found[key] = self._entries[key]
        new = {key: encode(key) for key in dict.fromkeys(keys) if key not in found}
        # Another thread may have changed the weights meanwhile.
        if new and weights_fingerprint(encoder) == fingerprint:
            with self._lock:
                if fingerprint == self._fingerprint:
                    self._entries |= new
                    while len(self._entries) > self.max_entries:
                        self._entries.popitem(last=False)
        return [found[key] if key in found else new[key] for key in keys]


__all__ = ["TextFeatureCache", "weights_fingerprint"]
