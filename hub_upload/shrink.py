"""
Halves the weights of a trained folder for shipping: float16 on disk, float32 when loaded.

    python hub_upload/shrink.py --model outputs/nano --output hub_upload/glipv2-nano

config.json keeps `dtype: float32`, so `from_pretrained` computes in float32 as before. Processor, tokenizer and the
settings of generation are copied.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from transformers_glipv2.cli.arguments import ScriptParser, add_model, add_output_folder, check_paths
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import read_json, replaced_file, write_json

WEIGHTS = "model.safetensors"
COPIED = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add_model(parser, "folder that training wrote")
    add_output_folder(parser, "folder to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    model = Path(args.model)
    if not (model / WEIGHTS).is_file():
        raise ValueError(f"{model} holds no {WEIGHTS}; pass a folder that a training script wrote.")
    weights = {name: halved(name, value) for name, value in load_file(model / WEIGHTS).items()}
    config = read_json(model / "config.json")

    with replaced_file(args.output / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    # Without it transformers would compute in what the file holds.
    write_json(args.output / "config.json", {**config, "dtype": "float32"})
    for name in COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, args.output / name)
    size = (args.output / WEIGHTS).stat().st_size / 1e6
    print(f"{args.output}: {sum(value.numel() for value in weights.values()) / 1e6:.2f} M parameters, {size:.1f} MB")


def halved(name: str, value: torch.Tensor) -> torch.Tensor:
    """A float tensor as float16; others as they are. Refuses what float16 cannot hold."""
    if not value.is_floating_point():
        return value
    half = value.half()
    if not half.isfinite().all():
        raise ValueError(f"{name} holds values beyond float16 ({value.abs().max():.3g}); ship it in float32.")
    return half


if __name__ == "__main__":
    run(main)
