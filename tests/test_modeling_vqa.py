"""Question answering: pooling, loss, boxes of the same forward, one folder for every head; masked words alone."""

import math

import pytest
import torch
from transformers import AutoModelForVisualQuestionAnswering, pipeline

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2Config, GLIPv2ForMaskedLM, GLIPv2ForObjectDetection, GLIPv2ForPreTraining
from transformers_glipv2.layers.region_attention import location_features
from transformers_glipv2.losses import answer_loss
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config, relative_offset
from transformers_glipv2.training.heads import keep_known_answers
from transformers_glipv2.training.vqa import frozen_batches, repeated

ANSWERS = ["yes", "no", "red", "2"]


def make_model(**overrides) -> GLIPv2ForVisualQuestionAnswering:
    torch.manual_seed(0)
    fields = {"answer_head_type": "evidence", "initializer_range": 0.3, **answer_config(ANSWERS)}
    config = tiny_config(**(fields | overrides))
    return GLIPv2ForVisualQuestionAnswering(config).eval()


@pytest.fixture(scope="module")
def model() -> GLIPv2ForVisualQuestionAnswering:
    return make_model()


# Answers -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_answers_depend_on_the_image_and_the_question_and_on_no_padding(model):
    inputs = tiny_inputs(batch=1)
    logits = model(**inputs).answer_logits
    assert logits.shape == (1, 4)
    assert (
        model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(3)}).answer_logits - logits
    ).abs().max() > 1e-3
    assert (model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)}).answer_logits - logits).abs().max() > 1e-3
    padded = {
        **inputs,
        **{name: torch.nn.functional.pad(inputs[name], (0, 5)) for name in ("input_ids", "attention_mask")},
    }
    torch.testing.assert_close(model(**padded).answer_logits, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pooling_begins_as_the_mean_of_the_attended_words(model):
    head = make_model().answer_head
    head.token_weight.weight.zero_()
    text, signs = torch.randn(2, 5, 32), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
    values = torch.nn.functional.gelu(head.token_value(text))
    means = [
        torch.cat([v.mean(0), s.mean(0).repeat(head.num_heads)])
        for v, s in ((values[0], signs[0]), (values[1, 2:], signs[1, 2:]))
    ]
    torch.testing.assert_close(head.pool(text, signs, mask), torch.stack(means))


def detected(**changes) -> GLIPv2ObjectDetectionOutput:
    """One image of two words and of six locations: a row of five and one."""
    shapes = [(1, 5), (1, 1)]
    fields = {
        "fused_text": torch.randn(1, 2, 32),
        "feature_maps": tuple(torch.randn(1, 32, *shape) for shape in shapes),
        "fused_feature_maps": tuple(torch.randn(1, 32, *shape) for shape in shapes),
        "pred_boxes": torch.rand(1, 6, 4),
        "logits": torch.full((1, 6, 2), -40.0),
        "centerness": torch.full((1, 6), 30.0),
    }
    return GLIPv2ObjectDetectionOutput(**(fields | changes))


def looks_of(output: GLIPv2ObjectDetectionOutput) -> torch.Tensor:
    return location_features(output.feature_maps, output.fused_feature_maps)


@torch.no_grad()
def test_evidence_is_the_best_place_where_the_detector_is_sure(model):
    evidence = model.answer_head.evidence
    logits = torch.full((1, 6, 2), -40.0)
    logits[0, 3, 0] = 20.0
    logits[0, [1, 5], 1] = 20.0
    output = detected(logits=logits)
    looks, boxes = looks_of(output), output.pred_boxes[0]
    words, signs = evidence(output, looks)
    found = [torch.stack([one[3], (one[1] + one[5]) / 2]) for one in (looks[0], boxes)]
    strengths = torch.tensor([[22.0, 3 * math.log(2) - 3], [22.0, 3 * math.log(3) - 3]])
    places = 4 * (found[1] - 0.5)
    # Of two words the other one is what comes after the first and before the second.
    expected = torch.cat([places, strengths, -2 * places.flip(0)[:, :2] * torch.tensor([[1.0], [-1.0]])], dim=1)
    torch.testing.assert_close(signs[0], expected, atol=3e-3, rtol=1e-4)
    together = evidence.projection(torch.cat([found[0], signs[0]], dim=1))
    torch.testing.assert_close(words[0], evidence.norm(output.fused_text[0] + together), atol=1e-5, rtol=1e-4)


def test_the_relative_offset_what_is_named_before_a_word_and_after_it():
    places = torch.tensor([[[0.0, 0.0], [-1.0, 0.5], [3.0, 3.0], [0.5, -0.5], [9.0, 9.0]]])
    confidence = torch.tensor([[0.0, 2.0, 0.0, 4.0, 0.0]])
    way = relative_offset(places, confidence)
    torch.testing.assert_close(way[0, 2], torch.tensor([-1.5, 1.0]), atol=2e-3, rtol=0)
    # On the other side of the last word nothing is named.
    torch.testing.assert_close(way[0, 4], (places[0, 1] * 2 + places[0, 3] * 4) / 6, atol=1e-3, rtol=0)
    longer = [torch.nn.functional.pad(one, pad) for one, pad in ((places, (0, 0, 0, 3)), (confidence, (0, 3)))]
    torch.testing.assert_close(relative_offset(*longer)[:, :5], way)


@torch.no_grad()
def test_a_low_highest_score_is_bounded(model):
    far, near = (
        model.answer_head.evidence(output, looks_of(output))[1][0, 0, 4]
        for output in (detected(logits=torch.full((1, 6, 2), value)) for value in (-40.0, -12.0))
    )
    assert far == near == -6


@torch.no_grad()
def test_a_look_is_that_before_and_after_fusion_and_large_channels_leave_the_others_visible():
    output = detected()
    looks = looks_of(output)
    maps = [
        torch.cat([level.flatten(2) for level in levels], dim=2)
        for levels in (output.feature_maps, output.fused_feature_maps)
    ]
    expected = [torch.nn.functional.layer_norm(one.asinh().transpose(1, 2), (32,), eps=1e-5) for one in maps]
    torch.testing.assert_close(looks, torch.cat(expected, dim=2), atol=1e-5, rtol=1e-4)
    for level in output.feature_maps:
        level[:, 0] = 1e5
    other = looks_of(output)[..., 1:32]
    assert other.std() > 0.05


@torch.no_grad()
def test_a_image_of_a_padded_batch_is_answered_as_alone():
    inputs = tiny_inputs()
    model = make_model(mask_padded_pixels=True)
    together = model(**inputs).answer_logits
    for index in range(2):
        height, width = (int(inputs["pixel_mask"][index].sum(axis).max()) for axis in (0, 1))
        alone = {name: value[index : index + 1] for name, value in inputs.items()}
        alone |= {name: alone[name][..., :height, :width] for name in ("pixel_values", "pixel_mask")}
        torch.testing.assert_close(model(**alone).answer_logits, together[index : index + 1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_new_classifier_expects_one_answer_and_may_start_from_its_words(tmp_path):
    model = make_model()
    torch.testing.assert_close(model.answer_head.classifier.bias, torch.full((4,), -math.log(3)))
    model.answer_head.classifier.bias.fill_(1.0)
    model.save_pretrained(tmp_path)
    again = GLIPv2ForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert again.answer_head.classifier.bias.tolist() == [1.0] * 4
    words = ["cat", "a cat", "dog", "red", "two", "[MASK]"]
    model = GLIPv2ForVisualQuestionAnswering.from_pretrained(
        tmp_path, **answer_config(words), ignore_mismatched_sizes=True
    )
    torch.testing.assert_close(model.answer_head.classifier.bias, torch.full((6,), -math.log(5)))
    # As a head that was trained to six other answers.
    model.answer_head.classifier.bias.fill_(1.0)
    model.answer_head.classifier.weight.fill_(7.0)
    model.start_from_words(tiny_tokenizer())
    weight = model.answer_head.classifier.weight
    torch.testing.assert_close(model.answer_head.classifier.bias, torch.full((6,), -math.log(5)))
    assert weight[:, 32:].abs().max() < 2
    torch.testing.assert_close(weight[:, :32].mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    assert weight[:, :32].std().item() == pytest.approx(0.3, rel=1e-3)
    similarity = torch.nn.functional.cosine_similarity(weight[0, None, :32], weight[1:5, :32])
    assert similarity.argmax() == 0

    names = model.answer_head.region_attention.label_embeddings.weight
    assert (names.norm(dim=1) - 1).abs().max() > 0.1
    contrastive = GLIPv2ForPreTraining(tiny_config(initializer_range=0.3)).contrastive_head
    model.start_from_words(tiny_tokenizer(), contrastive)
    torch.testing.assert_close(names.norm(dim=1), torch.ones(6))
    assert (names[1:5] @ names[0]).argmax() == 0
    assert torch.equal(model.answer_head.region_attention.image_projection.weight, contrastive.image_projection.weight)


@torch.no_grad()
def test_answers_that_the_checkpoint_knows_are_kept(tmp_path):
    model = make_model()
    known = ["cat", "dog", "red", "two"]
    model.config.id2label = dict(enumerate(known))
    model.save_pretrained(tmp_path / "four")
    words = ["sheep", "two", "cat", "horse"]
    options = {**answer_config(words), "ignore_mismatched_sizes": True}
    other = GLIPv2ForVisualQuestionAnswering.from_pretrained(tmp_path / "four", **options).eval()
    other.start_from_words(tiny_tokenizer())
    new = other.answer_head.classifier.weight[[0, 3]].clone()
    assert keep_known_answers(tmp_path / "four", other) == ["two", "cat"]
    inputs = tiny_inputs()
    scores, expected = other(**inputs).answer_logits, model(**inputs).answer_logits
    torch.testing.assert_close(scores[:, [1, 2]], expected[:, [3, 0]])
    assert torch.equal(other.answer_head.classifier.weight[[0, 3]], new)

    options = {**answer_config(["horse", "sheep"]), "ignore_mismatched_sizes": True}
    other = GLIPv2ForVisualQuestionAnswering.from_pretrained(tmp_path / "four", **options)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert keep_known_answers(tmp_path / "four", other) == []
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    GLIPv2ForPreTraining(tiny_config()).save_pretrained(tmp_path / "no-head")
    assert keep_known_answers(tmp_path / "no-head", other) == []


def test_loss_by_hand():
    logits, targets = torch.tensor([[0.3, -2.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.3], [0.0, 0.6]])
    probabilities = logits.sigmoid()
    terms = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log())
    assert answer_loss(logits, targets).item() == pytest.approx(terms.sum().item() / 2, rel=1e-5)
    targets[0] = float("nan")
    assert answer_loss(logits, targets).item() == pytest.approx(terms[1].sum().item(), rel=1e-5)
    assert answer_loss(logits, torch.full_like(targets, float("nan"))) == 0
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        answer_loss(logits, targets[:, :1])


def test_bad_answers_and_configurations_are_refused():
    assert answer_config(["a", "b"]) == {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    with pytest.raises(ValueError, match="'a' twice"):
        answer_config(["a", "b", "a"])
    with pytest.raises(ValueError, match="empty"):
        answer_config([])
    with pytest.raises(ValueError, match="use_fusion"):
        GLIPv2ForVisualQuestionAnswering(tiny_config(use_fusion=False))


# Boxes and training --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_boxes_are_those_of_the_detector(model, tmp_path):
    model.save_pretrained(tmp_path)
    detector, info = GLIPv2ForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = tiny_inputs()
    boxes, answers = detector(**inputs), model(**inputs)
    for name in ("logits", "centerness", "pred_boxes"):
        torch.testing.assert_close(answers[name], boxes[name])


def test_losses_add_up_and_a_frozen_detector_adds_none():
    model = make_model().train()
    labels = [{"boxes": torch.tensor([[0.4, 0.4, 0.3, 0.4]]), "positive_map": torch.eye(9)[3:4]}, None]
    inputs = {**tiny_inputs(), "labels": labels, "answer_labels": torch.rand(2, 4)}
    output = model(**inputs)
    assert set(output.loss_dict) == {"loss_box", "loss_centerness", "loss_intra", "loss_answer"}
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    output.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all("swin.layernorm" in name for name in without)

    model = make_model()
    model.freeze_detector()
    output = model.train()(**inputs)
    assert set(output.loss_dict) == {"loss_answer"}
    assert not model.model.training
    assert model.answer_head.training
    output.loss.backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    head = [name for name, _ in model.named_parameters() if name.startswith("answer_head.")]
    assert with_gradient == head


def test_what_the_frozen_part_made_stands_for_images_and_questions():
    model = make_model()
    model.freeze_detector()
    batches = []
    for seed in range(3):
        torch.manual_seed(seed)
        batches.append({**tiny_inputs(), "answer_labels": torch.rand(2, 4)})
        batches[-1]["pixel_values"] = batches[-1]["pixel_values"] * (seed + 1)
    kept = frozen_batches(model, batches, torch.device("cpu"), progress=False)
    expected = [model(**batch).loss.item() for batch in batches]
    steps = [model(**batch).loss.item() for batch in repeated(kept, 0, 9, seed=0)]
    epochs = [steps[:3], steps[3:6], steps[6:]]
    for losses in epochs:
        assert sorted(losses) == pytest.approx(sorted(expected), rel=1e-2)
    assert len({tuple(losses) for losses in epochs}) > 1
    resumed = [model(**batch).loss.item() for batch in repeated(kept, 4, 9, seed=0)]
    assert resumed == steps[4:]


def test_the_answer_head_can_learn_a_batch():
    model = make_model()
    model.freeze_detector()
    model.train()
    inputs, targets = tiny_inputs(), torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    with torch.no_grad():
        features = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("pixel_mask"))
    optimizer = torch.optim.AdamW(model.answer_head.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        model(image_features=features, **inputs, answer_labels=targets).loss.backward()
        optimizer.step()
    assert model.eval()(image_features=features, **inputs).answer_logits.argmax(1).tolist() == [0, 2]


# Folders -------------------------------------------------------------------------------------------------------------


def test_the_auto_class_loads_answers_and_names_a_missing_head(model, tmp_path):
    AutoModelForVisualQuestionAnswering.register(GLIPv2Config, GLIPv2ForVisualQuestionAnswering, exist_ok=True)
    model.save_pretrained(tmp_path / "answers")
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "answers")
    assert loaded.config.id2label == dict(enumerate(ANSWERS))
    with torch.no_grad():
        inputs = tiny_inputs()
        torch.testing.assert_close(loaded(**inputs).answer_logits, model(**inputs).answer_logits)

    GLIPv2ForPreTraining(tiny_config()).save_pretrained(tmp_path / "pretrained")
    new, info = GLIPv2ForVisualQuestionAnswering.from_pretrained(
        tmp_path / "pretrained", **answer_config(ANSWERS), output_loading_info=True
    )
    head = {f"answer_head.{name}" for name in new.answer_head.state_dict()}
    assert set(info["missing_keys"]) == head
    assert not info["unexpected_keys"]


# Masked words without an image --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked_lm() -> GLIPv2ForMaskedLM:
    torch.manual_seed(0)
    return GLIPv2ForMaskedLM(tiny_config(initializer_range=0.3)).eval()


@torch.no_grad()
def test_text_alone_is_the_tower_with_the_update_from_vision_left_out(masked_lm):
    inputs = tiny_inputs()
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    alone = masked_lm(**words)
    assert alone.logits.shape == (2, 9, 128)
    assert alone.fused_feature_maps is None
    gammas = [layer.fusion.text_gamma.clone() for layer in masked_lm.model.layers]
    try:
        for layer in masked_lm.model.layers:
            layer.fusion.text_gamma.zero_()
        with_image = masked_lm(**inputs)
    finally:
        for layer, gamma in zip(masked_lm.model.layers, gammas, strict=True):
            layer.fusion.text_gamma.copy_(gamma)
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(alone.logits[kept], with_image.logits[kept], atol=1e-4, rtol=1e-4)
    assert (masked_lm(**inputs).logits - alone.logits)[kept].abs().max() > 1e-3


@torch.no_grad()
def test_text_alone_takes_features_embeddings_and_labels(masked_lm):
    inputs = tiny_inputs()
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = masked_lm(**words).logits
    features = masked_lm.model.get_text_features(**words)
    mask = words["attention_mask"]
    torch.testing.assert_close(masked_lm(text_features=features, attention_mask=mask).logits, expected)
    embedded = masked_lm.get_input_embeddings()(words["input_ids"])
    torch.testing.assert_close(masked_lm(inputs_embeds=embedded, attention_mask=mask).logits, expected)
    labels = torch.full_like(mask, -100)
    labels[0, 2] = 7
    loss = masked_lm(**words, labels=labels).loss
    torch.testing.assert_close(loss, -expected[0, 2].log_softmax(0)[7])
    with pytest.raises(ValueError, match="input_ids"):
        masked_lm(attention_mask=mask)


def test_fill_mask_pipeline(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path))
    assert isinstance(fill.model, GLIPv2ForMaskedLM)
    found = fill("a [MASK] cat", top_k=3)
    ids = tokenizer("a [MASK] cat", return_tensors="pt")
    place = ids["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        scores = masked_lm(input_ids=ids["input_ids"]).logits[0, place].softmax(0)
    assert [entry["token"] for entry in found] == scores.topk(3).indices.tolist()
    assert [entry["score"] for entry in found] == pytest.approx(scores.topk(3).values.tolist(), rel=1e-4)
