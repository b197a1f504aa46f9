"""The figure of roughness in time, from a table made by hand."""

import numpy as np
import xarray as xr

from tapstudy.plots.time_roughness import plot_time_roughness


def table(smooth_time=0.0):
    values = lambda *shape: np.linspace(0.01, 0.4, int(np.prod(shape))).reshape(shape)  # noqa: E731
    return xr.Dataset(
        {
            "clock_second_difference": (("quantity", "place", "offset", "sample"), values(3, 2, 3, 2)),
            "second_difference": (("quantity", "steps", "step", "sample"), values(3, 2, 6, 2)),
            "time": (("steps", "step"), values(2, 6)[:, ::-1] * 1000),
            "tremble": (("quantity", "steps", "point", "sample"), values(3, 2, 2, 2)),
            "point_step": (("steps", "point"), [[2, 3], [2, -1]]),
            "clock_share": (("quantity", "steps", "sample"), values(3, 2, 2)),
            "forecast_error": (("order", "steps", "sample"), values(3, 2, 2)),
        },
        {
            "quantity": ["probe", "residual", "output"], "steps": [6, 8], "order": [0, 1, 2],
            "offset": [1.0, 3.0, 10.0], "place_time": ("place", [900.0, 500.0]),
        },
        {"interval": 8, "smooth_time": smooth_time},
    )  # fmt: skip


def test_what_is_drawn():
    roughness = table(smooth_time=40.0)
    figure = plot_time_roughness(roughness, quantity="output")
    clock, steps, share, forecast = figure.axes
    mean = roughness.mean("sample")
    own = mean.sel(quantity="output")
    by_label = {line.get_label(): line.get_ydata() for line in clock.lines}
    np.testing.assert_allclose(by_label["t = 900"], own["clock_second_difference"].isel(place=0))
    np.testing.assert_allclose(by_label["t = 500"], own["clock_second_difference"].isel(place=1))
    reference = by_label["smooth: as $d^2$"]
    np.testing.assert_allclose(reference / reference[-1], [0.01, 0.09, 1])
    lines = {line.get_label(): line for line in steps.lines}
    np.testing.assert_allclose(lines["T = 6"].get_ydata(), own["second_difference"].sel(steps=6))
    crosses = [line for line in steps.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in crosses] == [2, 1]  # one point was not measured
    np.testing.assert_allclose(crosses[0].get_xdata(), own["time"].sel(steps=6)[[2, 3]])
    points = {container.get_label(): [bar.get_height() for bar in container] for container in share.containers}
    for name in ("probe", "residual", "output"):
        np.testing.assert_allclose(points[name], 100 * mean["clock_share"].sel(quantity=name))
    points = {line.get_label(): line.get_ydata().tolist() for line in forecast.lines}
    np.testing.assert_allclose(points["order 2"], mean["forecast_error"].sel(order=2))
    assert "S(8, 3)" in forecast.get_ylabel()
    assert "low-pass of the clock of sigma 40" in figure.get_suptitle()
    assert "2 images" in figure.get_suptitle()
    assert all(axis.get_ylabel() for axis in figure.axes)
    assert "low-pass" not in plot_time_roughness(table()).get_suptitle()  # of the model as it is
