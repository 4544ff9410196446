"""Noun phrases by rules; the pattern of a phrase is the original's."""

import json
import sys
from types import SimpleNamespace

import pytest

from tests.tiny_training import tiny_processor
from transformers_glipv2 import GLIPv2Processor, noun_phrases
from transformers_glipv2.noun_phrases import chunk_kinds, chunk_noun_phrases, find_noun_phrases

CAPTIONS = {
    "a red apple left of a wooden chair": ["a red apple", "a wooden chair"],
    "the man in the blue shirt holding two dogs": ["the man", "the blue shirt", "two dogs"],
    "A man standing next to a small dog.": ["A man", "a small dog"],
    "the woman's large blue bag, on the street": ["the woman", "large blue bag", "the street"],
    "the man\u2019s hat": ["the man", "hat"],
    "a girl feeds the ducks in front of the building": ["a girl", "the ducks", "the building"],
    "a man holds a dog and a dog holds a man": ["a man", "a dog", "a dog", "a man"],
    "a parking meter next to the dining table": ["a parking meter", "the dining table"],
    "Two people ride horses on the sandy beach": ["Two people", "horses", "the sandy beach"],
    "a cat sleeping on top of a laptop computer": ["a cat", "a laptop computer"],
    "an orange and a traffic light": ["an orange", "a traffic light"],
    "a potted plant and striped umbrellas": ["a potted plant", "striped umbrellas"],
    "several boats parked near the dock": ["several boats", "the dock"],
    "a very large elephant walking quickly": ["a very large elephant"],
    "the left chair and the top shelf": ["the left chair", "the top shelf"],
    "bananas on the left": ["bananas"],
    "A bathroom with a toilet, sink and shower.": ["A bathroom", "a toilet", "sink", "shower"],
    "a man wearing a red t-shirt throws a frisbee": ["a man", "a red t-shirt", "a frisbee"],
    "3 dogs": ["3 dogs"],
    "zebra": ["zebra"],
    "the sky is blue": ["the sky"],
    "How many dogs are there?": ["dogs"],
    "how many of the red cups are on the table": ["the red cups", "the table"],
    "how much water is in the glass?": ["water", "the glass"],
    "many dogs and how many cats": ["many dogs", "cats"],
    "what color is the cup?": ["the cup"],
    "Which kind of bird is on the color print?": ["bird", "the color print"],
    "she is running to them": [],
    "...": [],
    "": [],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions(caption):
    spans = chunk_noun_phrases(caption)
    assert [caption[start:end] for start, end in spans] == CAPTIONS[caption]
    assert spans == sorted(set(spans)), "equal phrases have spans of their own"


def kind_of_tag(tag):
    """The kind of a word from its Penn Treebank tag: DT, JJ*, NN*; the original takes no numbers or possessives in."""
    return "d" if tag == "DT" else "j" if tag.startswith("JJ") else "n" if tag.startswith("NN") else "x"


def test_pattern_of_the_original(reference_dir):
    """Given the original's tags of words."""
    cases = json.loads((reference_dir / "text" / "text.json").read_text())["run_ner_given_pos_tags"]
    assert len(cases) == 5
    for case in cases:
        spans, end = [], 0
        for word, _ in case["pos_tags"]:
            start = case["caption"].lower().index(word, end)
            end = start + len(word)
            spans.append((start, end))
        chunks = chunk_kinds("".join(kind_of_tag(tag) for _, tag in case["pos_tags"]))
        assert [[[spans[first][0], spans[stop - 1][1]]] for first, stop in chunks] == case["tokens_positive"]
        phrases = [case["caption"].lower()[spans[first][0] : spans[stop - 1][1]] for first, stop in chunks]
        assert phrases == case["noun_phrases"]


@pytest.fixture
def fresh_cache():
    noun_phrases._spacy_model.cache_clear()
    yield
    noun_phrases._spacy_model.cache_clear()


def test_nothing_depends_on_what_is_installed(monkeypatch, fresh_cache):
    monkeypatch.setitem(
        sys.modules, "spacy", SimpleNamespace(load=lambda name: pytest.fail("spaCy was not asked for"))
    )
    assert find_noun_phrases("a dog") == find_noun_phrases("a dog", "rules") == [(0, 5)]


def test_without_spacy(monkeypatch, fresh_cache):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r'needs spaCy .* `pip install "transformers-glipv2\[phrases\]"`'):
        find_noun_phrases("a dog", "spacy")


def test_what_asks_is_cut_from_the_chunks_of_spacy(monkeypatch, fresh_cache):
    question = "How many dogs have what color"
    chunks = [
        SimpleNamespace(start_char=start, end_char=end, root=SimpleNamespace(pos_="NOUN"))
        for start, end in ((0, 13), (19, 29))
    ]
    load = lambda name: lambda sentence: SimpleNamespace(noun_chunks=chunks)  # noqa: E731
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    assert [question[start:end] for start, end in find_noun_phrases(question, "spacy")] == ["dogs"]


def test_without_the_model_of_spacy(monkeypatch, fresh_cache):
    def load(name):
        raise OSError(f"[E050] Can't find model '{name}'.")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ImportError, match="python -m spacy download en_core_web_sm"):
        find_noun_phrases("a dog", "spacy")


def test_with_spacy(monkeypatch, fresh_cache):
    def chunk(start, end, part_of_speech):
        return SimpleNamespace(start_char=start, end_char=end, root=SimpleNamespace(pos_=part_of_speech))

    document = SimpleNamespace(noun_chunks=[chunk(0, 3, "PRON"), chunk(9, 14, "NOUN")])
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: lambda sentence: document))
    assert find_noun_phrases("she sees a dog", "spacy") == [(9, 14)]


def test_an_unknown_chunker(tmp_path):
    with pytest.raises(ValueError, match="noun phrases is 'nltk'; choose one of rules, spacy"):
        find_noun_phrases("a dog", "nltk")
    processor = tiny_processor()
    with pytest.raises(ValueError, match="'nltk'"):
        GLIPv2Processor(processor.image_processor, processor.tokenizer, phrase_chunker="nltk")
    GLIPv2Processor(processor.image_processor, processor.tokenizer, phrase_chunker="spacy").save_pretrained(tmp_path)
    assert GLIPv2Processor.from_pretrained(tmp_path).phrase_chunker == "spacy"
