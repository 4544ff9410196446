"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GLIPV2_SHARED", REPOSITORY.parent / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="of tests/cuda: cuda where there is a GPU, or cpu to run them without one")


def _folder_or_skip(path: Path, what: str) -> Path:
    if not path.is_dir():
        pytest.skip(f"{what} are not at {path}; set GLIPV2_SHARED to the folder that holds them")
    return path


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Golden tensors of the original GLIP code."""
    return _folder_or_skip(SHARED / "reference", "the golden tensors of the original code")


@pytest.fixture(scope="session")
def metrics_dir() -> Path:
    """Golden results of the official evaluators."""
    return _folder_or_skip(SHARED / "metrics", "the golden results of the official evaluators")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images with annotations."""
    return _folder_or_skip(SHARED / "data", "the real images")
