"""examples/make_nano.py from random weights of the right shapes."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel

from tests.scripts import load_script
from transformers_glipv2 import GLIPv2ForPreTraining, GLIPv2Processor
from transformers_glipv2.configuration_glipv2 import SIZES

make_nano = load_script("examples/make_nano.py")
WORDS = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "cat",
    "##s",
    "muller",
    "本",
    "##ия",
    "€",
    ".",
    "fox",
    "owl",
]
# Of the last two words, which are rare, a file has one.
KEPT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s", "muller", "€", ".", "owl"]


def test_every_weight_finds_its_place(tmp_path, capsys):
    torch.manual_seed(0)
    # Other names in the same order, as the package has them.
    imagenet = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"other.{index}": tensor for index, tensor in enumerate(imagenet.values())}, tmp_path / "lite0.pth")
    sizes = {name: value for name, value in SIZES["nano"]["text_config"].items() if name != "model_type"}
    minilm = BertModel(BertConfig(**sizes, vocab_size=len(WORDS))).state_dict()
    (tmp_path / "text").mkdir()
    save_file(minilm, tmp_path / "text" / "model.safetensors")
    (tmp_path / "text" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")

    (tmp_path / "index.jsonl").write_text('{"noun": "Owl", "file": "owl_1.png"}\n')

    output = tmp_path / "nano"
    arguments = ["--output", output, "--imagenet_weights", tmp_path / "lite0.pth", "--text_encoder", tmp_path / "text"]
    arguments += ["--vocabulary", len(WORDS) - 2, "--words_of", tmp_path / "index.jsonl"]
    make_nano.main([str(value) for value in [*arguments, "--image_size", "320"]])
    assert "11 words" in capsys.readouterr().out

    processor = GLIPv2Processor.from_pretrained(output)
    assert processor.tokenizer.convert_ids_to_tokens(range(11)) == KEPT
    assert processor.tokenizer.tokenize("Cats. MÜLLER") == ["cat", "##s", ".", "muller"]
    assert dict(processor.image_processor.size) == {"shortest_edge": 320, "longest_edge": 640}
    assert list(processor.image_processor.image_mean) == [0.5, 0.5, 0.5]
    assert not processor.image_processor.do_bgr

    model = GLIPv2ForPreTraining.from_pretrained(output).eval()
    encoder = model.model.text_encoder.state_dict()
    for name, tensor in encoder.items():
        kept = [WORDS.index(word) for word in KEPT] if name == "embeddings.word_embeddings.weight" else slice(None)
        assert torch.equal(tensor, minilm[name][kept]), name
    words = torch.randn(1, 5, 384)
    with torch.no_grad():
        # Words are only normalised, once for each of the layer's two sums.
        passed = model.model.layers[1].text_layer(words)
    torch.testing.assert_close(passed, nn.functional.layer_norm(words, (384,)), rtol=1e-4, atol=1e-4)
    ends = (model.config.text_config.bos_token_id, model.config.text_config.eos_token_id)
    assert processor.tokenizer.convert_ids_to_tokens(ends) == ["[CLS]", "[SEP]"]
    # The same images give the same maps as timm's own network.
    network = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4))
    network.load_state_dict(imagenet, strict=False)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval()(pixels)
        maps = model.model.backbone(pixels).feature_maps
    assert [level.shape[1] for level in maps] == [40, 112, 320]
    for level, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_refuses_weights_of_another_network():
    with pytest.raises(ValueError, match=r"have \d+ tensors, .* 296; these are not weights of EfficientNet-Lite0"):
        make_nano.load_backbone(nn.Identity(), timm.create_model("tf_efficientnet_lite1").state_dict())
    wider = {name: torch.zeros(1) for name in timm.create_model("tf_efficientnet_lite0").state_dict()}
    with pytest.raises(ValueError, match=r"has shape \(1,\), `conv_stem.weight` of timm's .* \(32, 3, 3, 3\)"):
        make_nano.load_backbone(nn.Identity(), wider)
    with pytest.raises(FileNotFoundError, match=r"pip install no-such-package==0\.1\.0"):
        make_nano.packaged_file("no-such-package", ".pth")
