"""Tables of many runs: each a script in a process of its own, several at a time, and none made twice."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_glipv2.cli.arguments import positive_int
from transformers_glipv2.data.files import write_json

COMMAND_FILE = "command.json"
LOG_FILE = "log.txt"
POLL_SECONDS = 0.2
LOG_TAIL = 2000


@dataclass(frozen=True)
class ScriptRun:
    """
    One run of a script.

    Args:
        script (`Path`): is given `arguments` and `--output FOLDER/OUTPUT`.
        arguments (`tuple[str, ...]`): without `--output`.
        folder (`Path`): of this run alone; its command and what it prints are written there too.
        result (`str`): the file under `folder` that the script writes when it is through.
        output (`str`, *optional*, defaults to `""`): under `folder`.
    """

    script: Path
    arguments: tuple[str, ...]
    folder: Path
    result: str
    output: str = ""

    @property
    def is_done(self) -> bool:
        return (self.folder / self.result).is_file()

    def read_result(self) -> Any:
        return json.loads((self.folder / self.result).read_text(encoding="utf-8"))

    def check_command(self) -> None:
        """Raises ValueError where the folder holds a run with other arguments."""
        file = self.folder / COMMAND_FILE
        if not file.is_file():
            return
        found, mine = json.loads(file.read_text(encoding="utf-8")), [self.script.name, *self.arguments]
        if found != mine:
            raise ValueError(
                f"{self.folder} was made with `{' '.join(found)}`, not `{' '.join(mine)}`; choose another output "
                "folder, or remove this one to make it again."
            )

    def start(self, threads: int) -> subprocess.Popen:
        """Starts the process, whose output goes to a file."""
        write_json(self.folder / COMMAND_FILE, [self.script.name, *self.arguments])
        command = [sys.executable, self.script, *self.arguments, "--output", self.folder / self.output]
        with open(self.folder / LOG_FILE, "w", encoding="utf-8") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            return subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=environment)


def add_runs(parser: argparse.ArgumentParser, name: str) -> None:
    """`--processes`, `--threads` and `--keep_weights` of a table whose runs are named so."""
    add = parser.add_argument
    add("--processes", type=positive_int, default=1, help=f"{name}s at a time (default: 1)")
    add("--threads", type=positive_int, help="of each process (default: the cores, divided among them)")
    add("--keep_weights", action="store_true", help=f"do not delete the weights of a {name}")


def run_scripts(runs: Sequence[ScriptRun], processes: int = 1, threads: int = 1) -> Iterator[ScriptRun]:
    """
    Makes the runs that are not done yet.

    Args:
        runs (`Sequence[ScriptRun]`): started in this order.
        processes (`int`, *optional*, defaults to 1): at a time.
        threads (`int`, *optional*, defaults to 1): of each.

    Yields:
        `ScriptRun`: each as it is done, those first that were.

    Raises:
        ValueError: when `processes` or `threads` is below 1, or a folder holds a run with other arguments.
        RuntimeError: when a script fails, or ends without its result, as one does that a signal stopped. The others
            that run are stopped with it, by SIGTERM.
    """
    if processes < 1 or threads < 1:
        raise ValueError(f"`processes` and `threads` must be at least 1, got {processes} and {threads}.")
    for run in runs:
        run.check_command()
    yield from (run for run in runs if run.is_done)
    waiting = [run for run in reversed(runs) if not run.is_done]
    running: dict[ScriptRun, subprocess.Popen] = {}
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                run = waiting.pop()
                running[run] = run.start(threads)
            ended = [run for run, process in running.items() if process.poll() is not None]
            for run in ended:
                check_ended(run, running.pop(run).returncode)
                yield run
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, previous)


def check_ended(run: ScriptRun, returncode: int) -> None:
    """Raises RuntimeError, with the end of its output, where a run has no result."""
    if returncode == 0 and run.is_done:
        return
    tail = (run.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
    raise RuntimeError(
        f"{run.script.name} ended with code {returncode} and {'its' if run.is_done else 'no'} {run.result}; the same "
        f"command goes on from here. The end of {run.folder / LOG_FILE}:\n{tail}"
    )


def keep_files(folder: Path, names: Sequence[str]) -> None:
    """Deletes all of a run's folder (weights and checkpoints, hundreds of MB) but these files, its command and log."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (*names, COMMAND_FILE, LOG_FILE):
            path.unlink()


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A command's own arguments, and those after `--`, which it passes on; of `sys.argv` where there are none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def markdown_row(*cells: object) -> str:
    """`| a | b |`"""
    return f"| {' | '.join(map(str, cells))} |"
