"""
Merges heads that were trained separately, over the same frozen weights, into one folder.

    python hub_upload/merge_heads.py --model outputs/captions --heads_of outputs/masks --output outputs/nano

The folder gets the configuration, the processor and all weights of `--model`, and the further heads of `--heads_of`.
Of a head that is in both, that of `--model` is kept; other weights that are in both must be equal. With `--as_start`
they may differ: heads that were trained over other weights are then a start for training them on.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from transformers_glipv2.cli.arguments import ModelSource, ScriptParser, add_output_folder, check_paths
from transformers_glipv2.cli.errors import run
from transformers_glipv2.conversion.edited_folder import WEIGHTS, save_with_weights

# Heads that are trained over a frozen detector.
HEADS = ("answer_head.", "caption_head.", "mask_head.")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--model", type=ModelSource, required=True, help="folder whose configuration is kept")
    parser.add_argument("--heads_of", type=ModelSource, required=True, help="folder whose further heads are added")
    add_output_folder(parser, "folder to write; it must not exist")
    parser.add_argument("--as_start", action="store_true", help="take heads that were trained over other weights")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    model, heads_of = Path(args.model), Path(args.heads_of)
    if args.output.exists():
        raise ValueError(f"{args.output} exists; choose a new folder.")
    weights, others = (load_file(folder / WEIGHTS) for folder in (model, heads_of))
    shared = [name for name in weights.keys() & others.keys() if not name.startswith(HEADS)]
    differing = [name for name in shared if not torch.equal(weights[name], others[name])]
    if differing and not args.as_start:
        raise ValueError(
            f"{len(differing)} weights differ, such as {sorted(differing)[0]}; merge only heads that were "
            "trained with the detector frozen, or pass --as_start to train them on."
        )
    added = {name: tensor for name, tensor in others.items() if name not in weights}
    if not added:
        raise ValueError(f"{args.heads_of} holds no head that {args.model} lacks.")

    save_with_weights(model, {**weights, **added}, args.output)
    heads = sorted({name.split(".")[0] for name in added})
    print(f"{args.output}: {len(weights)} weights of {args.model}, and {', '.join(heads)} of {args.heads_of}")


if __name__ == "__main__":
    run(main)
