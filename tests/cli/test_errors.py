"""How scripts end: a foreseeable slip in one line and exit code 2, a fault of the program with its traceback."""

import errno
import json
from pathlib import Path

import pytest
from PIL import Image

from transformers_glipv2.boxes import anchor_grid
from transformers_glipv2.cli.errors import message_of, run
from transformers_glipv2.prompts import check_labels


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def disk_is_full():
    raise OSError(errno.ENOSPC, "No space left on device", "outputs/log.jsonl")


def gpu_is_full():
    raise OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (lambda: check_labels([]), "label"),
        (lambda: Path("/none/file").read_text(), "/none/file: no such file or folder; check the path"),
        (disk_is_full, "outputs/log.jsonl: no space left on the disk; free some"),
        (gpu_is_full, "out of memory; take a smaller --batch_size or --image_size"),
        (lambda: json.loads("{"), "Expecting property name"),
        (lambda: __import__("a_package_that_is_not_there"), "'a_package_that_is_not_there' is needed here"),
        (lambda: Image.open(__file__), "cannot identify image file"),
    ],
)
def test_a_slip_is_one_line_and_code_2(main, message, capsys, monkeypatch):
    monkeypatch.delenv("GLIPV2_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: " in line
    assert message in line
    monkeypatch.setenv("GLIPV2_TRACEBACK", "1")
    with pytest.raises(Exception) as raised:
        run(main)
    assert not isinstance(raised.value, SystemExit)


@pytest.mark.parametrize(("package", "extra"), [("accelerate", "train"), ("onnx.helper", "export")])
def test_a_missing_package_names_the_extra_that_has_it(package, extra):
    message = message_of(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert message.endswith(f'not installed; run `pip install "transformers-glipv2[{extra}]"`')


def test_a_missing_package_names_the_extra_of_the_command():
    error = ModuleNotFoundError("No module named 'accelerate'", name="accelerate")
    assert message_of(error, "eval").endswith('run `pip install "transformers-glipv2[eval]"`')
    error = ModuleNotFoundError("No module named 'onnx'", name="onnx")
    assert message_of(error, "eval").endswith('run `pip install "transformers-glipv2[export]"`')


@pytest.mark.parametrize(
    "main",
    [
        lambda: {}["a"],
        lambda: int("x"),
        lambda: anchor_grid(None, None, None),
        lambda: list(zip([1], [], strict=True)),
        lambda: None.shape,
        lambda: __import__("transformers_glipv2.no_such_module"),
    ],
)
def test_a_fault_keeps_its_traceback(main):
    with pytest.raises(Exception) as raised:
        run(main)
    assert not isinstance(raised.value, SystemExit)


def test_an_interruption_is_no_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run(interrupted)
    assert stopped.value.code == 130
    assert "interrupted" in capsys.readouterr().err
