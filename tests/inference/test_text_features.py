"""The cache of text features: bounded, and never of another state of the model."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import Detector
from transformers_glipv2.inference import detector as detector_module
from transformers_glipv2.inference import text_features
from transformers_glipv2.inference.text_features import TextFeatureCache
from transformers_glipv2.layers.prompt_tuning import add_prompt_tuning


@torch.no_grad()
def test_the_entry_unused_for_longest_goes():
    cache, encoder = TextFeatureCache(2), nn.Linear(2, 2).eval()
    calls = []

    def ask(key):
        return cache.get_or_encode([key], encoder, lambda key: calls.append(key) or torch.zeros(1))

    for key in ("a", "b", "a", "c", "a", "b"):
        ask(key)
    assert calls == ["a", "b", "c", "b"]
    assert len(cache) == 2


@torch.no_grad()
def test_features_of_weights_that_changed_meanwhile_are_not_kept():
    cache, encoder = TextFeatureCache(4), nn.Linear(2, 2).eval()

    def encode_while_another_thread_updates(_):
        old = encoder.weight.clone()
        encoder.weight.add_(1)
        cache.get_or_encode(["other"], encoder, lambda _: encoder.weight.clone())
        return old

    cache.get_or_encode(["key"], encoder, encode_while_another_thread_updates)
    (kept,) = cache.get_or_encode(["key"], encoder, lambda _: encoder.weight.clone())
    assert torch.equal(kept, encoder.weight)


def test_copies_start_empty():
    cache, encoder = TextFeatureCache(3), nn.Linear(1, 1).eval()
    with torch.no_grad():
        cache.get_or_encode(["key"], encoder, lambda _: torch.zeros(1))
    assert len(cache) == 1
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(other) == 0
        assert other.max_entries == 3


# In a detector -------------------------------------------------------------------------------------------------------


class Counted:
    """A detector with a count of the texts that its text encoder has read."""

    def __init__(self, model=None):
        self.model = tiny_detector() if model is None else model
        self.detector = Detector(self.model, tiny_processor(), progress=False)
        self.texts = 0
        self.detector._text_encoder.register_forward_hook(self.count)

    def count(self, *_):
        self.texts += 1

    def scores(self) -> torch.Tensor:
        return self.detector.detect(natural_image(), LABELS)[0]["scores"]

    def assert_fresh(self, same_scores: bool = False):
        """After a change, the text is read anew, and the results are those of a new detector."""
        before = self.texts
        scores = self.scores()
        assert self.texts == before + 1
        expected = Detector(self.model, tiny_processor(), progress=False).detect(natural_image(), LABELS)[0]["scores"]
        torch.testing.assert_close(scores, expected)


def test_texts_are_read_once():
    counted = Counted()
    for _ in range(3):
        counted.scores()
    counted.detector.detect([natural_image()] * 3, LABELS, labels_per_prompt=2)
    assert counted.texts == 1 + 2
    assert all(isinstance(key, tuple) and all(type(token) is int for token in key) for key in entries(counted))


def entries(counted: Counted) -> list:
    return list(counted.detector.text_features._entries)


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(detector_module, "TEXT_CACHE_SIZE", 3)
    counted = Counted()
    for word in ("cat", "dog", "zebra", "person", "umbrella"):
        counted.detector.detect(natural_image(), [word])
        assert len(entries(counted)) <= 3
    assert counted.texts == 5


@pytest.fixture(params=[True, False], ids=["cpu", "as-gpu"])
def readable(request, monkeypatch):
    """Whether values can be read without waiting."""
    if not request.param:
        monkeypatch.setattr(text_features, "can_read", lambda tensor: False)


@pytest.mark.parametrize("change", ["in place", "through data", "loaded", "replaced", "cast", "moved"])
@torch.no_grad()
def test_changed_weights(change, readable):
    counted = Counted()
    before = counted.scores()
    encoder = counted.model.model.text_encoder
    weight = encoder.encoder.layer[0].output.dense.weight
    if change == "in place":
        weight.mul_(3)
    elif change == "through data":
        weight.data.mul_(3)
    elif change == "loaded":
        encoder.load_state_dict({name: 1.5 * tensor for name, tensor in encoder.state_dict().items()})
    elif change == "replaced":
        encoder.encoder.layer[0].output.dense.weight = nn.Parameter(3 * weight)
    elif change == "cast":
        counted.model.to(torch.bfloat16)
    else:
        # Off and on again: the values are the same, at another address.
        for parameter in encoder.parameters():
            parameter.data = parameter.data.clone()
    counted.assert_fresh()
    if change != "moved":
        assert not torch.equal(counted.scores()[:5], before[:5])


def test_values_on_a_gpu_are_read_once_a_call(monkeypatch):
    read = []
    counted = Counted()
    monkeypatch.setattr(text_features, "can_read", lambda tensor: False)
    monkeypatch.setattr(text_features, "values_of", lambda tensors: read.append(len(list(tensors))) or ())
    counted.detector.detect([natural_image()] * 3, LABELS, labels_per_prompt=2)
    encoder = counted.detector._text_encoder
    assert [count for count in read if count] == [len([*encoder.parameters(), *encoder.buffers()])]


def test_autocast_on_and_off():
    counted = Counted()
    plain = counted.scores()
    with torch.autocast("cpu", torch.bfloat16):
        counted.assert_fresh()
        half = counted.scores()
    counted.assert_fresh()
    assert torch.equal(counted.scores(), plain)
    assert not torch.equal(half[:5], plain[:5])


def test_adapters_on_and_off():
    torch.manual_seed(0)
    model = get_peft_model(tiny_detector(), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)).eval()
    counted = Counted(model)
    adapted = counted.scores()
    with model.disable_adapter():
        counted.assert_fresh()
        plain = counted.scores()
    counted.assert_fresh()
    assert torch.equal(counted.scores(), adapted)
    assert not torch.equal(plain[:5], adapted[:5])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    model.set_adapter("other")
    counted.assert_fresh()
    assert not torch.equal(counted.scores()[:5], adapted[:5])
    model.set_adapter("default")
    counted.assert_fresh()
    assert torch.equal(counted.scores(), adapted)
    model.merge_adapter()
    counted.assert_fresh()


def test_a_prompt_that_is_tuned():
    counted = Counted()
    before = counted.scores()
    tuned = add_prompt_tuning(counted.model, counted.detector.processor.tokenizer, ". ".join(LABELS))
    with torch.no_grad():
        tuned.offsets.normal_()
    counted.assert_fresh()
    assert not torch.equal(counted.scores()[:5], before[:5])


def test_nothing_is_kept_in_training_or_with_gradients():
    counted = Counted()
    counted.model.train()
    for _ in range(2):
        counted.scores()
    assert counted.texts == 2 and not entries(counted)
    counted.model.eval()
    prompts = counted.detector.encode(LABELS)
    inputs = counted.detector._prompt_inputs(prompts)
    assert inputs["text_features"].requires_grad and not entries(counted)
