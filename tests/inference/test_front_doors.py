"""Every way to ask a model: the same threshold, the same refusals, and nothing from heads that are not there."""

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.ops import box_iou
from transformers import (
    ImageTextToTextPipeline,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    ZeroShotObjectDetectionPipeline,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from tests.data.stub_processor import tiny_tokenizer
from tests.scripts import load_script
from tests.tiny import tiny_config
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import (
    Detector,
    GLIPv2ForConditionalGeneration,
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForObjectDetection,
    GLIPv2ForVisualQuestionAnswering,
    answer_and_ground,
    answer_config,
    caption_and_ground,
    detect_labels,
    ground_phrases,
    segment_labels,
)
from transformers_glipv2.inference.model_checks import check_weights
from transformers_glipv2.pipelines.image_text_to_text import GLIPv2ImageTextToTextPipeline

DETECTION, SEGMENTATION = "zero-shot-object-detection", "zero-shot-instance-segmentation"
ANSWERS, CAPTIONS = "visual-question-answering", "image-text-to-text"
QUESTION = "is the dog red?"


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A checkpoint of each head, over the same detector."""
    root, weights = tmp_path_factory.mktemp("front_doors"), tiny_detector().state_dict()
    classes = {
        "boxes": GLIPv2ForObjectDetection,
        "masks": GLIPv2ForInstanceSegmentation,
        "answers": GLIPv2ForVisualQuestionAnswering,
        "captions": GLIPv2ForConditionalGeneration,
    }
    folders = {}
    for name, model_class in classes.items():
        torch.manual_seed(0)
        model = model_class(tiny_config(**answer_config(["yes", "no", "red"])))
        model.load_state_dict(weights, strict=False)
        if name == "captions":
            model.set_special_tokens(tiny_processor().tokenizer)
        folders[name] = save(model, root / name)
    return folders


@pytest.fixture(scope="module")
def doors(folders) -> dict:
    """Every entry point, as a function of keyword arguments."""
    processor = tiny_processor()
    models = {
        "boxes": GLIPv2ForObjectDetection.from_pretrained(folders["boxes"]),
        "masks": GLIPv2ForInstanceSegmentation.from_pretrained(folders["masks"]),
        "answers": GLIPv2ForVisualQuestionAnswering.from_pretrained(folders["answers"]),
        "captions": GLIPv2ForConditionalGeneration.from_pretrained(folders["captions"]),
    }
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, "device": "cpu"}
    detect = pipeline(DETECTION, model=models["boxes"], **parts)
    segment = pipeline(SEGMENTATION, model=models["masks"], **parts)
    ask = pipeline(ANSWERS, model=models["answers"], processor=processor, device="cpu")
    describe = pipeline(CAPTIONS, model=models["captions"], processor=processor, device="cpu")
    image, detector = natural_image(), Detector(models["boxes"], processor)
    short = {"max_new_tokens": 4}
    return {
        "detect_labels": lambda **options: detect_labels(models["boxes"], processor, image, LABELS, **options),
        "segment_labels": lambda **options: segment_labels(models["masks"], processor, image, LABELS, **options),
        "ground_phrases": lambda **options: ground_phrases(models["boxes"], processor, image, "a dog", **options),
        "answer_and_ground": lambda **options: answer_and_ground(
            models["answers"], processor, image, QUESTION, **options
        ),
        "caption_and_ground": lambda **options: caption_and_ground(
            models["captions"], processor, image, "a dog", short, **options
        ),
        "Detector": lambda **options: Detector(models["boxes"], processor, **options),
        "Detector.detect": lambda **options: detector.detect(image, LABELS, **options),
        "detection pipeline": lambda **options: detect(image, candidate_labels=LABELS, **options),
        "segmentation pipeline": lambda **options: segment(image, candidate_labels=LABELS, **options),
        "answer pipeline": lambda **options: ask(image, QUESTION, ground=True, **options),
        "caption pipeline": lambda **options: describe(
            image, text="a dog", ground=True, generate_kwargs=short, **options
        ),
    }


LABEL_DOORS = ("detect_labels", "segment_labels", "Detector", "Detector.detect", "detection pipeline")
MASK_DOORS = ("segment_labels", "segmentation pipeline")
PHRASE_DOORS = ("answer_and_ground", "caption_and_ground", "answer pipeline", "caption pipeline")
EVERY_DOOR = (*LABEL_DOORS, "segmentation pipeline", "ground_phrases", *PHRASE_DOORS)
WRONG = [
    *((door, "threshold", value) for door in EVERY_DOOR for value in (None, math.nan, -0.1, 1.5, "0.3", True)),
    *((door, name, 2.0) for door in EVERY_DOOR for name in ("pre_nms_threshold", "nms_threshold")),
    *((door, "size", value) for door in EVERY_DOOR for value in ({"shortest_edge": -5}, {"edge": 3}, 64)),
    *((door, "max_detections", value) for door in LABEL_DOORS for value in (0, 1.5, -1)),
    *((door, "labels_per_prompt", 0) for door in LABEL_DOORS),
    *((door, "prompts_per_batch", 0) for door in LABEL_DOORS),
    *((door, "agnostic_nms", "yes") for door in LABEL_DOORS),
    *((door, "batch_size", value) for door in EVERY_DOOR if "pipeline" not in door for value in (0, 1.5, "8")),
    *((door, "mask_threshold", value) for door in MASK_DOORS for value in ("a", 1.5, None)),
    *((door, "boxes_per_phrase", value) for door in PHRASE_DOORS for value in (0, -1, 1.5)),
    *((door, "top_k", value) for door in ("detection pipeline", "answer pipeline") for value in (0, -1, 1.5)),
    *((door, "top_k", value) for door in ("answer_and_ground", "ground_phrases") for value in (0, -1, 1.5, None)),
]


def test_wrong_values_are_refused_by_every_door(doors):
    """At the call, before an image is read, with the argument's name."""
    for door, name, value in WRONG:
        with pytest.raises((TypeError, ValueError), match=name) as caught:
            doors[door](**{name: value})
        assert "must" in str(caught.value), (door, name, value, str(caught.value))


def test_misspelt_keywords_are_refused_with_the_nearest_name(doors):
    for door in EVERY_DOOR:
        with pytest.raises(TypeError, match="no argument `thresold`; did you mean `threshold`"):
            doors[door](thresold=0.3)
    with pytest.raises(TypeError, match="no argument `num_beams`"):
        doors["caption pipeline"](num_beams=3)


def test_misspelt_keywords_of_the_pipeline_itself(folders):
    with pytest.raises(TypeError, match="did you mean `nms_threshold`"):
        pipeline(DETECTION, model=folders["boxes"], device="cpu", nms_treshold=0.5)


def test_questions_and_beginnings_are_strings(folders):
    ask = pipeline(ANSWERS, model=folders["answers"], device="cpu")
    for question in (5, [5], ""):
        with pytest.raises((TypeError, ValueError), match="question"):
            ask(natural_image(), question)
    describe = pipeline(CAPTIONS, model=folders["captions"], device="cpu")
    with pytest.raises(TypeError, match="`text` must be a string"):
        describe(natural_image(), text=5)
    for value in (5, [5], [""]):
        with pytest.raises((TypeError, ValueError), match="questions"):
            answer_and_ground(ask.model, ask.processor, natural_image(), value)


# Thresholds ----------------------------------------------------------------------------------------------------------


def test_a_threshold_means_the_same_everywhere(folders, tmp_path):
    """Folder prediction, the pipeline and `detect_labels` give the same boxes, and none below the threshold."""
    pq = pytest.importorskip("pyarrow.parquet")
    images = {f"{index}.png": natural_image(90, 100 + 30 * index) for index in range(3)}
    for name, image in images.items():
        image.save(tmp_path / name)
    labels = [label.replace(" ", "_") for label in LABELS]
    given = ["--model", folders["boxes"], "--images", tmp_path, "--labels", *labels, "--threshold", 0.3]
    predict = load_script("examples/predict_folder.py")
    path = predict.main([str(value) for value in [*given, "--output", tmp_path / "out", "--batch_size", 2]])
    rows = {row["image"]: row for row in pq.read_table(path).to_pylist()}
    detect = pipeline(DETECTION, model=folders["boxes"], device="cpu")
    for name, image in images.items():
        (found,) = detect_labels(detect.model, tiny_processor(), image, labels, threshold=0.3)
        piped = detect(image, candidate_labels=labels, threshold=0.3)
        assert len(found["scores"]) > 0
        assert found["scores"].min() >= 0.3
        assert rows[name]["scores"] == pytest.approx(found["scores"].tolist(), abs=1e-5)
        assert rows[name]["labels"] == found["text_labels"] == [entry["label"] for entry in piped]
        np.testing.assert_allclose(rows[name]["boxes"], found["boxes"].numpy(), atol=1e-2)
        assert [entry["score"] for entry in piped] == pytest.approx(found["scores"].tolist(), abs=1e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_nothing_below_the_threshold_is_returned(doors, threshold):
    options = {"threshold": threshold}
    scores = doors["detect_labels"](**options)[0]["scores"].tolist()
    scores += next(doors["segment_labels"](**options))["scores"].tolist()
    scores += [one["score"] for name in ("detection", "segmentation") for one in doors[f"{name} pipeline"](**options)]
    for phrases in (
        doors["ground_phrases"](**options)[0],
        doors["answer_and_ground"](**options)[0]["phrases"],
        doors["caption_and_ground"](**options)[0]["phrases"],
    ):
        scores += [score for phrase in phrases for score in phrase["scores"].tolist()]
    for found in (doors["answer pipeline"](**options), doors["caption pipeline"](**options)[0]):
        scores += [box["score"] for phrase in found["phrases"] for box in phrase["boxes"]]
    assert len(scores) > 10
    assert min(scores) >= threshold


def test_candidates_are_chosen_by_label_scores_before_centerness(doors):
    """A higher `pre_nms_threshold` drops boxes whatever their final score; the configuration's is the default."""
    many, few = (doors["detect_labels"](pre_nms_threshold=value)[0] for value in (0.05, 0.6))
    assert len(many["scores"]) > len(few["scores"]) > 0
    (default,) = doors["detect_labels"]()
    assert torch.equal(default["scores"], many["scores"])


def test_suppression_across_labels_and_prompts(doors):
    plain, agnostic = (doors["detect_labels"](agnostic_nms=value)[0] for value in (False, True))
    assert len(plain["scores"]) > len(agnostic["scores"]) > 0
    for options in ({}, {"labels_per_prompt": 1}):
        (found,) = doors["detect_labels"](agnostic_nms=True, nms_threshold=0.5, **options)
        overlaps = box_iou(found["boxes"], found["boxes"]).fill_diagonal_(0)
        # Boxes are inclusive and measured in another size, so allow for rounding.
        assert overlaps.max() < 0.55


# Other models --------------------------------------------------------------------------------------------------------


def test_other_detectors_keep_the_stock_pipeline():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**sizes, "vocab_size": 128},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    parts = {
        "model": Owlv2ForObjectDetection(config).eval(),
        "tokenizer": tiny_tokenizer(16),
        "image_processor": Owlv2ImageProcessor(size={"height": 32, "width": 32}),
        "device": "cpu",
    }
    stock = pipeline(DETECTION, **parts)
    assert type(stock) is ZeroShotObjectDetectionPipeline
    assert len(stock(natural_image(), candidate_labels=["cat"], threshold=0.0)) > 0


def test_other_captioners_keep_the_stock_pipeline():
    class OtherConfig:
        model_type = "blip"

    class OtherModel:
        config = OtherConfig()

    made = []

    class Stock(ImageTextToTextPipeline):
        def __init__(self, *args, **kwargs):
            made.append(kwargs)

    task = PIPELINE_REGISTRY.supported_tasks[CAPTIONS]
    assert task["impl"] is GLIPv2ImageTextToTextPipeline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers_glipv2.pipelines.image_text_to_text.ImageTextToTextPipeline", Stock)
        found = task["impl"](model=OtherModel(), task=CAPTIONS)
    assert type(found) is Stock
    assert list(made[0]) == ["model", "task"]


# Heads and weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_class", "head", "ask"),
    [
        (GLIPv2ForInstanceSegmentation, "mask_head", lambda m, p: segment_labels(m, p, natural_image(), LABELS)),
        (GLIPv2ForVisualQuestionAnswering, "answer_head", lambda m, p: answer_and_ground(m, p, natural_image(), "a")),
        (GLIPv2ForConditionalGeneration, "caption_head", lambda m, p: caption_and_ground(m, p, natural_image())),
    ],
)
def test_heads_that_the_checkpoint_lacks_are_refused(folders, model_class, head, ask, tmp_path):
    model, processor = model_class.from_pretrained(folders["boxes"]), tiny_processor()
    with pytest.raises(ValueError, match=f"The checkpoint has no `{head}`"):
        ask(model, processor)
    # Boxes it has, and a head that was trained since is no longer a new one.
    assert detect_labels(model, processor, natural_image(), LABELS)
    with torch.no_grad():
        for parameter in getattr(model, head).parameters():
            parameter.add_(0.01)
    if hasattr(model, "set_special_tokens"):
        model.set_special_tokens(processor.tokenizer)
    assert ask(model, processor)
    # Another class than the head's is a TypeError.
    with pytest.raises(TypeError, match=model_class.__name__):
        ask(GLIPv2ForObjectDetection.from_pretrained(folders["boxes"]), processor)


@pytest.mark.parametrize(
    ("task", "head"), [(SEGMENTATION, "mask_head"), (ANSWERS, "answer_head"), (CAPTIONS, "caption_head")]
)
def test_pipelines_refuse_heads_that_the_checkpoint_lacks(folders, task, head):
    with pytest.raises(ValueError, match=f"The checkpoint has no `{head}`"):
        pipeline(task, model=folders["boxes"], device="cpu")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("boxes", "detection_head.box_predictor.weight", math.inf),
        ("boxes", "model.neck.p6.weight", math.nan),
        ("masks", "mask_head.token_projection.weight", math.nan),
        ("answers", "answer_head", math.nan),
        ("captions", "caption_head", math.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(folders, kind, name, value):
    classes = {
        "boxes": (GLIPv2ForObjectDetection, DETECTION),
        "masks": (GLIPv2ForInstanceSegmentation, SEGMENTATION),
        "answers": (GLIPv2ForVisualQuestionAnswering, ANSWERS),
        "captions": (GLIPv2ForConditionalGeneration, CAPTIONS),
    }
    model_class, task = classes[kind]
    model = model_class.from_pretrained(folders[kind])
    check_weights(model)
    broken, weight = next((own, w) for own, w in model.named_parameters() if own.startswith(name) or name in own)
    with torch.no_grad():
        weight.view(-1)[0] = value
    processor = tiny_processor()
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    if kind in ("answers", "captions"):
        parts = {"processor": processor}
    for door in (lambda: Detector(model, processor), lambda: pipeline(task, model=model, device="cpu", **parts)):
        with pytest.raises(ValueError, match=f"The weight `{broken}` of .* holds NaN or infinity"):
            door()


@torch.no_grad()
def test_outputs_that_are_not_finite_are_refused_by_name(folders):
    """Also where weights are finite: infinite box regression gave finite boxes, clipped to the image."""
    model, processor = GLIPv2ForObjectDetection.from_pretrained(folders["boxes"]), tiny_processor()
    outputs = model(**processor(images=natural_image(), text=[LABELS]))
    for name in ("logits", "centerness", "box_deltas"):
        kept = outputs[name].clone()
        outputs[name].view(-1)[:] = math.nan if name != "box_deltas" else math.inf
        with pytest.raises(ValueError, match=f"`{name}` holds NaN or infinity"):
            processor.post_process_grounded_object_detection(outputs, LABELS)
        with pytest.raises(ValueError, match=f"`{name}` holds NaN or infinity"):
            processor.post_process_phrase_grounding(outputs, ". ".join(LABELS))
        outputs[name].copy_(kept)
    assert len(processor.post_process_grounded_object_detection(outputs, LABELS)[0]["scores"]) > 0


def test_segmentation_checks_its_arguments_at_the_call(folders):
    model = GLIPv2ForInstanceSegmentation.from_pretrained(folders["masks"])
    with pytest.raises(ValueError, match="empty"):
        segment_labels(model, tiny_processor(), natural_image(), [])
    with pytest.raises(ValueError, match="100 tokens long"):
        segment_labels(model, tiny_processor(), natural_image(), ["z" * 100])


def test_masks_in_batches_with_labels_of_each_image(folders):
    model, processor = GLIPv2ForInstanceSegmentation.from_pretrained(folders["masks"]), tiny_processor()
    images = [natural_image().rotate(10 * index) for index in range(3)] + [PIL.Image.new("RGB", (40, 90))]
    labels = [LABELS, ["cat", "dog"], LABELS[:3], ["zebra"]]
    options = {"threshold": 0.3, "max_detections": 6, "labels_per_prompt": 2}
    alone = [next(segment_labels(model, processor, *pair, **options)) for pair in zip(images, labels, strict=True)]
    together = list(segment_labels(model, processor, iter(images), labels, batch_size=3, **options))
    for found, expected in zip(together, alone, strict=True):
        assert found["text_labels"] == expected["text_labels"]
        torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
        assert [mask["size"] for mask in found["masks"]] == [mask["size"] for mask in expected["masks"]]
