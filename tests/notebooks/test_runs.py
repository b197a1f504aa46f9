"""Every notebook runs, twice in one kernel, and every cell that makes a figure shows it both times."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
# what a figure comes from; the explorer shows a widget and a page instead
FIGURES = re.compile(r"^(show\(|plot_|figure$|plt\.)", re.MULTILINE)


def images(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def text(cell):
    return "".join(output.get("text", "") for output in cell["outputs"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_twice(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    inline = nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.plot([0, 1]);", id="inline")
    once = [*notebook.cells, inline]
    again = [nbformat.from_dict({**cell, "id": f"{cell['id']}-again"}) for cell in once]
    notebook.cells = [*once, *again]
    (tmp_path / "notebooks").mkdir()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    for cell in notebook.cells:
        if cell["cell_type"] == "code" and FIGURES.search(cell["source"]) and "left out" not in text(cell):
            assert images(cell) == 1, f"{cell['id']}: {cell['source']}\n{text(cell)}"
