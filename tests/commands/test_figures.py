"""Every figure from small data: twice the same bytes, and a clear line where data is missing."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import xarray as xr

import tapstudy
from tapstudy.analysis.study import CHOSEN, load_table, save_table
from tapstudy.cli import app
from tapstudy.figures import FIGURES, draw_all, show
from tapstudy.plots import style
from tapstudy.sources import MissingData, Sources
from tests.analysis.test_run_tables import ranking
from tests.command_line import invoke as run
from tests.conftest import make_tiny_pipe
from tests.test_architecture import ROOT

# what draws numbers at random (intervals, shuffles), or lays out what it is given: two of each
CHANCE = ("heterogeneity", "correlation", "choice_maps", "speed")
TABLES = {"correlation", "fixed_predictors_psnr", "ablations", "controls", "low_pass", "depth_ablation",
          "speed_quality", "speed_quality_timed", "rivals", "error_buildup", "quantised", "speed",
          "published", "claims", "claims_by_study"}  # fmt: skip


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Few pixels are written sooner."""
    monkeypatch.setitem(style.RC, "savefig.dpi", 50)


@pytest.fixture(scope="module")
def data(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("data")
    call = {"class_labels": [1, 2], "seed": [0, 1], "num_inference_steps": 14}
    config = tapstudy.TAPConfig(interval=5)
    fields = ("proxy_loss", "true_error", "choice", "latent", "image")
    pipe = make_tiny_pipe()
    exact, accelerated = {"config": config}, {"policy": tapstudy.policies.TAPPolicy(config)}
    for name, wanted, how in (
        ("scores", fields, exact), ("features", ("probe", "residual", "image"), exact),
        ("gallery", ("choice", "image"), accelerated), ("gallery_exact", ("image",), exact),
    ):  # fmt: skip
        path = folder / "recordings" / f"{name}.zarr"
        tapstudy.record(pipe, [call], path, fields=wanted, progress=False, **how)
    study = folder / "study"
    save_table(quality(), study, "quality")
    save_table(ranking(), study, "ranking")
    (study / CHOSEN).write_text(json.dumps({"best mask": "even: F..F..", "smooth": "sigma 40"}))
    fixed = quality().sel(cell=["order0 N=8", "order1 N=8", "tap N=8"])
    save_table(fixed.assign_coords(method=("cell", ["fixed0", "fixed1-0", "tap"])), study, "fixed")
    options = ["--seeds", "3", "--held-out", "4", "--labels", "1,2", "--passes", "6,5", "--steps", "12",
               "--tuning", "1", "--repeats", "1", "--methods", "fewer,order1,tap,peer-taylorseer",
               "--schedules", "even,start-dense"]  # fmt: skip
    where = ["--model", str(model_folder), "--work", str(folder / "w"), "--out", str(study / "frontier.nc")]
    found = run(app, ["bench", "frontier", *where, *options])
    assert found.exit_code == 0, found.output
    shutil.copytree(ROOT.parent / "data" / "published", folder / "published")
    common = f"--model {model_folder} --steps 12"
    for command in (
        "errors --labels 1,2 --interval 4", "speed --batch-size 2 --repeats 1 --methods tap,order0",
        f"quantised --labels 1,2 --bits 8,4 --intervals 4 --work {folder / 'q'}",
    ):  # fmt: skip
        name = command.split()[0]
        found = run(app, ["bench", *command.split(), *common.split(), "--out", str(study / f"{name}.nc")])
        assert found.exit_code == 0, found.output
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return folder


def quality():
    """A run for everything the figures ask for."""
    from tapstudy.figures import ABLATIONS, CONTROLS

    names = ["reference", *(f"tap N={n}" for n in (4, 6, 8)), *(f"tap N=8 depth={d}" for d in (1, 2))]
    names += [f"{name} N={n}" for name in CONTROLS.values() for n in (4, 6, 8)]
    names += [f"{name} N=8 smooth" for name in ("order0", "order1", "order2", "tap")]
    names += [name for group in ABLATIONS.values() for name in group.values()]
    values = 30 + np.random.default_rng(0).normal(size=(len(names), 3))
    values[0] = np.inf
    dims = ("cell", "sample")
    ones = np.ones_like(values)
    return xr.Dataset(
        {"psnr": (dims, values), "correct": (dims, ones), "flops": (dims, 8e9 * ones), "full_passes": (dims, 8 * ones)},
        coords={"cell": names},
    )


def test_all_figures_and_some_twice(data, tmp_path):
    result = run(app, ["figures", "--data", str(data), "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    made = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert made == sorted(
        f"{name}.{kind}" for name in FIGURES if not name.startswith("claims") for kind in ("png", "svg")
    )
    assert "claims left out: no table" in result.output
    assert "make it with `tapstudy claims" in result.output
    found = dict(draw_all(Sources(data), tmp_path / "b", names=CHANCE))
    assert list(found) == list(CHANCE)
    again = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(again) == 2 * len(CHANCE)
    for name in again:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_figures_without_tables_say_which_command_makes_them(data, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "recordings").symlink_to(data / "recordings")
    found = dict(draw_all(Sources(tmp_path / "data"), tmp_path / "out", names=[*TABLES, "choice_maps"]))
    assert {name for name, what in found.items() if isinstance(what, MissingData)} == TABLES
    assert "make it with `tapstudy bench speed --model mnist-dit," in str(found["speed"])
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_other_models_have_folders_of_their_own(data, tmp_path):
    shutil.copytree(data / "recordings", tmp_path / "data" / "recordings" / "mine")
    sources = Sources(tmp_path / "data", "mine")
    assert show("choice_shares", sources, tmp_path) is not None
    assert (tmp_path / "mine" / "choice_shares.png").is_file()
    assert "tapstudy claims --model mine --work claims-mine --out claims-mine.md --study" in str(
        dict(draw_all(sources, tmp_path, names=["controls"]))
    )
    told = run(app, ["figures", "choice_shares", "--data", str(tmp_path / "data"), "--model", "other"])
    assert "other --bundled --model other" in told.output.replace("\n", "")


def test_what_depends_on_no_weights_is_shared(data, tmp_path):
    sources = Sources(data, "mine")
    assert sources.table("speed").identical(Sources(data).table("speed"))
    assert "speed" not in dict(draw_all(sources, tmp_path))
    assert [name for name, _ in draw_all(sources, tmp_path, names=["speed"])] == ["speed"]


def test_numbers_beside_the_published_ones_have_the_name_of_their_model(data, tmp_path):
    (tmp_path / "data" / "study").mkdir(parents=True)
    shutil.copytree(data / "study", tmp_path / "data" / "study" / "mine")
    shutil.copytree(data / "published", tmp_path / "data" / "published")
    figure = show("published", Sources(tmp_path / "data", "mine"), tmp_path)
    assert figure.axes[-1].get_title().startswith("mine\n")


def test_without_recordings(tmp_path):
    found = dict(draw_all(Sources(tmp_path), tmp_path, names=["regret"]))
    assert "make it with `tapstudy record" in str(found["regret"])


def test_show_returns_the_figure_or_says_what_is_missing(data, tmp_path, caplog):
    figure = show("speed", Sources(data), tmp_path)
    assert len(figure.axes) == 2
    assert (tmp_path / "speed.svg").is_file()
    assert show("speed", Sources(tmp_path), tmp_path) is None
    assert "speed left out: no table" in caplog.text


def test_unknown_figures_and_folders(data, tmp_path):
    result = run(app, ["figures", "magic", "--data", str(data), "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "no figure 'magic'" in result.output
    assert not (tmp_path / "o").exists()
    result = run(app, ["figures", "--data", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "--data" in result.output


def test_list_names_every_figure():
    result = run(app, ["figures", "--list"])
    assert [line.split()[0] for line in result.output.splitlines()] == list(FIGURES)
    assert all(make.__doc__ for make in FIGURES.values())


def test_commands_named_for_missing_tables_exist(data):
    """The tables that these commands write are those that the figures read."""
    errors = load_table(data / "study", "errors")
    assert errors["policy"].values.tolist() == ["order1", "tap", "oracle"]
    assert errors["deviation"].dims == ("policy", "sample", "step")
    cost = load_table(data / "study", "speed")
    assert cost["batch"].values.tolist() == [4]  # two images and both branches of guidance
    np.testing.assert_allclose(cost["part_seconds"].sel(skip="skip").sum("part"), cost["step_seconds"].sel(kind="skip"))


@pytest.mark.skipif(find_spec("tapstudy.analysis.claims") is None, reason="without the claims")
def test_claims_figure(data, tmp_path):
    from tapstudy.analysis.study import save_study
    from tests.analysis.synthetic_claims import make_evidence

    save_study(make_evidence(), tmp_path / "study")
    figure = show("claims", Sources(tmp_path), tmp_path)
    assert sum(len(panel.containers) for panel in figure.axes) == 30
    assert json.loads((tmp_path / "study" / "chosen.json").read_text()) == {"best mask": "even: F......F"}
