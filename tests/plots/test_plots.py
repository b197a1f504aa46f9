"""What is drawn, from datasets made by the real functions on the tiny model."""

import numpy as np
import pytest

import tapstudy
from tapstudy.analysis.caption import caption
from tapstudy.analysis.clean_image import clean_images
from tapstudy.analysis.proxy_correlation import proxy_correlation
from tapstudy.analysis.summaries import summarise
from tapstudy.bench.compare import compare_images
from tapstudy.bench.image_set import ImageSet
from tapstudy.plots.choice_maps import plot_choice_maps
from tapstudy.plots.choices_over_images import plot_choices_over_images
from tapstudy.plots.image_grid import plot_image_grid
from tapstudy.plots.loss_curve import plot_loss
from tapstudy.plots.proxy_vs_truth import plot_proxy_vs_truth
from tapstudy.plots.style import predictor_colour, save, small_print
from tests.conftest import make_tiny_pipe


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    call = {"class_labels": [1, 2, 3], "seed": 0, "num_inference_steps": 16}
    fields = ("proxy_loss", "true_error", "choice", "latent", "image")
    path, config = tmp_path_factory.mktemp("run") / "run.zarr", tapstudy.TAPConfig(interval=6)
    run = tapstudy.record(make_tiny_pipe(), [call], path, fields=fields, config=config, progress=False).load()
    return run.assign(clean_image=clean_images(run))


def test_choice_maps_draw_the_choices(scores):
    figure = plot_choice_maps(scores, sample=1)
    drawn = [axis for axis in figure.axes if axis.axison and axis.images]
    maps = [axis for axis in drawn if axis.images[0].get_array().shape == (4, 4, 3)]
    assert len(maps) == int((scores["is_full"][0, 0] == 0).sum())
    choice = scores["choice"].isel(sample=1).sel(context="cond", step=3).values
    expected = [predictor_colour(int(scores.order[c]), float(scores["shift"][c]), 4.0) for c in choice]
    np.testing.assert_allclose(maps[0].images[0].get_array().reshape(-1, 3), expected)
    legend = figure.axes[-1]
    assert [label.get_text() for label in legend.get_yticklabels()] == ["order 0", "order 1", "order 2"]
    assert [label.get_text() for label in legend.get_xticklabels()] == ["k", "k - 1", "k - 2", "k - 3", "k - 4"]


def test_choice_maps_of_a_video(scores):
    """One frame of the tokens, beside its picture of the video that was expected, or of the final one."""
    place = np.arange(16)
    film = scores.drop_vars(["clean_image", "image"]).sel(context=["uncond"]).assign_coords(
        frame=("token", place // 8), row=("token", place // 4 % 2), col=("token", place % 4), preview_step=[0, 8]
    )  # fmt: skip
    expected, final = np.zeros((3, 2, 5, 6, 7, 3), "uint8"), np.zeros((3, 5, 12, 14, 3), "float32")
    expected[:, 1, 4], final[:, 4] = 255, 0.5
    film["preview_video"] = (("sample", "preview_step", "time", "preview_y", "preview_x", "band"), expected)
    for data, height, value in ((film, 6, 1.0), (film.drop_vars("preview_video"), 12, 0.5)):
        data = data.assign(video=(("sample", "time", "y", "x", "band"), final))
        figure = plot_choice_maps(data, frame=1)
        drawn = [axis.images[0].get_array() for axis in figure.axes if axis.axison and axis.images]
        choice = data["choice"].isel(sample=0, context=0).sel(step=3).values[8:]
        colours = [predictor_colour(int(data.order[c]), float(data["shift"][c]), 4.0) for c in choice]
        maps = [array for array in drawn if array.shape == (2, 4, 3)]
        np.testing.assert_allclose(maps[0].reshape(-1, 3), colours)
        pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images[:1] and
                    axis.images[0].get_array().shape[0] == height]  # fmt: skip
        assert pictures[-1].min() == pictures[-1].max() == value


def test_choices_over_images(scores):
    """The images, and the choices before every full step but the warm-up; what was run stands below."""
    figure = plot_choices_over_images(scores, 1 - scores["image"])
    drawn = [[axis.images[0].get_array() for axis in figure.axes[i * 5 : i * 5 + 5]] for i in range(3)]
    for (before, after, *maps), one in zip(drawn, scores.transpose("sample", ...).sample, strict=True):
        image = scores["image"].isel(sample=one)[..., 0]
        np.testing.assert_allclose(after, image)
        np.testing.assert_allclose(before, 1 - image)
        for colours, step in zip(maps, (7, 13, 15), strict=True):  # full: 0, 1, 2, 8, 14
            choice = scores["choice"].isel(sample=one).sel(context="cond", step=step).values
            expected = [predictor_colour(int(scores.order[c]), float(scores["shift"][c]), 4.0) for c in choice]
            np.testing.assert_allclose(colours.reshape(-1, 3), expected)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["full model\n16 passes", "TAP\n5 passes", "step 7\nk = 5"]
    small_print(figure, caption(scores), "", "more")
    assert figure.texts[0].get_text() == "LabelPipeline · 3 images (3 labels, seed 0) · 16 steps · more"
    before, after = (figure.texts[0].get_window_extent().ymax, figure.axes[-1].get_tightbbox().ymin)
    assert before < after


def test_predictors_have_different_colours():
    colours = {predictor_colour(m, s, 4) for m in range(3) for s in range(5)}
    assert len(colours) == 15


def test_proxy_vs_truth(scores):
    correlation = summarise(proxy_correlation(scores, measures=("spearman",)), "distance")["spearman"]
    figure = plot_proxy_vs_truth(scores, correlation)
    left, right = figure.axes[:2]
    assert left.get_xscale() == left.get_yscale() == "log"
    assert "proxy loss" in left.get_xlabel()
    counted = int((scores["is_distinct"] == 1).sum()) * 16
    assert left.collections[0].get_array().sum() <= counted
    np.testing.assert_allclose(right.lines[0].get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(right.lines[0].get_ydata(), correlation.sel(bound="mean"))
    assert "3 images" in right.get_title()


def test_image_grid(tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path / "model")
    images = ImageSet.of(str(tmp_path / "model"), labels=(0, 1), seeds=(0, 1), steps=8)
    comparison = compare_images(images, folder=tmp_path / "results", intervals=(2, 3), progress=False)
    reference, last = (comparison["image"].isel(run=run, sample=1, band=0).values for run in (0, -1))
    figure = plot_image_grid(comparison)  # the reference, and differences of five methods at N = 3
    assert len(figure.axes) == 6 * 4 + 1
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), reference)
    np.testing.assert_allclose(figure.axes[21].images[0].get_array(), abs(last - reference))
    assert [axis.get_ylabel() for axis in figure.axes[:24:4]][0::5] == ["reference\n8 passes", "TAP"]
    assert figure.axes[7].texts[0].get_text() == f"{float(comparison['psnr'][6].mean()):.1f} dB"
    assert figure.axes[-1].get_xlabel().endswith("of images in [0, 1]; N = 3, the fewest passes")
    figure = plot_image_grid(comparison.isel(run=[0, 10]), images=True, samples=2)
    assert figure.axes[-1].get_xlabel().endswith("of images in [0, 1]")
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), last)
    np.testing.assert_allclose(figure.axes[5].images[0].get_array(), abs(last - reference))
    assert [axis.get_ylabel() for axis in figure.axes[:6:2]] == [
        "reference\n8 passes",
        "TAP\n4 passes",
        "difference",
    ]


def test_loss_curve():
    figure = plot_loss(np.linspace(1, 0, 200), window=50)
    assert len(figure.axes[0].lines[1].get_xdata()) == 151


def test_saving_twice_gives_the_same_files(scores, tmp_path):
    for name in ("a", "b"):
        save(plot_choice_maps(scores), tmp_path / name, "maps")
    for kind in ("png", "svg"):
        assert (tmp_path / "a" / f"maps.{kind}").read_bytes() == (tmp_path / "b" / f"maps.{kind}").read_bytes()
