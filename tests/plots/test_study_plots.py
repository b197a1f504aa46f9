"""Lines, bars and labels of the figures, from small tables made by hand."""

import numpy as np
import pytest
import xarray as xr

from tapstudy.plots.ablation_errors import plot_ablation_errors
from tapstudy.plots.choice_entropy import plot_choice_entropy
from tapstudy.plots.choice_shares import plot_choice_shares
from tapstudy.plots.claims import plot_claims
from tapstudy.plots.correlation import plot_correlation
from tapstudy.plots.depths import plot_depths
from tapstudy.plots.error_buildup import plot_error_buildup
from tapstudy.plots.fixed_predictors import plot_fixed_predictors
from tapstudy.plots.frontier import plot_frontier
from tapstudy.plots.gains import plot_gains
from tapstudy.plots.heterogeneity import plot_heterogeneity
from tapstudy.plots.image_rows import plot_image_rows
from tapstudy.plots.published import plot_published
from tapstudy.plots.quantised import plot_quantised
from tapstudy.plots.regret import plot_regret
from tapstudy.plots.rivals import plot_rivals

BOUNDS = {"bound": ["mean", "low", "high"]}


def interval(means, dim, labels=None, half=0.1):
    means = np.asarray(means, float)
    values = np.stack([means, means - half, means + half], axis=-1)
    dims = (dim,) if isinstance(dim, str) else dim
    coords = BOUNDS if labels is None else BOUNDS | {dims[-1]: labels}
    return xr.DataArray(values, dims=(*dims, "bound"), coords=coords)


def bars(axis):
    """Mean, and ends of the bar, of every line with error bars: (line, point, 3)."""
    found = []
    for container in axis.containers:
        line, _, (collection,) = container.lines
        ends = np.array([segment[:, 1] for segment in collection.get_segments()])
        found.append(np.column_stack([line.get_ydata(), ends]))
    return np.array(found)


def axes_are_labelled(figure):
    for axis in figure.axes:
        place = axis.get_subplotspec()
        shared = axis.get_shared_y_axes().get_siblings(axis)[1:]
        assert axis.get_xlabel() or not place.is_last_row()
        assert axis.get_ylabel() or shared or [label.get_text() for label in axis.get_yticklabels()]


def legend_of(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_correlation():
    table = xr.Dataset(
        {
            "spearman": interval([0.5, 0.8], "depth", [0, 4]),
            "of_control": interval([0.4], "control", ["shuffled"]),
            "at_distance": xr.concat(
                [interval([0.9, 0.3], "distance", [1, 2]), interval([0.7, 0.6], "distance", [1, 2])],
                dim=xr.Variable("ranker", ["tap N=8", "table N=8"]),
            ),
        },
        attrs={"images": 7},
    )
    figure = plot_correlation(table)
    left, right = figure.axes
    np.testing.assert_allclose(bars(left), [[[0.5, 0.4, 0.6], [0.8, 0.7, 0.9]]])
    np.testing.assert_allclose(bars(right)[..., 0], [[0.9, 0.3], [0.7, 0.6]])
    assert "first block, losses shuffled over tokens" in legend_of(left)
    assert "7 images" in figure.get_suptitle()
    axes_are_labelled(figure)


def test_heterogeneity():
    speed = xr.DataArray(
        [[[1, 2], [3, 4], [5, 6]], [[2, 2], [2, 2], [2, 2]]], dims=("token_class", "quantile", "step"),
        coords={"token_class": ["edge", "background"], "quantile": [0.25, 0.5, 0.75], "step": [1, 2]},
    )  # fmt: skip
    orders = xr.DataArray(
        [[0.2, 0.8], [0.5, 0.5]], dims=("token_class", "value"),
        coords={"token_class": ["edge", "background"], "value": [0, 2]},
    )  # fmt: skip
    null = np.full(5, np.nan)
    null[2] = 0.05
    shares = xr.Dataset(
        {"share": ("source", [0, 0.6, 0.3, 0, 0.1]),
         **dict.fromkeys(("null_mean", "null_low", "null_high"), ("source", null))},
        coords={"source": ["sample", "step", "position", "token", "residual"]},
    )  # fmt: skip
    figure = plot_heterogeneity(speed, orders, {"speed": shares})
    left, middle, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [3, 4]
    assert legend_of(left) == ["edge", "background"]
    np.testing.assert_allclose([bar.get_width() for bar in middle.patches], [0.2, 0.5, 0.8, 0.5])
    assert middle.patches[2].get_x() == 0.2  # on top of the first
    assert legend_of(middle) == ["order 0", "order 2"]  # from left to right
    assert [bar.get_width() for bar in right.patches if bar.get_width()] == [
        0.6,
        0.3,
        0.1,
    ]  # sources without a share are left out
    assert right.get_yticklabels()[0].get_text() == "step"
    axes_are_labelled(figure)


def test_choice_shares_stack_up_to_one():
    shares = xr.Dataset(
        {
            "order_share": (("step", "chosen_order"), [[np.nan, np.nan], [0.25, 0.75]]),
            "shift_share": (("step", "chosen_shift"), [[np.nan, np.nan], [0.5, 0.5]]),
        },
        coords={"step": [0, 1], "chosen_order": [0, 1], "chosen_shift": [0.0, 1.0]},
    )
    figure = plot_choice_shares(shares, full_steps=[0])
    top, bottom = figure.axes
    tops = [bar.get_y() + bar.get_height() for bar in top.containers[-1]]
    assert tops == [0, 1]  # nothing at the full step
    assert legend_of(top) == ["order 1", "order 0"]  # as they lie on each other
    assert legend_of(bottom) == ["k - 1", "k"]
    grey = [patch for patch in top.patches if patch.get_x() == -0.5 and patch.get_width() == 1]
    assert grey
    axes_are_labelled(figure)


def test_choice_entropy():
    names = ("entropy", "moran_order", "switch_within", "switch_across")
    curves = xr.Dataset({name: interval([i, i + 0.5], "step", [3, 5]) for i, name in enumerate(names)})
    figure = plot_choice_entropy(curves, full_steps=[0, 1, 2], images=8)
    top, middle, bottom = figure.axes
    np.testing.assert_allclose(bars(top)[0, :, 0], [0, 0.5])
    np.testing.assert_allclose(bars(middle)[0, :, 0], [1, 1.5])
    np.testing.assert_allclose(bars(bottom)[:, :, 0], [[2, 2.5], [3, 3.5]])
    assert len(top.patches) == 3
    assert "bit" in top.get_ylabel()
    axes_are_labelled(figure)


def test_regret():
    names = ("regret", "normalised_regret", "top1")
    own = xr.Dataset({name: interval([0.1, 0.2], "distance", [1, 2]) for name in names})
    figure = plot_regret(own, own + 1, images=3)
    for axis in figure.axes:
        np.testing.assert_allclose(bars(axis)[:, :, 0], [[0.1, 0.2], [1.1, 1.2]])
    assert [text.get_text() for text in figure.axes[1].texts] == ["random choice", "oracle"]
    axes_are_labelled(figure)


def test_fixed_predictors():
    fixed = interval([3, 2, 1], "predictor").assign_coords(
        order=("predictor", [0, 1, 1]), shift=("predictor", [0.0, 4.0, 0.0])
    )
    figure = plot_fixed_predictors(fixed, {"tap": interval([0.5], "x").isel(x=0)}, label="PSNR (dB)", images=3)
    (axis,) = figure.axes
    np.testing.assert_allclose(bars(axis)[0, :, 0], [1, 2])  # by shift
    levels = {line.get_label(): line.get_ydata()[0] for line in axis.lines if line.get_linestyle() != "None"}
    assert levels["order 0"] == 3
    assert levels["TAP"] == 0.5
    axes_are_labelled(figure)


def test_gains():
    of_image = ("run", "sample"), [[-2, 0, np.nan], [1, 2, 3]]
    table = xr.Dataset(
        {"gain": interval([-1, 2], "run", ["a", "b"]), "gain_of_image": of_image, "images": ("run", [4, 20])}
    )
    figure = plot_gains({"group": table}, baseline="TAP")
    (axis,) = figure.axes
    assert axis.containers[0].lines[0].get_xdata().tolist() == [-1, 2]
    ticks = [place for strip in axis.collections[:2] for place in strip.get_offsets().tolist()]
    assert ticks == [[-2, 0], [0, 0], [1, 1], [2, 1], [3, 1]]  # every image, in the row of its run
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_title(loc="left") == "group (4 to 20 images)"
    assert figure.get_supxlabel().startswith("PSNR minus that of TAP (dB;")


def runs(names, means, flops):
    return xr.Dataset({"psnr": interval(means, "run", names), "flops": ("run", flops)}, attrs={"images": 5})


def test_depths():
    first = runs(["tap N=4", "tap N=8"], [30, 20], [9e9, 5e9])
    figure = plot_depths(first, runs(["tap N=8 depth=2"], [22], [8e9]))
    (axis,) = figure.axes
    assert axis.containers[0].lines[0].get_xdata().tolist() == [5e9, 9e9]  # in order of cost
    assert [text.get_text() for text in axis.texts] == ["N = 8", "N = 4", "depth = 2"]
    assert axis.xaxis.get_major_formatter()(5e9) == "5 GFLOP"
    axes_are_labelled(figure)


@pytest.mark.parametrize("costs", [("flops",), ("flops", "seconds")])
def test_frontier(costs):
    table = runs(["reference", "tap N=4", "tap N=8", "new N=8"], [np.inf, 30, 20, 19], [50.0, 14, 8, 8])
    table["psnr"][0, 1:] = np.inf
    table = table.assign_coords(
        method=("run", ["reference", "tap", "tap", "new"]), interval=("run", [1, 4, 8, 8])
    ).assign(accuracy=interval([0.9, 0.8, 0.7, 0.6], "run"), seconds=table["flops"] / 10)  # fmt: skip
    figure = plot_frontier(table if len(costs) == 2 else table.drop_vars("seconds"))
    assert len(figure.axes) == 2 * len(costs)
    psnr, accuracy = figure.axes[0], figure.axes[len(costs)]
    assert psnr.containers[0].lines[0].get_xdata().tolist() == [8, 14]
    assert psnr.containers[0].lines[0].get_ydata().tolist() == [20, 30]
    assert accuracy.lines[0].get_ydata()[0] == 0.9  # the reference goes across
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["TAP", "new", "no acceleration"]  # an unknown method has its own name
    assert [text.get_text() for text in psnr.texts] == ["N = 8", "N = 4"]
    axes_are_labelled(figure)
    table["accuracy"][:] = [1.0, 1.0, 1.0]
    alone = plot_frontier(table if len(costs) == 2 else table.drop_vars("seconds"))
    assert len(alone.axes) == len(costs)  # nothing to be seen of accuracy, which the title tells
    assert "label accuracy 100 % for all" in alone.get_suptitle()


def test_rivals():
    """Grouped by kind with a title each, best first; a line at TAP as published."""
    table = xr.Dataset(
        {"psnr_interval": interval([30, 25, 20, 15], "cell"), "time_ratio": ("cell", [4.0, 5, 6, 7]),
         "flops_ratio": ("cell", [5.0, 6, 7, 8])},
        coords={
            "method": ("cell", ["drift", "TAP", "zeus", "TAP"]),
            "schedule": ("cell", ["even", "best", "own", "S(N,3)"]),
            "kind": ("cell", ["beyond", "tap", "cache", "tap"]), "passes": ("cell", [8] * 4),
            "as_published": ("cell", [False, False, False, True]),
        },
        attrs={"images": 5},
    )  # fmt: skip
    figure = plot_rivals(table, steps=48)
    quality, speed = figure.axes
    assert [label.get_text() for label in quality.get_yticklabels()] == [
        "zeus",
        "TAP, best",
        "TAP, S(N,3)",
        "drift, even",
    ]
    assert [text.get_text() for text in quality.texts] == [
        "published cache, as a policy", "TAP", "beyond the paper", "TAP as published",
    ]  # fmt: skip
    assert [line.get_xdata()[0] for line in quality.lines if line.get_linestyle() == ":"] == [15]
    assert [points.get_offsets()[:, 0].tolist() for points in speed.collections] == [[6], [5, 7], [4]]
    *hollow, passes = (list(line.get_xdata()) for line in speed.lines)
    assert hollow == [[7], [6, 8], [5]]
    assert passes == [6, 6]  # 48 steps / 8 passes
    axes_are_labelled(figure)


def test_error_buildup():
    names = ("local_error", "coherence", "feedback_cosine", "deviation")
    curves = xr.Dataset(
        {name: interval(np.arange(6).reshape(2, 3), ("policy", "step"), [0, 1, 2]) for name in names}
    ).assign_coords(policy=["tap", "oracle"])
    curves["coherence"][:, 0] = np.nan
    figure = plot_error_buildup(curves, full_steps=[0], images=2)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0, 1, 2], [3, 4, 5]]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [1, 2]
    assert legend_of(figure.axes[0]) == ["TAP", "oracle per token"]
    axes_are_labelled(figure)


def test_published_numbers_are_labelled_as_such():
    rows = {"model": ["F", "F", "Q"], "name": ["FORA", "TAP N=8", "TAP N=4"], "method": ["order0", "tap", "tap"],
            "speedup": [6.2, 6.2, 3.6], "metric": ["PSNR", "PSNR", "LPIPS"], "source": ["arXiv"] * 3}  # fmt: skip
    published = xr.Dataset({"value": ("row", [13.0, 16.0, 0.2])}, coords={k: ("row", v) for k, v in rows.items()})
    ours = runs(["reference", "tap N=8"], [np.inf, 23], [50.0, 8])
    ours = ours.assign_coords(method=("run", ["reference", "tap"]), interval=("run", [1, 8]))
    figure = plot_published(published, ours, model="mnist")
    assert len(figure.axes) == 2  # no panel without PSNR
    assert [bar.get_width() for bar in figure.axes[0].patches] == [13, 16]
    assert "as published" in figure.axes[0].get_title()
    assert [bar.get_width() for bar in figure.axes[1].patches] == [23]
    assert "measured here, 5 images" in figure.axes[1].get_title()
    assert "arXiv" in figure.get_supxlabel()


def test_claims():
    """A panel per unit; where the interval decides and the verdict does not, Holm's p-value stands beside."""
    verdicts = xr.Dataset(
        {
            "margin": interval([2, -3, 2, 0.5], "claim", ["H1", "H2", "H3", "H4"], half=1),
            "verdict": ("claim", ["holds", "fails", "undecided", "undecided"]),
            "statement": ("claim", ["short", "word " * 100, "a", "b"]),
            "decided_by": ("claim", ["gain", "loss", "gain", "gain"]),
            "unit": ("claim", ["dB", "", "dB", "dB"]),
            "threshold": ("claim", [0.5, 0, 0, 0]),
            "p_value": ("claim", [0.01, 0.01, 0.2, 0.2]),
        }
    )
    figure = plot_claims(verdicts)
    decibels, numbers = figure.axes
    labels = [label.get_text() for label in decibels.get_yticklabels()]
    assert labels[0] == "H1 short\ngain; threshold 0.5"
    assert numbers.get_yticklabels()[0].get_text().count("\n") == 1
    colours = [container.lines[0].get_color() for axis in figure.axes for container in axis.containers]
    assert len(set(colours)) == 3
    assert [float(container.lines[0].get_xdata()[0]) for container in decibels.containers] == [2, 2, 0.5]
    assert [text.get_text() for text in decibels.texts] == ["Holm: p = 0.2"]
    assert "(dB)" in decibels.get_xlabel()


def test_ablation_errors():
    settings = [("0", "0", 4), ("0", "0", 8), ("0,1,2", "0", 4), ("0,1,2", "0", 8), ("0,1,2", "0,1", 8)]
    error = np.array([[0.1, 0.2, 0.05, 0.1, 0.07]]) * np.array([[0.5], [1.5]])  # of two images
    columns = zip(("orders", "shifts", "interval"), zip(*settings, strict=True), strict=True)
    table = xr.Dataset(
        {"true_error": (("sample", "setting"), error), "oracle_true_error": (("sample", "setting"), error / 2)},
        coords={name: ("setting", list(values)) for name, values in columns},
    )
    figure = plot_ablation_errors(table)
    left, right = figure.axes
    for line, expected in zip(left.lines, [[0.1, 0.2], [0.05, 0.1], [0.025, 0.05]], strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected)
    (band,) = (path for path in left.collections[0].get_paths())
    assert {0.05, 0.15} <= set(band.vertices[:, 1].round(6))  # at N = 4, from the lesser to the larger image
    assert left.get_title() == "horizon k only"
    assert legend_of(right) == ["orders 0,1,2", "oracle of orders 0,1,2"]
    assert left.get_yscale() == "log"


def test_image_rows():
    images = xr.DataArray(np.arange(8.0).reshape(2, 2, 2, 1) / 8, dims=("sample", "y", "x", "band"))
    figure = plot_image_rows({"exact": images, "fast": images.isel(band=0) / 2})
    assert len(figure.axes) == 4
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), images[1, :, :, 0])
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), images[1, :, :, 0] / 2)
    assert figure.axes[2].get_ylabel() == "fast"


def test_quantised():
    names = {"method": ["order0", "tap"], "interval": [8], "bits": [8, 4], "correction": ["none", "variance", "affine",
             "cumulative"]}  # fmt: skip

    def values(*dims):
        shape = [len(names[name]) for name in dims]
        return interval(1.0 + np.arange(np.prod(shape)).reshape(shape), dims)

    grid = ("method", "interval", "bits")
    errors = {"caching": values(*grid[:2]), "rounding": values("bits"), "both": values(*grid, "correction")}
    ratios = {"sum_ratio": values(*grid), "corrected_ratio": values(*grid, "correction")}
    figure = plot_quantised(*(xr.Dataset(one).assign_coords(names) for one in (errors, ratios)), images=2)
    top, middle, bottom = figure.axes
    assert legend_of(top) == ["rounding alone", "order 0 (FORA), both", "TAP, both"]
    assert [bars.lines[0].get_ydata().tolist() for bars in top.containers] == [[1, 2], [1, 5], [9, 13]]
    assert [line.get_ydata()[0] for line in top.lines if line.get_linestyle() == ":"] == [1, 2]
    assert [bars.lines[0].get_ydata().tolist() for bars in middle.containers] == [[1, 2], [3, 4]]
    assert len(bottom.containers) == len(legend_of(bottom)) == 6
