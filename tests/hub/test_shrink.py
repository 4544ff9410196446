"""hub_upload/shrink.py: half the bytes, the same model."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.scripts import load_script
from tests.tiny_detector import tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2ForObjectDetection

shrink = load_script("hub_upload/shrink.py")


@pytest.fixture
def trained(tmp_path):
    tiny_detector().save_pretrained(tmp_path / "trained")
    tiny_processor().save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def test_half_the_bytes_load_as_float32(trained, tmp_path):
    shrink.main([f"--model={trained}", f"--output={tmp_path / 'shipped'}"])
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (trained, tmp_path / "shipped")]
    assert sizes[1] < 0.6 * sizes[0]
    whole, half = (GLIPv2ForObjectDetection.from_pretrained(path) for path in (trained, tmp_path / "shipped"))
    assert half.dtype == torch.float32
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    assert not list((tmp_path / "shipped").glob("*.partial"))
    assert (tmp_path / "shipped" / "processor_config.json").is_file()


def test_values_beyond_float16_are_refused(trained, tmp_path):
    weights = load_file(trained / "model.safetensors")
    weights["detection_head.bias"] = torch.tensor([1e6])
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"detection_head\.bias"):
        shrink.main([f"--model={trained}", f"--output={tmp_path / 'shipped'}"])


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        shrink.main([f"--model={tmp_path}", f"--output={tmp_path / 'shipped'}"])
