"""What must not change the results: padding, batches, attention form, precision, placement, and ways to call."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import AutoModel

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection, GLIPv2Model

RESULTS = ("logits", "centerness", "box_deltas", "pred_boxes")


def build(**overrides) -> GLIPv2ForObjectDetection:
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config(**overrides)).eval()


@pytest.fixture(scope="module")
def model() -> GLIPv2ForObjectDetection:
    return build()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return tiny_inputs()


@pytest.fixture(scope="module")
def output(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def assert_same(one, other, **tolerance):
    for name in RESULTS:
        torch.testing.assert_close(one[name], other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def at(output, level_shapes: list[list[int]]) -> torch.Tensor:
    """Numbers of the anchors that also lie on maps of `level_shapes`."""
    numbers, start = [], 0
    for (height, width), (rows, columns) in zip(output.level_shapes.tolist(), level_shapes, strict=True):
        level = torch.arange(start, start + height * width).view(height, width)
        numbers.append(level[:rows, :columns].flatten())
        start += height * width
    return torch.cat(numbers)


# Batches and padding -------------------------------------------------------------------------------------------------


def alone_and_padded(model, height, width, padded_height, padded_width):
    """An image alone, and the same beside a larger one."""
    generator = torch.Generator().manual_seed(2)
    small = torch.randn(1, 3, height, width, generator=generator)
    pixel_values = torch.randn(2, 3, padded_height, padded_width, generator=generator)
    pixel_values[1] = torch.nn.functional.pad(small[0], (0, padded_width - width, 0, padded_height - height))
    pixel_mask = torch.ones(2, padded_height, padded_width, dtype=torch.long)
    pixel_mask[1, height:], pixel_mask[1, :, width:] = 0, 0
    input_ids = torch.randint(5, 128, (1, 7), generator=generator)
    with torch.no_grad():
        alone = model(pixel_values=small, input_ids=input_ids)
        together = model(pixel_values=pixel_values, pixel_mask=pixel_mask, input_ids=input_ids)
    shared = at(together, alone.level_shapes.tolist())
    return alone, {name: together[name][1:] for name in RESULTS}, shared


@pytest.mark.parametrize("mode", ["released", "resized"])
@pytest.mark.parametrize("size", [(64, 96, 96, 128), (50, 75, 70, 203)])
def test_masked_padding_changes_nothing(mode, size):
    alone, together, shared = alone_and_padded(build(mask_padded_pixels=True, dyconv_offset_mode=mode), *size)
    assert_same(alone, {name: together[name][:, shared] for name in RESULTS}, atol=1e-5, rtol=1e-5)
    elsewhere = torch.ones(together["logits"].shape[1]).bool()
    elsewhere[shared] = False
    assert together["logits"][:, elsewhere].sigmoid().max() == 0


def test_unmasked_padding_takes_part_as_in_the_original(model):
    """
    The cost of the default: with random weights and half of the canvas empty, logits move by half of their spread
    (0.0075 on average of 0.013) and boxes by 0.0006 of the image. Normalisation and attention over whole maps,
    offsets read with other strides and windows across the border all let padding in.
    """
    alone, together, shared = alone_and_padded(model, 64, 96, 96, 128)
    moved = (alone.logits - together["logits"][:, shared]).abs().mean()
    assert 0.1 < moved / alone.logits.std() < 2
    assert (alone.pred_boxes - together["pred_boxes"][:, shared]).abs().mean() < 2e-3


@torch.no_grad()
def test_masked_padding_with_every_output():
    model, inputs = build(mask_padded_pixels=True), tiny_inputs()
    both = model(**inputs, output_hidden_states=True, output_attentions=True)
    sizes = inputs["pixel_mask"][1, :, 0].sum(), inputs["pixel_mask"][1, 0].sum()
    own = {name: value[1:] for name, value in inputs.items()}
    own["pixel_values"] = own["pixel_values"][:, :, : sizes[0], : sizes[1]]
    own["pixel_mask"] = own["pixel_mask"][:, : sizes[0], : sizes[1]]
    alone = model(**own, output_hidden_states=True, output_attentions=True)
    shared = at(both, alone.level_shapes.tolist())
    for whole, part in zip(both.attentions, alone.attentions, strict=True):
        torch.testing.assert_close(whole[0][1:, :, shared], part[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole[1][1:, :, :, shared], part[1], atol=1e-5, rtol=1e-5)
        # Nothing attends to the padding.
        torch.testing.assert_close(whole[1][1].sum(-1), torch.ones_like(whole[1][1, ..., 0]))
    for whole, part in zip(both.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(whole[1:], part, atol=1e-5, rtol=1e-5)


def test_masked_padding_can_be_trained():
    model = build(mask_padded_pixels=True).train()
    output = model(**tiny_inputs())
    (output.logits.sigmoid().sum() + output.box_deltas.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.model.neck.p7.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_batch_equals_its_pairs(model):
    inputs = tiny_inputs(batch=3)
    inputs["pixel_mask"][:] = 1
    together = model(**inputs)
    for index in range(3):
        alone = model(**{name: value[index : index + 1] for name, value in inputs.items()})
        assert_same(alone, {name: together[name][index : index + 1] for name in RESULTS}, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_text_meets_many_images(model, inputs):
    words = {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
    images = {name: inputs[name] for name in ("pixel_values", "pixel_mask")}
    repeated = model(**images, **{name: value.repeat(2, 1) for name, value in words.items()})
    text_features = model.get_text_features(**words)
    shared = model(**images, text_features=text_features, attention_mask=words["attention_mask"])
    assert_same(shared, repeated, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_a_mask_every_token_counts(model, inputs):
    words = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones_like(inputs["input_ids"][:1])}
    image = {"pixel_values": inputs["pixel_values"][:1]}
    assert_same(model(**image, input_ids=words["input_ids"]), model(**image, **words), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_small_image_leaves_the_model_as_it_was(inputs):
    model = build()
    before = model(**inputs)
    model(**tiny_inputs(batch=1, height=8, width=8))
    assert_same(model(**inputs), before, atol=0, rtol=0)


# Forms and precision -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_eager_attention(model, inputs, output):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert_same(eager(**inputs), output, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_form_is_chosen_on_loading(implementation, model, inputs, output, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = GLIPv2ForObjectDetection.from_pretrained(tmp_path, attn_implementation=implementation).eval()
    assert loaded.config._attn_implementation == implementation
    assert loaded.model.layers[0].fusion.config._attn_implementation == implementation
    assert_same(loaded(**inputs), output, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_half_precision(dtype, implementation, model, inputs, output):
    half = copy.deepcopy(model).to(dtype)
    half.set_attn_implementation(implementation)
    result = half(**inputs)
    # Outputs are float32, or boxes would move by pixels.
    assert {result[name].dtype for name in RESULTS} == {torch.float32}
    assert result.fused_text.dtype == dtype
    torch.testing.assert_close(result.pred_boxes, output.pred_boxes, atol=5e-3, rtol=0)
    torch.testing.assert_close(result.logits, output.logits, atol=2e-2, rtol=0)


def test_autocast_trains(inputs):
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
        loss = output.logits.float().sigmoid().mean() + output.box_deltas.float().square().mean()
    loss.backward()
    assert model.model.layers[0].dyconv.branches["same"].conv.weight.grad.isfinite().all()


# Training ------------------------------------------------------------------------------------------------------------


def loss_of(output) -> torch.Tensor:
    return output.logits.sigmoid().mean() + output.centerness.square().mean() + output.box_deltas.square().mean()


def test_every_parameter_gets_a_gradient(inputs):
    model = build().train()
    loss_of(model(**inputs)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # transformers' Swin has a last norm that backbones never apply.
    assert without == ["model.backbone.swin.layernorm.weight", "model.backbone.swin.layernorm.bias"]
    zero = [
        name for name, parameter in model.named_parameters() if parameter.grad is not None and not parameter.grad.any()
    ]
    assert zero == []


def test_gradient_checkpointing_gives_equal_gradients(inputs):
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.layers[0].gradient_checkpointing
        loss_of(model(**inputs)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_training_without_gradients_of_frozen_parts(inputs):
    model = build().train()
    model.model.backbone.requires_grad_(False)
    model.model.text_encoder.requires_grad_(False)
    loss_of(model(**inputs)).backward()
    assert model.model.backbone.swin.embeddings.patch_embeddings.projection.weight.grad is None
    assert model.model.layers[0].fusion.vision_query.weight.grad.abs().sum() > 0


# Loading and placement -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_weights_and_buffers_survive_loading(model, inputs, output, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = GLIPv2ForObjectDetection.from_pretrained(tmp_path).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(
            dict(loaded.named_parameters()).get(name, dict(loaded.named_buffers()).get(name)), tensor
        ), name
    assert_same(loaded(**inputs), output, atol=1e-6, rtol=1e-5)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert type(base) is GLIPv2Model
    torch.testing.assert_close(base(**inputs).fused_text, output.fused_text)
    # And back: the head classes take a checkpoint of the base alone.
    base.save_pretrained(tmp_path / "base")
    headed, report = GLIPv2ForObjectDetection.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert all(name.startswith("detection_head.") for name in report["missing_keys"])
    torch.testing.assert_close(headed.eval()(**inputs).fused_text, output.fused_text)


@torch.no_grad()
def test_missing_weights_are_initialised_by_rule(model, tmp_path):
    """A checkpoint without a part loads, on the meta device first, with the part's own initial weights."""
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    torch.manual_seed(0)
    loaded, report = GLIPv2ForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]
    assert all("layers.1" in name for name in report["missing_keys"])
    layer = loaded.model.layers[1]
    assert torch.equal(layer.fusion.vision_gamma, torch.full((32,), 0.5))
    assert layer.dyconv.branches["finer"].conv.weight.abs().max() <= 1 / (9 * 32) ** 0.5
    assert torch.equal(layer.dyconv.branches["finer"].norm.weight, torch.ones(32))
    assert layer.dyconv.branch_attention.weight.std() < 0.02
    assert layer.text_layer.output.weight.std() < 0.05


@torch.no_grad()
def test_device_map(model, inputs, output, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = GLIPv2ForObjectDetection.from_pretrained(tmp_path, device_map="cpu").eval()
    assert_same(loaded(**inputs), output, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_offloaded_weights(implementation, model, inputs, output):
    offloaded = copy.deepcopy(model)
    offloaded.set_attn_implementation(implementation)
    offloaded = cpu_offload(offloaded, torch.device("cpu"))
    assert offloaded.model.layers[0].fusion.vision_query.weight.is_meta
    assert_same(offloaded(**inputs), output, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dispatch_to_disk(model, inputs, output, tmp_path):
    split = {"model.backbone": "cpu", "model.neck": "cpu", "model.text_encoder": "disk", "model.layers": "disk"}
    dispatched = copy.deepcopy(model)
    dispatched = dispatch_model(
        dispatched, {**split, "detection_head": "disk"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert_same(dispatched(**inputs), output, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_resized_embeddings(inputs, output):
    model = build()
    model.resize_token_embeddings(140)
    assert model.config.text_config.vocab_size == 140
    assert model.get_input_embeddings().weight.shape == (140, 32)
    assert_same(model(**inputs), output, atol=1e-6, rtol=1e-5)
    longer = {**inputs, "input_ids": inputs["input_ids"] + 8}
    assert model(**longer).logits.isfinite().all()


# Ways to call --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tuple_and_dict(model, inputs, output):
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    values = output.to_tuple()
    assert len(as_tuple) == len(values)
    torch.testing.assert_close(as_tuple[0], output.logits)
    for one, other in zip(as_tuple, values, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other)


@torch.no_grad()
def test_the_same_twice(model, inputs, output):
    assert_same(model(**inputs), output, atol=0, rtol=0)


@torch.no_grad()
def test_hidden_states_and_attentions(model, inputs, output):
    full = model(**inputs, output_hidden_states=True, output_attentions=True)
    layers, locations = model.config.num_fusion_layers, full.logits.shape[1]
    assert len(full.hidden_states) == len(full.vision_hidden_states) == layers + 1
    assert len(full.attentions) == layers
    assert torch.equal(full.hidden_states[0], full.text_features)
    assert torch.equal(full.hidden_states[-1], full.fused_text)
    for first, last, before, after in zip(
        full.vision_hidden_states[0],
        full.vision_hidden_states[-1],
        full.feature_maps,
        full.fused_feature_maps,
        strict=True,
    ):
        assert torch.equal(first, before)
        assert torch.equal(last, after)
    to_text, to_vision = full.attentions[0]
    assert to_text.shape == (2, 4, locations, 9)
    assert to_vision.shape == (2, 4, 9, locations)
    assert to_text[1, ..., 6:].max() == 0
    assert_same(full, output, atol=1e-5, rtol=1e-4)
    assert output.hidden_states is output.vision_hidden_states is output.attentions is None


@torch.no_grad()
def test_outputs_asked_for_in_the_config(inputs):
    model = build(output_hidden_states=True)
    assert len(model(**inputs).hidden_states) == 3


@torch.no_grad()
def test_embedded_words(model, inputs, output):
    embedded = {name: value for name, value in inputs.items() if name != "input_ids"}
    result = model(**embedded, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
    assert_same(result, output, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_fusion(inputs):
    model = build(use_fusion=False)
    output = model(**inputs, output_attentions=True)
    assert output.attentions is None
    torch.testing.assert_close(output.fused_text, output.text_features)
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    # Boxes do not depend on the words then.
    assert torch.equal(model(**other).box_deltas, output.box_deltas)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused(value, model, inputs):
    pixel_values = inputs["pixel_values"].clone()
    pixel_values[1, 0, 3, 4] = value
    with pytest.raises(ValueError, match=r"`pixel_values\[1\]` holds NaN or infinity"):
        model(**{**inputs, "pixel_values": pixel_values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None}, "Pass `pixel_values`, or `image_features`"),
        ({"input_ids": None}, "exactly one of `input_ids` and `inputs_embeds`"),
        ({"inputs_embeds": torch.zeros(2, 9, 32)}, "exactly one of `input_ids` and `inputs_embeds`"),
        ({"pixel_values": torch.zeros(3, 64, 96)}, r"\(batch, channels, height, width\), not \(3, 64, 96\)"),
        ({"pixel_mask": torch.ones(2, 64, 64)}, r"`pixel_mask` must have shape \(2, 64, 96\)"),
        ({"attention_mask": torch.ones(2, 8)}, r"`attention_mask` must have shape \(2, 9\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message, model, inputs):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})


def test_a_config_that_does_not_fit_the_weights_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = GLIPv2Config.from_pretrained(tmp_path)
    config.d_model = 64
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        GLIPv2ForObjectDetection.from_pretrained(tmp_path, config=config)
