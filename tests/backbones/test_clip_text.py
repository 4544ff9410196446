"""CLIP's text tower without its causal mask."""

import pytest
import torch
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from transformers_glipv2.backbones.clip_text import GLIPv2CLIPTextConfig, GLIPv2CLIPTextModel

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}


@pytest.fixture(scope="module")
def model() -> GLIPv2CLIPTextModel:
    torch.manual_seed(0)
    return AutoModel.from_config(GLIPv2CLIPTextConfig(**SIZES), add_pooling_layer=False).eval()


@torch.no_grad()
def test_words_see_later_words(model):
    first, second = torch.tensor([[1, 5, 6, 7]]), torch.tensor([[1, 5, 6, 8]])
    assert not torch.allclose(model(first).last_hidden_state[:, 0], model(second).last_hidden_state[:, 0], atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(model):
    words = torch.tensor([[1, 5, 6, 7]])
    padded = torch.nn.functional.pad(words, (0, 3), value=9)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    expected = model(words).last_hidden_state
    torch.testing.assert_close(model(padded, attention_mask=mask).last_hidden_state[:, :4], expected)


@torch.no_grad()
def test_last_word_equals_that_of_clip_where_all_words_precede_it(model):
    # With one layer the last word of the causal tower sees every word, as here.
    config = {**SIZES, "num_hidden_layers": 1}
    causal = CLIPTextModel(CLIPTextConfig(**config)).eval()
    ours = GLIPv2CLIPTextModel(GLIPv2CLIPTextConfig(**config)).eval()
    ours.load_state_dict(causal.state_dict(), strict=True)
    words = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(
        ours(words).last_hidden_state[:, -1], causal(words).last_hidden_state[:, -1], atol=1e-6, rtol=1e-5
    )


@torch.no_grad()
def test_embeddings_in_place_of_words(model):
    words = torch.tensor([[1, 5, 6, 7]])
    embeds = model.get_input_embeddings()(words)
    torch.testing.assert_close(model(inputs_embeds=embeds).last_hidden_state, model(words).last_hidden_state)
    with pytest.raises(ValueError, match="exactly one"):
        model(words, inputs_embeds=embeds)


@torch.no_grad()
def test_hidden_states_end_with_the_last(model):
    output = model(torch.tensor([[1, 5, 6]]), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)


def test_a_pooling_layer_is_refused():
    with pytest.raises(ValueError, match="no pooling layer"):
        GLIPv2CLIPTextModel(GLIPv2CLIPTextConfig(**SIZES), add_pooling_layer=True)


def test_clip_checkpoints_load(tmp_path):
    CLIPTextModel(CLIPTextConfig(**SIZES)).save_pretrained(tmp_path)
    _, report = GLIPv2CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
