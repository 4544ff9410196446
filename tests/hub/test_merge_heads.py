"""hub_upload/merge_heads.py: heads trained apart over the same weights, in one folder."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.scripts import load_script
from tests.tiny_detector import tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2ForMaskedLM, GLIPv2ForObjectDetection

merge_heads = load_script("hub_upload/merge_heads.py")


@pytest.fixture
def folders(tmp_path):
    """A detector with a masked-word head, and one with a mask head, over the same weights."""
    detector = tiny_detector()
    for name, model_class in (("words", GLIPv2ForMaskedLM), ("masks", GLIPv2ForInstanceSegmentation)):
        torch.manual_seed(0)
        model = model_class(detector.config)
        model.load_state_dict(detector.state_dict(), strict=False)
        weights = {**detector.state_dict(), **model.state_dict()}
        detector.save_pretrained(tmp_path / name)
        kept = {key: value for key, value in weights.items() if key != "mlm_head.decoder.weight"}
        save_file(kept, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        tiny_processor().save_pretrained(tmp_path / name)
    return tmp_path


def arguments(folder, output="both"):
    return [f"--model={folder / 'words'}", f"--heads_of={folder / 'masks'}", f"--output={folder / output}"]


def test_all_heads_load_from_the_merged_folder(folders, capsys):
    merge_heads.main(arguments(folders))
    assert "mask_head of" in capsys.readouterr().out
    words, masks, both = (load_file(folders / name / "model.safetensors") for name in ("words", "masks", "both"))
    assert both.keys() == words.keys() | masks.keys() and len(both) > len(words)
    for name, value in both.items():
        assert torch.equal(value, words.get(name, masks.get(name)))
    for model_class in (GLIPv2ForObjectDetection, GLIPv2ForInstanceSegmentation, GLIPv2ForMaskedLM):
        _, info = model_class.from_pretrained(folders / "both", output_loading_info=True)
        assert not info["missing_keys"]
    assert (folders / "both" / "processor_config.json").is_file()


def test_of_a_head_in_both_that_of_the_model_is_kept(folders):
    for name, value in (("words", 1.0), ("masks", 2.0)):
        weights = load_file(folders / name / "model.safetensors")
        weights["answer_head.classifier.bias"] = torch.full((3,), value)
        save_file(weights, folders / name / "model.safetensors", metadata={"format": "pt"})
    merge_heads.main(arguments(folders))
    both = load_file(folders / "both" / "model.safetensors")
    assert both["answer_head.classifier.bias"].tolist() == [1.0] * 3
    assert any(name.startswith("mask_head.") for name in both)


def test_refuses_other_weights_and_what_would_be_overwritten(folders):
    masks = load_file(folders / "masks" / "model.safetensors")
    masks["detection_head.bias"] += 1
    save_file(masks, folders / "masks" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights differ, such as detection_head\.bias"):
        merge_heads.main(arguments(folders))
    assert not (folders / "both").exists()
    merge_heads.main([*arguments(folders, "start"), "--as_start"])
    words, start = (load_file(folders / name / "model.safetensors") for name in ("words", "start"))
    assert torch.equal(start["detection_head.bias"], words["detection_head.bias"])
    assert any(name.startswith("mask_head.") for name in start)
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        merge_heads.main(arguments(folders, "words"))
    with pytest.raises(ValueError, match="holds no head that"):
        merge_heads.main([f"--model={folders / 'words'}", f"--heads_of={folders / 'words'}", f"--output={folders}/c"])
