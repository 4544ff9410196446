import gzip
import json

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from transformers_glipv2.data.augment import HorizontalFlip, flip_example
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.flickr30k import load_flickr30k, parse_sentence, read_annotation, read_sentences
from transformers_glipv2.data.mixed_grounding import load_mixed_grounding
from transformers_glipv2.data.schema import check_example

from .stub_processor import StubProcessor


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
    for image, expected in parsed.items():
        sentences = read_sentences(folder / "Sentences" / f"{image}.txt")
        assert [as_official(sentence) for sentence in sentences] == expected["sentences"]
        annotation = read_annotation(folder / "Annotations" / f"{image}.xml")
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


XML = """<annotation><size><width>40</width><height>30</height><depth>3</depth></size>{}</annotation>"""
OBJECT = "<object>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
LINES = [
    "[/EN#1/people A man] left of [/EN#2/other a left cup] sees [/EN#1/people it] .",
    "",
    "It is [/EN#0/x late] .",
]
# Names of the chains, x1, y1, x2, y2.
OBJECTS = [(["1"], 1, 2, 11, 22), (["1", "2"], 20, 5, 30, 25)]


def write(folder, lines, objects, image="17"):
    for name in ("Annotations", "Sentences", "images"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "images" / f"{image}.jpg")
    names = [("".join(f"<name>{name}</name>" for name in chains), *corners) for chains, *corners in objects]
    (folder / "Annotations" / f"{image}.xml").write_text(XML.format("".join(OBJECT.format(*o) for o in names)))
    (folder / "Sentences" / f"{image}.txt").write_text("\n".join(lines))
    (folder / "train.txt").write_text(f"{image}\n")
    return folder, folder / "images"


LINES = [
    "[/EN#1/people A man] left of [/EN#2/other a left cup] sees [/EN#1/people it] .",
    "",
    "It is [/EN#0/x late] .",
]
OBJECTS = [(["1"], 1, 2, 11, 22), (["1", "2"], 20, 5, 30, 25)]


def test_examples(tmp_path):
    dataset = load_flickr30k(*write(tmp_path, LINES, OBJECTS))
    assert len(dataset) == 2 and dataset.report.counts == {}
    example = dataset[0]
    check_example(example)
    assert (
        example["text"] == "A man left of a left cup sees it ."
        and example["image_id"] == 17
        and example["sentence_id"] == 0
    )
    assert example["objects"]["bbox"] == [[1, 2, 10, 20], [20, 5, 10, 20]]
    assert example["objects"]["tokens_positive"] == [[[0, 5], [30, 32]], [[0, 5], [14, 24], [30, 32]]]
    assert example["objects"]["phrase"] == ["A man", "A man"]
    assert dataset[1]["objects"]["bbox"] == [] and dataset[1]["sentence_id"] == 1
    assert len(load_flickr30k(*write(tmp_path, LINES, OBJECTS), keep_empty=False)) == 1
    merged = load_flickr30k(tmp_path, tmp_path / "images", merge_boxes=True)[0]["objects"]
    assert merged["bbox"] == [[1, 2, 29, 23], [20, 5, 10, 20]]


def test_streams_give_the_same(tmp_path):
    files = write(tmp_path, LINES, [*OBJECTS, (["2"], 5, 5, 5, 9)])
    dataset, stream = load_flickr30k(*files), load_flickr30k(*files, streaming=True)
    for _ in range(2):
        assert list(stream) == list(dataset)
        assert stream.report.counts == dataset.report.counts == {"degenerate": 1}
    workers = list(
        DataLoader(stream, batch_size=None, num_workers=2, collate_fn=lambda example: example["sentence_id"])
    )
    assert sorted(workers) == [0, 1]
    assert list(dataset.stream()) == list(dataset)


@pytest.mark.parametrize(
    ("problem", "lines", "objects"),
    [
        ("degenerate", LINES, [*OBJECTS, (["2"], 5, 5, 5, 9)]),
        ("out_of_image", LINES, [*OBJECTS, (["2"], 5, 5, 50, 9)]),
        ("empty_text", [*LINES, " "], OBJECTS),
        ("bad_span", ["[/EN#2/other ] [/EN#1/other a cup]"], [(["1"], 1, 1, 4, 4), (["2"], 6, 6, 9, 9)]),
        ("bad_entry", LINES, [(["1"], "x", 1, 4, 4)]),
    ],
)
def test_bad_entries_are_counted_or_refused(tmp_path, problem, lines, objects):
    files = write(tmp_path, lines, objects)
    dataset = load_flickr30k(*files)
    assert dataset.report.counts == {problem: 1} and "the first: " in dataset.report.summary()
    with pytest.raises(ValueError, match="policy"):
        load_flickr30k(*files, policy="refuse")


def test_missing_files(tmp_path):
    folder, images = write(tmp_path, LINES, OBJECTS)
    with pytest.raises(FileNotFoundError, match="lists found: train"):
        load_flickr30k(folder, images, "test")
    (images / "17.jpg").unlink()
    assert list(load_flickr30k(folder, images, streaming=True)) == []
    (folder / "Annotations" / "17.xml").unlink()
    assert load_flickr30k(folder, images).report.counts == {"bad_entry": 1}


def test_flips_keep_the_words_of_each_box(tmp_path):
    example = load_flickr30k(*write(tmp_path, LINES, OBJECTS))[0]
    flipped = flip_example(example)
    assert flipped["text"] == "A man right of a right cup sees it ."
    words = [[flipped["text"][a:b] for a, b in spans] for spans in flipped["objects"]["tokens_positive"]]
    assert words == [["A man", "it"], ["A man", "a right cup", "it"]]
    assert flipped["objects"]["bbox"] == [[29, 2, 10, 20], [10, 5, 10, 20]]
    again = flip_example(flipped)
    assert again["text"] == example["text"] and again["objects"] == example["objects"]
    processor = StubProcessor()
    GroundingCollator(processor, augment=HorizontalFlip(1.0), sizes=[480, 800], max_size=1333)([example])
    call = processor.calls[0]
    assert call["text"] == [flipped["text"]] and call["size"]["shortest_edge"] in (480, 800)
    annotation = call["annotations"][0]
    assert [[list(span) for span in box] for box in annotation["spans"]] == flipped["objects"]["tokens_positive"]
    assert annotation["boxes"].tolist() == flipped["objects"]["bbox"]


@pytest.mark.parametrize("merge", [False, True])
def test_examples_as_the_published_files(metrics_dir, tmp_path, merge):
    """The conversion that MDETR and GLIP were trained on, but for which of two nearly equal boxes stays."""
    root = metrics_dir / "flickr30k"
    name = "mergedGT" if merge else "separateGT"
    # Annotations alone are compared, but a folder without any image would be refused.
    (tmp_path / "741999.jpg").touch()
    published = load_mixed_grounding(root / f"final_flickr_{name}_test.json.gz", tmp_path)
    ours = load_flickr30k(root / "flickr30k_entities", root, "test", merge_boxes=merge)
    assert len(published) == len(ours) == 169 and ours.report.counts == published.report.counts
    equal_boxes = 0
    for theirs, mine in zip(published.records, ours.records, strict=True):
        assert theirs["text"] == mine["text"] and theirs["original_image_id"] == mine["image_id"]
        assert (theirs["width"], theirs["height"]) == (mine["width"], mine["height"])
        spans = [sorted(sorted(spans) for spans in record["objects"]["tokens_positive"]) for record in (theirs, mine)]
        assert spans[0] == spans[1]
        equal_boxes += sorted(theirs["objects"]["bbox"]) == sorted(mine["objects"]["bbox"])
    assert equal_boxes >= 155
