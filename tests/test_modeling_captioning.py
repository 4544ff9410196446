"""Captioning: what sees what, cached steps against full passes, beginnings and ends, one folder for every head."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection, GLIPv2ForPreTraining
from transformers_glipv2.layers.caption_steps import causal_mask, prefixes
from transformers_glipv2.layers.region_attention import GLIPv2Locations, location_features
from transformers_glipv2.losses import caption_loss, next_tokens
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.training.heads import load_other_heads

CLS, SEP = 2, 3
CLIP = {
    "model_type": "glipv2_clip_text",
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
GENERATION = {"greedy": {}, "beam": {"num_beams": 5}, "sampling": {"do_sample": True, "top_k": 0}}


def make_model(**overrides) -> GLIPv2ForConditionalGeneration:
    """Weights large enough that different images and words get different captions."""
    torch.manual_seed(0)
    model = GLIPv2ForConditionalGeneration(tiny_config(initializer_range=0.3, **overrides)).eval()
    model.set_special_tokens(tiny_tokenizer())
    return model


@pytest.fixture(scope="module")
def model() -> GLIPv2ForConditionalGeneration:
    return make_model()


@pytest.fixture(scope="module")
def clip_model() -> GLIPv2ForConditionalGeneration:
    return make_model(text_config=CLIP)


def images_of(inputs: dict) -> dict:
    return {name: inputs[name] for name in ("pixel_values", "pixel_mask")}


# What sees what ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("text_encoder", ["bert", "clip"])
def test_a_later_word_never_changes_earlier_logits(model, clip_model, text_encoder):
    model = model if text_encoder == "bert" else clip_model
    inputs = tiny_inputs()
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 4] = 99
    before, after = model(**inputs).logits, model(**changed).logits
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-5, rtol=1e-5)
    assert (after[0, 4:] - before[0, 4:]).abs().amin(0).max() > 1e-3


@torch.no_grad()
def test_the_image_never_sees_the_words_but_every_word_sees_the_image(model):
    inputs = tiny_inputs()
    other_text = {**inputs, "input_ids": inputs["input_ids"].flip(1), "attention_mask": None}
    one, two = model(**inputs), model(**other_text)
    for before, after in zip(one.fused_feature_maps, two.fused_feature_maps, strict=True):
        assert torch.equal(before, after)
    for before, after in zip(one.visual_states.groups[0], two.visual_states.groups[0], strict=True):
        assert torch.equal(before, after)
    other_image = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(3)})
    assert (other_image.logits - one.logits).abs().amax(2).min() > 1e-3


@torch.no_grad()
def test_maps_are_those_of_the_tower_whose_fusions_leave_the_image_alone(model):
    """An independent way to the same maps: the tower's own layers with the update of vision switched off."""
    inputs = tiny_inputs(batch=1)
    features = model.get_image_features(**images_of(inputs))
    maps, text = features.feature_maps, model.get_text_features(inputs["input_ids"]).last_hidden_state
    gammas = [layer.fusion.vision_gamma.clone() for layer in model.model.layers]
    try:
        for layer in model.model.layers:
            layer.fusion.vision_gamma.zero_()
            text, *maps = layer(text, *maps)
    finally:
        for layer, gamma in zip(model.model.layers, gammas, strict=True):
            layer.fusion.vision_gamma.copy_(gamma)
    states = model.get_visual_states(features, final_maps=True)
    for expected, got in zip(maps, states.fused_feature_maps, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_mask_and_positions_by_hand():
    mask, positions = causal_mask(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]), 4)
    right, left = mask[:, 0].int().tolist()
    assert right == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert left == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert positions.tolist() == [[0, 1, 2, 2], [0, 0, 1, 2]]
    mask, positions = causal_mask(torch.tensor([[0, 1, 1, 1]]), 1)
    assert mask.tolist() == [[[[False, True, True, True]]]]
    assert positions.tolist() == [[2]]


def test_eager_attention_gives_the_same_logits(model):
    inputs = tiny_inputs()
    eager = GLIPv2ForConditionalGeneration(tiny_config(attn_implementation="eager")).eval()
    eager.load_state_dict(model.state_dict())
    assert eager.model.text_encoder.config._attn_implementation == "eager"
    with torch.no_grad():
        torch.testing.assert_close(eager(**inputs).logits, model(**inputs).logits, atol=1e-3, rtol=1e-3)


def test_a_head_that_names_things_is_causal_cached_and_alone_in_learning():
    model = make_model(caption_region_attention=True)
    inputs = tiny_inputs()
    with torch.no_grad():
        before = model(**inputs).logits
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 4] = 99
        torch.testing.assert_close(model(**changed).logits[:, :4], before[:, :4], atol=1e-5, rtol=1e-5)
    results = [
        model.generate(**inputs, num_beams=3, max_new_tokens=6, use_cache=use_cache) for use_cache in (True, False)
    ]
    assert torch.equal(*results)
    model.freeze_detector()
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    head = {name for name, _ in model.named_parameters() if name.startswith("caption_head.")}
    assert with_gradient == head - {"caption_head.decoder.weight"}
    masked = make_model(caption_region_attention=True, mask_padded_pixels=True)
    with torch.no_grad():
        together = masked(**inputs).logits
        one = {name: value[1:] for name, value in inputs.items()}
        height, width = (int(one["pixel_mask"][0].sum(axis).max()) for axis in (0, 1))
        one |= {name: one[name][..., :height, :width] for name in ("pixel_values", "pixel_mask")}
        torch.testing.assert_close(masked(**one).logits[:, :6], together[1:, :6], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_names_are_those_of_the_places_where_a_thing_is():
    torch.manual_seed(0)
    region_attention = make_model(caption_region_attention=True).caption_head.region_attention
    text, regions = (
        torch.randn(1, 2, 32),
        F.normalize(torch.randn(1, 6, region_attention.image_projection.out_features), dim=-1),
    )
    width = region_attention.num_heads * region_attention.head_dim
    confidence = torch.full((1, 6), -1e4)
    confidence[0, 2] = 0.0
    region_attention.label_embeddings.weight.normal_()
    _, named = region_attention(
        text, GLIPv2Locations(torch.randn(1, 6, width), torch.randn(1, 6, width), regions, confidence)
    )
    expected = 10 * math.sqrt(regions.shape[-1]) * region_attention.label_embeddings.weight @ regions[0, 2]
    torch.testing.assert_close(
        region_attention.label_embeddings(named)[0], expected.expand(2, -1), atol=1e-3, rtol=1e-3
    )


@torch.no_grad()
def test_places_tell_where_they_are_and_how_they_look():
    region_attention = make_model(caption_region_attention=True).caption_head.region_attention
    maps = tuple(torch.randn(1, 32, *shape) for shape in ((1, 5), (1, 1)))
    looks = location_features(maps, maps)
    centers, centerness = torch.full((1, 6, 2), 0.5), torch.zeros(1, 6)
    before = region_attention.locations(looks, maps, centerness, centers)
    assert (before.regions.norm(dim=-1) - 1).abs().max() < 1e-5
    torch.testing.assert_close(before.confidence, torch.full((1, 6), -math.log(2)))
    centers[0, 0] = 0.9
    after = region_attention.locations(looks, maps, centerness, centers)
    assert (after.keys - before.keys)[0].norm(dim=-1).nonzero().tolist() == [[0]]
    torch.testing.assert_close(after.regions, before.regions)


@torch.no_grad()
def test_names_start_from_the_contrast_of_regions_and_words():
    model, tokenizer = make_model(caption_region_attention=True), tiny_tokenizer()
    torch.manual_seed(1)
    contrastive = GLIPv2ForPreTraining(tiny_config(initializer_range=0.3)).contrastive_head
    model.start_from_contrast(contrastive, tokenizer, batch_size=50)
    region_attention = model.caption_head.region_attention
    assert torch.equal(region_attention.image_projection.weight, contrastive.image_projection.weight)
    cat = tokenizer("cat", return_tensors="pt", return_token_type_ids=False)
    word = F.normalize(contrastive.text_projection(model.get_text_features(**cat).last_hidden_state[0, 1]), dim=-1)
    torch.testing.assert_close(
        region_attention.label_embeddings.weight[cat["input_ids"][0, 1]], word, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(ValueError, match="caption_region_attention"):
        make_model().start_from_contrast(contrastive, tokenizer)


# Loss and training ---------------------------------------------------------------------------------------------------


def test_loss_by_hand(model):
    logits = torch.randn(2, 4, 7, dtype=torch.float64)
    labels = torch.tensor([[2, 5, 6, 3], [2, 4, -100, -100]])
    total = sum(-logits[row, place - 1].log_softmax(0)[labels[row, place]] for row, place in ((0, 1), (0, 2), (0, 3)))
    total = total - logits[1, 0].log_softmax(0)[4]
    assert caption_loss(logits, next_tokens(labels)).item() == pytest.approx(total.item() / 4, rel=1e-5)
    assert caption_loss(logits, torch.full_like(labels, -100)) == 0
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        caption_loss(logits, labels[:, :3])


def test_training_reaches_every_part_that_captions_use():
    model = make_model().train()
    inputs = tiny_inputs()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # Boxes, how the image attends to words, and the maps after the last block, which no word sees.
    unused = ("detection_head.", "vision_gamma", "vision_out", "text_value", "layers.1.dyconv", "swin.layernorm")
    assert {name for name in without if not any(part in name for part in unused)} == set()
    assert model.caption_head.decoder.weight is model.get_input_embeddings().weight


def test_gradient_checkpointing_gives_the_same_gradients():
    inputs = tiny_inputs()
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(model.model.layers[0].fusion.vision_value.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_a_frozen_detector_stays_as_it_is(model):
    model = make_model()
    model.freeze_detector()
    assert model.train().caption_head.training
    assert not model.model.training
    inputs = tiny_inputs()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    # The decoder's weight is the shared word embedding.
    assert with_gradient == {f"caption_head.{name}" for name in ("dense.weight", "dense.bias", "norm.weight")} | {
        "caption_head.norm.bias",
        "caption_head.decoder.bias",
    }


# Generation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("prefix", ["with prefixes", "without"])
def test_cached_generation_equals_full_recomputation(model, way, prefix):
    inputs = tiny_inputs()
    if prefix == "without":
        inputs = images_of(inputs)
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        results.append(model.generate(**inputs, **GENERATION[way], max_new_tokens=10, use_cache=use_cache))
    assert torch.equal(*results)
    assert results[0].shape[1] > inputs.get("input_ids", torch.zeros(2, 1)).shape[1]


@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_cached_generation_over_a_clip_text_tower(clip_model, way):
    inputs = tiny_inputs()
    results = [
        clip_model.generate(**inputs, **GENERATION[way], max_new_tokens=8, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*results)


@torch.no_grad()
def test_cached_logits_equal_those_of_one_pass(model):
    inputs = tiny_inputs()
    whole = model(**inputs)
    states = whole.visual_states
    first = model(
        input_ids=inputs["input_ids"][:, :5],
        attention_mask=inputs["attention_mask"][:, :5],
        visual_states=states,
        use_cache=True,
    )
    logits, cache = [first.logits], first.cache
    for place in range(5, 9):
        step = model(
            input_ids=inputs["input_ids"][:, place : place + 1],
            attention_mask=inputs["attention_mask"][:, : place + 1],
            visual_states=states,
            cache=cache,
        )
        logits.append(step.logits)
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(logits, 1)[kept], whole.logits[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["greedy", "beam"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_of_different_prefixes_equals_single_calls(model, way, masked):
    if masked:
        # Images of different sizes only compare where padding takes no part.
        model = make_model(mask_padded_pixels=True)
    inputs = tiny_inputs()
    if not masked:
        inputs["pixel_mask"] = torch.ones_like(inputs["pixel_mask"])
    together = model.generate(**inputs, **GENERATION[way], max_new_tokens=8)
    for row in range(2):
        length = int(inputs["attention_mask"][row].sum())
        alone = model.generate(
            **{name: value[row : row + 1] for name, value in images_of(inputs).items()},
            input_ids=inputs["input_ids"][row : row + 1, :length],
            **GENERATION[way],
            max_new_tokens=8,
        )
        words = [[word for word in ids.tolist() if word != 0] for ids in (together[row], alone[0])]
        assert words[0] == words[1]


def test_the_tower_runs_once_a_image(model, monkeypatch):
    inputs = tiny_inputs()
    calls = {"backbone": 0, "dyconv": 0}
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, module in (("backbone", model.model.backbone), ("dyconv", model.model.layers[0].dyconv))
    ]
    words = []
    embeddings = model.get_input_embeddings()
    handles.append(embeddings.register_forward_hook(lambda _, ids, output: words.append(output.shape[1])))
    model.generate(**inputs, num_beams=5, max_new_tokens=6, min_new_tokens=6)
    for handle in handles:
        handle.remove()
    assert calls == {"backbone": 1, "dyconv": 1}
    # After the beginning (with the mark of its start) each step reads one word.
    assert words == [10, 1, 1, 1, 1, 1]


def test_beginnings_lose_their_end_and_are_padded_on_the_left():
    ids = torch.tensor([[CLS, 8, 9, SEP], [CLS, 7, SEP, 0], [8, 9, 0, 0], [CLS, SEP, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
    rows, kept = prefixes(ids, mask, CLS, {SEP}, 0)
    assert rows.tolist() == [[CLS, 8, 9], [0, CLS, 7], [CLS, 8, 9], [0, 0, CLS]]
    assert kept.tolist() == [[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]


def test_an_empty_beginning_is_none(model):
    images = images_of(tiny_inputs())
    nothing = model.generate(**images, max_new_tokens=5)
    special = model.generate(**images, input_ids=torch.tensor([[CLS, SEP], [CLS, SEP]]), max_new_tokens=5)
    assert torch.equal(nothing, special)
    assert (nothing[:, 0] == CLS).all()
    shared = model.generate(**images, input_ids=torch.tensor([[CLS, 9, SEP]]), max_new_tokens=5)
    repeated = model.generate(**images, input_ids=torch.tensor([[CLS, 9, SEP]] * 2), max_new_tokens=5)
    assert torch.equal(shared, repeated)


def test_generation_stops_at_the_end_mark_and_at_the_longest_text(model):
    images = images_of(tiny_inputs())
    free = model.generate(**images, max_new_tokens=8, suppress_tokens=[SEP])
    stop = int(free[0, 3])
    ended = model.generate(**images, max_new_tokens=8, suppress_tokens=[SEP], eos_token_id=stop)
    place = free[0].tolist().index(stop)
    assert ended[0, : place + 1].tolist() == free[0, : place + 1].tolist()
    assert (ended[0, place + 1 :] == 0).all()
    short = make_model(max_text_length=12)
    for way in ("greedy", "beam"):
        longest = short.generate(**images, **GENERATION[way], max_new_tokens=500, suppress_tokens=[SEP])
        assert longest.shape[1] == 12
    with pytest.raises(ValueError, match="12 tokens"):
        short.generate(**images, input_ids=torch.full((2, 12), 9).index_fill(1, torch.tensor([0]), CLS))


def test_one_image_has_several_captions(model):
    inputs = tiny_inputs()
    features = model.get_image_features(inputs["pixel_values"][:1])
    both = model.generate(
        image_features=features,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=3,
        max_new_tokens=6,
    )
    for row, length in enumerate((9, 6)):
        alone = model.generate(
            image_features=features,
            input_ids=inputs["input_ids"][row : row + 1, :length],
            num_beams=3,
            max_new_tokens=6,
        )
        assert [word for word in both[row].tolist() if word] == [word for word in alone[0].tolist() if word]


# Bad input, saving ---------------------------------------------------------------------------------------------------


def test_bad_calls_are_refused(model):
    inputs = tiny_inputs(batch=3)
    two = {name: inputs[name][:2] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="2 texts and 3 images"):
        model(**images_of(inputs), **two)
    with pytest.raises(ValueError, match="pixel_values"):
        model(**two)
    with pytest.raises(ValueError, match="images to caption"):
        model.generate(**two)
    with pytest.raises(ValueError, match="attention_mask"):
        model(**images_of(inputs), input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"][:, 1:])
    with pytest.raises(ValueError, match="use_fusion"):
        GLIPv2ForConditionalGeneration(tiny_config(use_fusion=False))
    with pytest.raises(ValueError, match="set_special_tokens"):
        GLIPv2ForConditionalGeneration(tiny_config()).generate(**images_of(inputs))


def test_every_head_loads_from_one_folder(tmp_path):
    model = make_model()
    GLIPv2ForPreTraining(model.config).save_pretrained(tmp_path / "pretrained")
    heads = load_other_heads(tmp_path / "pretrained", model)
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), **heads})
    # The special tokens come with the configuration too, since models without captions write no such file.
    (tmp_path / "generation_config.json").unlink()
    AutoModelForImageTextToText.register(GLIPv2Config, GLIPv2ForConditionalGeneration, exist_ok=True)
    captioner, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    _, info = GLIPv2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    detector, info = GLIPv2ForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = images_of(tiny_inputs())
    expected = model.generate(**images, max_new_tokens=6)
    assert torch.equal(captioner.generate(**images, max_new_tokens=6), expected)
    with torch.no_grad():
        inputs = tiny_inputs()
        torch.testing.assert_close(captioner.ground(**inputs).logits, detector(**inputs).logits)


def test_save_and_load_keeps_words_tied(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = GLIPv2ForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.caption_head.decoder.weight is loaded.get_input_embeddings().weight
    assert loaded.generation_config.eos_token_id == SEP
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tiny_inputs()).logits, model(**tiny_inputs()).logits)


def test_a_head_over_frozen_weights_learns_the_captions_of_two_images():
    model = make_model(caption_region_attention=True)
    model.freeze_detector()
    tokenizer = tiny_tokenizer()
    captions = ["a red wine glass", "the black bishop next the man"]
    texts = tokenizer(captions, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    with torch.no_grad():
        features = model.get_image_features(**images_of(tiny_inputs()))
    optimizer = torch.optim.AdamW(model.caption_head.parameters(), lr=5e-3)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(image_features=features, **texts, labels=labels).loss.backward()
        optimizer.step()
    tokens = model.eval().generate(image_features=features, num_beams=2, max_new_tokens=12)
    assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == captions
