"""
The entry point of the `glipv2` command.

Importing `transformers_glipv2` registers its classes with transformers, whose Auto classes import torch: seconds that
`--help`, completion and a mistyped option should not take. Python runs the `__init__` of a package before any module
in it. So the entry point lies outside of the package: it makes the package known without running its `__init__`, and
runs that once the command line is understood and a command is about to work. For everyone else
`import transformers_glipv2` registers everything at once; it cannot do so lazily, since the Auto classes take classes,
not names of classes.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec

PACKAGE = "transformers_glipv2"


def defer_package() -> Callable[[], None]:
    """Makes the modules of the package importable, and returns what runs its `__init__`."""
    if PACKAGE in sys.modules:
        return lambda: None
    spec = find_spec(PACKAGE)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"the package {PACKAGE} is not installed; run `pip install transformers-glipv2`")
    package = module_from_spec(spec)
    sys.modules[PACKAGE] = package
    return lambda: spec.loader.exec_module(package)


def main() -> None:
    """Runs the command line of this process."""
    load_package = defer_package()
    from transformers_glipv2.cli.main import run_command

    sys.exit(run_command(sys.argv[1:], load_package))


if __name__ == "__main__":
    main()
