"""Labels, spans and tokens: what the original gives, and what no vocabulary may break."""

import json
import logging
from itertools import pairwise

import pytest
import torch
from transformers import BertTokenizerFast

from tests.data.stub_processor import tiny_tokenizer
from transformers_glipv2.prompts import (
    LabelPrompt,
    TokenFinder,
    arrange_text,
    check_labels,
    check_spans,
    clean_label,
    clean_labels,
    count_tokens,
    join_labels,
    label_map,
    label_prompt,
    positive_map,
    prompt_tokens,
    spans_to_tokens,
    split_labels,
)


@pytest.fixture(scope="module")
def text_cases(reference_dir) -> dict:
    return json.loads((reference_dir / "text" / "text.json").read_text())


@pytest.fixture(scope="module")
def bert(reference_dir) -> BertTokenizerFast:
    return BertTokenizerFast(vocab=str(reference_dir / "text" / "vocab.txt"), model_max_length=512)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def offsets_of(tokenizer, text: str) -> list[tuple[int, int]]:
    return tokenizer(text, return_offsets_mapping=True)["offset_mapping"]


# Against the original ------------------------------------------------------------------------------------------------


def test_clean_label(text_cases):
    for case in text_cases["clean_name"]:
        assert clean_label(case["input"]) == case["output"]


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["traffic_light", "stingray_(fish)", "dog"], ["traffic light", "stingray", "dog"]),
        (["crane (bird)", "crane (machine)", "dog"], ["crane (bird)", "crane (machine)", "dog"]),
        (["crane", "crane (bird)"], ["crane", "crane (bird)"]),
        (["Crane_(bird)", "crane"], ["Crane_(bird)", "crane"]),
        (["(other)", "_", "cat"], ["(other)", "_", "cat"]),
        (["a_b", "a b", "a b (c)"], ["a_b", "a b", "a b (c)"]),
        (["a   b", "a  b", "a b"], ["a   b", "a  b", "a b"]),
        (["dog", "dog"], ["dog", "dog"]),
        ([" dog ", "cat_"], ["dog", "cat"]),
        ([], []),
    ],
)
def test_class_names_stay_different_and_not_empty(names, written):
    assert clean_labels(names) == written
    assert clean_labels(written) == written, "cleaning twice changes nothing"


def test_kept_class_names_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        clean_labels(["bat (animal)", "bat (stick)", "(none)", "tree_(plant)"])
        assert "stay: 'bat (animal)', 'bat (stick)', '(none)'." in caplog.text
        clean_labels(["emu", "emu", "eel"])
        assert "one class to the model: 'emu'." in caplog.text


def test_queries_and_label_tokens(text_cases, bert):
    assert len(text_cases["create_queries_and_maps"]) == 8
    for case in text_cases["create_queries_and_maps"]:
        names = case["label_list"] + (case["additional_labels"] or [])
        text, spans = join_labels(names, case["separation_tokens"])
        assert text == case["query"]
        assert bert(text)["input_ids"] == case["tokenized"]["input_ids"]
        tokens = spans_to_tokens([[span] for span in spans], case["tokenized"]["offsets"])
        expected = [case["positive_map_label_to_token"][str(label)] for label in case["labels"]]
        assert tokens[: len(expected)] == expected
        if case["separation_tokens"] == ". ":
            assert prompt_tokens(label_prompt(names), bert) == (tokens, len(case["tokenized"]["input_ids"]))


def test_queries_of_a_data_set(text_cases, bert):
    """With and without chunks of eight labels."""
    for case in text_cases["create_queries_and_maps_from_dataset"]:
        ids = [int(key) for key in case["categories"]]
        labels = [clean_label(name) for name in case["categories"].values()]
        prompts = split_labels(labels, bert, 256, None if case["chunk"] < 0 else case["chunk"])
        assert [prompt.text for prompt in prompts] == case["queries"]
        for prompt, expected in zip(prompts, case["maps"], strict=True):
            tokens, _ = prompt_tokens(prompt, bert)
            found = {str(ids[index]): own for index, own in zip(prompt.indices, tokens, strict=True)}
            assert found == expected


def test_prompts_of_the_demo(text_cases, bert):
    for case in text_cases["demo_compute_prediction"]:
        text, spans = join_labels(case["input"], separator=" . ")
        text += " . "
        assert [text] == case["caption"]
        tokens = spans_to_tokens([[span] for span in spans], offsets_of(bert, text))
        assert {str(index + 1): own for index, own in enumerate(tokens)} == case["positive_map"]


def test_positive_maps(text_cases, bert):
    assert len(text_cases["create_positive_map"]) == 6
    for case in text_cases["create_positive_map"]:
        offsets = offsets_of(bert, case["caption"])
        assert [list(offset) for offset in offsets] == case["tokenized"]["offsets"]
        tokens = spans_to_tokens(case["tokens_positive"], offsets)
        assert tokens == [case["label_to_token_plus1"][str(index + 1)] for index in range(len(tokens))]
        expected = torch.zeros(len(tokens), 256)
        for row, (places, values) in zip(expected, case["nonzero_idx_and_values"], strict=True):
            row[places] = torch.tensor(values)
        torch.testing.assert_close(positive_map(tokens, 256), expected, atol=0, rtol=0)


def test_label_of_each_token(text_cases, bert):
    for case in text_cases["create_positive_map_for_od_labels"]:
        tokens = spans_to_tokens(
            [[span] for span in case["label_to_positions"].values()], offsets_of(bert, case["caption"])
        )
        labels = [float(case["fill"])] * 20
        for label, own in zip(case["label_to_positions"], tokens, strict=True):
            for token in own:
                labels[token] = float(label)
        assert labels == case["map_first20"]


# Characters to tokens ------------------------------------------------------------------------------------------------


def test_equal_words_stay_apart(tokenizer):
    text = "dog. dog. a dog"
    tokens = spans_to_tokens([[(0, 3)], [(5, 8)], [(12, 15)], [(0, 3), (12, 15)]], offsets_of(tokenizer, text))
    assert tokens == [[1], [3], [6], [1, 6]]


def test_pieces_of_a_word_belong_to_it(tokenizer):
    (own,) = spans_to_tokens([[(2, 4)]], offsets_of(tokenizer, "a xy zebra"))
    assert tokenizer.convert_ids_to_tokens([tokenizer("a xy zebra")["input_ids"][token] for token in own]) == [
        "x",
        "##y",
    ]


def test_padding_and_truncation(tokenizer):
    left = tokenizer("a dog", padding="max_length", max_length=7, padding_side="left", return_offsets_mapping=True)
    assert spans_to_tokens([[(2, 5)]], left["offset_mapping"]) == [[5]]
    cut = tokenizer("a dog and a cat", truncation=True, max_length=4, return_offsets_mapping=True)
    assert spans_to_tokens([[(2, 5)], [(12, 15)]], cut["offset_mapping"]) == [[2], []]


def test_characters_of_several_tokens():
    """Byte-level tokenizers write one letter as several tokens with the same offsets."""
    finder = TokenFinder([(0, 0), (0, 1), (2, 3), (2, 3), (2, 3), (4, 5), (0, 0)])
    assert (finder.first(2), finder.last(2)) == (2, 4)
    assert list(finder.tokens((2, 3))) == [2, 3, 4]
    assert list(finder.tokens((0, 5))) == [1, 2, 3, 4, 5]
    assert finder.first(3) is None and finder.last(9) is None and finder.first(-1) is None


def test_no_tokens_no_span():
    assert spans_to_tokens([[], [(0, 1)]], [(0, 0), (0, 0)]) == [[], []]
    assert positive_map([[], [1]], 3).tolist() == [[0, 0, 0], [0, pytest.approx(1, abs=2e-6), 0]]
    assert positive_map([], 3).shape == (0, 3)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
def test_label_map_follows_padding(mask):
    named = label_map([[1], [1, 2]], torch.tensor(mask))
    start = mask.index(1)
    assert named.nonzero().tolist() == [[0, start + 1], [1, start + 1], [1, start + 2]]


# Prompts -------------------------------------------------------------------------------------------------------------


def test_long_vocabularies(tokenizer):
    words = ["dog", "traffic light", "zebra", "xyz", "wine glass"]
    labels = [words[index % 5] for index in range(203)]
    prompts = split_labels(labels, tokenizer, max_tokens=64)
    assert [index for prompt in prompts for index in prompt.indices] == list(range(203))
    lengths = count_tokens([prompt.text for prompt in prompts], tokenizer, special=True)
    assert max(lengths) <= 64
    for prompt, following in pairwise(prompts):
        assert [prompt.text[start:end] for start, end in prompt.spans] == [labels[index] for index in prompt.indices]
        fuller, _ = join_labels([labels[index] for index in prompt.indices] + [labels[following.indices[0]]])
        assert count_tokens([fuller], tokenizer, special=True)[0] > 64, "the next label would have fitted"


def test_labels_per_prompt(tokenizer):
    prompts = split_labels(["dog"] * 7, tokenizer, max_tokens=64, labels_per_prompt=3)
    assert [prompt.indices for prompt in prompts] == [[0, 1, 2], [3, 4, 5], [6]]
    assert prompts[2] == LabelPrompt("dog", [(0, 3)], [6])


class SpaceTokenizer:
    unk_token_id = None

    """Counts characters, and one more for each space inside, so that lengths do not add up."""

    def __call__(self, texts, add_special_tokens, **kwargs):
        return {"input_ids": [[0] * (len(text) + 3 * text.count(". ")) for text in texts]}

    def num_special_tokens_to_add(self):
        return 0


def test_lengths_that_do_not_add_up():
    prompts = split_labels(["abcd", "efgh", "ij"], SpaceTokenizer(), max_tokens=12)
    assert [prompt.indices for prompt in prompts] == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], ValueError, "`labels` is empty; pass at least one label"),
        (["dog", ""], ValueError, r"`labels\[1\]` is ''; every label needs at least one word"),
        (["dog", " \t"], ValueError, r"`labels\[1\]`"),
        (["dog", 3], TypeError, r"`labels\[1\]` must be a string, got int 3"),
        ("dog", TypeError, "got str 'dog'; put one label in a list"),
        (None, TypeError, "must be a list of strings, got NoneType"),
        (["dog", "zyx" * 30], ValueError, r"`labels\[1\]` is '(zyx)+', 90 tokens long, but a prompt holds 62"),
    ],
)
def test_bad_labels(tokenizer, labels, error, message):
    with pytest.raises(error, match=message):
        split_labels(labels, tokenizer, max_tokens=64)


def test_bad_number_of_labels(tokenizer):
    with pytest.raises(ValueError, match="`labels_per_prompt` must be at least 1, got 0"):
        split_labels(["dog"], tokenizer, 64, labels_per_prompt=0)


def test_label_without_tokens(tokenizer):
    """A zero-width space is neither white space for Python nor a word for the tokenizer."""
    check_labels(["dog", "\u200b"])
    with pytest.raises(ValueError, match=r"finds no word in the label '\\u200b'"):
        prompt_tokens(label_prompt(["dog", "\u200b"]), tokenizer)


@pytest.mark.parametrize(
    ("span", "error"),
    [((3, 3), ValueError), ((-1, 2), ValueError), ((0, 6), ValueError), ((0.0, 2), TypeError), (7, TypeError)],
)
def test_bad_spans(span, error):
    with pytest.raises(error, match=r"`phrases\[1\]`"):
        check_spans([(0, 5), span], "a dog", "phrases")


# Texts of a batch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "images", "sentences", "has_labels"),
    [
        ("a dog", None, ["a dog"], False),
        ("a dog", 2, ["a dog", "a dog"], False),
        (["a dog", "a cat"], 2, ["a dog", "a cat"], False),
        (["a dog", "a cat"], None, ["a dog", "a cat"], False),
        (["dog"], 1, ["dog"], False),
        (["dog", "cat"], 1, ["dog. cat"], True),
        ([["dog", "cat"]], 1, ["dog. cat"], True),
        ([["dog", "cat"]], 3, ["dog. cat"] * 3, True),
        ([("dog", "cat"), ["zebra"]], 2, ["dog. cat", "zebra"], True),
        ([["dog", "cat"], ["zebra"]], None, ["dog. cat", "zebra"], True),
    ],
)
def test_forms_of_text(text, images, sentences, has_labels):
    found, spans = arrange_text(text, images)
    assert found == sentences
    assert (spans is not None) == has_labels
    for sentence, own in zip(found, spans or (), strict=has_labels):
        assert ". ".join(sentence[start:end] for start, end in own) == sentence


@pytest.mark.parametrize(
    ("text", "images", "error", "message"),
    [
        (["a dog", "a cat"], 3, ValueError, r"`text` has 2 sentences for 3 images; .*`\[labels\]`"),
        (["a dog", "a cat", "a zebra"], 2, ValueError, "`text` has 3 sentences for 2 images"),
        ([["dog"], ["cat"]], 3, ValueError, "`text` has 2 lists of labels for 3 images"),
        ([["dog"], ["cat"], ["zebra"]], 1, ValueError, "`text` has 3 lists of labels for 1 images"),
        ([], 1, ValueError, "`text` is empty"),
        ([[]], 1, ValueError, r"`text\[0\]` is empty; pass at least one label"),
        ("", 1, ValueError, "`text` is ''"),
        (["a dog", " "], 2, ValueError, r"`text\[1\]` is ' '"),
        (["dog", ""], 1, ValueError, r"`text\[1\]` is ''"),
        ([["dog"], "cat"], 2, TypeError, r"`text\[1\]` must be a list of strings, got str 'cat'"),
        (["a dog", 5], 2, TypeError, r"`text\[1\]` must be a string, got int 5"),
        (5, 1, TypeError, "`text` must be a sentence, .* got int 5"),
        ({"dog"}, 1, TypeError, "got set"),
    ],
)
def test_bad_text(text, images, error, message):
    with pytest.raises(error, match=message):
        arrange_text(text, images)
