"""`Detector(..., backend="onnx")`: the boxes, masks, answers and captions of the PyTorch one."""

import sys

import pytest
import torch

from tests.tiny import tiny_config
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import Detector, GLIPv2ForInstanceSegmentation
from transformers_glipv2.inference import onnx_backend, onnx_graphs

pytest.importorskip("onnxruntime", reason="the backend needs onnxruntime")
pytest.importorskip("onnx", reason="the backend needs onnx")
SENTENCE = "a person at a dining table"
# Boxes of all shapes, wide and high, and two of one shape.
SHAPES = [(90, 130), (130, 90), (90, 130), (40, 160), (64, 64)]


# Convolutions, whose graph takes images of any size; the windows of the other tiny models do not.
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_indices": [2, 3, 4],
}


def segmenter(**overrides) -> GLIPv2ForInstanceSegmentation:
    """Its scores and masks differ from place to place, and its offsets are not 0."""
    torch.manual_seed(1)
    model = GLIPv2ForInstanceSegmentation(tiny_config(num_fusion_layers=1, **overrides)).eval()
    model.detection_head.load_state_dict(tiny_detector().detection_head.state_dict())
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.dyconv.offset.weight, std=0.1)
    torch.nn.init.normal_(model.mask_head.token_projection.weight)
    return model


@pytest.fixture(scope="module")
def model() -> GLIPv2ForInstanceSegmentation:
    return segmenter(backbone_config=RESNET, dyconv_offset_mode="resized")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIPV2_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def detectors(model, cache) -> tuple[Detector, Detector]:
    return Detector(model, tiny_processor()), Detector(model, tiny_processor(), backend="onnx")


def assert_same(found, expected):
    assert len(found["scores"]) == len(expected["scores"]) > 3
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=0)


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"labels_per_prompt": 2, "prompts_per_batch": 2}])
def test_boxes_of_any_shape_and_batch(detectors, options):
    """One graph for all sizes of images, batches and prompts; sizes that were not traced too."""
    images = [natural_image(*shape) for shape in SHAPES]
    pytorch, onnx = (one.detect(images, LABELS, threshold=0.3, **options) for one in detectors)
    for found, expected in zip(onnx, pytorch, strict=True):
        assert_same(found, expected)
        assert found["text_labels"] == expected["text_labels"]


@pytest.mark.parametrize("edge", [32, 160, 352])
def test_sizes_that_were_not_traced(detectors, edge):
    """From maps of one location, where neighbouring levels are equal, to larger ones than traced."""
    size = {"size": {"shortest_edge": edge, "longest_edge": 2 * edge}, "threshold": 0.1}
    (expected,), (found,) = (one.detect(natural_image(), LABELS, **size) for one in detectors)
    assert_same(found, expected)


def test_a_backbone_of_windows_stays_in_pytorch(cache):
    """And its tower reads offsets as released weights do."""
    model = segmenter(dyconv_offset_mode="released")
    onnx = Detector(model, tiny_processor(), backend="onnx")
    assert {path.name for path in onnx.network.folder.iterdir()} == {"tower.onnx"}
    for shape in SHAPES:
        (expected,) = Detector(model, tiny_processor()).detect(natural_image(*shape), LABELS, threshold=0.3)
        (found,) = onnx.detect(natural_image(*shape), LABELS, threshold=0.3)
        assert_same(found, expected)


def test_phrases_and_masks(detectors):
    image = natural_image()
    (expected,), (found,) = (one.ground(image, SENTENCE, threshold=0.1) for one in detectors)
    assert [phrase["phrase"] for phrase in found] == ["a person", "a dining table"]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    (expected,), (found,) = (list(one.segment(image, LABELS, threshold=0.3, return_rle=False)) for one in detectors)
    assert_same(found, expected)
    assert expected["masks"].any()
    assert (found["masks"] != expected["masks"]).float().mean() < 1e-3


def test_exported_once_for_its_weights(model, cache, detectors, monkeypatch):
    """The files are taken by all detectors of the same weights, and by none of others."""
    monkeypatch.setattr(onnx_backend, "export_graphs", lambda *args: pytest.fail("exported again"))
    assert Detector(model, tiny_processor(), backend="onnx").network.folder == detectors[1].network.folder
    assert not [path for path in (cache / "onnx").iterdir() if path.name.startswith(".")]
    key = onnx_backend.graph_key(model)
    weight = next(model.model.neck.parameters())
    with torch.no_grad():
        weight[0] += 1
        assert onnx_backend.graph_key(model) != key
        weight[0] -= 1


def test_a_graph_that_differs_is_refused_and_not_kept(model, detectors, tmp_path, monkeypatch):
    """Whatever the exporter gets wrong, a graph is compared with PyTorch before it is put into the cache."""
    real = onnx_graphs.deform_conv_node
    monkeypatch.setattr(onnx_graphs, "deform_conv_node", lambda graph, *inputs: graph.op("Neg", real(graph, *inputs)))
    with pytest.raises(ValueError, match="'tower' does not compute what PyTorch does"):
        onnx_backend.OnnxNetwork(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_sentence(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "transformers-glipv2\[export\]"'):
        Detector(model, tiny_processor(), backend="onnx")


def test_what_the_graphs_cannot_hold_is_refused(model):
    processor = tiny_processor()
    with pytest.raises(ValueError, match="`backend` is 'tensorrt'; choose one of torch, onnx"):
        Detector(model, processor, backend="tensorrt")
    with pytest.raises(ValueError, match="cannot cut padding away"):
        Detector(GLIPv2ForInstanceSegmentation(tiny_config(mask_padded_pixels=True)).eval(), processor, backend="onnx")
    with pytest.raises(ValueError, match="evaluation mode"):
        Detector(tiny_detector().train(), processor, backend="onnx")
    with pytest.raises(ValueError, match=r"float32 on the CPU, and the model is in torch\.bfloat16"):
        Detector(tiny_detector().bfloat16(), processor, backend="onnx")
