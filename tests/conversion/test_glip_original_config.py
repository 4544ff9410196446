"""Configs of the original: what is taken over, what must agree, what is refused."""

import pytest
import yaml

from transformers_glipv2.conversion.glip_original_config import read_mapping, translate_config

# The options of a released config that matter, spelled as there.
CONFIG = """
MODEL:
  META_ARCHITECTURE: "GeneralizedVLRCNN"
  RPN_ARCHITECTURE: "VLDYHEAD"
  BACKBONE:
    CONV_BODY: "SWINT-FPN-RETINANET"
    OUT_CHANNELS: 256
  SWINT:
    EMBED_DIM: 192
    DEPTHS: (2, 2, 18, 2)
    NUM_HEADS: (6, 12, 24, 48)
    WINDOW_SIZE: 12
    DROP_PATH_RATE: 0.4
  LANGUAGE_BACKBONE:
    MODEL_TYPE: "bert-base-uncased"
    MASK_SPECIAL: False
  RPN:
    USE_FPN: True
    ANCHOR_SIZES: (64, 128, 256, 512, 1024)
    ANCHOR_STRIDE: (8, 16, 32, 64, 128)
    ASPECT_RATIOS: (1.0,)
    SCALES_PER_OCTAVE: 1
  DYHEAD:
    CHANNELS: 256
    NUM_CONVS: 8
    USE_GN: True
    USE_DYRELU: True
    USE_DFCONV: True
    USE_DYFUSE: True
    SCORE_AGG: "MEAN"
    FUSE_CONFIG:
      EARLY_FUSE_ON: True
      TYPE: "MHA-B"
      USE_DOT_PRODUCT_TOKEN_LOSS: True
      USE_FUSED_FEATURES_DOT_PRODUCT: True
      CLAMP_MIN_FOR_UNDERFLOW: True
INPUT:
  PIXEL_MEAN: [ 103.530, 116.280, 123.675 ]
  PIXEL_STD: [ 57.375, 57.120, 58.395 ]
  MIN_SIZE_TEST: 640
  MAX_SIZE_TEST: 1000
DATALOADER:
  SIZE_DIVISIBILITY: 32
"""


@pytest.fixture
def tree() -> dict:
    return yaml.safe_load(CONFIG)


def test_fields_and_sizes(tree):
    config = translate_config(tree)
    assert config.fields["max_text_length"] == 256
    assert config.fields["drop_block_prob"] == 0.3
    assert config.fields["mask_feature_source"] == "before_fusion"
    assert config.backbone_fields == {"drop_path_rate": 0.4}
    assert config.sizes["MODEL.SWINT.DEPTHS"] == ("backbone_config.depths", [2, 2, 18, 2])
    assert config.sizes["MODEL.RPN.ANCHOR_SIZES"] == ("anchor_sizes", [64, 128, 256, 512, 1024])
    assert config.notes == []


def test_images(tree):
    images = translate_config(tree).images
    assert (images.shortest_edge, images.longest_edge, images.pad_divisor) == (640, 1000, 32)
    # Written for blue, green, red; kept as red, green, blue.
    assert images.is_bgr
    assert images.mean == (123.675, 116.28, 103.53)
    assert images.std == (58.395, 57.12, 57.375)


def test_images_of_another_format(tree):
    tree["INPUT"].update(FORMAT="rgb", PIXEL_MEAN=[0.5, 0.4, 0.3], PIXEL_STD=[0.2, 0.2, 0.1])
    images = translate_config(tree).images
    assert not images.is_bgr
    assert images.mean == pytest.approx((127.5, 102.0, 76.5))
    assert images.std == pytest.approx((51.0, 51.0, 25.5))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("MODEL.RPN_ARCHITECTURE", "DYHEAD", "only the dynamic head with language"),
        ("MODEL.LANGUAGE_BACKBONE.MODEL_TYPE", "clip", "only BERT text encoders can be converted"),
        ("MODEL.DYHEAD.USE_DYRELU", False, "MODEL.DYHEAD.USE_DYRELU is False"),
        ("MODEL.DYHEAD.SCORE_AGG", "MAX", "mean over its tokens"),
        ("MODEL.DYHEAD.FUSE_CONFIG.TYPE", "FILM", "only that fusion is known"),
        ("MODEL.DYHEAD.FUSE_CONFIG.USE_FUSED_FEATURES_DOT_PRODUCT", False, "if and only if there is fusion"),
        ("MODEL.RPN.ASPECT_RATIOS", "(0.5, 1.0)", "one square anchor"),
        ("MODEL.SWINT.VERSION", "vl", "Swin blocks that read text"),
        ("INPUT.PIXEL_MEAN", [1.0, 2.0], "must be three numbers"),
    ],
)
def test_what_the_model_cannot_reproduce_is_refused(tree, path, value, message):
    branch = tree
    *parents, leaf = path.split(".")
    for name in parents:
        branch = branch.setdefault(name, {})
    branch[leaf] = value
    with pytest.raises(ValueError, match=message):
        translate_config(tree)


@pytest.mark.parametrize(("option", "value"), [("POOLER_SAMPLING_RATIO", 0), ("POOLER_SCALES", "(0.0625,)")])
def test_another_pooling_of_masks_is_refused_where_there_are_masks(tree, option, value):
    tree["MODEL"]["ROI_MASK_HEAD"] = {option: value}
    translate_config(tree)
    tree["MODEL"]["MASK_ON"] = True
    with pytest.raises(ValueError, match=f"ROI_MASK_HEAD.{option} is"):
        translate_config(tree)


def test_switches_without_effect_are_noted(tree):
    tree["MODEL"]["DYHEAD"]["FUSE_CONFIG"].update(CLAMP_MIN_FOR_UNDERFLOW=False, STABLE_SOFTMAX_2D=True)
    notes = "\n".join(translate_config(tree).notes)
    assert "CLAMP_MIN_FOR_UNDERFLOW" in notes
    assert "STABLE_SOFTMAX_2D" in notes


def test_a_config_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"not the config of a model.*config\.yml of the training run"):
        translate_config({"DATASETS": {"TRAIN": "('coco',)"}})


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("config.txt", "MODEL: {}", ValueError, "must be a .yaml, .yml or .json file"),
        ("config.yaml", "MODEL: [", ValueError, "cannot be read as plain YAML"),
        ("config.yaml", "!!python/object/apply:os.system ['true']", ValueError, "cannot be read as plain YAML"),
        ("config.json", "{", ValueError, "cannot be read as plain JSON"),
        ("config.yaml", "- MODEL", ValueError, "holds list where a mapping was expected"),
        (None, "", FileNotFoundError, "There is no original config at"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path, name, text, error, message):
    path = tmp_path / (name or "none.yaml")
    if name:
        path.write_text(text)
    with pytest.raises(error, match=message):
        read_mapping(path, "original config")
