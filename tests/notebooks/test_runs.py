"""Every notebook runs and says what is stored, cells that make figures show them; and again in the same kernel."""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tapstudy.plots import style
from tests.notebooks.store import FOLDER, _small_image, execute, kernel, same, text

# what a figure comes from; the explorer shows a page instead
FIGURES = re.compile(r"^\s*(show\(|plot_|figure$|plt\.)", re.MULTILINE)
# one that shows figures of the study, and one that registers classes: the others are slow
AGAIN = ("02_predictor_maps", "08_your_own")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One kernel for all notebooks."""
    folder = tmp_path_factory.mktemp("study") / "notebooks"
    folder.mkdir()
    with kernel(folder) as client:
        yield client


def images(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in AGAIN else [pytest.mark.slow])
        for path in sorted(FOLDER.glob("*.ipynb"))
    ],
)
def test_notebook_runs(path: Path, running):
    notebook = nbformat.read(path, as_version=4)
    stored = {cell["id"]: text(cell) for cell in notebook.cells if cell["cell_type"] == "code"}
    inline = nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.plot([0, 1]);", id="inline")
    once = [*notebook.cells, inline]
    again = [nbformat.from_dict({**cell, "id": f"{cell['id']}-again"}) for cell in once if path.stem in AGAIN]
    execute(running, [*once, *again])
    for cell in [*once, *again]:
        if cell["cell_type"] != "code":
            continue
        if FIGURES.search(cell["source"]) and "left out" not in text(cell):
            assert images(cell) == 1, f"{cell['id']}: {cell['source']}\n{text(cell)}"
        said = stored.get(cell["id"].removesuffix("-again"))
        assert said is None or same(said, text(cell)), f"{cell['id']}: stored\n{said}\nnow\n{text(cell)}"


@pytest.mark.parametrize("figure", ["claims", "rivals", "speed_quality_timed"])
def test_stored_pictures_keep_the_colours_that_tell_lines_apart(figure):
    picture = (FOLDER.parent / "figures" / f"{figure}.png").read_bytes()
    stored = Image.open(io.BytesIO(base64.b64decode(_small_image(base64.b64encode(picture).decode())))).convert("RGB")
    drawn = Image.open(io.BytesIO(picture)).convert("RGB").resize(stored.size)
    before, after = (np.asarray(one).reshape(-1, 3).astype(int) for one in (drawn, stored))
    for name in ("BLACK", "ORANGE", "SKY", "GREEN", "BLUE", "VERMILION", "PURPLE"):
        colour = np.array(to_rgb(getattr(style, name))) * 255
        has_it = abs(before - colour).max(axis=1) <= 2
        assert has_it.sum() < 15 or abs(after[has_it] - colour).max() <= 20, name


def test_same():
    assert same("PSNR 30.12 dB [29.9, 31]", "PSNR 30.13 dB  [29.9, 31]")
    assert not same("PSNR 30.12 dB", "PSNR 34.12 dB")
    assert not same("PSNR 30.12 dB", "SSIM 30.12 dB")
    assert not same("mask FF..F", "mask FF.F.")
