import json
import random
from collections import Counter

import pytest
from transformers import BertTokenizerFast

from transformers_glipv2.data.sampling import (
    DetectionSampler,
    greenlight_map,
    grounded_sentence,
    join_labels,
    token_counter,
)

from .stub_processor import tiny_tokenizer

CLASSES = [f"class {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120)]


def example(*categories, labels=CLASSES, **fields):
    return {"kind": "detection", "labels": labels, "objects": {"category": list(categories)}, **fields}


def test_every_box_points_at_its_name():
    sampler = DetectionSampler()
    for seed in range(30):
        text = sampler(example("class ad", "class aa", "class ad"), random.Random(seed))
        assert [text.text[a:b] for spans in text.spans for a, b in spans] == ["class ad", "class aa", "class ad"]
        names = text.text.split(". ")
        assert len(names) == len(set(names)) and 3 <= len(names) <= 87
        assert sorted(text.text[a:b] for a, b in text.maskable) == ["class aa", "class ad"]
        assert text.class_names == ["class ad", "class aa", "class ad"] and text.kept == [0, 1, 2]


def test_chances():
    always = DetectionSampler(full_probability=1.0, max_negatives=5)
    none = DetectionSampler(max_negatives=0)
    some = DetectionSampler(full_probability=0.0, max_negatives=5)
    counts = Counter()
    for seed in range(300):
        rng = random.Random(seed)
        assert len(always(example("class aa"), rng).text.split(". ")) == 6
        assert none(example("class aa"), rng).text == "class aa"
        counts[len(some(example("class aa"), rng).text.split(". ")) - 1] += 1
    assert set(counts) == {1, 2, 3, 4, 5} and min(counts.values()) > 30


def test_order_says_nothing():
    first = Counter()
    for seed in range(600):
        text = DetectionSampler(full_probability=1.0)(example("b", labels=["a", "b", "c"]), random.Random(seed))
        first[text.text[0]] += 1
    assert min(first.values()) > 150


def test_same_seed_same_sentence():
    sampler = DetectionSampler()
    assert sampler(example("class aa"), random.Random(5)) == sampler(example("class aa"), random.Random(5))
    assert sampler(example("class aa"), random.Random(5)) != sampler(example("class aa"), random.Random(6))


def test_known_absent_classes_are_the_only_negatives():
    text = DetectionSampler(full_probability=1.0)(
        example("dog", labels=["dog", "cat", "bear", "zebra"], negative_labels=["bear", "dog"]), random.Random(0)
    )
    assert sorted(text.text.split(". ")) == ["bear", "dog"]


def test_indices_and_cleaned_names():
    labels = ["traffic_light", "traffic light", "dog_(animal)"]
    clean = {"traffic_light": "traffic light", "dog_(animal)": "dog"}
    sampler = DetectionSampler(full_probability=1.0, clean=lambda names: [clean.get(name, name) for name in names])
    text = sampler(example(0, labels=labels), random.Random(0))
    assert sorted(text.text.split(". ")) == ["dog", "traffic light"], "an equal name is no negative"
    assert text.class_names == ["traffic light"]


def test_sentences_fit():
    tokenizer = tiny_tokenizer()
    for max_tokens in (1, 3, 10, 30):
        sampler = DetectionSampler(
            full_probability=1.0, max_tokens=max_tokens, count_tokens=token_counter(tokenizer), prefix=""
        )
        kept = Counter()
        for seed in range(20):
            text = sampler(example("class aa", "class ab", "class ac"), random.Random(seed))
            assert len(tokenizer(text.text, add_special_tokens=False)["input_ids"]) <= max_tokens
            assert [text.text[a:b] for spans in text.spans for a, b in spans] == text.class_names
            kept.update(text.kept)
        assert max_tokens < 10 or len(kept) == 3, "which class is cut changes from time to time"


def test_sentences_of_other_examples():
    grounding = {
        "kind": "grounding",
        "text": "a dog",
        "objects": {"bbox": [[0, 0, 1, 1]] * 2, "tokens_positive": [[[0, 5]], [[0, 1], [2, 5]]]},
    }
    text = grounded_sentence(grounding)
    assert text.spans == [[(0, 5)], [(0, 1), (2, 5)]] and text.class_names is None and text.maskable is None
    assert grounded_sentence({"kind": "vqa", "question": "what?", "answers": []}).text == "what?"
    assert grounded_sentence({"kind": "caption", "text": "a", "objects": {"bbox": [[0, 0, 1, 1]]}}).spans == [[]]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="max_negatives"):
        DetectionSampler(max_negatives=-1)
    with pytest.raises(ValueError, match="full_probability"):
        DetectionSampler(full_probability=1.1)


def golden(reference_dir, name):
    return json.loads((reference_dir / "text" / "text.json").read_text())[name]


def test_sentences_and_spans_of_the_original(reference_dir):
    """Given the original's choice and order of classes, sentence and spans are the original's."""
    checked = 0
    for case in golden(reference_dir, "od_to_grounding"):
        options, names = case["options"], case["ind_to_class"]
        if case["label_to_positions"] is None or any(names[i] == "__background__" for i in case["label_to_positions"]):
            continue
        prefix = "object detection : " if options["det_prompt"] else ""
        order = list(case["label_to_positions"])
        text, spans = join_labels([names[index] for index in order], options["sep"], prefix)
        assert text == case["caption"]
        assert [list(span) for span in spans] == [case["label_to_positions"][index] for index in order]

        labels = [names[index] for index in order]
        categories = [names[str(label)] for label in case["labels"]]
        sampler = DetectionSampler(
            options["neg"], full_probability=1.0, separator=options["sep"], prefix=prefix, shuffle=False
        )
        sampled = sampler(example(*categories, labels=labels), random.Random(0))
        assert sampled.text == case["caption"]
        expected = [[tuple(span) for span in entry["tokens_positive"]] for entry in case["annotations"]]
        assert sampled.spans == expected and len(sampled.kept) == case["n_boxes_kept"]
        assert set(sampled.maskable) == {tuple(span) for span in case["greenlight_spans"]}
        checked += 1
    assert checked >= 5


def test_greenlight_map_of_the_original(reference_dir):
    tokenizer = BertTokenizerFast(str(reference_dir / "text" / "vocab.txt"), do_lower_case=True)
    for case in golden(reference_dir, "create_greenlight_map"):
        # A span of three -1 is the original's sign for "mask nothing".
        spans = [] if [-1, -1, -1] in case["spans"] else case["spans"]
        encoded = tokenizer(case["caption"], return_offsets_mapping=True, return_special_tokens_mask=True)
        flags = greenlight_map(encoded["offset_mapping"], spans, encoded["special_tokens_mask"])
        assert flags == [value == 1 for value in case["greenlight_map_first20"]][: len(flags)]


def test_greenlight_map_without_spans():
    assert greenlight_map([(0, 0), (0, 3), (3, 4), (0, 0)], None) == [False, True, True, False]
    assert greenlight_map([(0, 0), (0, 3), (3, 4)], [(0, 3)]) == [False, True, False]
