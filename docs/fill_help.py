"""A hook of mkdocs: writes the help of each command into docs/cli-options.md, so that it is never out of date."""

import contextlib
import io
import os
import re
import shlex
from typing import Any

from glipv2_command import defer_package

PAGE = "cli-options.md"


def help_of(line: str) -> str:
    """What a line such as `glipv2 detect --help` prints, 80 characters wide."""
    defer_package()
    from transformers_glipv2.cli.main import run_command

    os.environ["COLUMNS"] = "80"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = run_command(shlex.split(line)[1:])
    if code != 0:
        raise ValueError(f"{PAGE} has {line!r}, which ends with code {code}.")
    return printed.getvalue().strip()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls this with the text of each page."""
    if page.file.src_uri != PAGE:
        return markdown
    return re.sub(r"(?m)^\$ (glipv2 .*--help)$", lambda line: f"{line[0]}\n{help_of(line[1])}", markdown)
