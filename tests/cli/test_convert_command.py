"""`glipv2 convert`: names and files."""

import re

import pytest
from transformers import AutoModelForZeroShotObjectDetection

from tests.conversion.original_checkpoints import (
    bert_tokenizer_files,
    mmdetection_state,
    original_state,
    released_model,
    saved,
)
from transformers_glipv2.cli.main import run_command
from transformers_glipv2.conversion import released


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tokenizer, checkpoints of both kinds, and a cache in which glip-tiny is."""
    (tmp_path / "bert").mkdir()
    for name, content in bert_tokenizer_files().items():
        (tmp_path / "bert" / name).write_bytes(content)
    original = original_state(released_model())
    saved({"model": original}, tmp_path / "glip.pth")
    saved({"state_dict": mmdetection_state(original)}, tmp_path / "mmdet.pth")
    cached = tmp_path / "cache" / "glip-tiny"
    cached.mkdir(parents=True)
    (cached / released.SOURCE_FILE).write_text('{"format": 1}')
    (cached / "config.json").write_text("{}")
    monkeypatch.setenv("GLIPV2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("file", "kind"), [("glip.pth", "microsoft/GLIP"), ("mmdet.pth", "mmdetection")])
def test_files_of_both_kinds(folder, file, kind, capsys):
    assert run_command(["convert", file, "--output", "mine", "--tokenizer", "bert"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"A checkpoint of {kind}:\n")
    assert printed.endswith("Wrote mine.\n")
    AutoModelForZeroShotObjectDetection.from_pretrained("mine")


def test_names(folder, capsys):
    assert run_command(["convert", "glip-tiny"]) == 0
    printed = capsys.readouterr().out
    assert f"glip-tiny is in {folder / 'cache' / 'glip-tiny'}; every --model takes its name." in printed
    assert "licence MIT (microsoft/GLIP)" in printed
    assert run_command(["convert", "glip-tiny", "--output", "copy"]) == 0
    assert (folder / "copy" / "config.json").is_file()
    assert run_command(["convert", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[-len(released.RELEASED) :]} == set(released.RELEASED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass a released name .* or a checkpoint file"),
        (["glip.pth"], "pass --output FOLDER with a file"),
        (["none.pth", "--output", "mine"], r"There is no checkpoint at none\.pth"),
        (["glip-tiny", "--output", "bert"], "'bert' is there already; pass a folder that is new or empty"),
        (["bert/config.json", "--output", "mine"], r"must be a \.pth, \.pt, \.bin or \.safetensors file"),
    ],
)
def test_refusals_are_one_line(folder, arguments, message, capsys):
    assert run_command(["convert", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("glipv2 convert: error: ")
    assert re.search(message, line)
    assert not (folder / "mine").exists()
