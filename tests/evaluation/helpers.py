"""What the tests of evaluators share."""

import gzip
import json
from pathlib import Path


def read(path: Path):
    """The content of a json file, compressed or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return json.load(file)
