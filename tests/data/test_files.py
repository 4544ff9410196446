"""Text files in any form that people have them in, and files that are there as a whole or not at all."""

import gzip
import json
from pathlib import Path

import pytest

from transformers_glipv2.data.answers import load_answer_vocabulary
from transformers_glipv2.data.files import read_json, read_lines, read_text, replaced_file, write_json, write_json_list
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.pseudo_boxes import load_pseudo_boxes

TEXT = "chien\nchâteau\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding, suffix):
    path, data = tmp_path / f"labels{suffix}", TEXT.encode(encoding)
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    assert read_text(path) == TEXT
    assert list(read_lines(path)) == ["chien", "château"]


@pytest.mark.parametrize(
    ("encoding", "named"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "Latin-1"), ("cp1252", "1252")]
)
@pytest.mark.parametrize("read", [read_text, read_json, lambda path: list(read_lines(path))])
def test_other_encodings_are_named_with_the_file(tmp_path, encoding, named, read):
    path = tmp_path / "labels.txt"
    path.write_bytes(TEXT.encode(encoding))
    with pytest.raises(ValueError, match=rf"labels\.txt.*{named}.*save it as UTF-8"):
        read(path)


def test_lines_name_where_they_are_not_text(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"one\ntwo\nth\xe9\n")
    lines = read_lines(path)
    assert [next(lines), next(lines)] == ["one", "two"]
    with pytest.raises(ValueError, match=r"labels\.txt, line 3 is not UTF-8"):
        next(lines)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1,]", b"[" * 100_000, b"[" + b"9" * 5000 + b"]", b"\x1f\x8b\x08cut off"]
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_broken_json_names_the_file(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(path)
    with pytest.raises(ValueError, match=r"a\.json"):
        load_coco(path)


def test_loaders_take_a_byte_order_mark(tmp_path):
    (tmp_path / "answers.json").write_bytes(json.dumps(["yes", "no"]).encode("utf-8-sig"))
    assert load_answer_vocabulary(tmp_path / "answers.json") == ["yes", "no"]
    entry = {"image": "a.png", "caption": "a dog", "width": 4, "height": 4}
    (tmp_path / "lines.jsonl").write_bytes(json.dumps(entry).encode("utf-8-sig"))
    assert load_pseudo_boxes(tmp_path / "lines.jsonl", tmp_path).records[0]["text"] == "a dog"


def test_files_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"path": Path("x"), "n": 1})
    assert read_json(path) == {"path": "x", "n": 1}

    def entries():
        yield 1
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        write_json_list(path, entries())
    with pytest.raises(RuntimeError, match="disk"), replaced_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("the disk is full")
    assert read_json(path) == {"path": "x", "n": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]
    assert write_json_list(path, iter([1, "b"])) == 2 and read_json(path) == [1, "b"]
    assert write_json_list(path, ()) == 0 and read_json(path) == []
