"""The `glipv2` command: how it starts, what it takes, and how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.scripts import REPOSITORY
from tests.tiny_detector import natural_image, tiny_detector, tiny_processor
from transformers_glipv2.cli.main import CommandGroup, run_command
from transformers_glipv2.cli.options import split_labels

COMMANDS = CommandGroup().list_commands(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A detector, an image, and a folder of two images and a broken one."""
    folder = tmp_path_factory.mktemp("command")
    tiny_detector().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    natural_image().save(folder / "image.png")
    (folder / "images" / "more").mkdir(parents=True)
    natural_image().save(folder / "images" / "a.jpg")
    natural_image(60, 60).save(folder / "images" / "more" / "a.png")
    (folder / "empty").mkdir()
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(autouse=True)
def at_home(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GLIPV2_TRACEBACK", raising=False)


DETECT = ["detect", "--model", "model", "--threshold", "0.01", "--labels"]


def test_help_needs_neither_torch_nor_the_package():
    code = """
import sys
from glipv2_command import defer_package
load = defer_package()
from transformers_glipv2.cli.main import CommandGroup, run_command
assert run_command(["--help"], load) == 0
for name in CommandGroup().list_commands(None):
    assert run_command([name, "--help"], load) == 0, name
assert run_command(["detect", "none.jpg", "--labels", "cat"], load) == 2
heavy = {"torch", "transformers", "PIL", "numpy", "datasets", "accelerate"} & sys.modules.keys()
assert not heavy, heavy
load()
import transformers
assert sys.modules["transformers_glipv2"].Detector
assert transformers.AutoConfig.for_model("glipv2").model_type == "glipv2"
"""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["cat,traffic light"], ["cat", "traffic light"]),
        (["cat", "dog , bird"], ["cat", "dog", "bird"]),
        (['"salt, coarse",cup'], ["salt, coarse", "cup"]),
        (["salt\\, coarse,cup"], ["salt, coarse", "cup"]),
        (["it's a cat"], ["it's a cat"]),
    ],
)
def test_labels_come_by_comma_and_by_repetition(values, labels):
    assert split_labels(values) == labels


def test_an_image_gives_lines_and_a_drawing(folder, capsys):
    assert run_command([*DETECT, "person,teddy bear", "image.png"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "Wrote outputs/detect/image.png."
    assert {line.split("  ")[1] for line in lines} == {"person", "teddy bear"}
    assert Image.open(folder / "outputs/detect/image.png").size == (130, 90)


def test_json_is_all_there_is_on_stdout(folder, capsys):
    out = ["--labels", "teddy bear", "--json", "--output", "drawn"]
    assert run_command([*DETECT, "person", *out, "image.png", "images"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["image"] for one in results] == ["image.png", "images/a.jpg", "images/more/a.png"]
    assert (results[2]["width"], results[2]["height"]) == (60, 60)
    assert results[0]["objects"][0].keys() == {"label", "score", "box"}
    assert sorted(path.name for path in (folder / "drawn").rglob("*.png")) == ["a.png", "a.png", "image.png"]


def test_batches_change_nothing(capsys):
    run_command([*DETECT, "person", "--json", "images"])
    one = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    run_command([*DETECT, "person", "--json", "--batch-size", "2", "images"])
    two = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["image"] for entry in one] == [entry["image"] for entry in two]
    for first, second in zip(one, two, strict=True):
        assert len(first["objects"]) == len(second["objects"])
        assert first["objects"][0]["box"] == pytest.approx(second["objects"][0]["box"], abs=0.05)


def test_images_that_cannot_be_read_are_left_out_and_reported(capsys):
    assert run_command([*DETECT, "person", "--json", "text.png", "image.png"]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["image"] for line in said.out.splitlines()] == ["image.png"]
    assert "text.png: The image file 'text.png' is not an image" in said.err
    assert "1 of 2 images could not be read" in said.err


SLIPS = [
    (["detct"], "No such command 'detct'"),
    (["detect", "image.png"], "Missing option '--labels'"),
    (["detect", "--labels", "cat"], "Missing argument"),
    ([*DETECT, "cat", "none.png"], "there is no file or folder 'none.png'"),
    ([*DETECT, "cat", "text.png"], "'text.png' is not an image"),
    ([*DETECT, "cat", "empty"], "holds no image files"),
    ([*DETECT, "cat,,dog", "image.png"], "empty label"),
    ([*DETECT, "", "image.png"], "empty label"),
    ([*DETECT, "cat", "image.png", "--lables", "x"], "No such option: --lables"),
    ([*DETECT, "cat", "image.png", "images", "--output", "one.png"], "pass a folder"),
    ([*DETECT, "cat", "image.png", "--output", "drawn.xyz"], "names no format of images"),
    ([*DETECT, "cat", "image.png", "--output", "text.png/drawn"], "is a file"),
    ([*DETECT, "cat", "http://127.0.0.1:9/a.png"], "not a public address"),
]
WRONG_VALUES = {
    "--threshold": ("5", "-0.1", "nan", "x"),
    "--nms_threshold": ("1.1", "inf"),
    "--batch_size": ("0", "-1", "1.5"),
    "--max_detections": ("0",),
    "--device": ("gpu", "cuda:x", "cuda:99", ""),
    "--model": ("none/at/all", "image.png", "empty", ""),
}
SLIPS += [
    ([*DETECT, "cat", "image.png", flag, value], flag) for flag, values in WRONG_VALUES.items() for value in values
]


@pytest.mark.parametrize(("args", "message"), SLIPS, ids=lambda value: str(value)[-40:])
def test_a_slip_is_one_line_and_code_2(args, message, capsys):
    assert run_command(args) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert message in line
    assert (line.startswith("glipv2 ") and ": error: " in line) or line.startswith("glipv2: error: ")
    assert said.out == ""


def test_a_fault_of_the_program_is_one_line_and_code_1(monkeypatch, capsys):
    def fail(*arguments, **options):
        return {}["nothing"]

    monkeypatch.setattr("transformers_glipv2.cli.predictions.load_checkpoint", fail)
    assert run_command([*DETECT, "cat", "image.png"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "glipv2 detect: unexpected error: KeyError: 'nothing' (set GLIPV2_TRACEBACK=1 to see where)"
    monkeypatch.setenv("GLIPV2_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run_command([*DETECT, "cat", "image.png"])
