"""docs/cli.md shows what commands print; `python -m tests.cli.transcript` writes it anew."""

import re
import shlex

import pytest

from tests.cli.transcript import PAGE, Command, commands_of, console_blocks, run_here, run_page, sandbox
from transformers_glipv2.cli.main import CommandGroup

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
# What these print depends on the machine in its numbers (times, trained weights) or altogether (versions).
OTHER_NUMBERS = {"evaluate", "export", "push", "train"}
OTHER_LINES = {"doctor"}


def assert_reads_alike(command: Command) -> None:
    """The same words, and nearly the same scores (0.03), pixels (3) and areas (5 %)."""
    name = command.args[0]
    if name in OTHER_LINES and "--help" not in command.args:
        assert first_words(command.output) == first_words(command.printed)
        return
    printed, said = (re.sub(r"\s+", " ", text).strip() for text in (command.printed, command.output))
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", said), shlex.join(command.args)
    if name not in OTHER_NUMBERS:
        for got, expected in zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True):
            near = 0.03 if "." in expected and abs(float(expected)) < 1 else 3
            assert float(got) == pytest.approx(float(expected), abs=near, rel=0.05), command.printed


def first_words(text: str) -> list[str]:
    """Of every line above the advice, which depends on what is installed."""
    return [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("- ")]


def measured(model, processor, labels, image, output, settings):
    """In place of `export_folder`: tracing takes half a minute, and tests/examples/test_export_onnx.py does it."""
    difference = {"scores": 1e-7, "centerness": 1e-7, "boxes": 1e-7}
    report = {"difference": difference, "times_as_fast_as_pytorch": 2.5, "megabytes": {"detector.onnx": 39.5}}
    return {"measured": report}, [(0.6, labels[0], [0, 0, 9, 9])]


def test_the_page_shows_what_commands_print(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_glipv2.conversion.onnx_folder.export_folder", measured)
    with sandbox(tmp_path / "work"):
        commands = run_page(PAGE.read_text(encoding="utf-8"), run_here)
    for command in commands:
        assert_reads_alike(command)


@pytest.mark.parametrize("page", [PAGE, PAGE.with_name("cli-options.md")], ids=lambda page: page.name)
def test_every_command_is_shown(page):
    blocks = console_blocks(page.read_text(encoding="utf-8"))
    shown = {command.args[0] for block in blocks for command in commands_of(block)}
    assert shown >= set(CommandGroup().list_commands(None))
