import gzip
import json

import pytest

from transformers_glipv2.data.flickr30k import parse_sentence, read_annotation, read_sentences


def as_official(sentence):
    """A sentence in the words of the official parser."""
    phrases = [
        {
            "first_word_index": phrase.first_word,
            "phrase": phrase.text,
            "phrase_id": phrase.chain_id,
            "phrase_type": list(phrase.types),
        }
        for phrase in sentence.phrases
    ]
    return {"sentence": sentence.text, "phrases": phrases}


def test_odd_lines_as_the_official_parser(metrics_dir):
    cases = json.loads((metrics_dir / "flickr30k" / "parser_line_cases.json").read_text())
    for case in cases:
        assert as_official(parse_sentence(case["line"])) == case["parsed"], case["line"]
    assert len(cases) > 10


def test_files_as_the_official_parser(metrics_dir):
    folder = metrics_dir / "flickr30k" / "flickr30k_entities"
    with gzip.open(metrics_dir / "flickr30k" / "parsed.json.gz", "rt") as file:
        parsed = json.load(file)
    for picture, expected in parsed.items():
        sentences = read_sentences(folder / "Sentences" / f"{picture}.txt")
        assert [as_official(sentence) for sentence in sentences] == expected["sentences"]
        annotation = read_annotation(folder / "Annotations" / f"{picture}.xml")
        boxes = expected["annotations_glip_mdetr"]
        assert annotation.boxes == boxes["boxes"] and annotation.scene == boxes["scene"]
        assert annotation.no_box == boxes["nobox"]
        assert (annotation.width, annotation.height) == (boxes["width"], boxes["height"])
    assert len(parsed) == 36


def test_spans_are_the_phrases():
    sentence = parse_sentence("[/EN#5/people/other A  woman] holds [/EN#0/notvisual it] ]and [/EN#9/other a cup], x")
    assert sentence.text == "A woman holds it ]and a cup], x"
    assert [sentence.text[slice(*phrase.span)] for phrase in sentence.phrases] == ["A woman", "it"]
    assert sentence.phrases[0].types == ("people", "other") and sentence.phrases[1].chain_id == "0"
    assert parse_sentence("").text == "" and parse_sentence("[old] sign").phrases == ()


def test_a_file_that_is_no_annotation(tmp_path):
    path = tmp_path / "1.xml"
    for content in ("no xml", "<annotation/>", "<annotation><size><width>5</width></size></annotation>"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"1\.xml is not an annotation"):
            read_annotation(path)
