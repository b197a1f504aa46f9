"""The notebook view: every control redraws, and the table and figure show what the recording holds."""

import re

import numpy as np
import pytest

pytest.importorskip("ipywidgets")

from tapstudy.explorer.prepare import prepare
from tapstudy.explorer.view import ExplorerView, embed, forecast_table
from tapstudy.plots.explorer_style import LAYERS, category_colours
from tapstudy.plots.explorer_view import plot_explorer

SKIP = 4  # a skipped step


@pytest.fixture(scope="module")
def data(tiny):
    return prepare(tiny)


def test_every_control_redraws(data):
    view = ExplorerView(data)
    seen = {bytes(view.image.value)}
    for control, value in (
        ("step", SKIP),
        ("sample", 1),
        ("context", 1),
        ("opacity", 0.3),
        ("row", 0),
        ("column", 3),
    ):
        setattr(view.controls[control], "value", value)  # noqa: B010
        drawn = bytes(view.image.value)
        assert drawn.startswith(b"\x89PNG")
        assert drawn not in seen, control
        seen.add(drawn)
    assert [title for title, _ in view.layer.options] == [layer.title for layer in LAYERS]
    for layer in LAYERS[1:]:
        view.layer.value = layer
        assert bytes(view.image.value) not in seen, layer
        seen.add(bytes(view.image.value))


def test_the_map_shows_the_choices(data):
    one = data.isel(sample=0, context=1)
    figure = plot_explorer(one, step=SKIP, token=6, layer=LAYERS[0], opacity=0.5)
    image, overlay = figure.axes[0].images
    np.testing.assert_array_equal(image.get_array(), one["image"].isel(step=SKIP, band=0))
    colours = category_colours(data)["choice"]
    expected = [colours[p] for p in one["choice"].isel(step=SKIP).values.tolist()]
    drawn = np.round(overlay.get_array().reshape(-1, 4)[:, :3] * 255).astype(int)
    assert ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in drawn] == expected
    assert (overlay.get_alpha() == 0.5).all()


def test_the_lines_are_the_errors(data):
    one = data.isel(sample=0, context=0)
    figure = plot_explorer(one, step=SKIP, token=6, layer=LAYERS[0])
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_array_equal(lines["chosen"], one["chosen_error"].isel(token=6))
    np.testing.assert_array_equal(lines["best (oracle)"], one["best_error"].isel(token=6))
    np.testing.assert_array_equal(lines["order 2, k"], one["true_error"].isel(token=6, predictor=10))


def test_every_distinct_predictor_is_a_point(data):
    one = data.isel(sample=0, context=0, step=SKIP, token=6)
    figure = plot_explorer(data.isel(sample=0, context=0), step=SKIP, token=6, layer=LAYERS[0])
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[2].lines}
    distinct = one["is_distinct"].values == 1
    points = zip(one["proxy_loss"].values[distinct].tolist(), one["true_error"].values[distinct].tolist(), strict=True)
    assert drawn == set(points)
    rings = [collection.get_offsets()[0].tolist() for collection in figure.axes[2].collections]
    assert rings == [
        [float(one[name][int(one[at])]) for name in ("proxy_loss", "true_error")] for at in ("best", "choice")
    ]


def test_a_full_step_shows_no_choice(data):
    figure = plot_explorer(data.isel(sample=0, context=0), step=0, token=6, layer=LAYERS[0])
    assert (figure.axes[0].images[1].get_alpha() == 0).all()
    assert "nothing was forecast" in figure.axes[2].texts[0].get_text()


def test_the_table_lists_every_predictor(data):
    here = data.isel(sample=0, context=0, step=SKIP, token=6)
    rows = re.findall("<tr.*?</tr>", forecast_table(here))[1:]
    assert len(rows) == 15
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    assert [float(row[2]) for row in cells] == pytest.approx(here["proxy_loss"].values, rel=1e-2)
    assert [float(row[3]) for row in cells] == pytest.approx(here["true_error"].values, rel=1e-2)
    assert [p for p, row in enumerate(cells) if "chosen" in row[4]] == [int(here["choice"])]
    assert [p for p, row in enumerate(cells) if "best" in row[4]] == [int(here["best"])]


def test_frames_have_a_slider(tiny):
    token = np.arange(16)
    film = tiny.drop_vars(["image", "latent"]).assign_coords(
        frame=("token", token // 8), row=("token", token // 4 % 2), col=("token", token % 4)
    )
    view = ExplorerView(prepare(film))
    view.step.value = SKIP
    before = view.table.value
    view.frame.value = 1
    assert view.table.value != before
    assert ExplorerView(prepare(tiny)).frame.layout.display == "none"


def test_the_page_is_embedded_as_one_attribute(data):
    frame = re.fullmatch(r'<div><iframe srcdoc="([^"<>]*)" style="[^"]*"></iframe></div>', embed(data).data)
    assert frame
    assert "&lt;canvas id=&quot;map&quot;" in frame[1]
