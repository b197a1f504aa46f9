"""Run the notebooks and store them with their outputs: `make notebooks`, or `python -m tests.notebooks.store 03`.

What is stored is small and the same every time: images are capped and have few colours; text has no addresses, and of
HTML only the tables of pandas are kept, as the rest has names made by chance. Errors of a cell stop it.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
WIDTH, COLOURS = 900, 256  # of stored images
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@contextmanager
def kernel(folder: Path) -> Iterator[NotebookClient]:
    """Start a kernel in a folder, for several notebooks: imports take longer than what they are for."""
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=300, resources={"metadata": {"path": str(folder)}}, store_widget_state=False
    )
    with client.setup_kernel():
        yield client


def execute(client: NotebookClient, cells: list[Any]) -> None:
    """Run cells, which find none of the names of what ran before in the kernel."""
    client.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%reset -f", id="forget"), *cells])
    for number, cell in enumerate(client.nb.cells):
        client.execute_cell(cell, number)


def text(cell: Any) -> str:
    """Return what a cell printed and what it ended with, as text, without what is written to stderr."""
    said = "".join("".join(one["text"]) for one in cell["outputs"] if one.get("name") == "stdout")  # lists in a file
    shown = ["".join(one["data"].get("text/plain", "")) for one in cell["outputs"] if "data" in one and not _bar(one)]
    return ADDRESS.sub("", "\n".join([said, *shown]))


def same(stored: str, found: str) -> bool:
    """Compare texts: words to the letter, numbers to what another machine may round otherwise."""
    words, values = zip(*((NUMBER.sub("#", one).split(), NUMBER.findall(one)) for one in (stored, found)), strict=True)
    return words[0] == words[1] and np.allclose(*(np.array(one, dtype=float) for one in values), rtol=0.03, atol=0.02)


def small(cell: Any) -> None:
    """Make the outputs of a cell that ran fit to be stored."""
    cell["metadata"] = {}
    cell["outputs"] = [one for one in cell["outputs"] if one.get("name") != "stderr" and not _bar(one)]
    for before, after in reversed(list(pairwise(cell["outputs"]))):  # text comes in pieces, as it happens
        if before.get("name") == after.get("name") == "stdout":
            before["text"] += after["text"]
            cell["outputs"].remove(after)
    for output in cell["outputs"]:
        data = output.get("data", {})
        output.pop("metadata", None)
        if "data" in output:
            output["metadata"] = {}
        if "text/plain" in data:
            data["text/plain"] = ADDRESS.sub("", data["text/plain"])
        if "image/png" in data:
            data["image/png"] = _small_image(data["image/png"])
        for kind in [kind for kind in data if kind not in ("text/plain", "image/png")]:
            if kind != "text/html" or 'class="dataframe"' not in data[kind]:
                del data[kind]


def _bar(output: Any) -> bool:
    """Tell whether an output is a widget, such as the progress bar of somebody's loading."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _small_image(encoded: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH))
    # by coverage, as the colours of thin lines carry meaning, however few pixels have them
    few = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    few.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def store(names: list[str]) -> None:
    """Run and store the notebooks whose file names begin so; all without any."""
    paths = [path for path in sorted(FOLDER.glob("*.ipynb")) if not names or path.name.startswith(tuple(names))]
    if not paths:
        raise SystemExit(f"no notebook in {FOLDER} begins with {' or '.join(names)}")
    with TemporaryDirectory() as folder:
        inside = Path(folder) / "notebooks"
        inside.mkdir()
        with kernel(inside) as client:
            for path in paths:
                notebook = nbformat.read(path, as_version=4)
                execute(client, notebook.cells)
                count = 0
                for cell in notebook.cells:
                    if cell["cell_type"] == "code":
                        count += 1
                        cell["execution_count"] = count
                        for output in cell["outputs"]:
                            if "execution_count" in output:
                                output["execution_count"] = count
                        small(cell)
                nbformat.write(notebook, path)
                print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    store(sys.argv[1:])
