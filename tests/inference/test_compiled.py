"""`Detector(..., compile=True)`: the same boxes, and few compilations whatever the images, prompts and batches."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.tiny import tiny_config
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import Detector, GLIPv2ForInstanceSegmentation
from transformers_glipv2.inference.compiled_network import bucket_count, bucket_side, bucket_tokens


def segmenter(**overrides) -> GLIPv2ForInstanceSegmentation:
    torch.manual_seed(0)
    model = GLIPv2ForInstanceSegmentation(tiny_config(num_fusion_layers=1, **overrides)).eval()
    model.detection_head.load_state_dict(tiny_detector().detection_head.state_dict())
    return model


def assert_same(found: dict, expected: dict):
    assert len(found["scores"]) == len(expected["scores"]) > 3
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=0)


def test_compiled_once_for_all_images_prompts_and_batches():
    counter = CompileCounter()
    model, processor = segmenter(), tiny_processor()
    plain = Detector(model, processor, threshold=0.2)
    compiled = Detector(model, processor, compile={"backend": counter, "fullgraph": True}, threshold=0.2)
    shapes = [(90, 130), (92, 130), (90, 128), (91, 132)]
    images = [natural_image(*shape).rotate(9 * index) for index, shape in enumerate(shapes)]
    # Four images; three, which are filled up; a longer and a shorter prompt; masks; phrases.
    for labels, count in ((LABELS, 4), (LABELS[:1], 4), ([*LABELS, "dog"], 3)):
        pairs = zip(
            compiled.detect(images[:count], labels, batch_size=4), plain.detect(images[:count], labels), strict=True
        )
        for found, expected in pairs:
            assert_same(found, expected)
    earlier, expected = (
        list(one.segment(images, LABELS, batch_size=4, max_detections=5)) for one in (compiled, plain)
    )
    assert [one["masks"] for one in earlier] == [one["masks"] for one in expected]
    # The image encoder and the tower.
    assert counter.frame_count == 2
    for one, other in zip(
        compiled.ground(images, "a person at a table", batch_size=4),
        plain.ground(images, "a person at a table"),
        strict=True,
    ):
        for phrase, same in zip(one, other, strict=True):
            torch.testing.assert_close(phrase["scores"], same["scores"], atol=1e-5, rtol=0)
    # The tower with a text for each image, in place of one for all.
    assert counter.frame_count == 3
    with torch.no_grad():
        model.detection_head.token_projection.weight.mul_(1.1)
    for found, before, expected in zip(
        compiled.detect(images, LABELS, batch_size=4), earlier, plain.detect(images, LABELS), strict=True
    ):
        assert_same(found, expected)
        assert not torch.equal(found["scores"][:3], before["scores"][:3])
    assert counter.frame_count == 3


def test_shapes_that_padding_leads_to():
    edges = [800, 1344]
    assert [bucket_side(side, edges) for side in (32, 40, 300, 800, 802, 1066, 1216, 1333, 1344, 1350)] == (
        [32, 64, 320, 800, 896, 1152, 1280, 1344, 1344, 1408]
    )
    assert [bucket_tokens(tokens, 256) for tokens in (3, 16, 17, 100, 195, 256)] == [16, 16, 32, 128, 256, 256]
    # No longer than the model takes.
    assert [bucket_tokens(tokens, 40) for tokens in (20, 33, 40)] == [32, 40, 40]
    assert [bucket_count(count) for count in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert tiny_processor().image_processor.usual_edges() == [64, 96]


def test_refusals():
    with pytest.raises(ValueError, match="mask_padded_pixels"):
        Detector(segmenter(mask_padded_pixels=True), tiny_processor(), compile=True)
    with pytest.raises(ValueError, match="`compile` goes with"):
        Detector(segmenter(), tiny_processor(), backend="onnx", compile=True)
