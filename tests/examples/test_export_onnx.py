"""examples/export_onnx.py on a tiny model: its graphs give what PyTorch gives, for other images and words too."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import tiny_config
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2ForInstanceSegmentation
from transformers_glipv2.cli.main import run_command
from transformers_glipv2.conversion import onnx_folder
from transformers_glipv2.inference.onnx_export import DetectorGraph, encode_vocabulary, fit, in_image

onnxruntime = pytest.importorskip("onnxruntime", reason="export needs onnxruntime")
pytest.importorskip("onnxscript", reason="export needs onnxscript")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "export_onnx.py"
SIZE = ["--height", "64", "--width", "96", "--repeats", "1"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> GLIPv2ForInstanceSegmentation:
    torch.manual_seed(1)
    model = GLIPv2ForInstanceSegmentation(tiny_config(num_fusion_layers=1)).eval()
    model.load_state_dict(tiny_detector().state_dict(), strict=False)
    torch.nn.init.normal_(model.mask_head.token_projection.weight)
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The folder of the graphs and what was measured."""
    folder = tmp_path_factory.mktemp("onnx")
    model.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    natural_image().save(folder / "image.png")
    arguments = ["--model", str(folder / "model"), "--output", str(folder), "--image", str(folder / "image.png")]
    arguments += ["--labels", ",".join(LABELS), "--max_labels", "5", "--max_tokens", "20", "--masks", "--int8"]
    assert run_command(["export", *arguments, *SIZE]) == 0
    return folder, json.loads((folder / "export.json").read_text())


def run(folder, name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def test_what_was_measured(exported):
    folder, report = exported
    measured = report["measured"]
    assert set(measured["difference"]) == {"scores", "centerness", "boxes"}
    assert max(measured["difference"].values()) < 1e-4
    assert measured["masks"]["difference"] < 1e-4
    assert measured["masks"]["boxes"] > 10
    assert 0 < measured["int8"]["difference"]["scores"] < 0.2
    assert measured["int8"]["megabytes"] < measured["megabytes"]["detector.onnx"]
    assert all(part["times_as_fast_as_pytorch"] > 0 for part in (measured, measured["masks"], measured["int8"]))
    assert {file.name for file in folder.iterdir() if file.is_file() and file.suffix != ".png"} == {
        *("detector.onnx", "detector_int8.onnx", "masks.onnx"),
        *("vocabulary.safetensors", "export.json"),
    }


def test_the_script_exports_with_the_same_settings(example, exported, monkeypatch, capsys):
    folder, report = exported
    asked = {}

    def record(model, processor, labels, image, output, settings):
        asked.update(labels=labels, size=image.size, output=output, settings=settings)
        return report, [(0.5, "cat", [1, 2, 3, 4])]

    monkeypatch.setattr(example, "export_folder", record)
    arguments = ["--model", str(folder / "model"), "--output", str(folder / "again"), "--labels", *LABELS]
    image = ["--image", str(folder / "image.png"), "--max_labels", "5"]
    assert example.main([*arguments, *image, *SIZE]) == report
    assert asked["labels"] == LABELS
    assert (asked["size"], asked["output"]) == ((130, 90), folder / "again")
    assert asked["settings"] == onnx_folder.ExportSettings(height=64, width=96, max_labels=5, repeats=1)
    assert capsys.readouterr().out.startswith("0.500  cat ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--height", "33"], "'33' is not an integer that is a multiple of 32"),
        (["--max_labels", "0"], "'0' is not an integer of at least 1"),
        (["--image", "none.png"], "--image: there is no file 'none.png'"),
        (["--output", "model/config.json"], "a file; pass a folder to write into"),
        (["--model", "none/at/all"], "--model: there is no folder"),
        (["--max_labels", "1", "--labels", "a,b"], "more than the 1"),
    ],
)
def test_wrong_options_of_the_command_are_refused(args, message, exported, monkeypatch, capsys):
    monkeypatch.chdir(exported[0])
    assert run_command(["export", "--labels", "cat", "--model", "model", *args]) == 2
    assert message in capsys.readouterr().err


def test_without_onnx_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(onnx_folder, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert run_command(["export", "--labels", "cat"]) == 2
    assert 'onnxscript, which is not installed; run `pip install "transformers-glipv2[export]"`' in (
        capsys.readouterr().err
    )


def test_standard_operators_and_fixed_shapes(exported):
    import onnx

    folder, report = exported
    graph = onnx.load(folder / "detector.onnx").graph
    assert "DeformConv" in {node.op_type for node in graph.node}
    assert {node.domain for node in graph.node} == {""}
    shapes = {one.name: [side.dim_value for side in one.type.tensor_type.shape.dim] for one in graph.input}
    assert shapes["pixel_values"] == [1, 3, 64, 96]
    assert shapes["text_features"] == [1, 20, 32]
    assert shapes["label_map"] == [5, 20]
    assert sum(report["level_sizes"]) == graph.output[0].type.tensor_type.shape.dim[0].dim_value


@torch.no_grad()
def test_another_image_and_vocabulary(exported, model):
    """Nothing is baked in: the same graph finds other labels in another image, without a new export."""
    folder, report = exported
    processor, labels, image = tiny_processor(), ["red wine glass", "cat"], natural_image(120, 90)
    vocabulary = encode_vocabulary(model, processor, labels, 5, 20)
    pixels, scale = fit(processor, image, 64, 96)
    values = (pixels, vocabulary.text_features, vocabulary.attention_mask, vocabulary.label_map)
    found = run(
        folder, "detector.onnx", dict(zip(onnx_folder.DETECTOR_INPUTS, onnx_folder.to_numpy(values), strict=True))
    )
    scores, indices, boxes = onnx_folder.detect(found, report["level_sizes"], 0.3, 20)

    outputs = model(pixel_values=pixels, **processor(text=[labels]))
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, text_labels=[labels], threshold=0.3, max_detections=20
    )
    count = len(scores)
    assert 5 < count == len(expected["scores"])
    torch.testing.assert_close(scores, expected["scores"], atol=1e-4, rtol=0)
    assert torch.equal(indices, expected["labels"])
    torch.testing.assert_close(boxes, expected["boxes"], atol=1e-2, rtol=0)
    inside = in_image(boxes, scale, image)
    assert (inside[:, 2] <= image.width).all()
    assert (inside[:, 3] <= image.height).all()

    words = vocabulary.label_map[indices]
    feeds = {"boxes": torch.zeros(50, 4), "words": vocabulary.label_map[:1].repeat(50, 1)}
    feeds["boxes"][:count], feeds["words"][:count] = boxes, words
    feeds = {name: tensor.numpy() for name, tensor in feeds.items()}
    feeds |= {name: found[name] for name in found if name.startswith("map") or name == "fused_text"}
    masks = torch.from_numpy(run(folder, "masks.onnx", feeds)["mask_logits"][:count])
    (logits,) = model.predict_masks(outputs, [boxes], [words[:, : outputs.logits.shape[2]]])
    assert logits.std() > 0.05
    torch.testing.assert_close(masks, logits, atol=1e-3, rtol=1e-3)


def test_the_vocabulary_is_saved(exported, model):
    folder, _ = exported
    saved = load_file(folder / "vocabulary.safetensors")
    expected = encode_vocabulary(model, tiny_processor(), LABELS, 5, 20)
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(saved[name], tensor.detach())
    assert saved["label_map"].sum(1).tolist() == [1, 2, 2, 2, 0]


def test_what_does_not_fit_is_refused(model):
    processor = tiny_processor()
    with pytest.raises(ValueError, match="4 labels, more than the 3"):
        encode_vocabulary(model, processor, LABELS, 3)
    with pytest.raises(ValueError, match="more tokens than the 6"):
        encode_vocabulary(model, processor, LABELS, None, 6)
    with pytest.raises(ValueError, match="more tokens"):
        encode_vocabulary(model, processor, ["traffic light"] * 40)


def test_a_graph_that_differs_is_refused():
    onnx_folder.check({"scores": 9e-4}, Path("a.onnx"))
    for value in (2e-3, float("nan")):
        with pytest.raises(RuntimeError, match=r"a\.onnx differs"):
            onnx_folder.check({"scores": value}, Path("a.onnx"))


def test_masked_padding_is_refused():
    with pytest.raises(ValueError, match="mask_padded_pixels"):
        DetectorGraph(GLIPv2ForInstanceSegmentation(tiny_config(mask_padded_pixels=True)))
