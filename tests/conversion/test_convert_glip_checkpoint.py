"""Checkpoints of the original: names, sizes, files, and what is refused."""

import ast
import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.conversion import convert_glip_checkpoint as converter
from transformers_glipv2.conversion.convert_glip_checkpoint import (
    check_fit,
    config_from_state_dict,
    convert_state_dict,
    read_checkpoint,
)
from transformers_glipv2.conversion.glip_original_names import translate
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

RELEASED = {
    # name: fusion blocks, parameters in millions, Swin's depths, window, heads of its first stage
    "glip_a_tiny": (6, 151.43, [2, 2, 6, 2], 7, 3),
    "glip_b_tiny": (6, 231.78, [2, 2, 6, 2], 7, 3),
    "glip_tiny": (6, 231.78, [2, 2, 6, 2], 7, 3),
    "glip_large": (8, 430.42, [2, 2, 18, 2], 12, 6),
}


@pytest.fixture(scope="module")
def spec(reference_dir) -> dict:
    return json.loads((reference_dir / "forward.json").read_text())


@pytest.fixture(scope="module")
def text_config(spec) -> dict:
    return spec["spec"]["bert"]


@pytest.fixture(scope="module")
def original_config(spec) -> dict:
    model = spec["config"]
    return {
        "MODEL": ast.literal_eval(model) if isinstance(model, str) else model,
        "INPUT": spec["config_input"],
        "DATALOADER": {"SIZE_DIVISIBILITY": spec["size_divisibility"]},
    }


@pytest.fixture(scope="module")
def original(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "state.safetensors")


# Names and sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_convert_whole(reference_dir, name):
    shapes = json.loads((reference_dir / "released_checkpoints" / f"keys_{name}.json").read_text())
    original = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    blocks, millions, depths, window, heads = RELEASED[name]

    config = config_from_state_dict(original)
    assert (config.num_fusion_layers, config.use_fusion) == (blocks, name != "glip_a_tiny")
    assert list(config.backbone_config.depths) == depths
    assert (config.backbone_config.window_size, config.backbone_config.num_heads[0]) == (window, heads)
    assert (config.text_config.hidden_size, config.text_config.num_attention_heads) == (768, 12)

    translation = translate(original)
    assert not translation.unknown
    check_fit(translation.state, config)
    converted = sum(tensor.numel() for tensor in translation.state.values())
    left_out = sum(shapes_numel(shapes, key) for key in translation.extras if "cls_logits" in key)
    added = sum(tensor.numel() for key, tensor in translation.state.items() if "swin.layernorm" in key)
    assert (converted + left_out - added) / 1e6 == pytest.approx(millions, abs=0.01)


def shapes_numel(shapes: dict[str, list[int]], key: str) -> int:
    return torch.Size(shapes.get(key, shapes.get(f"module.{key}"))).numel()


@pytest.mark.parametrize("file", ["state", "glip_a_state", "mask_state"])
def test_small_checkpoints_load_strictly(reference_dir, text_config, file):
    original = load_file(reference_dir / f"{file}.safetensors")
    config = config_from_state_dict(original, text_config=text_config)
    state = convert_state_dict(original)
    check_fit(state, config)
    own = {name: tensor for name, tensor in state.items() if name.startswith(("model.", "detection_head."))}
    GLIPv2ForObjectDetection(config).load_state_dict(own, strict=True)
    others = {name.split(".")[0] for name in set(state) - set(own)}
    assert (
        others == {"state": {"mlm_head", "contrastive_head"}, "glip_a_state": set(), "mask_state": {"mask_head"}}[file]
    )


def test_hourglass_mask_head(reference_dir, original):
    mask_head = load_file(reference_dir / "mask_state_hourglass_fused_roi_heads_only.safetensors")
    state = convert_state_dict(mask_head)
    assert len(state) == len(mask_head)
    assert all(name.startswith("mask_head.") for name in state)
    config = config_from_state_dict(
        {**original, **mask_head}, text_config={"num_attention_heads": 4, "max_position_embeddings": 512}
    )
    assert (config.mask_extractor, config.mask_num_convs) == ("hourglass", 2)


def test_masks_are_whole_or_refused(reference_dir, text_config):
    original = load_file(reference_dir / "mask_state.safetensors")
    config = config_from_state_dict(original, text_config=text_config)
    state = convert_state_dict(original)
    assert isinstance(check_fit(state, config), GLIPv2ForInstanceSegmentation)
    del state["mask_head.upsample.bias"]
    with pytest.raises(ValueError, match=r"mask_head\.upsample\.bias .* is missing"):
        check_fit(state, config)
    # Normalised convolutions, which the released extractor can also have.
    original["module.roi_heads.mask.feature_extractor.mask_fcn2.1.weight"] = torch.ones(64)
    with pytest.raises(ValueError, match=r"mask_head\.extractor\.1\.1\.weight \(64,\) is unknown to the model"):
        check_fit(convert_state_dict(original), config)


def test_logits_equal_the_originals(reference_dir, original, original_config, text_config, spec):
    golden = load_file(reference_dir / "forward.safetensors")
    model = GLIPv2ForObjectDetection(config_from_state_dict(original, original_config, text_config)).eval()
    model.load_state_dict(convert_state_dict(original), strict=False)
    pixel_mask = torch.zeros(len(spec["image_sizes_hw"]), *spec["padded_hw"], dtype=torch.long)
    for mask, (height, width) in zip(pixel_mask, spec["image_sizes_hw"], strict=True):
        mask[:height, :width] = 1
    with torch.no_grad():
        output = model(
            pixel_values=golden["input.pixel_values"],
            pixel_mask=pixel_mask,
            input_ids=golden["input.input_ids"],
            attention_mask=golden["input.attention_mask"],
        )
    expected = torch.cat([golden[f"head.dot_product_logits.P{level}"] for level in range(3, 8)], dim=1)
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=0)


def test_prefix_makes_no_difference(original):
    bare = {name.removeprefix("module."): tensor for name, tensor in original.items()}
    assert len(bare) == len(original)
    with_prefix, without = convert_state_dict(original), convert_state_dict(bare)
    assert with_prefix.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_prefix.items())


def test_language_head_keeps_its_own_decoder(original, text_config):
    config = config_from_state_dict(original, text_config=text_config)
    assert config.tie_word_embeddings is False
    theirs = original["module.rpn.head.mlm_head.decoder.weight"]
    assert torch.equal(convert_state_dict(original)["mlm_head.decoder.weight"], theirs)


def test_anchors_come_from_the_checkpoint(original, text_config):
    stretched = dict(original)
    # A first anchor of 32 pixels at stride 8.
    stretched["module.rpn.anchor_generator.cell_anchors.0"] = torch.tensor([[-12.0, -12.0, 19.0, 19.0]])
    config = config_from_state_dict(stretched, text_config=text_config)
    assert list(config.anchor_sizes) == [32, 128, 256, 512, 1024]
    assert list(config.anchor_strides) == [8, 16, 32, 64, 128]


def test_known_extras_are_named(original, text_config):
    original = {
        **original,
        "module.language_backbone.body.model.embeddings.position_ids": torch.arange(512)[None],
        "module.language_backbone.body.model.pooler.dense.weight": torch.zeros(64, 64),
        "module.language_backbone.body.model.pooler.dense.bias": torch.zeros(64),
    }
    translation = translate(original)
    assert not translation.unknown
    for name in ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"):
        assert f"language_backbone.body.model.{name}" in translation.extras
    assert "rpn.head.cls_logits.weight" in translation.extras


def test_coswin_with_layer_scale(reference_dir, original, text_config):
    others = {name: tensor for name, tensor in original.items() if not name.startswith("module.backbone.body.")}
    coswin = load_file(reference_dir / "coswin_state.safetensors")
    gammas = {
        f"backbone.body.layers.{stage}.blocks.{block}.gamma": torch.rand(24 * 2**stage)
        for stage in range(4)
        for block in range(2)
    }
    for weights, init_value in (({**others, **coswin}, 0.0), ({**others, **coswin, **gammas}, 1e-4)):
        config = config_from_state_dict(weights, text_config=text_config)
        assert config.backbone_config.model_type == "glipv2_coswin"
        assert config.backbone_config.layer_scale_init_value == init_value
        check_fit(convert_state_dict(weights), config)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_unknown_tensors_are_refused(original):
    with pytest.raises(ValueError, match=r"1 of the checkpoint's 326 tensors.*\n.*rpn\.head\.tunable_linear\.weight"):
        convert_state_dict({**original, "module.rpn.head.tunable_linear.weight": torch.zeros(1000, 64)})


def test_missing_tensors_are_refused(original, text_config):
    incomplete = dict(original)
    del incomplete["module.rpn.head.dyhead_tower.2.DyConv.1.conv.bias"]
    config = config_from_state_dict(incomplete, text_config=text_config)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.dyconv\.branches\.same\.conv\.bias \(64,\) is missing"):
        check_fit(convert_state_dict(incomplete), config)


def test_foreign_weights_are_refused():
    weights = GLIPv2ForObjectDetection(tiny_config()).state_dict()
    with pytest.raises(ValueError, match=r"no tensor backbone\.body\.patch_embed\.proj\.weight"):
        config_from_state_dict(weights)
    with pytest.raises(ValueError, match="tensors are unknown"):
        convert_state_dict(weights)


def test_a_tower_in_another_order_is_refused(original):
    name = "module.rpn.head.dyhead_tower.{}.offset.bias"
    with pytest.raises(ValueError, match=r"rpn\.head\.dyhead_tower\.1\.offset\.bias"):
        convert_state_dict({**original, name.format(1): original[name.format(2)]})


def test_tensors_of_another_rank_are_refused(original):
    name = "module.language_backbone.body.model.embeddings.word_embeddings.weight"
    with pytest.raises(ValueError, match=r"word_embeddings\.weight has shape \(16512,\) where 2 axes were expected"):
        config_from_state_dict({**original, name: original[name].flatten()})


def test_original_config_that_does_not_fit_is_refused(original, original_config, text_config):
    config = json.loads(json.dumps(original_config))
    config["MODEL"]["DYHEAD"]["NUM_CONVS"] = 8
    config["MODEL"]["SWINT"]["EMBED_DIM"] = 192
    with pytest.raises(ValueError, match="NUM_CONVS is 8, and the weights show 2") as caught:
        config_from_state_dict(original, config, text_config)
    assert "EMBED_DIM is 192, and the weights show 24" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 30522}, "vocab_size is 30522, and the weights show 258"),
        ({"model_type": "roberta"}, "model_type is 'roberta', and the weights show 'bert'"),
        ({"num_attention_heads": 5}, "not a multiple of its 5 attention heads"),
    ],
)
def test_text_config_that_does_not_fit_is_refused(original, fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_state_dict(original, text_config=fields)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_way_to_store_a_checkpoint_reads_the_same(tmp_path, suffix):
    weights = {"backbone.weight": torch.arange(4.0)}
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    contents = [weights, prefixed]
    if suffix == ".pth":
        contents += [{"model": prefixed, "iteration": 7, "optimizer": {"state": {}}}, {"state_dict": weights}]
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}{suffix}"
        (torch.save if suffix == ".pth" else save_file)(content, path)
        read = read_checkpoint(path)
        assert read.keys() == weights.keys()
        assert torch.equal(read["backbone.weight"], weights["backbone.weight"])


class Payload:
    """Pickles as a call, as a hostile file would."""

    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.pth", b"<html>404 Not Found</html>", "damaged"),
        ("empty.pth", b"", "damaged"),
        ("text.safetensors", b"<html>404 Not Found</html>", "damaged"),
        ("weights.zip", b"PK", "must be a .pth, .pt, .bin or .safetensors file"),
        ("objects.pth", {"model": Payload()}, "could run any code"),
        ("list.pth", [torch.zeros(1)], "holds list where tensors by name"),
        ("numbers.pth", {"iteration": 7}, "holds iteration where tensors by name"),
        ("nothing.pth", {"model": {}}, "holds dict where tensors by name"),
        ("nan.pth", {"a": torch.tensor([1.0, float("nan")])}, "not finite:\n  a"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, name, content, message, capsys):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_cut_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(10000)}, tmp_path / "whole.pth")
    save_file({"a": torch.zeros(10000)}, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        cut = tmp_path / name.replace("whole", "cut")
        cut.write_bytes((tmp_path / name).read_bytes()[:20000])
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(cut)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: There is no checkpoint at .*none\.pth"):
        converter.main(["--checkpoint", str(tmp_path / "none.pth"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# Tokenizers ----------------------------------------------------------------------------------------------------------


def test_without_a_tokenizer_or_the_hub_the_error_says_what_to_pass(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr(converter.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(FileNotFoundError, match="pass --tokenizer with a folder"):
        converter.load_tokenizer(None, 30522)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
        converter.load_tokenizer(tmp_path / "none", 10)
    with pytest.raises(ValueError, match=r"neither tokenizer_config\.json nor vocab\.txt"):
        converter.load_tokenizer(tmp_path, 10)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "person", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    assert converter.load_tokenizer(tmp_path, 7)("dog")["input_ids"] == [2, 6, 3]
    with pytest.raises(ValueError, match="has 7 tokens and the checkpoint's text encoder 6"):
        converter.load_tokenizer(tmp_path, 6)


# Command line --------------------------------------------------------------------------------------------------------


def test_command_line_round_trip(reference_dir, original, original_config, text_config, spec, tmp_path, capsys):
    torch.save({"model": original, "iteration": 7}, tmp_path / "glip.pth")
    (tmp_path / "glip.yaml").write_text(yaml.safe_dump(original_config))
    (tmp_path / "bert.json").write_text(
        json.dumps({"architectures": ["BertModel"], "model_type": "bert", **text_config})
    )
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text((reference_dir / "vocab.txt").read_text())
    converter.main(
        [
            f"--checkpoint={tmp_path / 'glip.pth'}",
            f"--original-config={tmp_path / 'glip.yaml'}",
            f"--text-config={tmp_path / 'bert.json'}",
            f"--tokenizer={tmp_path / 'tokenizer'}",
            f"--output={tmp_path / 'converted'}",
        ]
    )
    printed = capsys.readouterr().out
    for line in ("model.backbone", "mlm_head", "contrastive_head", "left out rpn.head.cls_logits.weight: frozen"):
        assert line in printed

    golden = load_file(reference_dir / "forward.safetensors")
    # The original resizes by PIL; torchvision's bytes differ by a grey level here and there.
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", backend="pil")
    images = [Image.fromarray(golden[f"input.raw_rgb.{number}"].numpy().astype("uint8")) for number in range(2)]
    inputs = processor(images=images, text=[spec["caption"]] * 2, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], golden["input.pixel_values"], atol=1e-4, rtol=0)
    tokens = inputs["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"], golden["input.input_ids"][:, :tokens].to(torch.long))

    model = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "converted").eval()
    with torch.no_grad():
        output = model(**inputs)
    expected = torch.cat([golden[f"head.dot_product_logits.P{level}"] for level in range(3, 8)], dim=1)
    torch.testing.assert_close(output.logits, expected[:, :, :tokens], atol=1e-4, rtol=0)
    saved = load_file(tmp_path / "converted" / "model.safetensors")
    assert torch.equal(saved["mlm_head.decoder.weight"], original["module.rpn.head.mlm_head.decoder.weight"])


def test_masks_round_trip(reference_dir, text_config, tmp_path):
    """One folder, loaded whole by the segmentation class and in part by the detection class."""
    (tmp_path / "bert.json").write_text(json.dumps(text_config))
    (tmp_path / "vocab.txt").write_text((reference_dir / "vocab.txt").read_text())
    folder = tmp_path / "converted"
    converter.convert_checkpoint(
        reference_dir / "mask_state.safetensors", folder, text_config=tmp_path / "bert.json", tokenizer=tmp_path
    )
    for model_class in (GLIPv2ForInstanceSegmentation, GLIPv2ForObjectDetection):
        _, report = model_class.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
    segmenter = GLIPv2ForInstanceSegmentation.from_pretrained(folder).eval()
    golden = load_file(reference_dir / "mask_fcn_fpn.safetensors")
    pixel_mask = torch.zeros(1, 256, 352, dtype=torch.long)
    pixel_mask[:, :, :341] = 1
    facts = json.loads((reference_dir / "mask.json").read_text())["fcn_fpn"]
    processor = AutoProcessor.from_pretrained(folder)
    labels = facts["caption"].split(". ")
    with torch.no_grad():
        outputs = segmenter(
            pixel_values=golden["input.pixel_values"], pixel_mask=pixel_mask, **processor(text=[labels])
        )
    (result,) = processor.post_process_instance_segmentation(outputs, labels, threshold=0.0, max_detections=20)
    # Ties at the cut all stay; equal scores may change places.
    for box, label, mask in zip(golden["det.boxes"], golden["det.labels"], golden["det.mask_pasted"], strict=True):
        near = ((result["boxes"] - box).abs().amax(1) < 0.01) & (result["labels"] == label - 1)
        assert near.sum() == 1
        differing = (result["masks"][near][0] != mask[0].bool()).sum()
        assert differing <= 2  # pixels, of a box that differs in its last digits


def test_command_line_refuses_before_it_writes(original, text_config, tmp_path):
    save_file({**original, "module.rpn.head.other": torch.zeros(1)}, tmp_path / "glip.safetensors")
    (tmp_path / "bert.json").write_text(json.dumps(text_config))
    with pytest.raises(SystemExit, match=r"error: 1 of the checkpoint's 326 tensors are unknown"):
        converter.main(
            [
                f"--checkpoint={tmp_path / 'glip.safetensors'}",
                f"--text-config={tmp_path / 'bert.json'}",
                f"--output={tmp_path / 'converted'}",
            ]
        )
    assert not (tmp_path / "converted").exists()
