"""One model in many threads, as in a service: what each gets, and how much of the texts is kept."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from transformers import pipeline

from tests.tiny import tiny_config
from tests.tiny_detector import natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2ForInstanceSegmentation, detect_labels, segment_labels

THREADS = 8
WORDS = ["person", "dog", "traffic light", "umbrella", "teddy bear", "dining table", "zebra", "cat", "red wine glass"]
# Of different lengths.
VOCABULARIES = [WORDS[start : start + 1 + start % 4] for start in range(9)]


@pytest.fixture(scope="module")
def model() -> GLIPv2ForInstanceSegmentation:
    torch.manual_seed(0)
    model = GLIPv2ForInstanceSegmentation(tiny_config()).eval()
    model.load_state_dict(tiny_detector().state_dict(), strict=False)
    return model


def in_threads(work: Callable[[int], object], rounds: int = 4) -> list:
    """`work` of every vocabulary, several times over, in an order that mixes them; all threads start at once."""
    barrier = Barrier(THREADS)
    order = [(5 * place) % len(VOCABULARIES) for place in range(rounds * len(VOCABULARIES))]

    def start(thread: int) -> list:
        barrier.wait(60)
        return [(index, work(index)) for index in order[thread::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        return [pair for pairs in pool.map(start, range(THREADS)) for pair in pairs]


def test_many_vocabularies_in_threads(model):
    processor, image = tiny_processor(), natural_image()
    expected = [detect_labels(model, processor, image, labels)[0] for labels in VOCABULARIES]

    def work(index: int):
        (found,) = detect_labels(model, processor, image, VOCABULARIES[index])
        return found

    results = in_threads(work)
    assert len(results) == 4 * len(VOCABULARIES)
    for index, found in results:
        assert len(found["scores"]) > 0
        assert found["text_labels"] == expected[index]["text_labels"]
        torch.testing.assert_close(found["scores"], expected[index]["scores"])
        torch.testing.assert_close(found["boxes"], expected[index]["boxes"])


def test_masks_in_threads(model):
    processor, images = tiny_processor(), [natural_image(60 + 5 * index, 90) for index in range(len(VOCABULARIES))]

    def work(index: int):
        (found,) = segment_labels(model, processor, images[index], VOCABULARIES[index], max_detections=5)
        return found

    expected = [work(index) for index in range(len(VOCABULARIES))]
    for index, found in in_threads(work, 2):
        torch.testing.assert_close(found["scores"], expected[index]["scores"])
        assert found["masks"] == expected[index]["masks"]


def test_one_pipeline_in_threads(model):
    processor, image = tiny_processor(), natural_image()
    detector = pipeline(
        "zero-shot-object-detection",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )
    expected = [detector(image, candidate_labels=labels) for labels in VOCABULARIES]
    for index, found in in_threads(lambda index: detector(image, candidate_labels=VOCABULARIES[index]), 2):
        assert [(one["label"], one["box"]) for one in found] == [(one["label"], one["box"]) for one in expected[index]]
        scores = [one["score"] for one in expected[index]]
        assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-6)


def test_weights_that_change_between_calls_are_noticed_by_all_threads(model):
    processor, image = tiny_processor(), natural_image()
    changed = GLIPv2ForInstanceSegmentation(tiny_config()).eval()
    changed.load_state_dict(model.state_dict())
    labels = VOCABULARIES[0]
    (before,) = detect_labels(changed, processor, image, labels)
    with torch.no_grad():
        for parameter in changed.model.text_encoder.parameters():
            parameter.mul_(1.5)
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda _: detect_labels(changed, processor, image, labels)[0], range(THREADS)))
    for found in results:
        torch.testing.assert_close(found["scores"], results[0]["scores"])
    assert not torch.allclose(results[0]["scores"][:5], before["scores"][:5], atol=1e-3)
