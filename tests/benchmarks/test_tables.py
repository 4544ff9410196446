"""benchmarks/fine_tuning_table.py and benchmarks/ablation.py with tiny models, each run in the test's own process."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import script_runs
from tests.data.scene_assets_folder import make_assets
from tests.scripts import load_script
from tests.tiny_training import drawn_coco, read_log, tiny_checkpoint

fine_tuning_table = load_script("benchmarks/fine_tuning_table.py")
ablation = load_script("benchmarks/ablation.py")
scripts = {
    name: load_script(f"examples/{name}.py")
    for name in ("finetune_detection", "pretrain", "evaluate_scenes", "evaluate_detection")
}


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """Runs are calls of `main` instead of processes, which would import everything again; gives what was run."""
    ran = []

    class Call:
        returncode = 0

        def __init__(self, command, stdout, **options):
            script, arguments = Path(command[1]), command[2:]
            ran.append([script.stem, *arguments])
            AcceleratorState._reset_state(True)
            with contextlib.redirect_stdout(stdout):
                scripts[script.stem].main(arguments)

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(script_runs.subprocess, "Popen", Call)
    yield ran
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    tiny_checkpoint(folder / "model")
    tiny_checkpoint(folder / "start")
    drawn_coco(folder / "drawn", train=8, val=2, test=2)
    return folder


def table_arguments(folder: Path, output: str, *more: str) -> list[str]:
    given = ["--model", folder / "model", "--baseline", folder / "start", "--data", folder / "drawn"]
    given += ["--output", folder / output, "--train", "full", "prompt", "--num_steps", "1=1", "all=2", *more]
    return [str(value) for value in given]


def test_a_cell_for_each_of_everything(folder):
    more = ("--seeds", "3", "30", "--learning_rates", "full:1=2e-5", "full:all=5e-4")
    args = fine_tuning_table.parse_args(table_arguments(folder, "cells", *more))
    cells = fine_tuning_table.make_cells(args)
    assert len(cells) == 1 + 5 * 2 * (2 + 1)
    assert len({cell.run.folder for cell in cells}) == len(cells)
    by_key = {(cell.train, cell.shots, cell.seed): cell.run.arguments for cell in cells}
    finetune = scripts["finetune_detection"].parse_args
    few = finetune([*by_key["prompt", "5", 30], "--output", "x"])
    assert (few.train, few.shots, few.seed, few.model) == ("prompt", 5, 30, str(folder / "model"))
    baseline = finetune([*by_key["baseline, full", "all", 3], "--output", "x"])
    assert (baseline.train, baseline.shots, baseline.model, baseline.num_steps) == (
        "full",
        None,
        str(folder / "start"),
        2,
    )
    assert (few.learning_rate, baseline.learning_rate) == (None, fine_tuning_table.RATES["baseline"])
    full = {count: finetune([*by_key["full", count, 3], "--output", "x"]).learning_rate for count in ("1", "3", "all")}
    assert full == {"1": 2e-5, "3": fine_tuning_table.RATES["full"], "all": 5e-4}
    # Cells of a column stand together, so that an unfinished table has whole columns.
    assert [cell.shots for cell in cells[1:]] == sorted((cell.shots for cell in cells[1:]), key=args.shots.index)


def test_fine_tuning_table_goes_on_and_keeps_scores(folder, commands):
    more = ("--shots", "1", "all", "--", "--batch_size", "2", "--image_size", "64")
    first = fine_tuning_table.main(table_arguments(folder, "table", *more))
    assert len(commands) == len(first) == 7
    assert json.loads((folder / "table" / "table.json").read_text()) == first
    full = [found for found in first if (found["train"], found["shots"]) == ("full", "all")]
    assert full[0]["steps"] == 2 and full[0]["seconds"] > 0 and "AP50" in full[0]
    assert [found["steps"] for found in first if found["train"] == "zero-shot"] == [0]
    cell = folder / "table" / "cells" / "drawn" / "full" / "all-shot" / "seed-3"
    assert sorted(path.suffix for path in cell.iterdir()) == [".json"] * 3 + [".jsonl", ".txt"]
    # What was cut off is made, what is there is not.
    shutil.rmtree(cell)
    again = fine_tuning_table.main(table_arguments(folder, "table", *more))
    assert len(commands) == 8 and commands[-1][-1] == str(cell)
    assert [found["AP50"] for found in again] == [found["AP50"] for found in first]
    with pytest.raises(ValueError, match="--image_size 64`, not "):
        fine_tuning_table.main(table_arguments(folder, "table", *more[:-1], "96"))


def test_means_and_what_is_missing(folder):
    more = ("--data", "a", "b", "--shots", "1", "--seeds", "3", "30", "--train", "full")
    args = fine_tuning_table.parse_args(table_arguments(folder, "means", *more))

    def found(data: str, way: str, seed: int, score: float, shots: str = "1") -> dict:
        return {"data": data, "train": way, "shots": shots, "seed": seed, "AP50": score}

    results = [found("a", "zero-shot", 0, 10.0, "0"), found("a", "full", 3, 20.0), found("a", "full", 30, 40.0)]
    results += [found("b", "full", 3, 50.0), found("b", "full", 30, 70.0), found("a", "baseline, full", 3, 5.0)]
    lines = fine_tuning_table.table(results, args, lambda result: result["AP50"]).splitlines()
    assert lines[2:] == [
        "| a | full | 10.0 | 30.0 ± 14.1 |",
        "| a | baseline, full | - | - |",
        "| b | full | - | 60.0 ± 14.1 |",
        "| b | baseline, full | - | - |",
        "| **mean** | full | - | 45.0 |",
        "| **mean** | baseline, full | - | - |",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shots", "2"), "--num_steps has no number for 2 shots"),
        (("--shots", "few"), "neither a number of shots nor all"),
        (("--num_steps", "10"), "gives no number of steps"),
        (("--learning_rates", "probe=1"), "'probe=1' names none of full"),
        (("--data", "x/a", "y/a"), "two of a, a are the same"),
    ],
)
def test_bad_options_are_told(folder, capsys, more, message):
    with pytest.raises(SystemExit):
        fine_tuning_table.parse_args(table_arguments(folder, "bad", *more))
    assert message in capsys.readouterr().err


def test_ablation_leaves_losses_out_and_scores(folder, commands):
    make_assets(folder / "assets")
    (folder / "data.yaml").write_text(
        "sources: [{kind: coco, path: drawn, split: train}]\nsizes: [64]\nmlm_probability: 0.5\n"
    )
    given = ["--model", folder / "start", "--data", folder / "data.yaml", "--assets", folder / "assets"]
    given += ["--output", folder / "ablation", "--coco", folder / "drawn", "--max_samples", "1", "--parts", "seen"]
    given += ["--loss_weights", "mlm=0.25", "--", "--num_steps", "1", "--batch_size", "2", "--warmup_steps", "0"]
    arguments = [str(value) for value in given]
    rows = ablation.main(arguments)
    assert [row["losses"] for row in rows] == list(ablation.ROWS)
    assert all(row["steps"] == 1 and "drawn/val AP50" in row and "seen AP" in row for row in rows)
    logs = {
        row: read_log(ablation.training_run(row, ablation.parse_args(arguments)).folder)[0] for row in ablation.ROWS
    }
    learned = [(log["loss_inter"] > 0, "loss_mlm" in log) for log in logs.values()]
    assert learned == [(False, False), (False, True), (True, False), (True, True)]
    whole = logs["all"]
    assert whole["loss"] == pytest.approx(sum(value for name, value in whole.items() if name.startswith("loss_")))
    assert len(commands) == 4 + 2 * 4
    assert not list((folder / "ablation").rglob("model.safetensors"))
    table = (folder / "ablation" / "table.md").read_text()
    assert ablation.main(arguments) == rows and len(commands) == 12
    assert table.count("\n") == 6 and (folder / "ablation" / "table.md").read_text() == table
