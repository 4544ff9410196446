"""
Compares defaults of fine-tuning over data sets: AP on images held out from training, and false boxes elsewhere.

    python benchmarks/fine_tuning_defaults.py --model hub_upload/glipv2-nano --unrelated coco-mini/val \\
        --negatives coco-mini/train --data raccoon chess blood-cells microcontrollers --output outputs/defaults

Every cell fine-tunes on `train.json` of a data set without a fifth of its images, and scores the last weights on that
fifth, so val and test splits have no part in the choice. A false box is any box above `--threshold` in one of the
first images of the folder `--unrelated`, which shows none of the classes.

A candidate replaces the default where no data set loses more than `--tolerance` points of AP, by its mean gain: points
of AP, and a third of a point for each percent of images that lose their false boxes. The choice is also made on all
data sets but one, in turn, and reported with what it does to the one that was left out. table.md is written anew after
each cell, and no cell is made twice.
"""

import argparse
import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from script_runs import markdown_row
from transformers_glipv2 import Detector
from transformers_glipv2.cli.arguments import (
    InputFolder,
    ScriptParser,
    add_image_size,
    add_model,
    add_output_folder,
    add_seed,
    check_paths,
    fraction,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_json, write_text
from transformers_glipv2.data.negatives import image_files
from transformers_glipv2.training.fine_tune import FineTuneOptions, fine_tune

DEFAULT = "default"
METRICS = ("AP", "AP50", "AP75", "false")
HELD_OUT = 0.2


def candidates(negatives: Path | None) -> dict[str, dict[str, Any]]:
    """Options that differ from the defaults."""
    own: dict[str, dict[str, Any]] = {
        DEFAULT: {},
        "rate 1e-4, no scramble": {"learning_rate": 1e-4, "scramble": 0.0},
        "no scramble": {"scramble": 0.0},
        "scramble 0.5": {"scramble": 0.5},
        "rate 3e-4": {"learning_rate": 3e-4},
        "larger images": {"image_size": [352]},
    }
    return own if negatives is None else own | {"negatives 0.2": {"negatives": negatives}}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from")
    add("--data", nargs="+", required=True, type=InputFolder, help="COCO-format folders")
    add("--unrelated", required=True, type=InputFolder, help="folder of images that show none of the classes")
    add("--max_samples", type=positive_int, default=40, help="the first so many of them (default: 40)")
    add("--negatives", type=InputFolder, help="folder of other such images, to train on")
    add("--candidates", nargs="+", help="names of those to compare with the default (default: all)")
    add("--num_steps", type=positive_int, default=100, help="optimizer steps of a cell (default: 100)")
    add_image_size(parser, "of every cell but those of larger images")
    add("--threshold", type=fraction, default=0.3, help="of a false box (default: 0.3)")
    add("--tolerance", type=positive_float, default=1.0, help="points of AP that are no difference (default: 1)")
    add_output_folder(parser, "folder for cells and tables")
    add_seed(parser, "of held-out images, data order and dropout")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace, data: Path, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """AP, AP50, AP75 in percent, and the fraction of unrelated images with a false box, of one run."""
    done = fine_tune(
        FineTuneOptions(
            args.model,
            data / "train.json",
            folder,
            images=data,
            val_fraction=HELD_OUT,
            test_split="none",
            num_steps=args.num_steps,
            eval_steps=args.num_steps,
            seed=args.seed,
            device="cpu",
            **{"image_size": args.image_size, **changes},
        )
    )
    detector = Detector.from_pretrained(folder, threshold=args.threshold, progress=False)
    found = detector.detect(image_files(args.unrelated)[: args.max_samples])
    scores = {name: done["val"][name] for name in ("AP", "AP50", "AP75")}
    return {
        **scores,
        "false": 100 * fmean(bool(len(one["boxes"])) for one in found),
        "seconds": done["seconds"],
        "recipe": done["recipe"],
    }


def choose(
    results: Mapping[tuple[str, str], Mapping[str, float]], names: Sequence[str], sets: Sequence[str], tolerance: float
) -> str:
    """The candidate with the best mean of AP less a third of false boxes among those that make no set worse."""

    def gain(name: str) -> float:
        own, base = ([results[one, data] for data in sets] for one in (name, DEFAULT))
        if any(new["AP"] < old["AP"] - tolerance for new, old in zip(own, base, strict=True)):
            return float("-inf")
        return fmean(
            (new["AP"] - old["AP"]) - (new["false"] - old["false"]) / 3 for new, old in zip(own, base, strict=True)
        )

    return max(names, key=gain)


def table(results: Mapping[tuple[str, str], Mapping[str, float]], args: argparse.Namespace) -> str:
    """Results as Markdown, and the choices where all cells are there."""
    sets = [path.name for path in args.data]
    names = list(dict.fromkeys(name for name, _ in results))
    lines = [markdown_row("candidate", "data", *METRICS), markdown_row("---", "---", *["---:"] * len(METRICS))]
    for (name, data), cell in results.items():
        lines.append(markdown_row(name, data, *[f"{cell[metric]:.1f}" for metric in METRICS]))
    names = [name for name in names if all((name, data) in results for data in sets)]
    for name in names:
        means = [fmean(results[name, data][metric] for data in sets) for metric in METRICS]
        lines.append(markdown_row(name, "mean", *[f"{mean:.1f}" for mean in means]))
    if len(names) > 1:
        lines += ["", f"On all: {choose(results, names, sets, args.tolerance)}."]
        for left_out in sets if len(sets) > 1 else []:
            chosen = choose(results, names, [data for data in sets if data != left_out], args.tolerance)
            own, base = results[chosen, left_out], results[DEFAULT, left_out]
            lines.append(
                f"Without {left_out}: {chosen}; AP on it {base['AP']:.1f} -> {own['AP']:.1f}, images with a false box "
                f"{base['false']:.1f} -> {own['false']:.1f} %."
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    args = check_paths(parse_args(arguments))
    known = candidates(args.negatives)
    names = [DEFAULT, *(args.candidates or [name for name in known if name != DEFAULT])]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--candidates: {unknown[0]!r} is none of {', '.join(known)}.")
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for data in args.data:
        for name in names:
            file = args.output / f"{data.name}-{name.replace(' ', '-')}.json"
            if not file.is_file():
                folder = args.output / "run"
                shutil.rmtree(folder, ignore_errors=True)
                write_json(file, measure(args, data, known[name], folder))
                gc.collect()
            results[name, data.name] = json.loads(file.read_text(encoding="utf-8"))
            write_text(args.output / "table.md", table(results, args))
    print(table(results, args))
    return results


if __name__ == "__main__":
    run(main)
