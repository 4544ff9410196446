"""
Fine-tunes for a table: data sets x ways of training x shots x seeds, beside a baseline without pre-training.

    python benchmarks/fine_tuning_table.py --model hub_upload/glipv2-nano --baseline outputs/nano-init \\
        --data raccoon chess blood-cells microcontrollers --output outputs/table --processes 2

Every cell is a run of finetune_detection.py in a process and a folder of its own, scored once, with its last weights,
on the test split. Columns are shots; 0 is the model without fine-tuning, scored by evaluate_detection.py. The baseline
is trained in full only. What stands after `--` is passed on to finetune_detection.py, such as
`-- --image_size 224 --batch_size 8`.

table.md and table.json are written anew after each cell, from scores and seconds of training. Of a cell scores, log
and settings are kept. Cells that are there are not made again, so the same command goes on after an interruption, and
resumes a cell that was cut off.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from script_runs import ScriptRun, add_runs, keep_files, markdown_row, run_scripts, split_arguments
from transformers_glipv2.cli.arguments import (
    InputPath,
    ModelSource,
    ScriptParser,
    add_image_size,
    add_model,
    add_output_folder,
    check_paths,
    number_after,
    positive_float,
    positive_int,
    seed_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_json, write_text
from transformers_glipv2.data.formats.coco import find_annotation_file
from transformers_glipv2.evaluation.odinw import score_cell
from transformers_glipv2.training import TRAIN_WAYS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RESULT = "metrics.json"
KEPT = (RESULT, "training_args.json", "training_log.jsonl")
ZERO_SHOT, BASELINE = "zero-shot", "baseline, full"
# Few images are learned, and overfitted, in few steps.
STEPS = {"1": 20, "3": 30, "5": 40, "10": 60, "all": 130}
# A pre-trained model soon forgets over few images; a new one has everything to learn.
RATES = {"full": 5e-5, "full:1": 3e-5, "full:10": 1e-4, "full:all": 3e-4, "baseline": 1e-3}


@dataclass(frozen=True)
class Cell:
    """One run: `train` is a row's name, `shots` "0", a number or "all"."""

    data: Path
    train: str
    shots: str
    seed: int
    run: ScriptRun


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of the pre-trained model")
    help = "folder of the same network without pre-training, as make_nano.py writes it"
    add("--baseline", type=ModelSource, help=help)
    add("--data", required=True, nargs="+", type=InputPath, help="COCO-format folders with train and test splits")
    add_output_folder(parser, "folder for the tables and a folder for each cell")
    add("--train", nargs="+", choices=TRAIN_WAYS, default=["full", "head", "prompt"], help="rows: what learns")
    add("--shots", nargs="+", type=shots, default=list(STEPS), help="numbers or all (default: 1 3 5 10 all)")
    add("--seeds", nargs="+", type=seed_int, default=[3], help="of the choice of images, and all else (default: 3)")
    add(
        "--num_steps",
        nargs="+",
        type=steps_of_shots,
        default=list(STEPS.items()),
        metavar="SHOTS=STEPS",
        help=f"optimizer steps (default: {' '.join(f'{name}={steps}' for name, steps in STEPS.items())})",
    )
    add(
        "--learning_rates",
        nargs="+",
        type=rate_of_way,
        default=list(RATES.items()),
        metavar="TRAIN[:SHOTS]=RATE",
        help=f"of {', '.join((*TRAIN_WAYS, 'baseline'))}, of all shots or of one number "
        f"(default: {' '.join(f'{way}={rate:g}' for way, rate in RATES.items())}, else finetune_detection.py's)",
    )
    add("--test_split", default="test", help="split that is scored (default: test)")
    add_runs(parser, "cell")
    own, passed_on = split_arguments(arguments)
    args = parser.parse_args(own)
    args.passed_on = passed_on
    names = [folder.name for folder in args.data]
    if len({*names}) < len(names):
        parser.error(f"--data: rows are named by folders, and two of {', '.join(names)} are the same")
    args.learning_rates = {**RATES, **dict(args.learning_rates)}
    args.num_steps = {**STEPS, **dict(args.num_steps)}
    if lacking := [name for name in args.shots if name not in args.num_steps]:
        parser.error(f"--num_steps has no number for {', '.join(lacking)} shots; add {lacking[0]}=STEPS")
    return args


def shots(text: str) -> str:
    """A number of shots, or "all"."""
    if text != "all" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of shots nor all")
    return text


def steps_of_shots(text: str) -> tuple[str, int]:
    """`10=60` as shots and steps."""
    name, _, steps = text.partition("=")
    if not steps.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} gives no number of steps; write 10=60")
    return shots(name), number_after(text, steps, positive_int)


def rate_of_way(text: str) -> tuple[str, float]:
    """`full=5e-5` or `full:all=3e-4` as what it is for and the learning rate."""
    name, _, rate = text.partition("=")
    way, colon, count = name.partition(":")
    if way not in (*TRAIN_WAYS, "baseline"):
        raise argparse.ArgumentTypeError(f"{text!r} names none of {', '.join(TRAIN_WAYS)}, baseline; write full=5e-5")
    return f"{way}:{shots(count)}" if colon else way, number_after(text, rate, positive_float)


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """All cells, the cheap ones of all data sets first."""
    cells = []

    def rate(way: str, count: str) -> tuple[object, ...]:
        found = [args.learning_rates[name] for name in (f"{way}:{count}", way) if name in args.learning_rates]
        return ("--learning_rate", found[0]) if found else ()

    def add(data: Path, way: str, count: str, seed: int, script: str, *options: object) -> None:
        folder = args.output / "cells" / data.name / way.replace(", ", "-") / f"{count}-shot" / f"seed-{seed}"
        run = ScriptRun(EXAMPLES / script, tuple(map(str, options)), folder, RESULT)
        cells.append(Cell(data, way, count, seed, run))

    # The model without fine-tuning is scored at the size that the others are scored at.
    sizes = ScriptParser(None)
    add_image_size(sizes, "of training")
    image_size = sizes.parse_known_args(args.passed_on)[0].image_size
    size = ("--image_size", max(image_size)) if image_size else ()
    for data in args.data:
        file = find_annotation_file(data, args.test_split)
        annotations = ("--annotations", file, "--images", file.parent)
        add(data, ZERO_SHOT, "0", 0, "evaluate_detection.py", "--model", args.model, *annotations, *size)
    for count in args.shots:
        few = () if count == "all" else ("--shots", count)
        steps = args.num_steps[count]
        options = (*few, "--num_steps", steps, "--eval_steps", steps, "--resume", "latest", *args.passed_on)
        options += ("--test_split", args.test_split, "--eval_split", "none")
        for data in args.data:
            for seed in args.seeds:
                for row, way, model, rates in (
                    *((way, way, args.model, way) for way in args.train),
                    *([(BASELINE, "full", args.baseline, "baseline")] if args.baseline is not None else []),
                ):
                    own = ("--model", model, "--data", data, "--train", way, *rate(rates, count), "--seed", seed)
                    add(data, row, count, seed, "finetune_detection.py", *own, *options)
    return cells


def read_cell(cell: Cell, test_split: str) -> dict:
    """What table.json says of a cell that is done."""
    found = cell.run.read_result()
    names = {"data": cell.data.name, "train": cell.train, "shots": cell.shots, "seed": cell.seed}
    if cell.train == ZERO_SHOT:
        scores = {name: 100 * value for name, value in found["coco"]["bbox"].items() if name != "per_category"}
        return {**names, "steps": 0, "seconds": 0.0, **scores}
    return {**names, "steps": found["steps"], "seconds": round(found["seconds"], 1), **found[test_split]}


def table(results: Sequence[dict], args: argparse.Namespace, value: Callable[[dict], float]) -> str:
    """
    Means, and standard deviations, over seeds: data sets and ways down, shots across; at the end means over data sets.
    """
    ways = [*args.train, *([BASELINE] if args.baseline is not None else [])]
    columns = ["0", *args.shots]
    # Every row but the baseline starts from the zero-shot model.
    kind = {(way, "0"): ZERO_SHOT for way in args.train}

    def runs(data: str, way: str, count: str) -> list[float]:
        way = kind.get((way, count), way)
        key = (data, way, count)
        return [value(found) for found in results if (found["data"], found["train"], found["shots"]) == key]

    lines = [markdown_row("data", "train", *columns), markdown_row("---", "---", *["---:"] * len(columns))]
    sets = [folder.name for folder in args.data]
    for data in sets:
        for way in ways:
            counts = {column: len(args.seeds) if column != "0" else 1 for column in columns}
            cells = (score_cell(runs(data, way, column), counts[column], scale=1.0) for column in columns)
            lines.append(markdown_row(data, way, *cells))
    for way in ways:
        cells = []
        for column in columns:
            found = [runs(data, way, column) for data in sets]
            wanted = 1 if column == "0" else len(args.seeds)
            means = [fmean(values) for values in found if len(values) == wanted]
            cells.append(f"{fmean(means):.1f}" if len(means) == len(sets) else "-")
        lines.append(markdown_row("**mean**", way, *cells))
    return "\n".join(lines)


def report(results: Sequence[dict], args: argparse.Namespace) -> str:
    steps = ", ".join(f"{name}: {args.num_steps[name]}" for name in args.shots)
    seeds = ", ".join(map(str, args.seeds))
    rates = ", ".join(f"{name} {rate:g}" for name, rate in args.learning_rates.items())
    head = [f"{args.model}, baseline {args.baseline}", f"seeds {seeds}", f"steps by shots {steps}"]
    parts = ["; ".join([*head, f"learning rates {rates}", *([" ".join(args.passed_on)] if args.passed_on else [])])]
    for title, name in (("AP50", "AP50"), ("AP", "AP"), ("Seconds of training", "seconds")):
        title += "" if name == "seconds" else f", {args.test_split} split"
        parts.append(f"{title}, by shots:\n\n{table(results, args, lambda found, name=name: found[name])}")
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> list[dict]:
    args = check_paths(parse_args(arguments))
    cells = make_cells(args)
    by_run = {cell.run: cell for cell in cells}
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.processes)
    results: dict[Cell, dict] = {}
    for done in tqdm(run_scripts(list(by_run), args.processes, threads), total=len(cells), unit="cell"):
        if not args.keep_weights:
            keep_files(done.folder, KEPT)
        results[by_run[done]] = read_cell(by_run[done], args.test_split)
        ordered = [results[cell] for cell in cells if cell in results]
        write_json(args.output / "table.json", ordered)
        write_text(args.output / "table.md", report(ordered, args))
    print(report(ordered, args))
    return ordered


if __name__ == "__main__":
    run(main)
