"""Backbones of transformers and timm, and BERT-like encoders, in the places of Swin and BERT."""

import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2ForObjectDetection

TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}
MAPS = {"out_indices": [2, 3, 4]}
SMALL = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], **MAPS}
PARTS = {
    "resnet": {"backbone_config": {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **SMALL}},
    "convnext": {"backbone_config": {"model_type": "convnext", **SMALL}},
    "timm resnet": {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet10t", **MAPS}},
    "timm mobilenet": {
        "backbone_config": {"model_type": "timm_backbone", "backbone": "mobilenetv3_small_050", **MAPS}
    },
    "roberta": {"text_config": {"model_type": "roberta", **TEXT}},
    "electra": {"text_config": {"model_type": "electra", "embedding_size": 32, **TEXT}},
    "mpnet": {"text_config": {"model_type": "mpnet", **TEXT}},
}


@pytest.mark.parametrize("part", PARTS)
def test_detects_and_survives_saving(part, tmp_path):
    torch.manual_seed(0)
    model = GLIPv2ForObjectDetection(tiny_config(**PARTS[part])).eval()
    inputs = tiny_inputs()
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits.shape[::2] == (2, 9)
    assert output.logits.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, output.logits)


def test_an_encoder_unlike_bert_is_refused():
    text = {"model_type": "distilbert", "vocab_size": 128, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
    with pytest.raises(ValueError, match="'distilbert' has no intermediate_size"):
        GLIPv2ForObjectDetection(tiny_config(text_config={**text, "max_position_embeddings": 64}))
