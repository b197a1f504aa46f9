"""Every notebook runs, and every cell that makes a figure shows it; also when it is run again in the same kernel."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
# what a figure comes from; the explorer shows a page instead
FIGURES = re.compile(r"^(show\(|plot_|figure$|plt\.)", re.MULTILINE)
# those with code of their own; of the others one stands for all that only show figures of the study
AGAIN = ("00_quickstart", "01_proxy_versus_true_error", "02_predictor_maps", "08_your_own", "09_clock")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all notebooks, which find none of each other's names: imports take longer than what they are for."""
    folder = tmp_path_factory.mktemp("study") / "notebooks"
    folder.mkdir()
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=300, resources={"metadata": {"path": str(folder)}}, store_widget_state=False
    )
    with client.setup_kernel():
        yield client


def images(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def text(cell):
    return "".join(output.get("text", "") for output in cell["outputs"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    forget = nbformat.v4.new_code_cell("%reset -f", id="forget")
    inline = nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.plot([0, 1]);", id="inline")
    once = [*notebook.cells, inline]
    again = [nbformat.from_dict({**cell, "id": f"{cell['id']}-again"}) for cell in once if path.stem in AGAIN]
    notebook.cells = [forget, *once, *again]
    kernel.nb = notebook
    for number, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, number)
        if cell["cell_type"] == "code" and FIGURES.search(cell["source"]) and "left out" not in text(cell):
            assert images(cell) == 1, f"{cell['id']}: {cell['source']}\n{text(cell)}"
