"""
Pre-trains from one start with some of the losses, the same number of steps each, and scores: the paper's ablation.

    python benchmarks/ablation.py --model outputs/nano-init --data data.yaml --assets scene-assets --coco coco-mini \\
        --output outputs/ablation -- --num_steps 1000 --batch_size 8 --learning_rate 8e-4

Boxes and words of the same image (L_loc + L_intra) are always learned; masked tokens (L_mlm) and the contrast over
images (L_inter) come on top, one and both. What stands after `--` goes to pretrain.py. Every row is scored on the
composite test (evaluate_scenes.py) and, with `--coco`, on the `val` split of a COCO-format folder.

`--rows` chooses rows, and has one more: all these losses with answers and captions beside them (`pretrain.py
--vqa_captioning`), for data with examples of kind `vqa` and `caption`: whether they help localisation.

    python benchmarks/ablation.py ... --rows "L_loc + L_intra + L_inter" "all" "all + answers + captions"

table.md and table.json are written anew after each row. Rows that are there are not made again, so the same command
goes on after an interruption.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from script_runs import ScriptRun, add_runs, keep_files, markdown_row, run_scripts, split_arguments
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    InputPath,
    ScriptParser,
    add_max_samples,
    add_model,
    add_output_folder,
    check_paths,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_json, write_text
from transformers_glipv2.data.formats.coco import find_annotation_file
from transformers_glipv2.data.scenes.scenes import TEST_PARTS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# What each row leaves out.
ROWS = {
    "L_loc + L_intra": ("inter=0", "mlm=0"),
    "L_loc + L_intra + L_mlm": ("inter=0",),
    "L_loc + L_intra + L_inter": ("mlm=0",),
    "all": (),
}
VQA_CAPTIONING = "all + answers + captions"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id that every row starts from")
    add("--data", required=True, type=InputFile, help="data file (YAML) of pretrain.py")
    add("--assets", required=True, type=InputFolder, help="folder that fetch_scene_assets.py wrote")
    add_output_folder(parser, "folder for the tables and a folder for each row")
    add("--coco", type=InputPath, help="COCO-format folder to score on too (default: none)")
    add("--background_folder", type=InputFolder, help="as of evaluate_scenes.py")
    add("--parts", nargs="+", choices=TEST_PARTS, default=list(TEST_PARTS), help="of the composite test")
    rows = (*ROWS, VQA_CAPTIONING)
    help = "of the table (default: all but the one with answers and captions)"
    add("--rows", nargs="+", choices=rows, default=list(ROWS), help=help)
    add_max_samples(parser, "scenes of each part", default=100)
    add("--loss_weights", nargs="*", default=[], metavar="LOSS=WEIGHT", help="of the losses that a row has")
    add_runs(parser, "row")
    own, passed_on = split_arguments(arguments)
    args = parser.parse_args(own)
    args.passed_on = passed_on
    return args


def training_run(row: str, args: argparse.Namespace) -> ScriptRun:
    left_out = ROWS.get(row, ())
    names = {weight.partition("=")[0] for weight in left_out}
    weights = [weight for weight in args.loss_weights if weight.partition("=")[0] not in names]
    arguments = ("--model", args.model, "--data", args.data, "--resume", "latest", *args.passed_on)
    arguments += ("--loss_weights", *weights, *left_out)
    if row == VQA_CAPTIONING:
        arguments += ("--vqa_captioning",)
    folder = args.output / "rows" / row.replace(" + ", "+") / "training"
    return ScriptRun(EXAMPLES / "pretrain.py", tuple(map(str, arguments)), folder, "metrics.json")


def scoring_runs(training: ScriptRun, args: argparse.Namespace) -> dict[str, ScriptRun]:
    """By name of the test."""
    folder, model = training.folder.parent, ("--model", training.folder)
    scenes = (*model, "--assets", args.assets, "--max_samples", args.max_samples, "--parts", *args.parts)
    if args.background_folder is not None:
        scenes += ("--background_folder", args.background_folder)
    scripts = {"scenes": ("evaluate_scenes.py", scenes, "scores.json", "scores.json")}
    if args.coco is not None:
        file = find_annotation_file(args.coco, "val")
        coco = (*model, "--annotations", file, "--images", file.parent)
        scripts["coco"] = ("evaluate_detection.py", coco, "metrics.json", "")
    return {
        name: ScriptRun(EXAMPLES / script, tuple(map(str, arguments)), folder / name, result, output)
        for name, (script, arguments, result, output) in scripts.items()
    }


def read_row(row: str, training: ScriptRun, scoring: Mapping[str, ScriptRun], args: argparse.Namespace) -> dict:
    """What table.json says of a row that is done; scores in percent."""
    state = training.read_result()
    scenes = scoring["scenes"].read_result()["results"]
    found = {"losses": row, "steps": state["step"], "seconds": round(state["seconds"])}
    for part in args.parts:
        found |= {f"{part} {name}": scenes[part][f"bbox_{name}"] for name in ("AP50", "AP")}
    if "coco" in scoring:
        scores = scoring["coco"].read_result()["coco"]["bbox"]
        found |= {f"{args.coco.name}/val {name}": round(100 * scores[name], 2) for name in ("AP50", "AP")}
    return found


def table(rows: list[dict]) -> str:
    columns = list(rows[0])
    lines = [markdown_row(*columns), markdown_row("---", *["---:"] * (len(columns) - 1))]
    return "\n".join([*lines, *(markdown_row(*(row[column] for column in columns)) for row in rows)]) + "\n"


def main(arguments: list[str] | None = None) -> list[dict]:
    args = check_paths(parse_args(arguments))
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.processes)
    trainings = {row: training_run(row, args) for row in args.rows}
    runs = list(trainings.values())
    for _ in tqdm(run_scripts(runs, args.processes, threads), "training", len(runs), unit="row"):
        pass
    scorings = {row: scoring_runs(training, args) for row, training in trainings.items()}
    tests = [one for scoring in scorings.values() for one in scoring.values()]
    rows = []
    for _ in tqdm(run_scripts(tests, args.processes, threads), "scoring", len(tests), unit="test"):
        through = [row for row, scoring in scorings.items() if all(one.is_done for one in scoring.values())]
        rows = [read_row(row, trainings[row], scorings[row], args) for row in through]
        if rows:
            write_json(args.output / "table.json", rows)
            write_text(args.output / "table.md", table(rows))
        for row in through if not args.keep_weights else ():
            keep_files(trainings[row].folder, ("metrics.json", "training_args.json", "training_log.jsonl"))
    print(table(rows))
    return rows


if __name__ == "__main__":
    run(main)
