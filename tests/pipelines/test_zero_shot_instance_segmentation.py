"""From images and words to masks: the processor's post-processing, `segment_labels` and the pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForInstanceSegmentation, pipeline

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection, GLIPv2ImageProcessor, GLIPv2Processor
from transformers_glipv2.inference.detector import detect_labels
from transformers_glipv2.inference.segmentation import segment_labels
from transformers_glipv2.layers.paste_masks import instance_masks
from transformers_glipv2.modeling_glipv2_segmentation import (
    GLIPv2ForInstanceSegmentation,
    GLIPv2InstanceSegmentationOutput,
)
from transformers_glipv2.pipelines import register_pipelines
from transformers_glipv2.pipelines.zero_shot_instance_segmentation import (
    TASK,
    GLIPv2ZeroShotInstanceSegmentationPipeline,
)

LABELS = ["teddy bear", "dog", "traffic light"]


@pytest.fixture(scope="module")
def model() -> GLIPv2ForInstanceSegmentation:
    torch.manual_seed(0)
    model = GLIPv2ForInstanceSegmentation(tiny_config(prior_prob=0.3)).eval()
    # Random weights hardly tell words apart.
    with torch.no_grad():
        model.detection_head.token_projection.weight.mul_(20)
        model.mask_head.token_projection.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def processor() -> GLIPv2Processor:
    return GLIPv2Processor(GLIPv2ImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}), tiny_tokenizer())


def make_image(width: int = 150, height: int = 100, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def outputs(model, processor) -> GLIPv2InstanceSegmentationOutput:
    inputs = processor(images=[make_image(), make_image(90, 120, 1)], text=[LABELS, LABELS[:2]])
    with torch.no_grad():
        return model(**inputs)


SIZES = [(100, 150), (120, 90)]


def test_boxes_get_masks_of_their_labels(model, processor, outputs):
    options = {"text_labels": [LABELS, LABELS[:2]], "target_sizes": SIZES, "threshold": 0.2, "max_detections": 10}
    results = processor.post_process_instance_segmentation(outputs, **options)
    boxes = processor.post_process_grounded_object_detection(outputs, **options)
    for index, (result, found, size) in enumerate(zip(results, boxes, SIZES, strict=True)):
        assert len(found["scores"]) >= 10
        for name in ("scores", "labels", "boxes"):
            assert torch.equal(result[name], found[name])
        assert result["text_labels"] == found["text_labels"]
        assert result["masks"].shape == (len(found["scores"]), *size)
        assert result["masks"].dtype == torch.bool
        # One mask, by hand: in the box as the resized image has it, of the label's own words.
        resized = outputs.image_sizes[index]
        scale = torch.tensor([resized[1] / size[1], resized[0] / size[0]]).repeat(2)
        words = processor.tokenizer(". ".join(options["text_labels"][index]), return_offsets_mapping=True)
        start = ". ".join(LABELS).index(result["text_labels"][0])
        ends = (start, start + len(result["text_labels"][0]))
        named = [ends[0] <= a and b <= ends[1] and a < b for a, b in words["offset_mapping"]]
        row = torch.zeros(1, outputs.logits.shape[2])
        row[0, : len(named)] = torch.tensor(named).float()
        regions, rows = [torch.zeros(0, 4)] * 2, [row[:0]] * 2
        regions[index], rows[index] = result["boxes"][:1] * scale, row
        with torch.no_grad():
            logits = model.predict_masks(outputs, regions, rows)[index]
        assert torch.equal(result["masks"][:1], instance_masks(logits, result["boxes"][:1], size))
        assert result["masks"].any()


def test_run_lengths_hold_the_same_masks(processor, outputs):
    coco_mask = pytest.importorskip("pycocotools.mask")
    options = {"text_labels": [LABELS, LABELS[:2]], "target_sizes": SIZES, "threshold": 0.2, "max_detections": 5}
    arrays = processor.post_process_instance_segmentation(outputs, **options)
    runs = processor.post_process_instance_segmentation(outputs, **options, return_rle=True)
    for one, other in zip(arrays, runs, strict=True):
        decoded = np.stack([coco_mask.decode(rle) for rle in other["masks"]]).astype(bool)
        assert np.array_equal(decoded, one["masks"].numpy())


def test_without_boxes_there_are_no_masks(processor, outputs):
    results = processor.post_process_instance_segmentation(outputs, [LABELS, LABELS[:2]], threshold=1.0)
    assert [tuple(result["masks"].shape) for result in results] == [
        (0, *size) for size in outputs.image_sizes.tolist()
    ]


def test_copies_of_outputs_need_the_model(model, processor, outputs):
    copy = GLIPv2InstanceSegmentationOutput(**outputs)
    options = {"text_labels": [LABELS, LABELS[:2]], "threshold": 0.2, "max_detections": 3}
    with pytest.raises(ValueError, match="model="):
        processor.post_process_instance_segmentation(copy, **options)
    results = processor.post_process_instance_segmentation(copy, **options, model=model)
    expected = processor.post_process_instance_segmentation(outputs, **options)
    assert torch.equal(results[0]["masks"], expected[0]["masks"])


@torch.no_grad()
def test_a_detectors_outputs_are_refused(model, processor):
    detector = GLIPv2ForObjectDetection(model.config).eval()
    outputs = detector(**processor(images=make_image(), text=LABELS))
    with pytest.raises(TypeError, match="GLIPv2ForInstanceSegmentation"):
        processor.post_process_instance_segmentation(outputs, LABELS)


@pytest.fixture(scope="module")
def referring(model, processor) -> GLIPv2InstanceSegmentationOutput:
    with torch.no_grad():
        return model(**processor(images=make_image(), text="the red dog left of the man"))


def test_a_phrase_gets_the_union_of_its_masks(processor, referring):
    text, spans = "the red dog left of the man", [(0, 11), (20, 27)]
    options = {"target_sizes": [(100, 150)], "top_k": 6}
    (grounded,) = processor.post_process_phrase_grounding(referring, text, spans, **options)
    threshold = float(grounded[0]["scores"][3])
    (found,) = processor.post_process_referring_segmentation(referring, text, spans, threshold=threshold, **options)
    assert [phrase["phrase"] for phrase in found] == ["the red dog", "the man"]
    for phrase, boxes in zip(found, grounded, strict=True):
        count = int((boxes["scores"] >= threshold).sum())
        assert len(phrase["scores"]) == count
        assert torch.equal(phrase["boxes"], boxes["boxes"][:count])
        assert phrase["mask"].shape == (100, 150)
    assert len(found[0]["scores"]) == 4
    # Each box adds to the union, and a box more never takes away.
    (fewer,) = processor.post_process_referring_segmentation(
        referring, text, spans, threshold=float(grounded[0]["scores"][1]), **options
    )
    assert not (fewer[0]["mask"] & ~found[0]["mask"]).any()
    assert found[0]["mask"].any()


def test_the_whole_text_is_the_phrase_by_default(processor, referring):
    text = "the red dog left of the man"
    ((phrase,),) = processor.post_process_referring_segmentation(referring, text, threshold=0.0)
    assert phrase["span"] == (0, len(text))
    assert phrase["mask"].shape == tuple(referring.image_sizes[0].tolist())


def test_phrases_without_a_referent(processor, referring):
    text = "the red dog left of the man"
    ((phrase,),) = processor.post_process_referring_segmentation(referring, text, threshold=1.0)
    assert len(phrase["boxes"]) == 0
    assert not phrase["mask"].any()
    ((phrase,),) = processor.post_process_referring_segmentation(referring, text, threshold=1.0, keep_best=True)
    assert len(phrase["boxes"]) == 1
    assert processor.post_process_referring_segmentation(referring, text, []) == [[]]


def test_segmenting_any_number_of_labels(model, processor):
    """Prompts of one label each give what one prompt of that label gives, and boxes are those of `detect_labels`."""
    images = [make_image(), make_image(90, 120, 1)]
    options = {"threshold": 0.2, "max_detections": 8, "labels_per_prompt": 1}
    results = list(segment_labels(model, processor, iter(images), LABELS, **options, return_rle=False))
    expected = detect_labels(model, processor, images, LABELS, **options)
    for result, boxes, size in zip(results, expected, SIZES, strict=True):
        assert torch.equal(result["labels"], boxes["labels"])
        assert result["text_labels"] == boxes["text_labels"]
        torch.testing.assert_close(result["boxes"], boxes["boxes"])
        assert result["masks"].shape == (len(boxes["scores"]), *size)
    label = int(results[0]["labels"][0])
    (alone,) = segment_labels(
        model, processor, images[0], [LABELS[label]], threshold=0.2, max_detections=8, return_rle=False
    )
    torch.testing.assert_close(alone["boxes"][0], results[0]["boxes"][0])
    assert torch.equal(alone["masks"][0], results[0]["masks"][0])


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("segmenter")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def test_pipeline(model, processor, folder):
    AutoModelForInstanceSegmentation.register(GLIPv2Config, GLIPv2ForInstanceSegmentation, exist_ok=True)
    register_pipelines()
    segmenter = pipeline(TASK, model=folder, device="cpu")
    assert isinstance(segmenter, GLIPv2ZeroShotInstanceSegmentationPipeline)
    results = segmenter(make_image(), candidate_labels=LABELS, threshold=0.2, max_detections=5)
    (expected,) = segment_labels(
        model, processor, make_image(), LABELS, threshold=0.2, max_detections=5, return_rle=False
    )
    assert [result["label"] for result in results] == expected["text_labels"]
    for result, score, mask in zip(results, expected["scores"], expected["masks"], strict=True):
        assert set(result) == {"score", "label", "box", "mask"}
        assert result["score"] == pytest.approx(float(score), abs=1e-5)
        assert (result["mask"].mode, result["mask"].size) == ("L", (150, 100))
        assert np.array_equal(np.asarray(result["mask"]), mask.numpy() * np.uint8(255))
    (best,) = segmenter(make_image(), candidate_labels=LABELS, threshold=0.2, top_k=1, return_rle=True)
    assert best["mask"]["size"] == [100, 150]


def test_pipeline_on_several_images_in_batches(folder):
    AutoModelForInstanceSegmentation.register(GLIPv2Config, GLIPv2ForInstanceSegmentation, exist_ok=True)
    register_pipelines()
    segmenter = pipeline(TASK, model=folder, device="cpu")
    images = [
        {"image": make_image(), "candidate_labels": LABELS},
        {"image": make_image(90, 120, 1), "candidate_labels": "dog"},
    ]
    options = {"threshold": 0.2, "max_detections": 3, "return_rle": True}
    together = segmenter(images, batch_size=2, **options)
    assert together == [segmenter(image, **options) for image in images]
    assert together[1][0]["mask"]["size"] == [120, 90]


def test_pipeline_refuses_models_without_masks(folder, processor):
    detector = GLIPv2ForObjectDetection.from_pretrained(folder)
    with pytest.raises(TypeError, match="GLIPv2ForInstanceSegmentation"):
        GLIPv2ZeroShotInstanceSegmentationPipeline(
            model=detector, tokenizer=processor.tokenizer, image_processor=processor.image_processor, device="cpu"
        )
