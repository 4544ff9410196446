"""`glipv2 doctor`."""

from typing import Annotated

import typer

from transformers_glipv2.cli.options import command_app

app = command_app()


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    check_hub: Annotated[bool, typer.Option("--check_hub", help="Also ask whether the Hub can be reached.")] = False,
) -> None:
    """Show versions, devices, what is installed, and what to install."""
    import json

    from transformers_glipv2.cli.diagnosis import advice, diagnose, lines_of

    found = diagnose(check_hub)
    found["advice"] = advice(found)
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines_of(found)))
