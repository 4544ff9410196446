"""The scripts of hub_upload/ as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HUB_UPLOAD = Path(__file__).resolve().parents[2] / "hub_upload"


def load_script(path: str) -> ModuleType:
    """A script with the modules beside it, as when it is run by its path."""
    file = HUB_UPLOAD / path
    sys.path.insert(0, str(file.parent))
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
