"""Figures stand on their own: no pyplot, and any front end that shows PNG shows them."""

import io

import matplotlib as mpl
import numpy as np
from PIL import Image

from tapstudy.plots.loss_curve import plot_loss
from tapstudy.plots.style import StudyFigure, style, subplots
from tests.test_architecture import ROOT, imported


def test_no_module_uses_pyplot():
    for path in ROOT.rglob("*.py"):
        assert not [name for name in imported(path) if name == "matplotlib.pyplot"], path


def test_a_figure_shows_itself():
    figure = plot_loss(np.linspace(1, 0, 9))
    assert isinstance(figure, StudyFigure)
    first, second = (np.asarray(Image.open(io.BytesIO(figure._repr_png_()))) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape[1] > 300
    assert first[..., :3].min() < 100  # lines and texts


def test_the_style_ends_with_the_block():
    size = mpl.rcParams["font.size"]
    with style():
        figure, axis = subplots(figsize=(2, 2))
        assert axis.title.get_fontsize() == 9
    assert mpl.rcParams["font.size"] == size
    assert axis.figure is figure
