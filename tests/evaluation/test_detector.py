"""Detection at several scales: mirrored boxes, votes, prompts with words around the labels."""

import pytest
import torch
from PIL import Image

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2ImageProcessor, GLIPv2Processor
from transformers_glipv2.evaluation.detector import (
    coco_entries,
    detect_augmented,
    encode_sentence,
    mirror_boxes,
    open_annotated_image,
    vote_boxes,
)
from transformers_glipv2.inference.detector import Detector, detect_labels, encode_labels
from transformers_glipv2.prompts import label_prompt

LABELS = ["cat", "dog", "teddy bear"]
# The untrained head scores below the usual threshold.
ALL = {"threshold": 0.0, "pre_nms_threshold": 0.0}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GLIPv2ForObjectDetection(tiny_config()).eval()


@pytest.fixture(scope="module")
def processor():
    return GLIPv2Processor(GLIPv2ImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}), tiny_tokenizer())


def make_image(seed=0, size=(96, 64)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def detect(model, processor, images, labels_per_prompt=None, target_sizes=None, **options):
    prompts = encode_labels(LABELS, processor.tokenizer, 64, labels_per_prompt)
    return list(Detector(model, processor, **ALL, **options).run_prompts(images, prompts, target_sizes))


def detect_at(model, processor, images, sizes, **options):
    prompts = encode_labels(LABELS, processor.tokenizer, 64)
    detector = Detector(model, processor, **ALL, max_detections=10)
    return detect_augmented(detector, images, prompts, sizes, **options)


def result(scores, boxes, labels=None):
    labels = labels or [0] * len(scores)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"scores": torch.tensor(scores), "labels": torch.tensor(labels), "boxes": boxes}


@pytest.mark.parametrize("labels_per_prompt", [None, 2])
def test_finds_what_detect_labels_finds(model, processor, labels_per_prompt):
    images = [make_image(0), make_image(1, (64, 64))]
    ours = detect(model, processor, images, labels_per_prompt, max_detections=20)
    options = {**ALL, "max_detections": 20, "batch_size": 2, "labels_per_prompt": labels_per_prompt}
    theirs = detect_labels(model, processor, images, LABELS, **options)
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in ("scores", "labels", "boxes"))


def test_without_a_limit_each_prompt_keeps_its_own(model, processor):
    few = detect(model, processor, make_image(), 1, max_detections=5)[0]
    all_of_them = detect(model, processor, make_image(), 1, max_detections=None)[0]
    assert len(all_of_them["scores"]) > len(few["scores"]) >= 5
    assert set(all_of_them["labels"].tolist()) == {0, 1, 2}
    assert all_of_them["scores"].tolist() == sorted(all_of_them["scores"].tolist(), reverse=True)


def test_boxes_are_measured_in_the_annotated_size(model, processor):
    own = detect(model, processor, make_image(), max_detections=5)[0]
    doubled = detect(model, processor, make_image(), target_sizes=[(128, 192)], max_detections=5)[0]
    assert torch.allclose(doubled["boxes"], 2 * own["boxes"])


def test_words_around_a_label_are_not_scored(model, processor):
    plain, spans = label_prompt(LABELS[:2]).text, [(0, 3), (5, 8)]
    assert plain == "cat. dog"
    same = encode_sentence(plain, spans, [0, 1], model, processor.tokenizer)
    (expected,) = encode_labels(LABELS[:2], processor.tokenizer, 64)
    assert same.input_ids == expected.input_ids and torch.equal(same.label_map, expected.label_map)
    prompt = encode_sentence("a cat left of the dog", [(2, 5)], [1], model, processor.tokenizer)
    assert prompt.label_map.sum() == 1 and prompt.indices == [1]
    with pytest.raises(ValueError, match="the model takes 64"):
        encode_sentence("cat " * 80, [(0, 3)], [0], model, processor.tokenizer)
    with pytest.raises(ValueError, match="has no token"):
        encode_sentence("cat      dog", [(3, 9)], [0], model, processor.tokenizer)


def test_mirrored_boxes_are_those_of_the_mirrored_pixels():
    pixels = torch.zeros(1, 10)
    pixels[0, 2:5] = 1  # pixels 2 to 4, inclusive corners
    columns = pixels.flip(1)[0].nonzero()[:, 0]
    mirrored = torch.tensor([[float(columns[0]), 0, float(columns[-1]), 0]])
    assert mirror_boxes(mirrored, 10).tolist() == [[2, 0, 4, 0]]
    boxes = torch.rand(4, 4) * 9
    assert torch.allclose(mirror_boxes(mirror_boxes(boxes, 10), 10), boxes)


def test_one_scale_without_mirror_keeps_scores(model, processor):
    plain = detect(model, processor, make_image(), max_detections=10)[0]
    sizes = [{"shortest_edge": 64, "longest_edge": 96}]
    merged = detect_at(model, processor, [make_image()], sizes, flip=False)[0]
    assert torch.equal(merged["scores"], plain["scores"]) and torch.equal(merged["labels"], plain["labels"])


def test_a_mirrored_image_gives_mirrored_boxes(model, processor):
    sizes = [{"shortest_edge": 48, "longest_edge": 96}, {"shortest_edge": 64, "longest_edge": 96}]
    image = make_image()
    one = detect_at(model, processor, [image], sizes)[0]
    other = detect_at(model, processor, [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], sizes)[0]
    back = mirror_boxes(other["boxes"], image.width)
    assert torch.allclose(one["scores"], other["scores"], atol=1e-5)
    # Nearly equal scores may change places.
    distance = torch.cdist(one["boxes"], back, p=1)
    assert (distance.min(1).values < 0.1).float().mean() > 0.8


def test_votes_move_boxes_to_the_weighted_mean():
    first = result([0.9, 0.5], [[0, 0, 99, 99], [200, 0, 299, 99]], [0, 1])
    second = result([0.3, 0.4], [[10, 0, 99, 99], [0, 0, 99, 99]], [0, 1])
    merged = vote_boxes([first, second])
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.5, 0.4])
    assert merged["labels"].tolist() == [0, 1, 1]
    assert merged["boxes"][0].tolist() == pytest.approx([0.3 * 10 / 1.2, 0, 99, 99])
    assert merged["boxes"][1].tolist() == [200, 0, 299, 99]
    assert len(vote_boxes([first, second], max_detections=1)["scores"]) == 1
    assert len(vote_boxes([first, second], max_detections=None)["scores"]) == 3
    assert len(vote_boxes([result([], [])])["scores"]) == 0


def test_augmentation_needs_a_size(model, processor):
    with pytest.raises(ValueError, match="at least one size"):
        detect_at(model, processor, [make_image()], [])


def test_entries_of_a_result_file():
    (entry,) = coco_entries(7, result([0.5], [[3, 4, 12, 13]]), [90])
    assert entry == {"image_id": 7, "category_id": 90, "bbox": [3, 4, 10, 10], "score": 0.5}
    # A box decoded to less than nothing has no area.
    assert coco_entries(7, result([0.5], [[3, 4, 1, 13]]), [90])[0]["bbox"][2] == 0


def test_resized_copies_are_taken_and_other_images_refused(tmp_path):
    Image.new("RGB", (51, 34)).save(tmp_path / "small.png")
    assert open_annotated_image(tmp_path / "small.png", (640, 427)).size == (51, 34)
    with pytest.raises(ValueError, match="its annotations are for"):
        open_annotated_image(tmp_path / "small.png", (640, 640))
