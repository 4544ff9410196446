"""
The transcript of docs/cli.md: command lines, and what they print.

Each ```console block holds command lines (`$ glipv2 ...`) with their output. They run in the order of the page, with
its ```python blocks, in a folder that holds the checkpoint and the photographs of this repository.

    python -m tests.cli.transcript                 # runs them and writes the page anew
    python -m tests.cli.transcript --wheel         # the same by a wheel, in an environment of its own
    python -m tests.cli.transcript --glipv2 FILE   # the same by the command of another installation
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

import huggingface_hub

import transformers_glipv2  # noqa: F401 (commands expect the package to be loaded)
from tests.scripts import REPOSITORY
from transformers_glipv2.cli.main import run_command

PAGE = REPOSITORY / "docs" / "cli.md"
NANO = REPOSITORY / "hub_upload" / "glipv2-nano"
CACHE = "empty-cache"
# From a command line without `glipv2` to what it prints; of one that fails, to its error.
Run = Callable[[list[str]], str]


@dataclass
class Command:
    """
    A command line of a page.

    Attributes:
        line (`str`): as in the page, `$ glipv2 ...`, over several lines where they end in a backslash.
        output (`str`): what the page says it prints.
        printed (`str`): what it printed.
    """

    line: str
    output: str
    printed: str = ""

    @property
    def args(self) -> list[str]:
        """Without `glipv2`."""
        return shlex.split(self.line.removeprefix("$ ").replace("\\\n", " "))[1:]


def console_blocks(text: str) -> list[str]:
    """The content of every ```console block."""
    return re.findall(r"(?ms)^```console\n(.*?)^```$", text)


def commands_of(block: str) -> list[Command]:
    """The command lines of a block."""
    parts = re.split(r"(?m)^(\$ glipv2 (?:.*\\\n)*.*)\n", block)
    assert not parts[0].strip(), f"a console block begins with a command line, not with {parts[0]!r}"
    return [Command(line, output.strip("\n")) for line, output in zip(parts[1::2], parts[2::2], strict=True)]


def run_here(args: list[str]) -> str:
    """Runs a command in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = run_command(args)
    return said.getvalue() if code else printed.getvalue()


def runner_of(command: Path) -> Run:
    """What runs a command as a process of another installation."""

    def run(args: list[str]) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([command, *args], capture_output=True, text=True, env=environment)
        return done.stderr if done.returncode else done.stdout

    return run


def install_wheel(folder: Path) -> Path:
    """
    Builds a wheel of this repository and installs it, and nothing else, into a new virtual environment, which takes
    what the package needs from the environment that runs this.

    Returns:
        `Path`: the command.
    """
    source, environment = folder / "source", folder / "environment"
    # A copy, as building leaves files behind.
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", source, "--no-deps", "--wheel-dir", folder], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (wheel,) = folder.glob("*.whl")
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    # A path alone: the editable installation in it is made known by a `.pth` of its own, which is not read from here.
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    where = "import transformers_glipv2; print(transformers_glipv2.__file__)"
    imported = subprocess.run([python, "-P", "-c", where], cwd=folder, capture_output=True, text=True, check=True)
    assert Path(imported.stdout.strip()).is_relative_to(packages), imported.stdout
    return python.with_name("glipv2")


@contextlib.contextmanager
def sandbox(folder: Path) -> Iterator[None]:
    """A folder to run in, offline, with `glipv2-nano` and the photographs."""
    shutil.copytree(NANO, folder / "glipv2-nano", ignore=shutil.ignore_patterns("*.py"))
    for photograph in (REPOSITORY / "docs" / "images").glob("*.jpg"):
        shutil.copy(photograph, folder)
    variables = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "GLIPV2_CACHE": CACHE}
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        contextlib.chdir(folder),
    ):
        yield


def run_page(text: str, run: Run) -> list[Command]:
    """Runs all blocks of a page in the working directory; returns its command lines with what they printed."""
    commands = []
    for language, content in re.findall(r"(?ms)^```(python|console)\n(.*?)^```$", text):
        if language == "python":
            exec(compile(content, "page", "exec"), {"__name__": "page"})
            continue
        for command in commands_of(content):
            command.printed = shown(run(command.args))
            commands.append(command)
    return commands


def shown(printed: str) -> str:
    """
    Output as a page shows it: with folders of no machine, without warnings of torch's own log, and without the middle
    of long lists of files.
    """
    text = re.sub(r"(?m)^W\d{4} .*\n", "", printed)
    text = re.sub(r"(?m)[ \t]+$", "", text).strip("\n")
    text = re.sub(r"(?m)((?:^ .* MB .*\n){3})(?:^ .* MB .*\n)+(^ .* MB )", r"\1...\n\2", text)
    text = re.sub(r"(?m)^- HF_HUB_OFFLINE is set.*", "", text).strip("\n")
    text = re.sub(r"(?m)^(Python .*), /.*/bin/", r"\1, ~/.venv/bin/", text)
    text = re.sub(r"(?m)^(cache of the Hub +)/.*?,", r"\1~/.cache/huggingface/hub,", text)
    return text.replace(f"({CACHE})", "(~/.cache/huggingface/glipv2)")


def rewrite(text: str, commands: Iterable[Command]) -> str:
    """A page with what its commands printed."""
    rest = iter(commands)

    def fill(block: re.Match) -> str:
        done = list(islice(rest, len(commands_of(block[1]))))
        return "```console\n" + "\n\n".join(f"{one.line}\n{one.printed}".rstrip() for one in done) + "\n```"

    return re.sub(r"(?ms)^```console\n(.*?)^```$", fill, text)


def main() -> None:
    """Writes the page anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--glipv2", type=Path, help="the command of another installation; default: this one's")
    other.add_argument("--wheel", action="store_true", help="build a wheel and run the command that it installs")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        command = install_wheel(Path(folder)) if args.wheel else args.glipv2
        run = run_here if command is None else runner_of(command.absolute())
        with sandbox(Path(folder) / "work"):
            anew = rewrite(text, run_page(text, run))
    PAGE.write_text(anew, encoding="utf-8")


if __name__ == "__main__":
    main()
