"""Captioning as transformers' generation expects of a model: every way of decoding, caches, outputs, keywords."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from tests.test_modeling_captioning import CLS, SEP, images_of, make_model
from tests.tiny import tiny_inputs
from transformers_glipv2.layers.caption_steps import grow_cache
from transformers_glipv2.modeling_glipv2_captioning import CACHE_NAME, GLIPv2ForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> GLIPv2ForConditionalGeneration:
    return make_model()


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "masked"])
def either_model(request) -> GLIPv2ForConditionalGeneration:
    return make_model(mask_padded_pixels=request.param)


@pytest.fixture(scope="module")
def inputs(model) -> dict:
    return tiny_inputs()


def endless(model, **options) -> dict:
    """Options under which nothing ends a caption early."""
    return {"eos_token_id": None, "pad_token_id": 0, "min_new_tokens": 4, "max_new_tokens": 4, **options}


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2},
        {"prompt_lookup_num_tokens": 2},
        {"use_cache": False},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_every_way_of_decoding_goes_to_the_length_that_was_asked_for(model, inputs, options):
    one = {name: value[:1] for name, value in images_of(inputs).items()}
    tokens = model.generate(**one, **endless(model, **options))
    assert tokens.shape == (options.get("num_return_sequences", 1), 5)
    assert (tokens[:, 0] == CLS).all()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beam"])
def test_scores_and_states_come_with_the_tokens(either_model, inputs, options):
    """Each step reports the tokens that it read: the beginning, then one at a time."""
    given = endless(either_model, **options)
    output = either_model.generate(
        **images_of(inputs),
        **given,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    texts = len(inputs["pixel_values"]) * options.get("num_beams", 1)
    config = either_model.config
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == len(output.attentions) == 4
    assert output.scores[0].shape == (texts, config.text_config.vocab_size)
    for states, attentions in zip(output.hidden_states, output.attentions, strict=True):
        assert len(states) == config.num_fusion_layers + 1 and len(attentions) == config.num_fusion_layers
        assert {tuple(state.shape) for state in states} == {(texts, 1, config.text_config.hidden_size)}
        for attention in attentions:
            assert attention.shape[:3] == (texts, config.fusion_num_heads, 1)
            torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention.sum(-1)))
    assert (output.sequences == either_model.generate(**images_of(inputs), **given)).all()


@torch.no_grad()
def test_attention_of_a_padded_image_is_that_of_the_image_alone():
    """With masked padding the locations of the image keep their places among those of the batch."""
    model = make_model(mask_padded_pixels=True)
    inputs = tiny_inputs()
    inputs["pixel_mask"][1, :, 48:] = 0
    inputs["pixel_mask"][1, 32:] = 0
    both = model(**inputs, output_attentions=True)
    alone = {name: value[1:] for name, value in inputs.items()}
    alone["pixel_values"], alone["pixel_mask"] = alone["pixel_values"][..., :32, :48], alone["pixel_mask"][:, :32, :48]
    expected = model(**alone, output_attentions=True)
    for padded, own in zip(both.attentions, expected.attentions, strict=True):
        of_the_image = (padded[1] != 0).flatten(0, 1).any(0)
        assert of_the_image.sum() == own.shape[-1] < len(of_the_image)
        torch.testing.assert_close(padded[1][..., of_the_image], own[0])


@torch.no_grad()
def test_a_cache_made_from_the_configuration_gives_the_same_captions(model, inputs):
    """It has a layer for each layer of the text encoder; the fused layers need more."""
    cache = DynamicCache(config=model.config.get_text_config())
    given = endless(model)
    expected = model.generate(**images_of(inputs), **given)
    assert (model.generate(**images_of(inputs), **given, **{CACHE_NAME: cache}) == expected).all()
    config = model.config
    assert len(cache.layers) == config.text_config.num_hidden_layers + config.num_fusion_layers
    assert grow_cache(DynamicCache(), 5).layers == []


@torch.no_grad()
def test_generation_goes_on_from_a_cache(model, inputs):
    first = model.generate(**images_of(inputs), **endless(model), return_dict_in_generate=True)
    cache = first[CACHE_NAME]
    more = model.generate(
        **images_of(inputs), input_ids=first.sequences, **{CACHE_NAME: cache}, **endless(model, max_new_tokens=3)
    )
    whole = model.generate(**images_of(inputs), **endless(model, max_new_tokens=7))
    assert (more == whole).all()
    own = model.generate(**images_of(inputs), **endless(model, max_new_tokens=7), return_dict_in_generate=True)
    for layer, expected in zip(cache.layers, own[CACHE_NAME].layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys)
        torch.testing.assert_close(layer.values, expected.values)


@torch.no_grad()
def test_an_assistant_changes_no_token(model, inputs):
    one = {name: value[:1] for name, value in images_of(inputs).items()}
    given = {"max_new_tokens": 6, "do_sample": False}
    assisted = model.generate(**one, **given, assistant_model=make_model())
    assert (assisted == model.generate(**one, **given)).all()
    # Logits of all tokens, where the default gives those of the last ones.
    whole = model.generate(**one, **given, assistant_model=make_model(), logits_to_keep=0)
    assert (whole == assisted).all()


def beginnings(inputs) -> torch.Tensor:
    """`(2, 5)`, whole as the processor's are."""
    ids = torch.full((2, 5), CLS)
    ids[:, 1:] = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])
    return ids


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2}], ids=str)
def test_states_of_given_beginnings(model, inputs, options, use_cache):
    """Without a cache each step reads all tokens; with one, the first step the beginning and the others a token."""
    ids, given = beginnings(inputs), endless(model, **options)
    output = model.generate(
        **images_of(inputs),
        **given,
        input_ids=ids,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    config, texts = model.config, 2 * max(options.get("num_return_sequences", 1), options.get("num_beams", 1))
    assert output.sequences.shape[1] == 9 and (output.sequences[:, :5].unique(dim=0) == ids).all()
    lengths = [5, 1, 1, 1] if use_cache else [5, 6, 7, 8]
    for states, attentions, length in zip(output.hidden_states, output.attentions, lengths, strict=True):
        assert {tuple(state.shape) for state in states} == {(texts, length, config.text_config.hidden_size)}
        assert {tuple(attention.shape[:3]) for attention in attentions} == {(texts, config.fusion_num_heads, length)}
    if not use_cache:
        assert output.get(CACHE_NAME) is None
        return
    heads, width = config.text_config.num_attention_heads, config.text_config.hidden_size
    shapes = {tuple(part.shape) for layer in output[CACHE_NAME].layers for part in (layer.keys, layer.values)}
    assert shapes == {(texts, heads, 8, width // heads)}
    assert len(output[CACHE_NAME].layers) == config.text_config.num_hidden_layers + config.num_fusion_layers


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_beginnings_may_be_embeddings(model, inputs, options):
    size = 1 if "prompt_lookup_num_tokens" in options else 2
    images = {name: value[:size] for name, value in images_of(inputs).items()}
    ids, given = beginnings(inputs)[:size], endless(model, **options)
    embeds = model.get_input_embeddings()(ids)
    expected = model.generate(**images, **given, input_ids=ids)
    assert (model.generate(**images, **given, input_ids=ids, inputs_embeds=embeds) == expected).all()
    if "prompt_lookup_num_tokens" not in options:
        # Without ids the new tokens alone.
        assert (model.generate(**images, **given, inputs_embeds=embeds) == expected[:, 5:]).all()
    scores = {"return_dict_in_generate": True, "output_scores": True}
    first, other = (
        model.generate(**images, **given, **scores, input_ids=ids, inputs_embeds=one).scores[0]
        for one in (embeds, torch.rand_like(embeds))
    )
    assert not torch.allclose(first, other)


@torch.no_grad()
def test_embeddings_of_one_beginning_or_padded(model, inputs):
    ids, given = beginnings(inputs), endless(model)
    embeds = model.get_input_embeddings()(ids)
    for_all = model.generate(**images_of(inputs), **given, inputs_embeds=embeds[:1])
    assert (for_all == model.generate(**images_of(inputs), **given, input_ids=ids[:1])[:, 5:]).all()
    padded = torch.nn.functional.pad(embeds, (0, 0, 3, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
    found = model.generate(**images_of(inputs), **given, inputs_embeds=padded, attention_mask=mask)
    assert (found == model.generate(**images_of(inputs), **given, inputs_embeds=embeds)).all()
    with pytest.raises(ValueError, match=r"`input_ids` \(2, 4\) and `inputs_embeds` \(2, 5, 32\) must be of the same"):
        model.generate(**images_of(inputs), input_ids=ids[:, 1:], inputs_embeds=embeds)
    with pytest.raises(ValueError, match="shorten it"):
        model.generate(**images_of(inputs), inputs_embeds=embeds.repeat(1, 13, 1))
    # The whole text, with the beginning, is no longer than the model allows.
    long = model.generate(**images_of(inputs), **{**given, "max_new_tokens": 500}, inputs_embeds=embeds)
    assert long.shape[1] == model.max_caption_tokens - 5


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(model, inputs):
    ids = beginnings(inputs)
    alone = model(**images_of(inputs), input_ids=ids).logits[:, -1]
    padding = torch.zeros(2, 32, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    padded = model(**images_of(inputs), input_ids=torch.cat([padding, ids], dim=1), attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_eager_attention_writes_what_sdpa_writes(model, inputs, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    images = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in images_of(inputs).items()
    }
    given = endless(model, max_new_tokens=20, return_dict_in_generate=True, output_scores=True)
    eager, sdpa = (
        GLIPv2ForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation, dtype=dtype)
        .eval()
        .generate(**images, **given)
        for implementation in ("eager", "sdpa")
    )
    # Up to the first token that differs, if any does.
    same = (eager.sequences == sdpa.sequences)[:, 1:].int()
    for text in range(len(same)):
        step = int(same[text].argmin())
        torch.testing.assert_close(eager.scores[step][text], sdpa.scores[step][text], atol=1e-3, rtol=1e-3)


def test_caches_that_cannot_grow_are_refused(model, inputs):
    for kind in ("static", "offloaded", "quantized"):
        with pytest.raises(ValueError, match=f"`cache_implementation` is '{kind}'.*\"dynamic\""):
            model.generate(**images_of(inputs), cache_implementation=kind, max_new_tokens=3)
    model.generate(**images_of(inputs), cache_implementation="dynamic", max_new_tokens=3)


@torch.no_grad()
def test_scores_of_beams_come_from_their_tokens(model, inputs):
    given = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "max_new_tokens": 5}
    output = model.generate(**images_of(inputs), **given, return_dict_in_generate=True, output_scores=True)
    tokens = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    torch.testing.assert_close(tokens.sum(-1), output.sequences_scores, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_captions_without_an_end_and_without_a_beginning(model, inputs):
    """`None` is an answer: no token ends captions. What begins them may come with the call."""
    without = make_model()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(without.generation_config, name, None)
        setattr(without.config.text_config, name, None)
    ids = inputs["input_ids"][:, :3]
    tokens = without.generate(**images_of(inputs), input_ids=ids, max_new_tokens=3)
    assert tokens.shape == (len(ids), 6) and (tokens[:, :3] == ids).all()
    with pytest.raises(ValueError, match=r"bos_token_id.*set_special_tokens"):
        without.generate(**images_of(inputs), max_new_tokens=3)
    config = GenerationConfig(bos_token_id=CLS, eos_token_id=[SEP, 5], pad_token_id=0, max_new_tokens=3)
    assert without.generate(**images_of(inputs), generation_config=config).shape[0] == len(ids)


def test_the_inputs_of_a_step_keep_what_they_do_not_know(model):
    ids = torch.tensor([[CLS, 5, 6]])
    given = {"output_attentions": True, "something_else": 3, "logits_to_keep": 1}
    prepared = model.prepare_inputs_for_generation(ids, **given, is_first_iteration=True, next_sequence_length=3)
    assert {name: prepared[name] for name in given} == given
    assert not {"is_first_iteration", "next_sequence_length"} & prepared.keys()


@torch.no_grad()
def test_a_finished_process_can_run_the_model_for_the_others(model, inputs):
    """Under `synced_gpus` the cache grows beyond the tokens of captions that are finished."""
    ids = inputs["input_ids"][:, :4]
    states = model(**images_of(inputs), input_ids=ids, use_cache=True)
    given = {"attention_mask": torch.ones(len(ids), 5, dtype=torch.long), "visual_states": states.visual_states}
    prepared = model.prepare_inputs_for_generation(ids, **given, **{CACHE_NAME: states.cache}, use_cache=True)
    assert model(**prepared).logits.shape[1] == 1


def test_misspelt_keywords_are_refused(model, inputs):
    with pytest.raises(TypeError, match=r"`pixel_masks`; did you mean `pixel_mask`"):
        model(**inputs, pixel_masks=inputs["pixel_mask"])
    with pytest.raises(ValueError, match="num_beamz"):
        model.generate(**images_of(inputs), num_beamz=3)


@torch.no_grad()
def test_chosen_logits_and_hidden_states(model, inputs):
    whole = model(**inputs, output_hidden_states=True)
    assert (model(**inputs, logits_to_keep=2).logits == whole.logits[:, -2:]).all()
    picked = torch.tensor([0, 3])
    assert (model(**inputs, logits_to_keep=picked).logits == whole.logits[:, picked]).all()
    first, *others = model(**inputs, output_hidden_states=[0]).hidden_states
    assert (first == whole.text_features).all() and others == [None] * (len(whole.hidden_states) - 1)
    assert (whole.hidden_states[-1] == whole.fused_text).all()


def test_loss_of_micro_batches_and_of_targets_that_are_shifted_already(model, inputs):
    """As `Trainer` gives them under gradient accumulation and under sequence parallelism."""
    ids = inputs["input_ids"]
    loss = model(**inputs, labels=ids).loss
    count = ids[:, 1:].numel()
    parts = [{name: value[index : index + 1] for name, value in inputs.items()} for index in range(len(ids))]
    parts = [model(**part, labels=part["input_ids"], num_items_in_batch=count).loss for part in parts]
    torch.testing.assert_close(sum(parts), loss, rtol=1e-5, atol=1e-6)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, loss)


def test_the_old_name_of_the_cache_warns(model, inputs):
    if CACHE_NAME == "past_key_values":
        pytest.skip("this version of transformers has no other name")
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"), torch.no_grad():
        output = model(**inputs, past_key_values=DynamicCache())
    assert output.cache.get_seq_length() == inputs["input_ids"].shape[1]


def repeats(tokens: list[int]) -> bool:
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(triples)) < len(triples)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_do_not_repeat_themselves_unless_asked_to(inputs, num_beams, tmp_path):
    model = make_model()
    given = endless(model, max_new_tokens=25, num_beams=num_beams)
    free = model.generate(**images_of(inputs), **given, no_repeat_ngram_size=0)
    assert any(map(repeats, free.tolist()))
    tokens = model.generate(**images_of(inputs), **given)
    assert not any(map(repeats, tokens.tolist()))
    config = GenerationConfig(**given, no_repeat_ngram_size=0)
    assert (model.generate(**images_of(inputs), generation_config=config) == free).all()
    model.generation_config.no_repeat_ngram_size = 0
    model.save_pretrained(tmp_path)
    assert (type(model).from_pretrained(tmp_path).generate(**images_of(inputs), **given) == free).all()
