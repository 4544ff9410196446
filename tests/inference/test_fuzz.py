"""
Random arguments of calls: each gives finite boxes within the limits, or an error that names the argument. Seeded, so
that every run tries the same.
"""

import dataclasses
import functools

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_fuzz import VALUES, fuzz
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import Detector
from transformers_glipv2.inference.options import LABEL_OPTIONS, DetectorOptions

GOOD = {
    "threshold": st.floats(0, 1),
    "pre_nms_threshold": st.floats(0, 1),
    "nms_threshold": st.floats(0, 1),
    "agnostic_nms": st.booleans(),
    "max_detections": st.integers(1, 30),
    "labels_per_prompt": st.integers(1, 4),
    "prompts_per_batch": st.integers(1, 3),
    "batch_size": st.integers(1, 3),
    "progress": st.just(False),
}
ARGUMENTS = {name: st.one_of(GOOD[name], VALUES) if name in GOOD else VALUES for name in LABEL_OPTIONS}


@functools.cache
def detector() -> Detector:
    return Detector(tiny_detector(), tiny_processor(), progress=False)


def check(options, labels):
    try:
        (found,) = detector().detect(natural_image(), labels, **options)
    except (TypeError, ValueError) as error:
        # A label that cannot be looked for is named itself.
        assert any(name in str(error) for name in (*options, "label")), error
    else:
        limits = dataclasses.replace(DetectorOptions(), **options)
        assert torch.isfinite(found["boxes"]).all() and (found["scores"] >= limits.threshold - 1e-6).all()
        assert (found["scores"] <= 1).all() and len(found["text_labels"]) == len(found["boxes"])


@fuzz
@given(st.fixed_dictionaries({}, optional=ARGUMENTS))
def test_random_options(options):
    check({"progress": False, **options}, LABELS)


@fuzz
@given(st.fixed_dictionaries({}, optional=GOOD))
def test_options_within_their_ranges_are_taken(options):
    detector().detect(natural_image(), LABELS, **options)


@fuzz
@given(st.one_of(VALUES, st.lists(st.text(max_size=8), max_size=4)))
def test_random_labels(labels):
    check({"threshold": 0.0}, labels)
