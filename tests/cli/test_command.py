"""The `glipv2` command: how it starts, what it takes, and how it ends."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.scripts import REPOSITORY
from tests.tiny_detector import natural_image, save_tiny_heads
from transformers_glipv2.cli.main import CommandGroup, run_command
from transformers_glipv2.cli.options import split_labels

# Their options are not those of the commands for images.
TESTED_ELSEWHERE = {"convert", "data", "evaluate", "export", "predict", "push", "train"}
COMMANDS = CommandGroup().list_commands(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, an image, and a folder of two images and a broken one."""
    folder = tmp_path_factory.mktemp("command")
    save_tiny_heads(folder)
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


@pytest.mark.parametrize("batch_size", ["2", "auto"])
def test_batches_change_nothing(batch_size, capsys):
    run_command([*DETECT, "person", "--json", "images"])
    one = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    run_command([*DETECT, "person", "--json", "--batch-size", batch_size, "images"])
    two = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["image"] for entry in one] == [entry["image"] for entry in two]
    for first, second in zip(one, two, strict=True):
        assert len(first["objects"]) == len(second["objects"])
        assert first["objects"][0]["box"] == pytest.approx(second["objects"][0]["box"], abs=0.05)


def test_the_backends_find_the_same_boxes(folder, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("GLIPV2_CACHE", str(folder / "cache"))
    found = []
    for backend in ("torch", "onnx"):
        assert run_command([*DETECT, "person,table", "--json", "--backend", backend, "image.png"]) == 0
        found.append(json.loads(capsys.readouterr().out)["objects"])
    assert list((folder / "cache" / "onnx").glob("*/tower.onnx"))
    assert len(found[0]) == len(found[1]) > 3
    for one, other in zip(*found, strict=True):
        assert (one["label"], one["score"]) == (other["label"], pytest.approx(other["score"], abs=1e-4))
        assert one["box"] == pytest.approx(other["box"], abs=0.05)


def test_images_that_cannot_be_read_are_left_out_and_reported(capsys):
    assert run_command([*DETECT, "person", "--json", "text.png", "image.png"]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["image"] for line in said.out.splitlines()] == ["image.png"]
    assert "text.png: The image file 'text.png' is not an image" in said.err
    assert "1 of 2 images could not be read" in said.err


def results_of(args: list[str], capsys) -> list[dict]:
    """The JSON lines of a command that must succeed."""
    assert run_command([*args, "--threshold", "0", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_phrases_are_grounded(capsys):
    args = ["ground", "image.png", "images", "--model", "model", "--text", "a cat on a table"]
    results = results_of(args, capsys)
    assert len(results) == 3
    assert {one["label"] for one in results[0]["objects"]} == {"a cat", "a table"}
    results = results_of([*args, "--phrases", "cat", "--top_k", "3"], capsys)
    assert {one["label"] for one in results[0]["objects"]} == {"cat"}
    assert len(results[0]["objects"]) == 3


@pytest.mark.parametrize("asked", [["--labels", "cat,dog"], ["--phrase", "a black cat"]])
def test_masks_are_those_that_pycocotools_reads(asked, capsys):
    pycocotools = pytest.importorskip("pycocotools.mask")
    (result,) = results_of(["segment", "image.png", "--model", "masks", *asked], capsys)
    mask = pycocotools.decode(result["objects"][0]["mask"])
    assert mask.shape == (90, 130)


def test_questions_are_answered(capsys):
    (result,) = results_of(["ask", "image.png", "--model", "model", "-q", "is the cat black?"], capsys)
    assert {one["answer"] for one in result["answers"]} == {"yes", "no", "red"}
    assert run_command(["ask", "image.png", "--model", "model", "-q", "is the cat black?", "--top_k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("  ")[1] == result["answers"][0]["answer"]


def test_images_are_described(capsys):
    args = ["caption", "images", "--model", "model", "--num_beams", "1", "--max_new_tokens", "3", "--prefix", "a cat"]
    results = results_of(args, capsys)
    assert [one["image"] for one in results] == ["images/a.jpg", "images/more/a.png"]
    assert all(one["caption"].startswith("a cat") for one in results)


def test_the_demo_needs_no_image(folder, capsys):
    assert run_command(["demo", "--model", "model", "--threshold", "0"]) == 0
    assert "person" in capsys.readouterr().out
    assert Image.open(folder / "outputs/detect/astronaut.png").size == (512, 512)


def test_the_doctor_says_what_is_installed(capsys):
    assert run_command(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["devices"][-1]["device"] == "cpu"
    assert found["extras"]["train"] == []
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert found["extras"].keys() == extras.keys() - {"docs", "dev"}
    assert run_command(["doctor"]) == 0
    assert found["versions"]["transformers"] in capsys.readouterr().out


def test_the_doctor_names_what_is_missing(monkeypatch, capsys):
    have = importlib.metadata.version
    lower = {"peft": "0.1", "accelerate": None}

    def version(name):
        if lower.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return lower.get(name) or have(name)

    monkeypatch.setattr("transformers_glipv2.cli.diagnosis.version", version)
    monkeypatch.setattr("transformers_glipv2.cli.diagnosis.constants.ENDPOINT", "http://127.0.0.1:9")
    assert run_command(["doctor", "--check_hub"]) == 0
    said = capsys.readouterr().out
    assert 'pip install "transformers-glipv2[train]" for `glipv2 train` and `glipv2 predict` (missing: accel' in said
    assert "the Hub cannot be reached" in said


SLIPS = [
    (["detct"], "No such command 'detct'"),
    (["detect", "image.png", "--model", "model"], "no labels to look for"),
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
    (["ground", "image.png", "--model", "model", "--text", "a cat", "--phrases", "dog"], "'dog', which is no part"),
    (["segment", "image.png", "--model", "masks"], "no labels to look for"),
    (["segment", "image.png", "--model", "masks", "--labels", "a", "--phrase", "b"], "or one phrase by --phrase"),
    (["segment", "image.png", "--model", "model", "--labels", "cat"], "no weights for mask_head"),
    (["ask", "image.png", "--model", "masks", "--question", "what?"], "no weights for answer_head"),
    (["ask", "image.png", "--model", "model", "--question", ""], "question"),
    (["caption", "image.png", "--model", "masks"], "no weights for caption_head"),
    ([*DETECT, "cat", "http://127.0.0.1:9/a.png"], "not a public address"),
]
WRONG_VALUES = {
    "--threshold": ("5", "-0.1", "nan", "x"),
    "--mask_threshold": ("1.1", "nan"),
    "--nms_threshold": ("1.1", "inf"),
    "--batch_size": ("0", "-1", "1.5"),
    "--max_detections": ("0",),
    "--max_new_tokens": ("0",),
    "--num_beams": ("-1",),
    "--top_k": ("0", "x"),
    "--backend": ("tensorrt", ""),
    "--device": ("gpu", "cuda:x", "cuda:99", ""),
    "--model": ("none/at/all", "image.png", "empty", ""),
}
# A right command line of every command.
RIGHT = {
    "ask": ["image.png", "--model", "model", "--question", "what?"],
    "caption": ["image.png", "--model", "model"],
    "demo": ["--model", "model"],
    "detect": ["image.png", "--model", "model", "--labels", "cat"],
    "doctor": [],
    "ground": ["image.png", "--model", "model", "--text", "a cat"],
    "segment": ["image.png", "--model", "masks", "--labels", "cat"],
}


def options_of(name: str) -> set[str]:
    command = CommandGroup().get_command(Context(), name)
    return {option for parameter in command.params for option in parameter.opts}


class Context:
    """As much of typer's as finding a command takes."""

    obj = None

    def find_root(self) -> "Context":
        return self


SLIPS += [
    ([name, *right, flag, value], flag)
    for name, right in RIGHT.items()
    for flag in sorted(options_of(name) & WRONG_VALUES.keys())
    for value in WRONG_VALUES[flag]
]


def test_every_command_is_tested_with_wrong_values():
    assert RIGHT.keys() >= set(COMMANDS) - TESTED_ELSEWHERE


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
