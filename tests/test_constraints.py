"""constraints/lowest.txt pins the lower bounds of pyproject.toml."""

import re
import tomllib

from packaging.requirements import Requirement

from tests.scripts import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What `make test-lowest` installs: it leaves out what takes long, and tools that no test calls.
EXTRAS = ("train", "eval", "supervision", "dev")
TOOLS = {"mypy", "pytest-xdist", "ruff", "torchao"}


def bounds(extras) -> dict[str, str]:
    """Package -> its lower bound, of the package itself and of some extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.name != PROJECT["name"]:
            found[requirement.name] = next(one.version for one in requirement.specifier if one.operator == ">=")
    return found


def test_every_lower_bound_is_pinned():
    text = (REPOSITORY / "constraints" / "lowest.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"(?m)^([\w-]+)==([\w.]+)$", text))
    assert pins.keys() >= bounds(EXTRAS).keys() - TOOLS
    for name, bound in bounds(PROJECT["optional-dependencies"]).items():
        if name in pins:
            assert Requirement(f"{name}=={bound}").specifier.contains(pins[name]), f"{name}: {pins[name]}, not {bound}"
