"""Pre-training with answers and captions beside it: each loss is that of the class that has it alone."""

import pytest
import torch

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForPreTraining, modeling_glipv2_joint
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config
from transformers_glipv2.training import CaptionCollator, JointCollator

IGNORED = -100


@pytest.fixture(scope="module")
def model() -> GLIPv2ForJointTraining:
    torch.manual_seed(0)
    return GLIPv2ForJointTraining(tiny_config(initializer_range=0.3, **answer_config(["yes", "no", "2"]))).eval()


def batch_of_four() -> dict:
    """Boxes of the first, a question in the second, a caption in the last; some masked tokens."""
    inputs = tiny_inputs(batch=4)
    boxes = {
        "boxes": torch.tensor([[0.4, 0.4, 0.3, 0.4]]),
        "positive_map": torch.eye(9)[3:4],
        "class_ids": torch.tensor([5]),
    }
    answers = torch.full((4, 3), float("nan"))
    answers[1] = torch.tensor([0.0, 0.6, 1.0])
    captions = torch.full_like(inputs["input_ids"], IGNORED)
    kept = inputs["attention_mask"][3].bool()
    captions[3, kept] = inputs["input_ids"][3, kept]
    hidden = torch.full_like(inputs["input_ids"], IGNORED)
    hidden[0, 2] = 7
    return {
        **inputs,
        "labels": [boxes, None, None, None],
        "mlm_labels": hidden,
        "answer_labels": answers,
        "caption_labels": captions,
    }


def test_losses_are_those_of_the_classes_alone(model, tmp_path):
    model.save_pretrained(tmp_path)
    batch = batch_of_four()
    output = model(**batch)
    output.loss.backward()
    assert all(parameter.grad.any() for parameter in model.model.neck.parameters())
    model.zero_grad()
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))

    answers, captions = batch.pop("answer_labels"), batch.pop("caption_labels")
    expected = {}
    for model_class, more, rows in (
        (GLIPv2ForPreTraining, {}, slice(None)),
        (GLIPv2ForVisualQuestionAnswering, {"answer_labels": answers[1:2]}, slice(1, 2)),
        (GLIPv2ForConditionalGeneration, {"labels": captions[3:]}, slice(3, None)),
    ):
        alone, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        names = batch if not more else ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
        with torch.no_grad():
            expected |= alone.eval()(**{name: batch[name][rows] for name in names}, **more).loss_dict
    assert output.loss_dict.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(output.loss_dict[name], loss, atol=1e-4, rtol=1e-4)


def test_losses_of_the_heads_have_weights(model, monkeypatch):
    batch = batch_of_four()
    with torch.no_grad():
        plain = model(**batch).loss_dict
        monkeypatch.setattr(model.config, "answer_loss_weight", 0.5)
        monkeypatch.setattr(model.config, "caption_loss_weight", 0)
        output = model(**batch)
    expected = {**plain, "loss_answer": 0.5 * plain["loss_answer"], "loss_caption": 0 * plain["loss_caption"]}
    torch.testing.assert_close(output.loss_dict, expected)
    torch.testing.assert_close(output.loss, sum(expected.values()))


def test_each_of_several_processes_runs_every_head(model, monkeypatch):
    """Processes exchange gradients in the order of the layers, so all have to have the same layers."""
    monkeypatch.setattr(modeling_glipv2_joint, "num_processes", lambda: 2)
    model.zero_grad()
    losses = model(**{name: value[:1] for name, value in batch_of_four().items()}).loss_dict
    assert losses["loss_answer"] == losses["loss_caption"] == 0
    sum(losses.values()).backward()
    for head in (model.answer_head, model.caption_head):
        own = [parameter for name, parameter in head.named_parameters() if not name.startswith("decoder")]
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in own)
    model.zero_grad()


def test_rows_of_one_kind_leave_the_other_losses_out(model):
    batch = batch_of_four()
    with torch.no_grad():
        losses = model(**{name: value[:1] for name, value in batch.items()}).loss_dict
        assert not {"loss_answer", "loss_caption"} & losses.keys()
        found = model(**{name: batch[name] for name in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")})
    assert found.loss is None
    assert found.logits.shape[0] == 4


def test_questions_are_whole_and_captions_learnt_from_the_words_that_are_hidden():
    words, mask = (
        torch.tensor([[2, 9, 4, 3], [2, 5, 9, 3], [2, 9, 3, 0]]),
        torch.tensor([[1] * 4, [1] * 4, [1, 1, 1, 0]]),
    )
    hidden = torch.tensor(
        [[IGNORED, 7, IGNORED, IGNORED], [IGNORED, IGNORED, 6, IGNORED], [IGNORED, 8] + [IGNORED] * 2]
    )
    rows = [{"kind": "grounding"}, {"kind": "vqa", "answers": ["yes"] * 10}, {"kind": "caption"}]
    collate = JointCollator(
        lambda rows: {"input_ids": words, "attention_mask": mask, "mlm_labels": hidden}, ["no", "yes"]
    )
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[2, 9, 4, 3], [2, 5, 6, 3], [2, 9, 3, 0]]
    assert batch["mlm_labels"].tolist() == [
        [IGNORED, 7, IGNORED, IGNORED],
        [IGNORED] * 4,
        [IGNORED, 8] + [IGNORED] * 2,
    ]
    assert batch["answer_labels"].isnan().all(1).tolist() == [True, False, True]
    assert batch["answer_labels"][1].tolist() == [0.0, 1.0]
    assert batch["caption_labels"].tolist() == [[IGNORED] * 4, [IGNORED] * 4, [2, 8, 3, IGNORED]]


def test_captions_are_learnt_from_captions_alone():
    batch = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    labels = CaptionCollator(lambda rows: dict(batch))([{"kind": "caption"}, {"kind": "detection"}])["labels"]
    assert labels.tolist() == [[5, 6, -100], [-100] * 3]
