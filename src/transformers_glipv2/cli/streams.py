"""What commands and scripts print on."""

import io
import sys


def print_all_characters() -> None:
    """Lets stdout escape what its encoding lacks, as stderr does: class names may hold any character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
