"""`glipv2 convert`."""

from pathlib import Path
from typing import Annotated

import typer

from transformers_glipv2.cli.options import command_app

app = command_app()


@app.command()
def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A released name such as glip-tiny, or a checkpoint file of microsoft/GLIP or mmdetection.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write. Default for a name: the cache.", show_default=False),
    ] = None,
    original_config: Annotated[
        Path | None,
        typer.Option(
            "--original_config", help="The file's own .yaml, where it differs from those released.", show_default=False
        ),
    ] = None,
    text_config: Annotated[
        Path | None,
        typer.Option(
            "--text_config", help="config.json of the text encoder, where it is not BERT-base.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Folder of the tokenizer. Default: that of BERT.", show_default=False),
    ] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Print the released names and exit.")] = False,
) -> None:
    """
    Get a released checkpoint by name, or convert a file of your own.

    Example: glipv2 convert glip-tiny

    Example: glipv2 convert my_model.pth --output my-glip
    """
    from transformers_glipv2.conversion.convert_glip_checkpoint import convert_checkpoint, describe
    from transformers_glipv2.conversion.released import RELEASED, save_released, table

    if list_names:
        print(table())
        return
    if source is None:
        raise typer.BadParameter("pass a released name (--list prints them) or a checkpoint file.")
    if source in RELEASED:
        folder = save_released(source, output)
        model = RELEASED[source]
        print(f"{source} is in {folder}; every --model takes its name.")
        print(f"Weights: {model.url}, licence {model.license}.")
        return
    if output is None:
        raise typer.BadParameter("pass --output FOLDER with a file.")
    conversion = convert_checkpoint(source, output, original_config, text_config, tokenizer)
    print(describe(conversion))
    print(f"Wrote {output}.")
