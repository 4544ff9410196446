"""Flags that all scripts share: ranges of numbers, and files and folders."""

import argparse
import json
import os
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from transformers_glipv2.cli import arguments
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ModelSource,
    OutputFile,
    OutputFolder,
    OutputImage,
    ScriptParser,
    check_paths,
)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("positive_int", {"1": 1, "300": 300}, ["0", "-1", "1.5", "nan", "1e3", "", "x", "9" * 400, "9" * 5000]),
        ("non_negative_int", {"0": 0, "7": 7}, ["-1", "0.5", "inf"]),
        ("seed_int", {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296"]),
        ("multiple_of_32", {"32": 32, "800": 800}, ["0", "31", "100", "-32"]),
        ("positive_float", {"1e-4": 1e-4, "3": 3.0}, ["0", "-1", "nan", "inf", "1e999", "x"]),
        ("non_negative_float", {"0": 0.0}, ["-1e-9", "nan", "inf"]),
        ("finite_float", {"-2.5": -2.5}, ["nan", "-inf"]),
        ("fraction", {"0": 0.0, "1": 1.0, "0.3": 0.3}, ["5", "-0.1", "nan", "1.0001"]),
        ("fraction_below_one", {"0": 0.0, "0.999": 0.999}, ["1", "-1", "nan"]),
    ],
)
def test_ranges_of_numbers(name, good, bad):
    number = getattr(arguments, name)
    assert {text: number(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            number(text)


def test_a_size_that_is_no_multiple_names_the_nearest():
    with pytest.raises(argparse.ArgumentTypeError, match=r"'100' .* multiple of 32 .*; take 96 or 128"):
        arguments.multiple_of_32("100")


@pytest.mark.parametrize(
    "text", ["nano", "a/b/c", "some one/nano", "user/na--me", "user/nano.git", "../x", "u/", "<u>/n"]
)
def test_names_that_the_hub_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no USER/NAME of the Hub"):
        arguments.repo_id(text)
    assert arguments.repo_id("some-one/glipv2_nano.v2") == "some-one/glipv2_nano.v2"


def parser() -> ScriptParser:
    made = ScriptParser("what it does")
    arguments.add_threshold(made)
    arguments.add_max_samples(made, "images")
    return made


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--threshold", "5"], "error: argument --threshold: '5' is not a number from 0 to 1"),
        (["--max_samples", "0"], "error: argument --max_samples: '0' is not an integer of at least 1"),
        (["--max_sample", "3"], "error: unrecognized arguments: --max_sample 3; did you mean --max_samples?"),
        (["--xyz"], "error: unrecognized arguments: --xyz; --help lists the flags"),
    ],
)
def test_a_wrong_flag_ends_with_one_line_and_code_2(given, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(given)
    assert stopped.value.code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.endswith(line)


def checkpoint(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "glipv2", **config}))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def test_paths_that_are_right_pass(tmp_path):
    (tmp_path / "file.json").write_text("{}")
    args = argparse.Namespace(
        data=InputFile(tmp_path / "file.json"),
        images=[InputFolder(tmp_path)],
        output=OutputFolder(tmp_path / "new" / "folder"),
        drawing=OutputImage(tmp_path / "new" / "drawn.JPG"),
        model=ModelSource(checkpoint(tmp_path / "model")),
        other=ModelSource("USER/glipv2-nano"),
        sets=ModelSource("outputs/{set}"),
        none=None,
    )
    assert check_paths(args) is args


def test_paths_that_are_wrong_name_flag_and_remedy(tmp_path):
    file = tmp_path / "file.json"
    file.write_text("{}")
    checkpoint(tmp_path / "bert", model_type="bert")
    checkpoint(tmp_path / "listed")
    (tmp_path / "listed" / "config.json").write_text("[]")
    checkpoint(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    checkpoint(tmp_path / "unsaved")
    (tmp_path / "unsaved" / "model.safetensors").unlink()
    for value, message in (
        (InputFile(tmp_path / "none"), "there is no file .*; check the path"),
        (InputFile(tmp_path), "a folder; pass a file"),
        (InputFolder(file), "a file; pass a folder"),
        (InputFolder(tmp_path / "none"), "there is no folder"),
        (OutputFolder(file), "a file; pass a folder"),
        (OutputFolder(file / "below"), "is a file; choose another path"),
        (OutputFile(tmp_path), "a folder; pass a file"),
        (OutputImage(tmp_path / "drawn.xyz"), r"'.xyz' names no format of images; take .png"),
        (OutputImage(tmp_path / "drawn"), "names no format of images"),
        (ModelSource(""), "empty"),
        (ModelSource(file), "a file; pass the folder"),
        (ModelSource(tmp_path / "none"), "there is no folder .*; pass a checkpoint's folder or a Hub id"),
        (ModelSource(tmp_path), "holds no config.json; pass a folder that `save_pretrained` wrote"),
        (ModelSource(tmp_path / "bert"), "a model of type 'bert'; pass a checkpoint of 'glipv2'"),
        (ModelSource(tmp_path / "listed"), "is no settings of a model"),
        (ModelSource(tmp_path / "cut"), "is damaged .*; copy or save it again"),
        (ModelSource(tmp_path / "unsaved"), "holds no .safetensors"),
    ):
        with pytest.raises(ValueError, match=f"--some_flag.*{message}") as error:
            check_paths(argparse.Namespace(some_flag=value))
        assert "\n" not in str(error.value)
        assert re.search(re.escape(str(value)), str(error.value))


@pytest.mark.parametrize(("wanted", "value"), [(os.R_OK, InputFile), (os.W_OK, OutputFile)])
def test_permissions(tmp_path, monkeypatch, wanted, value):
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != wanted)
    with pytest.raises(ValueError, match="cannot be"):
        check_paths(argparse.Namespace(image=value(tmp_path / "image.png")))
