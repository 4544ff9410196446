"""docs/cli.md shows what commands print; `python -m tests.cli.transcript` writes it anew."""

import dataclasses
import re
import shlex

import pytest

from tests.cli.transcript import PAGE, Command, commands_of, console_blocks, run_here, run_page, sandbox
from tests.tiny_detector import save_tiny_heads
from transformers_glipv2.cli.main import CommandGroup

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
# What these print depends on the machine in its numbers (times, trained weights) or altogether (versions).
OTHER_NUMBERS = {"evaluate", "export", "push", "train"}
OTHER_LINES = {"doctor"}


# Tracing the graph of the nano takes half a minute, and says what that of a tiny model says but for its boxes.
TINY = {"export": re.compile(r"(?m)^\d\.\d{3}  .*\n")}


def assert_reads_alike(command: Command) -> None:
    """The same words, and nearly the same scores (0.03), pixels (3) and areas (5 %)."""
    name = command.args[0]
    if name in TINY:
        command = dataclasses.replace(
            command, output=TINY[name].sub("", command.output), printed=TINY[name].sub("", command.printed)
        )
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


def test_the_page_shows_what_commands_print(tmp_path):
    save_tiny_heads(tmp_path)

    def run(args: list[str]) -> str:
        model = str(tmp_path / "model")
        return run_here([model if args[0] in TINY and word == "glipv2-nano" else word for word in args])

    with sandbox(tmp_path / "work"):
        commands = run_page(PAGE.read_text(encoding="utf-8"), run)
    for command in commands:
        assert_reads_alike(command)


@pytest.mark.parametrize("page", [PAGE, PAGE.with_name("cli-options.md")], ids=lambda page: page.name)
def test_every_command_is_shown(page):
    blocks = console_blocks(page.read_text(encoding="utf-8"))
    shown = {command.args[0] for block in blocks for command in commands_of(block)}
    assert shown >= set(CommandGroup().list_commands(None))
