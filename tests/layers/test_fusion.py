"""The forms of the bidirectional attention agree with each other and with the formula; the fused text layer."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_config
from transformers_glipv2.layers import fusion
from transformers_glipv2.layers.fusion import GLIPv2BiAttention, GLIPv2FusedTextLayer, attend_in_chunks

BATCH, LOCATIONS, TOKENS = 2, 37, 5


def bi_attention(implementation: str | None = None, **overrides) -> GLIPv2BiAttention:
    torch.manual_seed(0)
    config = tiny_config(**overrides)
    config._attn_implementation = implementation
    layer = GLIPv2BiAttention(config).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def inputs(masked: bool) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    text_mask = torch.ones(BATCH, TOKENS).bool()
    text_mask[1, 3:] = False
    return {
        "vision": torch.randn(BATCH, LOCATIONS, 32, generator=generator),
        "text": torch.randn(BATCH, TOKENS, 32, generator=generator),
        "text_mask": text_mask if masked else None,
    }


def expected(layer: GLIPv2BiAttention, vision, text, text_mask=None):
    """Equations 4 to 6 of GLIP in float64, written out for all heads."""
    layer = layer.double()
    v, t = layer.vision_norm(vision.double()), layer.text_norm(text.double())

    def heads(states):
        return states.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)

    scores = heads(layer.vision_query(v)) @ heads(layer.text_key(t)).mT / layer.head_dim**0.5
    to_text = scores if text_mask is None else scores.masked_fill(~text_mask[:, None, None, :], -torch.inf)
    vision_update = (to_text.softmax(-1) @ heads(layer.text_value(t))).transpose(1, 2).flatten(2)
    text_update = (scores.mT.softmax(-1) @ heads(layer.vision_value(v))).transpose(1, 2).flatten(2)
    return (
        v + layer.vision_gamma * layer.vision_out(vision_update),
        t + layer.text_gamma * layer.text_out(text_update),
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last one short."""
    monkeypatch.setattr(fusion, "LOCATIONS_PER_CHUNK", 16)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", ["attend_by_head", "attend_by_chunk", "attend_by_sdpa"])
@pytest.mark.parametrize("absorbed", [True, False])
def test_every_form_equals_the_formula(masked, form, absorbed, monkeypatch):
    layer = bi_attention()
    monkeypatch.setattr(layer, "absorbs", lambda num_tokens: absorbed)
    arguments = inputs(masked)
    normalised = layer.vision_norm(arguments["vision"]), layer.text_norm(arguments["text"])
    results = getattr(layer, form)(*normalised, arguments["text_mask"])
    vision = normalised[0] + layer.vision_gamma * results[0]
    text = normalised[1] + layer.text_gamma * layer.text_out(results[1])
    expected_vision, expected_text = expected(layer, **arguments)
    torch.testing.assert_close(vision, expected_vision.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text, expected_text.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "gradients", "training", "attentions", "form"),
    [
        ("sdpa", False, False, False, "attend_by_chunk"),
        ("sdpa", True, False, False, "attend_by_head"),
        ("sdpa", False, True, False, "attend_by_head"),
        ("sdpa", False, False, True, "attend_by_head"),
        ("eager", False, False, False, "attend_by_head"),
    ],
)
def test_which_form_runs(implementation, gradients, training, attentions, form, monkeypatch):
    layer = bi_attention(implementation).train(training)
    called = []
    for name in ("attend_by_head", "attend_by_chunk", "attend_by_sdpa"):
        original = getattr(layer, name)
        monkeypatch.setattr(layer, name, lambda *a, f=original, n=name, **k: called.append(n) or f(*a, **k))
    with torch.set_grad_enabled(gradients):
        layer(**inputs(False), output_attentions=attentions)
    assert called == [form]


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_forms_agree(masked, monkeypatch):
    layer = bi_attention().double()
    arguments = {name: None if value is None else value.clone() for name, value in inputs(masked).items()}
    vision, text = (arguments[name].double().requires_grad_() for name in ("vision", "text"))
    gradients = []
    for form, absorbed in (("attend_by_head", True), ("attend_by_head", False), ("attend_by_sdpa", False)):
        monkeypatch.setattr(layer, "absorbs", lambda num_tokens, absorbed=absorbed: absorbed)
        results = getattr(layer, form)(vision, text, arguments["text_mask"])
        loss = results[0].sin().sum() + results[1].cos().sum()
        # Norms and output projections lie outside of the forms; the bias of the keys moves no softmax over locations.
        wanted = [vision, text, layer.vision_query.weight, layer.vision_value.bias, layer.text_key.weight]
        gradients.append(torch.autograd.grad(loss, wanted))
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, two)


@torch.no_grad()
def test_probabilities_sum_to_one_and_leave_masked_words_out():
    layer, arguments = bi_attention("sdpa"), inputs(True)
    vision, text, (to_text, to_vision) = layer(**arguments, output_attentions=True)
    assert to_text.shape == (BATCH, 4, LOCATIONS, TOKENS)
    assert to_vision.shape == (BATCH, 4, TOKENS, LOCATIONS)
    torch.testing.assert_close(to_text.sum(-1), torch.ones(BATCH, 4, LOCATIONS))
    torch.testing.assert_close(to_vision.sum(-1), torch.ones(BATCH, 4, TOKENS))
    assert to_text[1, ..., 3:].max() == 0
    without = layer(**arguments)
    torch.testing.assert_close(vision, without[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text, without[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_vision_may_be_blind_to_the_text(implementation):
    layer, arguments = bi_attention(implementation), inputs(True)
    vision, text, _ = layer(**arguments, vision_sees_text=False)
    torch.testing.assert_close(vision, layer.vision_norm(arguments["vision"]))
    torch.testing.assert_close(text, layer(**arguments)[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_chunks_run_under_autocast():
    layer, arguments = bi_attention("sdpa"), inputs(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = layer(**arguments)[:2]
    for half, full in zip(halved, layer(**arguments)[:2], strict=True):
        torch.testing.assert_close(half, full, atol=0.1, rtol=0.1, check_dtype=False)


@torch.no_grad()
def test_large_scores_are_bounded():
    layer, arguments = bi_attention(), inputs(False)
    layer.text_key.weight.mul_(1e8)
    for form in (layer.attend_by_head, layer.attend_by_chunk):
        vision, text = form(arguments["vision"], arguments["text"], None)[:2]
        assert vision.isfinite().all()
        assert text.isfinite().all()


@torch.no_grad()
def test_running_softmax_survives_scores_that_grow_from_chunk_to_chunk():
    vision = torch.linspace(-300, 300, 64).repeat_interleave(1)[:, None] * torch.ones(1, 2)
    keys, biases = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2)
    _, sums = attend_in_chunks(vision, keys, biases, None, None, 1)
    torch.testing.assert_close(sums, (vision @ keys.T).softmax(0).T @ vision)


def test_dropout_only_in_training():
    layer = bi_attention(fusion_dropout=0.5)
    arguments = inputs(False)
    assert torch.equal(layer(**arguments)[0], layer(**arguments)[0])
    layer.train()
    assert not torch.equal(layer(**arguments)[0], layer(**arguments)[0])


# The text layer ------------------------------------------------------------------------------------------------------


def text_layer() -> GLIPv2FusedTextLayer:
    torch.manual_seed(0)
    return GLIPv2FusedTextLayer(tiny_config()).eval()


@torch.no_grad()
def test_text_layer_equals_a_layer_of_bert():
    from transformers.models.bert.modeling_bert import BertLayer

    layer, config = text_layer(), tiny_config().text_config
    config._attn_implementation = "eager"
    config.layer_norm_eps = 1e-12
    bert = BertLayer(config).eval()
    names = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    state = {
        f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": p for name, p in layer.state_dict().items()
    }
    bert.load_state_dict(state)
    text = torch.randn(2, 6, 32)
    mask = torch.ones(2, 6).bool()
    mask[1, 4:] = False
    additive = torch.zeros(2, 1, 1, 6).masked_fill(~mask[:, None, None, :], -1e9)
    result = bert(text, additive)
    result = result[0] if isinstance(result, tuple) else result
    torch.testing.assert_close(layer(text, mask[:, None, None, :]), result, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decoding_step_by_step_equals_the_whole_text():
    layer, text = text_layer(), torch.randn(2, 6, 32)
    causal = torch.ones(6, 6).tril().bool()[None, None]
    whole, past, steps = layer(text, causal), (), []
    for step in range(6):
        out, past = layer(text[:, step : step + 1], None, past)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)


def test_absorbing_is_chosen_by_cost():
    layer = bi_attention(d_model=32, fusion_embed_dim=64, fusion_num_heads=4)
    # 4 heads of 32 channels against 64 for both: equal at 32 tokens.
    assert layer.absorbs(32)
    assert not layer.absorbs(33)


def test_normalised_residual():
    layer, arguments = bi_attention(), inputs(False)
    layer.vision_gamma.data.zero_()
    vision = layer(**arguments)[0]
    torch.testing.assert_close(
        vision, F.layer_norm(arguments["vision"], (32,), layer.vision_norm.weight, layer.vision_norm.bias)
    )
