"""Images in batches of one size: the same results as one by one, in the images' order, in bounded memory."""

import threading

import PIL.Image
import pytest
import torch

from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import Detector
from transformers_glipv2.inference import batch_size as batch_size_module
from transformers_glipv2.inference.batching import (
    WINDOW,
    PreparedImage,
    group_by_shape,
    in_order,
    map_ahead,
    one_ahead,
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(tiny_detector(), tiny_processor(), threshold=0.2, progress=False)


def mixed_images() -> list[PIL.Image.Image]:
    """Eleven images of three sizes, mixed, no two alike."""
    sizes = [(90, 130), (130, 90), (90, 130), (60, 200), (90, 130), (130, 90), (90, 130), (60, 200), (90, 130)]
    sizes += [(90, 130), (130, 90)]
    return [natural_image(*size).rotate(7 * index) for index, size in enumerate(sizes)]


def assert_same(found: list[dict], expected: list[dict]):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(other["scores"]) > 0
        assert one["text_labels"] == other["text_labels"]
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-2, rtol=0)


@pytest.mark.parametrize("mask_padded_pixels", [False, True])
@pytest.mark.parametrize("options", [{}, {"labels_per_prompt": 1}, {"labels_per_prompt": 1, "prompts_per_batch": 3}])
def test_a_batch_gives_what_one_by_one_gives(detector, options, mask_padded_pixels):
    images = mixed_images()
    detector.model.config.mask_padded_pixels = mask_padded_pixels
    try:
        alone = detector.detect(images, LABELS, **options)
        sizes = []
        hook = detector.model.model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        together = detector.detect(images, LABELS, batch_size=4, **options)
        hook.remove()
    finally:
        detector.model.config.mask_padded_pixels = False
    assert_same(together, alone)
    if not mask_padded_pixels:
        assert sorted(sizes) == [2, 2, 3, 4]


def test_labels_of_each_image_in_a_batch(detector):
    images = [natural_image().rotate(10 * index) for index in range(4)]
    labels = [LABELS, ["cat"], LABELS[::-1], ["dog", "zebra", "cat"]]
    options = {"labels_per_prompt": 2}
    alone = [detector.detect(*pair, **options)[0] for pair in zip(images, labels, strict=True)]
    for prompts_per_batch in (1, 4):
        more = {**options, "prompts_per_batch": prompts_per_batch, "batch_size": 4}
        assert_same(detector.detect(images, labels, **more), alone)


def test_sentences_in_a_batch(detector):
    images, sentences = mixed_images()[:4], ["a dog", "the red cat left of a man", "a zebra", "two dogs"]
    alone = [detector.ground(*pair, top_k=2)[0] for pair in zip(images, sentences, strict=True)]
    for found, expected in zip(detector.ground(images, sentences, top_k=2, batch_size=4), alone, strict=True):
        assert [phrase["span"] for phrase in found] == [phrase["span"] for phrase in expected]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=0)


def test_results_stream_while_images_are_read(detector):
    """An endless generator gives results, and no more images are read than wait for others of their size."""
    read = []

    def endless():
        while True:
            read.append(1)
            yield natural_image(90 if len(read) % 3 else 60, 130)

    results = detector.stream(endless(), LABELS, batch_size=2)
    for count in range(1, 7):
        assert len(next(results)["scores"]) > 0
        assert len(read) <= count + 2 * WINDOW
    one_by_one = detector.stream(endless(), LABELS)
    read.clear()
    next(one_by_one)
    assert len(read) == 1


def test_an_image_of_a_rare_size_does_not_wait_for_ever():
    def prepared(width: int) -> PreparedImage:
        return PreparedImage(torch.zeros(1, 3, 32, width), torch.ones(1, 32, width), (32, width))

    widths = [64, *[32] * 40]
    batches = []
    for indices, images in group_by_shape(map(prepared, widths), 4):
        assert len({image.pixel_values.shape for image in images}) == 1
        batches.append(indices)
    position = next(place for place, indices in enumerate(batches) if 0 in indices)
    assert sum(len(indices) for indices in batches[:position]) < 4 * WINDOW
    assert list(in_order((indices, indices) for indices in batches)) == list(range(41))


def test_eight_at_once_by_workers(detector):
    images = [natural_image().rotate(9 * index) for index in range(8)]
    alone = [detector.detect(image, LABELS)[0] for image in images]
    assert_same(detector.detect(images, LABELS, batch_size=8, num_workers=2), alone)
    # Exactly the same labels and number of boxes, as scores of neighbours differ by more than rounding.
    for found, expected in zip(detector.detect(images, LABELS, batch_size=8), alone, strict=True):
        assert torch.equal(found["labels"], expected["labels"])


# Workers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 3])
def test_items_come_in_order_and_bounded_ahead(num_workers):
    read = []

    def numbers():
        for number in range(100):
            read.append(number)
            yield number

    doubled = map_ahead(lambda number: 2 * number, numbers(), num_workers)
    assert [next(doubled) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(read) <= 5 + 2 * num_workers + 1
    assert list(doubled) == list(range(10, 200, 2))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_broken_image_is_raised_in_its_turn(detector, num_workers, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [natural_image(), natural_image(), tmp_path / "broken.jpg", natural_image()]
    results = detector.stream(images, LABELS, num_workers=num_workers)
    assert len([next(results) for _ in range(2)]) == 2
    with pytest.raises((OSError, ValueError), match=r"broken\.jpg"):
        next(results)


def test_the_next_item_is_made_meanwhile():
    made, seen = threading.Event(), []

    def items():
        yield 0
        made.set()
        yield 1

    for item in one_ahead(items()):
        # Set by the thread that makes the second one, before it is asked for.
        assert made.wait(10)
        seen.append(item)
    assert seen == [0, 1]


# Batches that fit ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_memory(detector, monkeypatch):
    """A device that holds four images; the sizes of the batches that went through it."""
    sizes, encode = [], detector.model.get_image_features
    auto = batch_size_module.AutoBatchSize()

    def encode_few(pixel_values, *args):
        if len(pixel_values) > 4:
            raise torch.OutOfMemoryError("more than four images")
        sizes.append(len(pixel_values))
        return encode(pixel_values, *args)

    monkeypatch.setattr(detector.model, "get_image_features", encode_few)
    monkeypatch.setattr(detector, "auto_batch_size", auto)
    # Of a GPU: the number of images follows from the memory.
    monkeypatch.setattr(
        detector, "_auto_images", lambda height, width: auto.images(height, width, torch.device("cuda"))
    )
    return sizes


def test_batches_grow_until_memory_is_full(detector, small_memory):
    images = [natural_image().rotate(5 * index) for index in range(27)]
    found = detector.detect(images, LABELS, batch_size="auto")
    assert small_memory == [1, 2, 4, 4, 4, 4, 4, 4]
    assert_same(found, detector.detect(images, LABELS))


def test_an_image_that_does_not_fit_alone_is_an_error(detector, monkeypatch):
    def never(*args):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(detector.model, "get_image_features", never)
    with pytest.raises(torch.OutOfMemoryError):
        detector.detect([natural_image()] * 3, LABELS, batch_size="auto")


def test_on_a_cpu_the_batch_follows_from_the_threads(detector, monkeypatch):
    sizes = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    hook = detector.model.model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    detector.detect([natural_image()] * 9, LABELS, batch_size="auto")
    hook.remove()
    assert sizes == [4, 4, 1]


@pytest.mark.parametrize(("value", "error"), [("most", ValueError), (0, ValueError), (1.5, TypeError)])
def test_wrong_batch_sizes(detector, value, error):
    with pytest.raises(error, match="batch_size"):
        detector.detect(natural_image(), LABELS, batch_size=value)
