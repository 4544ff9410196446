"""A bounded cache of text features that notices changed weights."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import nn


def weights_fingerprint(module: nn.Module) -> Hashable:
    """
    A value that changes whenever the module's parameters do.

    In-place updates (an optimizer step, `load_state_dict`) raise a tensor's version counter; moving or replacing a
    parameter changes its storage.
    """
    return tuple(
        # Parameters made in inference mode have no counter; they cannot be updated in place outside of it either.
        (parameter.data_ptr(), -1 if parameter.is_inference() else parameter._version)
        for parameter in module.parameters()
    )


class TextFeatureCache:
    """
    The last `max_entries` results of a text encoder, by token ids; emptied when the encoder's weights change.

    Safe to use from several threads. Only for inference: results carry no gradients.
    """

    def __init__(self, max_entries: int):
        self.max_entries = max_entries
        self._entries: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._fingerprint: Hashable = None
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

    def get_or_encode(self, key: Hashable, encoder: nn.Module, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
        """
        The features kept under `key`, or those that `encode` gives, which are kept from then on.

        Args:
            key: what the features depend on beside the weights.
            encoder: the module whose weights they depend on.
            encode: makes them; called outside of the lock, so that threads encode side by side.
        """
        fingerprint = weights_fingerprint(encoder)
        with self._lock:
            if fingerprint != self._fingerprint:
                self._entries.clear()
                self._fingerprint = fingerprint
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        features = encode()
        with self._lock:
            # Another thread may have seen other weights meanwhile.
            if fingerprint == self._fingerprint:
                self._entries[key] = features
                self._entries.move_to_end(key)
                while len(self._entries) > self.max_entries:
                    self._entries.popitem(last=False)
        return features


__all__ = ["TextFeatureCache", "weights_fingerprint"]
