"""The configuration: every field is read, takes its documented types, and mistakes are named."""

import ast
import dataclasses
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, SwinConfig
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

import transformers_glipv2
from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection
from transformers_glipv2.configuration_glipv2 import SIZES

OWN_FIELDS = [name for name in GLIPv2Config.__annotations__ if name in GLIPv2Config.__dataclass_fields__]
# Another value of every documented type, which differs from the default.
VALUES = {
    "backbone_config": [{"model_type": "swin", "embed_dim": 48}, SwinConfig(embed_dim=48, out_indices=[2, 3, 4])],
    "text_config": [{"model_type": "bert", "hidden_size": 96, "num_attention_heads": 4}, BertConfig(hidden_size=96)],
    "d_model": [128],
    "num_fusion_layers": [2],
    "fusion_embed_dim": [256],
    "fusion_num_heads": [4],
    "fusion_dropout": [0.0, 0],
    "use_fusion": [False],
    "anchor_sizes": [(32, 64, 128, 256, 512), [32, 64, 128, 256, 512]],
    "anchor_strides": [(4, 8, 16, 32, 64), [4, 8, 16, 32, 64]],
    "max_text_length": [77],
    "num_text_layers": [5],
    "mask_padded_pixels": [True],
    "dyconv_offset_mode": ["resized"],
    "group_norm_groups": [32],
    "layer_norm_eps": [1e-6],
    "drop_block_prob": [0.3, 1],
    "drop_block_size": [5],
    "prior_prob": [0.5],
    "atss_topk": [5],
    "focal_alpha": [0.5],
    "focal_gamma": [1.5, 1],
    "box_loss_weight": [1.5, 1],
    "centerness_loss_weight": [0.5, 2],
    "intra_loss_weight": [0.5, 2],
    "inter_loss_weight": [0.5, 0],
    "mlm_loss_weight": [0.5, 0],
    "answer_loss_weight": [0.5, 0],
    "caption_loss_weight": [0.5, 0],
    "contrastive_dim": [32],
    "max_contrastive_regions": [50],
    "contrastive_temperature": [0.1],
    "mask_extractor": ["hourglass"],
    "mask_num_convs": [2],
    "mask_dim": [64],
    "mask_pool_size": [28],
    "mask_feature_source": ["after_fusion"],
    "caption_region_attention": [True],
    "answer_head_type": ["evidence"],
    "score_threshold_before_nms": [0.1, 0],
    "labels": [["cat", "dog"]],
    "tuned_prompt": ["cat. dog"],
    "initializer_range": [0.1],
    "tie_word_embeddings": [False],
}


def test_every_field_has_a_value_here():
    assert sorted(VALUES) == sorted(OWN_FIELDS)


def test_every_field_is_read():
    """By the package's own code; transformers reads the two left out here."""
    read = set()
    for path in Path(transformers_glipv2.__file__).parent.rglob("*.py"):
        if path.name != "configuration_glipv2.py":
            nodes = ast.walk(ast.parse(path.read_text()))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    assert set(OWN_FIELDS) - read <= {"initializer_range", "tie_word_embeddings"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_fields_take_their_types_and_survive_saving(name, value, tmp_path):
    config = GLIPv2Config(**{name: value})
    assert getattr(config, name) != getattr(GLIPv2Config(), name)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is GLIPv2Config
    kept = [
        thing.to_dict() if hasattr(thing, "to_dict") else thing
        for thing in (config.__dict__[name], getattr(loaded, name))
    ]
    if isinstance(value, tuple | list):
        kept = [list(thing) for thing in kept]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", [name for name, values in VALUES.items() if not isinstance(values[0], str)])
def test_fields_refuse_text(name):
    with pytest.raises((StrictDataclassError, TypeError, ValueError), match=name):
        GLIPv2Config(**{name: "many"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 256.0}, "d_model"),
        ({"dyconv_offset_mode": "relesed"}, "dyconv_offset_mode"),
        ({"mask_extractor": "hourglas"}, "mask_extractor"),
        ({"anchor_sizes": (64, 128)}, "`anchor_sizes` has 2 entries and `anchor_strides` has 5"),
        ({"fusion_num_heads": 7}, "`fusion_embed_dim`=2048 is not a multiple of `fusion_num_heads`=7"),
        ({"d_model": 200}, "`d_model`=200 is not a multiple of `group_norm_groups`=16"),
        ({"prior_prob": 1.0}, r"`prior_prob` is a probability between 0 and 1, not 1\.0"),
        ({"score_threshold_before_nms": 1.5}, "`score_threshold_before_nms` is a score between 0 and 1"),
        ({"max_text_length": 513}, "`max_text_length`=513 is more than the text encoder's 512 positions"),
    ],
)
def test_values_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        GLIPv2Config(**fields)


@pytest.mark.parametrize(
    ("typo", "field"),
    [
        ("num_fusion_layer", "num_fusion_layers"),
        ("anchor_size", "anchor_sizes"),
        ("fusion_embed_dims", "fusion_embed_dim"),
    ],
)
def test_typos_name_the_nearest_field(typo, field):
    with CaptureLogger(logging.get_logger("transformers_glipv2.configuration_glipv2")) as captured:
        GLIPv2Config(**{typo: 3})
    assert f"no field `{typo}`; did you mean `{field}`?" in captured.out


def test_no_warning_for_what_transformers_knows():
    with CaptureLogger(logging.get_logger("transformers_glipv2.configuration_glipv2")) as captured:
        GLIPv2Config(hidden_size=128, num_hidden_layers=2, id2label={0: "dog"}, torch_dtype="float32")
    assert captured.out == ""


def test_standard_names_are_other_names_of_ours():
    config = GLIPv2Config(d_model=128, num_fusion_layers=3)
    assert (config.hidden_size, config.num_hidden_layers) == (128, 3)
    config.hidden_size = 64
    assert config.d_model == 64


def test_the_default_is_tiny():
    plain, tiny = GLIPv2Config(), GLIPv2Config.from_size("tiny")
    differing = {
        name for name in OWN_FIELDS if name != "drop_block_prob" and getattr(plain, name) != getattr(tiny, name)
    }
    assert {name for name in differing if getattr(plain, name).to_dict() != getattr(tiny, name).to_dict()} == set()
    assert (plain.backbone_config.model_type, plain.text_config.model_type) == ("swin", "bert")


@pytest.mark.parametrize("size", SIZES)
def test_sizes_can_be_changed_without_changing_the_size(size):
    before = GLIPv2Config.from_size(size).to_dict()
    config = GLIPv2Config.from_size(size, fusion_dropout=0.25, num_fusion_layers=1)
    assert (config.fusion_dropout, config.num_fusion_layers) == (0.25, 1)
    config.backbone_config.out_indices = [0]
    config.text_config.hidden_size = 1
    assert GLIPv2Config.from_size(size).to_dict() == before


def test_unknown_sizes_are_refused():
    with pytest.raises(ValueError, match="Unknown size 'gigantic'; choose one of"):
        GLIPv2Config.from_size("gigantic")


def test_fields_are_documented():
    documentation = GLIPv2Config.__doc__
    assert [name for name in OWN_FIELDS if name not in documentation and name != "tie_word_embeddings"] == []


@torch.no_grad()
def test_initializer_range_is_used():
    torch.manual_seed(0)
    narrow, wide = (
        GLIPv2ForObjectDetection(tiny_config(initializer_range=value))
        .model.layers[0]
        .text_layer.intermediate.weight.std()
        for value in (0.01, 0.1)
    )
    assert wide / narrow == pytest.approx(10, rel=0.2)


@torch.no_grad()
def test_epsilon_and_offset_mode_change_the_results():
    outputs = []
    for fields in ({}, {"layer_norm_eps": 0.1}, {"dyconv_offset_mode": "resized"}):
        torch.manual_seed(0)
        outputs.append(GLIPv2ForObjectDetection(tiny_config(**fields)).eval()(**tiny_inputs()).logits)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-6)


def test_drop_block_and_dropout_act_in_training_only():
    for fields in ({"drop_block_prob": 0.5}, {"fusion_dropout": 0.5}):
        torch.manual_seed(0)
        model, inputs = GLIPv2ForObjectDetection(tiny_config(**fields)), tiny_inputs()
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs).logits, model(**inputs).logits)
            assert not torch.equal(model.train()(**inputs).logits, model(**inputs).logits)


def test_configs_are_dataclasses_with_defaults():
    assert all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in dataclasses.fields(GLIPv2Config)
    )
