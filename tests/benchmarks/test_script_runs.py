"""Runs of scripts for tables: several at a time, none twice, none with other arguments; stopped in good order."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from script_runs import ScriptRun, keep_files, run_scripts, split_arguments

# Appends a line to a file that all runs share, and writes its result unless told to fail or to wait.
SCRIPT = """
import json, os, pathlib, signal, sys, time
what, log, _, output = sys.argv[1:]
output = pathlib.Path(output)
print("this is", what, os.environ["OMP_NUM_THREADS"], flush=True)
with open(log, "a") as file:
    file.write(what + "\\n")
if what == "stops":
    sys.exit(0)
if what == "fails":
    sys.exit("it went wrong")
if what == "waits":
    def note(*_):
        (output / "stopped.json").write_text("{}")
        sys.exit(0)
    signal.signal(signal.SIGTERM, note)
    (output / "waiting.json").write_text("{}")
    time.sleep(60)
(output / "metrics.json").write_text(json.dumps({"what": what}))
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def make_run(script: Path, what: str, name: str | None = None) -> ScriptRun:
    folder = script.parent / (name or what)
    return ScriptRun(script, (what, str(script.parent / "made.txt")), folder, "metrics.json")


def made(script: Path) -> list[str]:
    return (script.parent / "made.txt").read_text().split()


def test_each_is_made_once(script):
    runs = [make_run(script, name) for name in "abc"]
    assert [run.read_result()["what"] for run in run_scripts(runs[:1], threads=3)] == ["a"]
    assert (runs[0].folder / "log.txt").read_text() == "this is a 3\n"
    found = list(run_scripts(runs, processes=2))
    assert found[0] == runs[0] and set(found) == set(runs)
    assert sorted(made(script)) == ["a", "b", "c"]


def test_other_arguments_are_refused(script):
    list(run_scripts([make_run(script, "a", "here")]))
    with pytest.raises(ValueError, match=r"was made with `script.py a .*, not `script.py b "):
        list(run_scripts([make_run(script, "b", "here")]))


@pytest.mark.parametrize(("what", "message"), [("fails", "code 1 and no metrics.json"), ("stops", "code 0 and no")])
def test_a_run_without_result_ends_all(script, what, message):
    runs = [make_run(script, "waits"), make_run(script, what), make_run(script, "later")]
    with pytest.raises(RuntimeError, match=message) as error:
        list(run_scripts(runs, processes=2))
    assert f"this is {what}" in str(error.value)
    assert ("it went wrong" in str(error.value)) == (what == "fails")
    # The other was told to stop; the last never began, and the next try makes both.
    assert not runs[0].is_done
    assert "later" not in made(script)
    assert list(run_scripts(runs[2:])) == runs[2:]


def test_a_signal_is_passed_on(script):
    run = make_run(script, "waits")

    def stop():
        while not (run.folder / "waiting.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        list(run_scripts([run]))
    assert (run.folder / "stopped.json").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_refuses_no_processes(script):
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 1"):
        list(run_scripts([make_run(script, "a")], processes=0))


def test_keeps_what_is_named(script):
    run = make_run(script, "a")
    list(run_scripts([run]))
    (run.folder / "checkpoints").mkdir()
    for name in ("model.safetensors", "checkpoints/model.safetensors", "kept.json"):
        (run.folder / name).write_text("")
    keep_files(run.folder, ("metrics.json", "kept.json"))
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "command.json",
        "kept.json",
        "log.txt",
        "metrics.json",
    ]
    assert json.loads((run.folder / "command.json").read_text())[:2] == ["script.py", "a"]


def test_arguments_after_the_dashes(monkeypatch):
    assert split_arguments(["--a", "1", "--", "--b", "--"]) == (["--a", "1"], ["--b", "--"])
    monkeypatch.setattr(sys, "argv", ["script.py", "--a"])
    assert split_arguments(None) == (["--a"], [])
