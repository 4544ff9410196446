"""Every script of the repository: wrong numbers and files end with one line and exit code 2, before anything loads."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.scripts import REPOSITORY, load_script
from transformers_glipv2.cli.arguments import (
    CheckedPath,
    InputFile,
    InputFolder,
    InputPath,
    ModelSource,
    Number,
    OutputFile,
    OutputFolder,
    OutputImage,
    ScriptParser,
)
from transformers_glipv2.cli.errors import run

# `script_runs.py` and the like are modules beside scripts.
SCRIPTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("examples", "benchmarks", "hub_upload", "docs")
    for path in (REPOSITORY / folder).glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
INTEGERS = ("1.5", "1e3", "nan", "inf", "x", "")
POSITIVE = ("0", "-1", *INTEGERS)
NON_NEGATIVE = ("-1", *INTEGERS)
FRACTION = ("5", "1.0001", "-0.1", "nan", "inf", "x")
BELOW_ONE = ("1", "-0.1", "nan", "x")
POSITIVE_FLOAT = ("0", "-1", "nan", "inf", "1e999", "x")
COUNTS = """
    actors batch_size batches boxes cached_questions concurrency eval_steps gradient_accumulation_steps image_size
    images images_per_file labels_per_prompt large large_masks longest_edge masks max_boxes max_detections
    max_labels max_megabytes max_megapixels max_new_tokens max_queue max_samples max_tokens num_batches num_beams
    num_labels num_steps
    processes repeats requests shots threads tokens top_k vocabulary height width
"""
WRONG_NUMBERS = {
    **dict.fromkeys(COUNTS.split(), POSITIVE),
    **dict.fromkeys(
        ["empty_images", "negatives", "num_workers", "patience", "port", "seed", "seeds", "warmup_steps", "workers"],
        NON_NEGATIVE,
    ),
    **dict.fromkeys(["threshold", "pre_nms_threshold", "mask_threshold", "nms_threshold", "scramble"], FRACTION),
    **dict.fromkeys(["rehearsal_fraction", "negative_fraction", "ema_decay", "fraction", "val_fraction"], BELOW_ONE),
    **dict.fromkeys(
        ["epochs", "learning_rate", "backbone_rate", "head_factor", "max_file_mb", "seconds", "tolerance"],
        POSITIVE_FLOAT,
    ),
    **dict.fromkeys(["gpus_per_actor", "max_wait"], ("-1", "nan", "inf", "x")),
}
# Flags whose values hold numbers.
COMPOUND = {
    "--loss_weights": ("inter=nan", "inter=-1", "inter=", "itm=1"),
    "--learning_rates": ("full=0", "full=nan", "probe=1"),
    "--num_steps": ("1=0", "1=-1", "5"),
}


class Recorded(Exception):  # noqa: N818
    """A script has made its parser."""


def parser_of(script: str, monkeypatch) -> ScriptParser:
    def record(parser, *arguments):
        raise Recorded(parser)

    with monkeypatch.context() as patch, pytest.raises(Recorded) as recorded:
        patch.setattr(ScriptParser, "parse_args", record)
        load_script(script).parse_args([])
    return recorded.value.args[0]


def refused(script: str, given: list[str], capsys) -> str:
    """The line with which the script's parser refuses a command line."""
    with pytest.raises(SystemExit) as stopped:
        load_script(script).parse_args(given)
    assert stopped.value.code == 2, given
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_all_scripts_are_here():
    assert len(SCRIPTS) >= 34, SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_numbers_are_refused_when_parsed(script, monkeypatch, capsys):
    parser = parser_of(script, monkeypatch)
    for action in parser._actions:
        flag = action.option_strings[-1] if action.option_strings else action.dest
        # Numbers that are not checked would be of these types.
        assert action.type not in (int, float) or action.choices, flag
        if isinstance(action.type, Number):
            wrong = WRONG_NUMBERS[action.dest]
            assert action.type(str(action.type.multiple if action.type.kind is int else 0.5)) is not None
        elif flag in COMPOUND and action.type is not None:
            wrong = COMPOUND[flag]
        else:
            continue
        count = action.nargs if isinstance(action.nargs, int) else 1
        for value in wrong:
            line = refused(script, [flag, *[value] * count], capsys)
            assert f"argument {flag}: {value!r}" in line or f"argument {flag}: expected" in line, line


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Right and wrong values of every kind of path."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, content in (("model", '{"model_type": "glipv2"}'), ("bert", '{"model_type": "bert"}'), ("broken", "{")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(content)
        save_file({"a": torch.zeros(1)}, folder / name / "model.safetensors")
    (folder / "cut").mkdir()
    (folder / "cut" / "config.json").write_text('{"model_type": "glipv2"}')
    (folder / "cut" / "model.safetensors").write_bytes(b"\x10")
    (folder / "folder").mkdir()
    (folder / "file.json").write_text("{}")
    return folder


RIGHT = {
    ModelSource: "model",
    InputFile: "file.json",
    InputFolder: "folder",
    InputPath: "folder",
    OutputFile: "new/scores.json",
    OutputFolder: "new/folder",
    OutputImage: "new/drawn.png",
}
WRONG = {
    ModelSource: ("none", "file.json", "folder", "bert", "broken", "cut"),
    InputFile: ("none", "folder"),
    InputFolder: ("none", "file.json"),
    InputPath: ("none",),
    OutputFile: ("folder", "file.json/scores.json"),
    OutputFolder: ("file.json", "file.json/folder"),
    OutputImage: ("folder", "drawn.xyz", "drawn"),
}
# What scripts ask for beside the flags that argparse requires.
MORE = {"examples/predict_folder.py": ["--labels", "cat"]}


def command_line(parser: ScriptParser, files: Path, script: str) -> list[str]:
    """A right value for every required flag and every path."""
    given = list(MORE.get(script, ()))
    groups = [group._group_actions for group in parser._mutually_exclusive_groups]
    left_out = [action for actions in groups for action in actions[1:]]
    first = [
        actions[0]
        for group, actions in zip(parser._mutually_exclusive_groups, groups, strict=True)
        if group.required and actions[0].type not in RIGHT
    ]
    for action in parser._actions:
        if action in left_out or not action.option_strings or action.option_strings[-1] in given:
            continue
        if action.type in RIGHT:
            given += [action.option_strings[-1], str(files / RIGHT[action.type])]
        elif action.required or action in first:
            given += [action.option_strings[-1], "user/name"]
    return given


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_files_are_refused_before_anything_is_loaded(script, files, monkeypatch, capsys):
    def load(*arguments, **options):
        raise AssertionError("a model was loaded")

    for loaded in (PreTrainedModel, PreTrainedTokenizerBase):
        monkeypatch.setattr(loaded, "from_pretrained", load)
    monkeypatch.delenv("GLIPV2_TRACEBACK", raising=False)
    parser, module = parser_of(script, monkeypatch), load_script(script)
    right = command_line(parser, files, script)
    paths = [action for action in parser._actions if action.type in RIGHT]
    assert paths or script == "benchmarks/speed.py"
    assert not any(action.type is Path for action in parser._actions)
    for action in paths:
        flag = action.option_strings[-1]
        for name in WRONG[action.type]:
            value = str(files / name)
            given = list(right)
            if flag in given:
                given[given.index(flag) + 1] = value
            else:
                # The other of two that exclude each other.
                (group,) = (g for g in parser._mutually_exclusive_groups if action in g._group_actions)
                other = next(one for one in group._group_actions if one.option_strings[-1] in given)
                start = given.index(other.option_strings[-1])
                given[start : start + 2] = [flag, value]
            with pytest.raises(SystemExit) as stopped:
                run(lambda given=given: module.main(given))
            assert stopped.value.code == 2, given
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1, lines
            assert f"error: {flag}" in lines[0], lines
            assert value in lines[0], lines
    assert issubclass(InputFile, CheckedPath)


OUT = ["--output", "out"]
IMAGES = ["--images", "images", *OUT]
SLIPS = [
    ("examples/detect.py", ["--image", "text.png", "--labels", "cat"], "text.png"),
    ("examples/ground.py", ["--image", "image.png", "--text", "a cat", "--phrases", "dog"], "'dog', which is no part"),
    ("examples/predict_folder.py", ["--images", "empty", "--labels", "cat", *OUT], "holds no image files"),
    ("examples/predict_folder.py", [*IMAGES, "--labels_file", "blank.txt"], "no label"),
    ("examples/evaluate_detection.py", [*IMAGES, "--annotations", "list.json"], "list.json"),
    ("examples/evaluate_detection.py", [*IMAGES, "--annotations", "text.png"], "text.png"),
    ("examples/evaluate_detection.py", [*IMAGES, "--benchmark", "odinw", "--sets", "Raccoon"], "without annotations"),
    ("examples/pretrain.py", ["--data", "wrong.yaml", *OUT], "wrong.yaml"),
    ("examples/finetune_detection.py", ["--data", "images", *OUT], "image processor for 'checkpoint'"),
    ("hub_upload/merge_heads.py", ["--heads_of", "checkpoint", "--output", "images"], "exists; choose a new folder"),
]


@pytest.mark.parametrize(("script", "given", "message"), SLIPS, ids=lambda value: str(value)[:40])
def test_slips_that_only_reading_shows(script, given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(REPOSITORY / script), raising=False)
    monkeypatch.delenv("GLIPV2_TRACEBACK", raising=False)
    for folder in ("images", "empty", "checkpoint"):
        Path(folder).mkdir()
    Path("checkpoint/config.json").write_text('{"model_type": "glipv2"}')
    save_file({"a": torch.zeros(1)}, "checkpoint/model.safetensors")
    Image.new("RGB", (8, 8)).save("image.png")
    Image.new("RGB", (8, 8)).save("images/image.png")
    Path("text.png").write_text("no image")
    Path("blank.txt").write_text("\n \n")
    Path("list.json").write_text(json.dumps({"categories": []}))
    Path("wrong.yaml").write_text("sources: [{kind: coca, path: images}]\n")
    with pytest.raises(SystemExit) as stopped:
        run(lambda: load_script(script).main(["--model", "checkpoint", *given]))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in line
    assert message in line
