"""The two heads of question answering: the paper's, by hand, and the configuration that chooses."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2Config, GLIPv2ForVisualQuestionAnswering, answer_config

ANSWERS = answer_config(["cat", "dog", "a cat"])


def make_model(**fields) -> GLIPv2ForVisualQuestionAnswering:
    torch.manual_seed(0)
    return GLIPv2ForVisualQuestionAnswering(tiny_config(**{"initializer_range": 0.3, **ANSWERS, **fields})).eval()


@torch.no_grad()
def test_the_head_of_the_paper_classifies_the_mean_fused_token():
    model, inputs = make_model(), tiny_inputs()
    output, head = model(**inputs), model.answer_head
    for index, length in enumerate((9, 6)):
        pooled = output.fused_text[index, :length].mean(0)
        hidden = head.norm(torch.nn.functional.gelu(head.dense(pooled)))
        torch.testing.assert_close(output.answer_logits[index], head.classifier(hidden), atol=1e-5, rtol=1e-4)


def test_the_configuration_chooses_the_head():
    assert {name.split(".")[0] for name in make_model().answer_head.state_dict()} == {"dense", "norm", "classifier"}
    names = {name.split(".")[0] for name in make_model(answer_head_type="evidence").answer_head.state_dict()}
    assert {"evidence", "region_attention", "token_weight", "token_value"} < names
    assert GLIPv2Config().answer_head_type == "pooled"
    assert GLIPv2Config.from_size("nano").answer_head_type == "evidence"
    with pytest.raises((StrictDataclassError, ValueError), match="answer_head_type"):
        GLIPv2Config(answer_head_type="paper")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pooled", "evidence"])
def test_answers_start_from_their_words(kind):
    model = make_model(answer_head_type=kind)
    model.start_from_words(tiny_tokenizer())
    weight = model.answer_head.classifier.weight[:, :32]
    similarity = torch.nn.functional.cosine_similarity(weight[:1], weight[1:])
    # "a cat" is nearer to "cat" than "dog" is.
    assert similarity[1] > similarity[0]


@pytest.mark.parametrize("kind", ["pooled", "evidence"])
def test_padded_locations_do_not_answer(kind):
    """A mask says what is padding: however high its scores are, the answers are those of the image."""
    model, inputs = make_model(answer_head_type=kind, mask_padded_pixels=True), tiny_inputs()
    with torch.no_grad():
        output = model(**inputs)
        assert output.location_mask.shape == output.centerness.shape
        assert output.location_mask[0].all() and not output.location_mask[1].all()
        output.centerness[~output.location_mask] = 40.0
        torch.testing.assert_close(
            model(detector_output=output).answer_logits, model(**inputs).answer_logits, atol=1e-4, rtol=1e-4
        )
