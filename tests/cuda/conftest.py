"""The device of these tests: a GPU, or with `--device cpu` none; without either they are skipped."""

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/cuda/" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    name = pytestconfig.getoption("--device")
    if name is None:
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU; `pytest tests/cuda --device cpu` runs it without one")
        name = "cuda"
    return torch.device(name)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32, whose products have ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
