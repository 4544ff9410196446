"""Checkpoints of GLIP in mmdetection: the same network under other names."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForZeroShotObjectDetection

from tests.conversion.original_checkpoints import (
    bert_tokenizer_files,
    mmdetection_state,
    original_state,
    released_model,
    saved,
    unfold_order,
)
from tests.tiny import tiny_inputs
from transformers_glipv2.conversion.convert_glip_checkpoint import (
    check_fit,
    config_from_state_dict,
    convert_checkpoint,
    convert_state_dict,
    read_checkpoint,
)
from transformers_glipv2.conversion.glip_original_names import translate
from transformers_glipv2.conversion.mmdetection_names import is_mmdetection, rename_mmdetection


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in bert_tokenizer_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("use_fusion", [True, False], ids=["fusion", "no fusion"])
@pytest.mark.parametrize("renamed_modules", [True, False], ids=["dyconvs", "DyConv"])
def test_every_tensor_comes_back(use_fusion, renamed_modules):
    model = released_model(use_fusion)
    theirs = mmdetection_state(original_state(model), renamed_modules)
    assert is_mmdetection(theirs)
    assert not is_mmdetection(original_state(model))
    state = convert_state_dict(rename_mmdetection(theirs))
    ours = {name: tensor for name, tensor in model.state_dict().items() if "swin.layernorm" not in name}
    assert set(ours) == {name for name in state if "swin.layernorm" not in name}
    for name, tensor in ours.items():
        assert torch.equal(state[name], tensor), name


def test_merging_of_patches_reads_what_unfold_gives():
    """mmdetection's merging, computed with `nn.Unfold`, gives what the original's concatenation gives."""
    torch.manual_seed(0)
    image, weight = torch.randn(1, 6, 4, 8), torch.randn(5, 24)
    concatenated = torch.cat([image[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1)
    original = weight @ concatenated.flatten(2)
    unfolded = torch.nn.Unfold(kernel_size=2, stride=2)(image)
    torch.testing.assert_close(unfold_order(weight) @ unfolded, original)
    theirs = {
        "bbox_head.head.log_scale": torch.zeros(1),
        "backbone.stages.0.downsample.reduction.weight": unfold_order(weight),
    }
    assert torch.equal(rename_mmdetection(theirs)["backbone.body.layers.0.downsample.reduction.weight"], weight)


class HistoryBuffer:
    """As the log of mmengine: a Python object with arrays."""

    def __init__(self):
        self._log_history = np.arange(3.0)


class ConfigDict(dict):
    """A dictionary of a class of its own, with attributes."""

    def __init__(self, **items):
        super().__init__(items)
        self.filename = "config.py"


def contents() -> dict[str, dict]:
    """What the library and its tools write, by the name of the file."""
    state = mmdetection_state(original_state(released_model()))
    meta = {"epoch": 7, "dataset_meta": {"CLASSES": ("cat", "dog")}, "cfg": "model = dict()"}
    last_step = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    return {
        "published.pth": {"meta": meta, "state_dict": state},
        "bare.pth": state,
        "parallel.pth": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        "epoch_7.pth": {
            "meta": meta | {"best": np.float64(0.5), "settings": ConfigDict(a=1)},
            "state_dict": state | {"data_preprocessor.mean": torch.ones(3, 1, 1)},
            "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        },
        # mmengine exchanges the two: the averages are the `state_dict`.
        "averaged.pth": {"state_dict": state, "ema_state_dict": last_step | {"steps": torch.tensor(9)}},
        "averages_only.pth": {
            "ema_state_dict": {f"module.{name}": tensor for name, tensor in state.items()} | {"steps": torch.tensor(9)}
        },
        "older.pth": {"state_dict": state | {"ema_backbone_norm1_weight": torch.ones(3)}},
    }


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_files_as_the_library_writes_them(name, is_zip, tmp_path):
    content = contents()[name]
    if not is_zip and name == "epoch_7.pth":
        pytest.skip("published files have no objects, and others are zip files")
    saved(content, tmp_path / name, _use_new_zipfile_serialization=is_zip)
    read = read_checkpoint(tmp_path / name)
    translation = translate(read)
    assert translation.unknown == []
    expected = released_model().state_dict()
    assert torch.equal(translation.state["detection_head.log_scale"], expected["detection_head.log_scale"])
    check_fit(translation.state, config_from_state_dict(read))


def test_a_converted_file_gives_the_same_outputs(tmp_path, tokenizer_folder):
    model = released_model()
    saved({"state_dict": mmdetection_state(original_state(model))}, tmp_path / "tuned.pth")
    conversion = convert_checkpoint(tmp_path / "tuned.pth", tmp_path / "glip", tokenizer=tokenizer_folder)
    assert conversion.kind == "mmdetection"
    converted = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "glip").eval()
    inputs = tiny_inputs()
    with torch.no_grad():
        expected, found = model(**inputs), converted(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-3, rtol=1e-5)


def test_the_reference_gives_the_same_tensors(reference_dir):
    """The golden checkpoint of the original code, by way of mmdetection's names."""
    original = load_file(reference_dir / "state.safetensors")
    direct = convert_state_dict(original)
    for renamed_modules in (True, False):
        by_way = convert_state_dict(rename_mmdetection(mmdetection_state(original, renamed_modules)))
        assert by_way.keys() == direct.keys()
        assert all(torch.equal(tensor, by_way[name]) for name, tensor in direct.items())


@pytest.mark.parametrize("name", ["glip_a_tiny", "glip_b_tiny", "glip_tiny", "glip_large"])
def test_released_shapes_fit(reference_dir, name):
    shapes = json.loads((reference_dir / "released_checkpoints" / f"keys_{name}.json").read_text())
    original = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    renamed = rename_mmdetection(mmdetection_state(original))
    config = config_from_state_dict(renamed)
    check_fit(convert_state_dict(renamed), config)
    # Its files hold no anchors; the default is what both train with.
    assert list(config.anchor_sizes) == [64, 128, 256, 512, 1024]
    assert list(config.anchor_strides) == [8, 16, 32, 64, 128]


def test_parts_that_glip_does_not_have_are_named():
    state = mmdetection_state(original_state(released_model()))
    state["bbox_head.head.other.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"GLIP in mmdetection, .*\n  rpn\.head\.other\.weight"):
        convert_state_dict(rename_mmdetection(state))
