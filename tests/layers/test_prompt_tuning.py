"""Prompt tuning: offsets for one prompt, nothing for others, a file of a few kilobytes."""

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import tiny_config, tiny_inputs
from tests.tiny_training import tiny_processor
from transformers_glipv2 import GLIPv2ForConditionalGeneration, GLIPv2ForObjectDetection, GLIPv2Model
from transformers_glipv2.layers.prompt_tuning import (
    PROMPT_FILE,
    add_prompt_tuning,
    has_prompt_tuning,
    load_prompt_tuning,
    remove_prompt_tuning,
    save_prompt_tuning,
)

PROMPT, OTHER = "cat. dog", "dog. cat"


@pytest.fixture
def model() -> GLIPv2ForObjectDetection:
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config()).eval()


@pytest.fixture
def tokenizer():
    return tiny_processor().tokenizer


@torch.no_grad()
def text_features(model, tokenizer, texts: list[str], **padding) -> torch.Tensor:
    inputs = tokenizer(texts, return_tensors="pt", return_token_type_ids=False, **padding)
    return model.get_text_features(**inputs).last_hidden_state


def with_offsets(model, tokenizer) -> torch.Tensor:
    offsets = add_prompt_tuning(model, tokenizer, PROMPT).offsets
    torch.nn.init.normal_(offsets)
    return offsets.detach()


def test_offsets_are_added_to_the_tokens_of_the_prompt_alone(model, tokenizer):
    texts = [PROMPT, OTHER, "cat. dog. cat"]
    before = text_features(model, tokenizer, texts, padding=True)
    offsets = with_offsets(model, tokenizer)
    after = text_features(model, tokenizer, texts, padding=True)
    assert offsets.shape == (5, 32)
    torch.testing.assert_close(after[0, :5] - before[0, :5], offsets)
    assert torch.equal(after[0, 5:], before[0, 5:])
    assert torch.equal(after[1:], before[1:])


def test_no_offsets_change_nothing(model, tokenizer):
    before = text_features(model, tokenizer, [PROMPT])
    add_prompt_tuning(model, tokenizer, PROMPT)
    assert torch.equal(text_features(model, tokenizer, [PROMPT]), before)


def test_tokens_without_a_mask_and_chosen_hidden_states(model, tokenizer):
    ids = tokenizer([PROMPT], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model.get_text_features(input_ids=ids).last_hidden_state
        encoder = add_prompt_tuning(model, tokenizer, PROMPT)
        assert torch.equal(model.get_text_features(input_ids=ids).last_hidden_state, before)
        encoder.offsets.add_(1.0)
        found = model.get_text_features(input_ids=ids, output_hidden_states=[-1])
        torch.testing.assert_close(found.last_hidden_state, before + 1)
        assert [states is None for states in found.hidden_states] == [True, True, False]
        torch.testing.assert_close(found.hidden_states[-1], found.last_hidden_state)


def test_only_offsets_learn(model, tokenizer):
    model.requires_grad_(False)
    encoder = add_prompt_tuning(model, tokenizer, PROMPT)
    inputs = {**tiny_inputs(), **tokenizer([PROMPT] * 2, return_tensors="pt", return_token_type_ids=False)}
    model(**inputs).logits.sum().backward()
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == ["model.text_encoder.offsets"]
    assert encoder.offsets.grad.abs().sum() > 0


def test_a_model_without_fusion(tokenizer):
    torch.manual_seed(0)
    model = GLIPv2Model(tiny_config(use_fusion=False, num_text_layers=2)).eval()
    before = text_features(model, tokenizer, [PROMPT])
    offsets = with_offsets(model, tokenizer)
    # Words are the mean of two layers, divided by two once more.
    torch.testing.assert_close(text_features(model, tokenizer, [PROMPT]) - before, offsets[None] / 2)


def test_file_is_small_and_loads_into_any_class(model, tokenizer, tmp_path):
    original = text_features(model, tokenizer, [PROMPT])
    with_offsets(model, tokenizer)
    tuned = text_features(model, tokenizer, [PROMPT])
    save_prompt_tuning(model, tmp_path)
    assert (tmp_path / PROMPT_FILE).stat().st_size < 2000
    remove_prompt_tuning(model)
    assert not has_prompt_tuning(model)
    assert torch.equal(text_features(model, tokenizer, [PROMPT]), original)
    assert load_prompt_tuning(model.model, tmp_path / PROMPT_FILE) == PROMPT
    assert has_prompt_tuning(model)
    assert torch.equal(text_features(model, tokenizer, [PROMPT]), tuned)
    # A second load replaces the first.
    assert load_prompt_tuning(model, tmp_path) == PROMPT
    assert torch.equal(text_features(model, tokenizer, [PROMPT]), tuned)


def test_removing_leaves_a_model_that_saves_as_before(model, tokenizer, tmp_path):
    names = set(model.state_dict())
    with_offsets(model, tokenizer)
    remove_prompt_tuning(model)
    assert set(model.state_dict()) == names


def test_refusals(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no tuned prompt; `add_prompt_tuning`"):
        save_prompt_tuning(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="no tuned prompt at"):
        load_prompt_tuning(model, tmp_path)
    with pytest.raises(ValueError, match="65 tokens, at most 64 fit"):
        add_prompt_tuning(model, tokenizer, "cat " * 63)
    with pytest.raises(TypeError, match="expected a GLIPv2 model, got Linear"):
        add_prompt_tuning(torch.nn.Linear(1, 1), tokenizer, PROMPT)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no tuned prompt; it holds weight"):
        load_prompt_tuning(model, tmp_path / "other.safetensors")
    ids, offsets = torch.arange(3), torch.zeros(3, 16)
    save_file({"prompt_ids": ids, "offsets": offsets}, tmp_path / "narrow.safetensors", metadata={"prompt": "cat"})
    with pytest.raises(ValueError, match=r"shape \(3, 16\), but the model needs \(3, 32\)"):
        load_prompt_tuning(model, tmp_path / "narrow.safetensors")
    add_prompt_tuning(model, tokenizer, PROMPT)
    with pytest.raises(ValueError, match=r"has a tuned prompt already: 'cat\. dog'"):
        add_prompt_tuning(model, tokenizer, OTHER)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_captions_stay_what_they_were(tokenizer, use_cache):
    """A caption is read causally (a 4-D mask), also one that begins as the prompt does; detection gets the offsets."""
    torch.manual_seed(0)
    model = GLIPv2ForConditionalGeneration(tiny_config()).eval()
    model.set_special_tokens(tokenizer)
    images = {name: value for name, value in tiny_inputs().items() if name.startswith("pixel")}
    text = tokenizer([PROMPT, "cat"], padding=True, return_tensors="pt", return_token_type_ids=False)

    def caption() -> list[torch.Tensor]:
        logits = model(**images, **text).logits
        return [logits, model.generate(**images, **text, max_new_tokens=4, num_beams=2, use_cache=use_cache)]

    before = caption()
    offsets = with_offsets(model, tokenizer)
    for one, other in zip(before, caption(), strict=True):
        assert torch.equal(one, other)
    asked = text_features(model.model, tokenizer, [PROMPT])
    remove_prompt_tuning(model)
    torch.testing.assert_close(asked - text_features(model.model, tokenizer, [PROMPT]), offsets[None])
