"""examples/notebooks: every cell runs, learns what it says it learns, and was saved with what it shows."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "notebooks" / "fine_tune_on_your_data.ipynb"
SILENT = 2  # cells of code that show nothing: the settings, and the one that draws the images


def printed(cells: list) -> list[str]:
    """What each cell of code prints, without progress bars."""
    return [
        "".join(part["text"] for part in cell.outputs if part.get("name") == "stdout")
        for cell in cells
        if cell.cell_type == "code"
    ]


@pytest.fixture(scope="module")
def saved():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_was_saved_with_its_outputs(saved):
    nbformat.validate(saved)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) == len(code) - SILENT
    images = [part for cell in code for part in cell.outputs if "image/jpeg" in part.get("data", {})]
    assert len(images) == 2
    assert str(Path.home()) not in NOTEBOOK.read_text() and "/tmp" not in NOTEBOOK.read_text()


def test_every_cell_runs_and_the_class_is_learned(saved, tmp_path, monkeypatch):
    for name in ("docs", "hub_upload"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    before = printed(saved.cells)
    client = NotebookClient(saved.copy(), timeout=300, resources={"metadata": {"path": str(folder)}})
    # The kernel of these tests, whichever are installed for the user.
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    ran = client.execute()
    after = printed(ran.cells)
    scores = next(ast.literal_eval(text) for text in after if text.startswith("{"))
    assert scores["AP50"] > 80
    # Files and boxes drawn with a seed are the same everywhere, scores are nearly so.
    assert after[2] == before[2]
    assert after[-1].count("cup of coffee") == before[-1].count("cup of coffee") == 2
