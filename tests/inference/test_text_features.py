"""The cache of text features: bounded, and never of other weights."""

import copy
import pickle

import torch
from torch import nn

from transformers_glipv2.inference.text_features import TextFeatureCache


@torch.no_grad()
def test_the_entry_unused_for_longest_goes():
    cache, encoder = TextFeatureCache(2), nn.Linear(2, 2).eval()
    calls = []

    def ask(key):
        return cache.get_or_encode(key, encoder, lambda: calls.append(key) or torch.zeros(1))

    for key in ("a", "b", "a", "c", "a", "b"):
        ask(key)
    assert calls == ["a", "b", "c", "b"]
    assert len(cache) == 2


@torch.no_grad()
def test_features_of_weights_that_changed_meanwhile_are_not_kept():
    cache, encoder = TextFeatureCache(4), nn.Linear(2, 2).eval()

    def encode_while_another_thread_updates():
        old = encoder.weight.clone()
        encoder.weight.add_(1)
        cache.get_or_encode("other", encoder, lambda: encoder.weight.clone())
        return old

    cache.get_or_encode("key", encoder, encode_while_another_thread_updates)
    kept = cache.get_or_encode("key", encoder, lambda: encoder.weight.clone())
    assert torch.equal(kept, encoder.weight)


def test_copies_start_empty():
    cache = TextFeatureCache(3)
    cache.get_or_encode("key", nn.Linear(1, 1), lambda: torch.zeros(1))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(other) == 0
        assert other.max_entries == 3
