"""`glipv2 push`."""

from pathlib import Path
from typing import Annotated

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import checked, command_app, number

app = command_app()


@app.command()
def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            parser=checked(checks.InputFolder, "FOLDER"),
            help="A saved model with its processor, such as `glipv2 train` writes, or a Space.",
            show_default=False,
        ),
    ],
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="USER/NAME", parser=checked(checks.repo_id), help="Where to publish.", show_default=False
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Only prepare, check and show; send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="Of a model without a README.md, such as apache-2.0.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", parser=checked(checks.repo_id), help="A Space's model on the Hub, USER/NAME."),
    ] = None,
    max_file_mb: Annotated[
        float, number(checks.positive_float, "--max_file_mb", help="Refuse files of more millions of bytes.")
    ] = 5000,
) -> None:
    """
    Publish a model or a Space on the Hub, after checks.

    A model gets the code that runs without this package, and a card where it has none. Secrets, pickles, absolute
    paths, code of others and large files are refused. Log in with `hf auth login` first.

    Example: glipv2 push outputs/raccoon USER/raccoon
    """
    import sys

    from transformers.utils.logging import disable_progress_bar

    from transformers_glipv2.hub.publishing import check_folder, is_space, prepare_model, prepared_space, publish

    if not sys.stderr.isatty():
        disable_progress_bar()

    def check_and_publish(ready: Path) -> None:
        print("\n".join(check_folder(ready, max_file_mb, folder)))
        if dry_run:
            print(f"Dry run: nothing was sent. Without --dry_run it is published as {repo_id}.")
        else:
            print(f"{repo_id} is at {publish(ready, repo_id, is_space(ready), private)}")

    if is_space(folder):
        with prepared_space(folder, model) as copy:
            check_and_publish(copy)
        return
    for sentence in prepare_model(folder, repo_id, license=license):
        print(f"Not in the card: {sentence}")
    check_and_publish(folder)
