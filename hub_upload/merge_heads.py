"""
Puts heads that were trained apart, over the same frozen weights, in one folder.

    python hub_upload/merge_heads.py --model outputs/captions --heads_of outputs/masks --output outputs/nano

The folder gets the configuration, the processor and all weights of `--model`, and what else `--heads_of` holds.
Weights that both hold must be equal.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder whose configuration is kept")
    parser.add_argument("--heads_of", type=Path, required=True, help="folder whose further heads are added")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; it must not exist")
    args = parser.parse_args(arguments)
    if args.output.exists():
        raise SystemExit(f"error: {args.output} exists; choose a new folder.")
    weights, others = (load_file(folder / WEIGHTS) for folder in (args.model, args.heads_of))
    differing = [name for name in weights.keys() & others.keys() if not torch.equal(weights[name], others[name])]
    if differing:
        raise SystemExit(
            f"error: {len(differing)} weights differ, such as {sorted(differing)[0]}; merge only heads that were "
            "trained with all shared weights frozen."
        )
    added = {name: tensor for name, tensor in others.items() if name not in weights}
    if not added:
        raise SystemExit(f"error: {args.heads_of} holds no head that {args.model} lacks.")

    partial = args.output.with_name(f".{args.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in args.model.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt"):
            shutil.copyfile(file, partial / file.name)
    save_file({**weights, **added}, partial / WEIGHTS, metadata={"format": "pt"})
    os.replace(partial, args.output)
    heads = sorted({name.split(".")[0] for name in added})
    print(f"{args.output}: {len(weights)} weights of {args.model}, and {', '.join(heads)} of {args.heads_of}")


if __name__ == "__main__":
    main()
