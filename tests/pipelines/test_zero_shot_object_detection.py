"""The zero-shot pipeline: one forward pass for all labels, in the stock class's calls and results."""

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    ZeroShotObjectDetectionPipeline,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny_detector import LABELS, SIZE, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ImageProcessorPil,
    GLIPv2Processor,
    GLIPv2ZeroShotObjectDetectionPipeline,
    detect_labels,
)
from transformers_glipv2.pipelines.zero_shot_object_detection import split_candidate_labels

TASK = "zero-shot-object-detection"


@pytest.fixture(scope="module")
def model() -> GLIPv2ForObjectDetection:
    return tiny_detector()


@pytest.fixture(scope="module")
def processor() -> GLIPv2Processor:
    return tiny_processor()


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("glipv2")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return pipeline(TASK, model=str(folder), device="cpu")


def plain(found: dict) -> list[dict]:
    """Results of `detect_labels` in the pipeline's form."""
    names = ("xmin", "ymin", "xmax", "ymax")
    return [
        {"score": score, "label": label, "box": dict(zip(names, box.int().tolist(), strict=True))}
        for score, label, box in zip(found["scores"].tolist(), found["text_labels"], found["boxes"], strict=True)
    ]


def assert_same(found: list[dict], expected: list[dict]):
    assert len(expected) > 0
    assert [(one["label"], one["box"]) for one in found] == [(one["label"], one["box"]) for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)


# Ours ----------------------------------------------------------------------------------------------------------------


def test_equals_a_direct_call(detector, model, processor):
    assert type(detector) is GLIPv2ZeroShotObjectDetectionPipeline
    image = natural_image()
    (expected,) = detect_labels(model, processor, image, LABELS, threshold=0.1)
    assert_same(detector(image, candidate_labels=LABELS), plain(expected))
    (expected,) = detect_labels(
        model, processor, image, LABELS, threshold=0.4, nms_threshold=0.3, max_detections=7, labels_per_prompt=3
    )
    found = detector(
        image, candidate_labels=LABELS, threshold=0.4, nms_threshold=0.3, max_detections=7, labels_per_prompt=3
    )
    assert_same(found, plain(expected))
    assert_same(detector(image, candidate_labels=LABELS, top_k=2), detector(image, candidate_labels=LABELS)[:2])


def test_one_forward_pass_for_all_labels(detector):
    calls = []
    hook = detector.model.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        detector(natural_image(), candidate_labels=LABELS)
        assert len(calls) == 1
        detector(natural_image(), candidate_labels=[f"{a} {b}" for a in LABELS for b in "abcdefghij"])
    finally:
        hook.remove()
    assert 2 < len(calls) < 20  # 40 labels in as few prompts of 64 tokens as hold them


def test_labels_in_a_string_are_split_at_commas(detector):
    found = detector(natural_image(), candidate_labels="person, traffic light ,teddy bear,dining table")
    assert_same(found, detector(natural_image(), candidate_labels=LABELS))
    assert split_candidate_labels("a,  b") == ["a", "b"]


def test_lists_of_images_with_labels_of_their_own(detector):
    images = [natural_image(), natural_image(50, 100), natural_image(80, 33)]
    labels = [LABELS, ["cat"], ["dog", "zebra"]]
    expected = [detector(image, candidate_labels=own) for image, own in zip(images, labels, strict=True)]
    rows = [{"image": image, "candidate_labels": own} for image, own in zip(images, labels, strict=True)]

    class Rows(Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return rows[index]

    forms = [
        detector(images, candidate_labels=labels),
        detector(rows),
        list(detector(row for row in rows)),
        list(detector(Rows())),
        detector(rows, batch_size=2),
        detector(images, candidate_labels=labels, batch_size=3),
    ]
    for found in forms:
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    shared = detector(images, candidate_labels=LABELS)
    for one, image in zip(shared, images, strict=True):
        assert_same(one, detector(image, candidate_labels=LABELS))
    with pytest.raises(ValueError, match="labels for 2 images, but there are 3"):
        detector(images, candidate_labels=labels[:2])
    with pytest.raises(TypeError, match="must be a list of labels, not int"):
        detector(images, candidate_labels=5)


def test_lists_of_files_share_their_labels(detector, tmp_path):
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for file, image in zip(files, (natural_image(), natural_image(50, 100)), strict=True):
        image.save(file)
    for found, file in zip(detector(files, candidate_labels=LABELS, batch_size=2), files, strict=True):
        assert_same(found, detector(file, candidate_labels=LABELS))


def test_files_and_image_objects_are_turned_upright(detector, tmp_path):
    """As the stock class does, so boxes are those of the upright image."""
    upright = natural_image(80, 40)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    upright.transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = detector(upright, candidate_labels=LABELS)
    assert_same(detector(str(tmp_path / "turned.png"), candidate_labels=LABELS), expected)
    with PIL.Image.open(tmp_path / "turned.png") as opened:
        assert_same(detector(opened, candidate_labels=LABELS), expected)


def test_16_bit_files(detector, tmp_path):
    grey = np.array(natural_image().convert("L"))
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    found = detector(str(tmp_path / "grey.png"), candidate_labels=LABELS)
    assert_same(found, detector(PIL.Image.fromarray(grey), candidate_labels=LABELS))


def test_settings_of_the_pipeline_are_defaults_of_its_calls(folder, detector):
    strict = pipeline(TASK, model=str(folder), device="cpu", threshold=0.4, top_k=3)
    found = strict(natural_image(), candidate_labels=LABELS)
    assert_same(found, detector(natural_image(), candidate_labels=LABELS, threshold=0.4, top_k=3))
    assert len(found) == 3


def test_bfloat16(folder, detector):
    half = pipeline(TASK, model=str(folder), device="cpu", dtype=torch.bfloat16)
    found = half(natural_image(), candidate_labels=LABELS)
    expected = detector(natural_image(), candidate_labels=LABELS)
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((natural_image(),), {"candidate_labels": []}, ValueError, "candidate_labels.*empty"),
        ((natural_image(),), {"candidate_labels": ""}, ValueError, r"candidate_labels\[0\]"),
        ((natural_image(),), {"candidate_labels": ["dog", " "]}, ValueError, r"candidate_labels\[1\]"),
        ((natural_image(),), {"candidate_labels": None}, ValueError, "no labels to look for"),
        ((natural_image(),), {"candidate_labels": ["z" * 100]}, ValueError, "100 tokens long"),
        (({"image": natural_image()},), {}, ValueError, "candidate_labels.*got a dict of"),
        (("absent.jpg",), {"candidate_labels": LABELS}, FileNotFoundError, "absent.jpg"),
        ((natural_image(),), {"candidate_labels": LABELS, "threshold": 2}, ValueError, "threshold"),
    ],
)
def test_bad_calls(detector, arguments, options, error, message):
    with pytest.raises(error, match=message):
        detector(*arguments, **options)


# The stock class and other models ------------------------------------------------------------------------------------


def test_stock_class_gives_the_same_boxes_for_each_label(folder, detector):
    stock = pipeline(TASK, model=str(folder), device="cpu", pipeline_class=ZeroShotObjectDetectionPipeline)
    assert type(stock) is ZeroShotObjectDetectionPipeline
    image = natural_image()
    alone = [detector(image, candidate_labels=[label], threshold=0.3) for label in LABELS]
    expected = sorted((found for label in alone for found in label), key=lambda found: -found["score"])
    assert_same(stock(image, candidate_labels=LABELS, threshold=0.3), expected)
    assert_same(stock(image, candidate_labels=["cat"]), detector(image, candidate_labels=["cat"]))


def test_stock_class_with_the_pil_backend(model, processor):
    image_processor = GLIPv2ImageProcessorPil(size=SIZE)
    parts = {"model": model, "tokenizer": processor.tokenizer, "image_processor": image_processor, "device": "cpu"}
    stock = pipeline(TASK, pipeline_class=ZeroShotObjectDetectionPipeline, **parts)
    expected = pipeline(TASK, **parts)(natural_image(), candidate_labels=["dog"])
    assert_same(stock(natural_image(), candidate_labels=["dog"]), expected)


def test_post_processing_of_one_label_alone(model, processor):
    image = natural_image()
    with torch.no_grad():
        outputs = model(**processor(images=[image] * 2, text=["traffic light", "dog"]))
    sizes = torch.tensor([[90, 130], [45, 65]])
    post_process = processor.image_processor.post_process_object_detection
    first, second = post_process(outputs, threshold=0.2, target_sizes=sizes)
    for found, label, scale in ((first, "traffic light", 1), (second, "dog", 2)):
        (expected,) = detect_labels(model, processor, image, [label], threshold=0.2)
        torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["boxes"] * scale, expected["boxes"], atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="height"):
        post_process(outputs, target_sizes=sizes.flip(1))
    with pytest.raises(ValueError, match="above 0"):
        post_process(outputs, target_sizes=-sizes)
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        post_process(outputs, target_sizes=sizes[:1])
    with torch.no_grad():
        empty = model(
            **processor.image_processor(image, return_tensors="pt"),
            input_ids=torch.tensor([processor.tokenizer("")["input_ids"]]),
        )
    with pytest.raises(ValueError, match="no words"):
        post_process(empty)


def test_other_models_get_the_stock_class():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OwlViTConfig(
        text_config={**sizes, "vocab_size": 128},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    parts = {
        "model": OwlViTForObjectDetection(config).eval(),
        "tokenizer": tiny_tokenizer(16),
        "image_processor": OwlViTImageProcessor(size={"height": 32, "width": 32}),
        "device": "cpu",
    }
    ours = pipeline(TASK, **parts)
    assert type(ours) is ZeroShotObjectDetectionPipeline
    assert type(GLIPv2ZeroShotObjectDetectionPipeline(**parts)) is ZeroShotObjectDetectionPipeline
    stock = pipeline(TASK, pipeline_class=ZeroShotObjectDetectionPipeline, **parts)
    options = {"candidate_labels": ["cat", "dog"], "threshold": 0.0, "top_k": 4}
    assert_same(ours(natural_image(), **options), stock(natural_image(), **options))


def test_the_task_keeps_its_default_model():
    assert "default" in PIPELINE_REGISTRY.supported_tasks[TASK]
    assert PIPELINE_REGISTRY.supported_tasks[TASK]["type"] == "multimodal"


def test_saved_pipeline(detector, tmp_path):
    detector.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    expected = detector(natural_image(), candidate_labels=LABELS)
    assert_same(loaded(natural_image(), candidate_labels=LABELS), expected)
    assert not list(tmp_path.glob("*.py"))
