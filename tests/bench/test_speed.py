"""Parts add up, ratios are those of the times, and bad input is named."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
import xarray as xr

mpl.use("Agg")

from matplotlib import pyplot as plt

from tapstudy import TAPConfig, apply_policy
from tapstudy.analysis.study import load_table, save_table
from tapstudy.bench.speed import run
from tapstudy.bench.speed import table as speed_table
from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.methods import EXTRA, TAP_VARIANTS, TEXTS, Plan, find_methods, setting_of, why_not_compiled
from tapstudy.bench.speed.real_sizes import RealSize
from tapstudy.bench.speed.run import _loop, speed, time_subject, with_ratios
from tapstudy.bench.speed.steps import PARTS, Marks, middle, plain_steps, tap_steps
from tapstudy.bench.speed.subjects import PRESETS, EulerLoop, Preset, Subject, make_subject, split_name
from tapstudy.cli import app
from tapstudy.models.machine import find_device
from tapstudy.plots.speed import plot_speed
from tapstudy.policies.tap import TAPPolicy
from tests.command_line import invoke
from tests.conftest import make_tiny_pipe
from tests.table import each_row

CPU = torch.device("cpu")
PLAN = Plan(steps=12, interval=5)
METHODS = ["reference", "tap", "order0", "peer-first-block", "peer-taylorseer-lite", "peer-magcache"]
FLUX = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 8,
        "joint_attention_dim": 12, "pooled_projection_dim": 10, "axes_dims_rope": (4, 4, 8)}  # fmt: skip


@pytest.fixture(scope="module")
def measured():
    pipe = make_tiny_pipe()
    subject = Subject("a/tiny", "tiny, guidance 2", pipe, lambda steps: pipe([1, 2], steps), CPU, torch.float32, 4)
    return time_subject(subject, PLAN, methods=METHODS, repeats=3)


def test_what_is_measured_is_kept_after_every_loop():
    pipe, kept = make_tiny_pipe(), []
    subject = Subject("tiny", "tiny", pipe, lambda steps: pipe([1, 2], steps), CPU, torch.float32, 4)
    found = time_subject(subject, PLAN, methods=["reference", "tap"], repeats=2, keep=kept.append)
    # TAP, the reference, TAP, the steps; twice
    assert [int(table["timed_loops"].sum()) for table in kept] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [int(table["latency_ratio"].notnull().sum()) for table in kept] == [0, 2, 2, 2, 2, 4, 4, 4]
    assert [int(table["part_seconds"].notnull().all(["model", "skip", "part"]).sum()) for table in kept] == [
        *[0, 0, 0, 1], *[1, 1, 1, 2],
    ]  # fmt: skip
    xr.testing.assert_identical(kept[-1], found)
    xr.testing.assert_equal(kept[3].isel(repeat=0), found.isel(repeat=0))


@pytest.mark.parametrize("saves", [2, 6, 8])
def test_a_call_that_was_cut_short_is_gone_on_with(tmp_path, monkeypatch, saves):
    """Of two models, in the first, between them and in the second: what was measured stays, the rest is measured."""
    for name in "ab":
        make_tiny_pipe().save_pretrained(tmp_path / name)
    loops = []
    monkeypatch.setattr(
        run, "_loop", lambda subject, plan, method: loops.append(method) or _loop(subject, plan, method)
    )

    def measure(**options):
        names = [str(tmp_path / name) for name in "ab"]
        return speed(names, PLAN, methods=["tap", "order0"], repeats=1, batch_size=1, device="cpu", **options)

    def keep(table):
        kept.append(save_table(table, tmp_path, "speed"))
        if len(kept) == saves:
            raise KeyboardInterrupt

    kept = []
    with pytest.raises(KeyboardInterrupt):
        measure(keep=keep)
    left, done = load_table(tmp_path, "speed"), len(loops)
    found = measure(earlier=left)
    each = {"reference": 1, "tap": 2, "order0": 2}
    whole = left["timed_loops"] == xr.DataArray([*each.values()], dims="method")
    again = (left["timed_loops"] * ~whole).sum()  # of rows that are half done
    assert len(loops) == 2 * 5 + again
    assert (found["timed_loops"] == xr.DataArray([*each.values()], dims="method")).all()
    assert found["model"].values.tolist() == ["a", "b"]
    for name in ("loop_seconds", "latency_ratio", "step_seconds", "part_seconds"):
        assert found[name].notnull().all(), name
    kept_rows = left["loop_seconds"].where(whole)
    assert (found["loop_seconds"].sel(model=left["model"]) == kept_rows).sum() == whole.sum()
    assert found.attrs["calls"] == 2
    assert done > 0


def test_only_the_same_measurement_is_gone_on_with(tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path / "a")

    def measure(interval=5, methods=("tap",), **options):
        plan = Plan(steps=12, interval=interval)
        given = {"repeats": 1, "batch_size": 1, "device": "cpu"} | options
        return speed([str(tmp_path / "a")], plan, methods=list(methods), **given)

    kept = []
    whole = measure(keep=kept.append)
    for options, message in (
        ({"interval": 4}, r"cut short, with interval 5 \(now 4\); tap_mask .*: ask for the same"),
        ({"methods": ["order0"]}, r"methods \['reference', 'tap'\] \(now"),
        ({"repeats": 2}, r"repeats 1 \(now 2\)"),
        ({"batch_size": 2}, r"measured with batch 2 until the call was cut short, and is 4 now"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(**options, earlier=kept[0])
    assert measure(interval=4, earlier=whole).attrs["calls"] == 1


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_schema(measured):
    assert measured.sizes == {"model": 1, "method": 6, "kind": 3, "skip": 1, "part": 6, "repeat": 3}
    for name, values in measured.data_vars.items():
        assert {"long_name", "units"} <= set(values.attrs), name
    for name in ("loop_seconds", "latency_ratio", "bound_share"):
        assert measured[name].dims == ("model", "method", "repeat")
    assert measured["step_share"].dims == ("model", "kind", "repeat")
    assert measured["part_share"].dims == ("model", "skip", "part", "repeat")
    assert measured["kind"].values.tolist() == ["full", "full, hooked", "skip"]
    assert measured["model"].values.tolist() == ["tiny"]
    assert {"device", "threads", "torch", "diffusers"} <= set(measured.attrs)
    assert measured["dtype"].item() == "float32"


def test_masks_and_bounds(measured):
    one = measured.isel(model=0)
    masks = dict(zip(METHODS, one["mask"].values.tolist(), strict=True))
    assert masks["reference"] == "F" * 12
    assert masks["tap"] == masks["order0"] == masks["peer-magcache"] == PLAN.mask == "FFF....F...."
    assert one["bound"].values[:3].tolist() == [1, 3, 3]
    assert one["latency_ratio"].sel({"method": "reference"}).values.tolist() == [1, 1, 1]


def test_a_peer_that_does_not_run(measured):
    row = measured.isel(model=0).sel({"method": "peer-taylorseer-lite"})
    assert "proj_out" in row["failure"].item()
    assert row["loop_seconds"].isnull().all()
    assert np.isnan(row["bound"])
    assert (measured.drop_sel(method="peer-taylorseer-lite")["failure"] == "").all()


def test_parts_add_up_to_the_skip_step(measured):
    parts = measured["part_seconds"].sel(skip="skip").sum("part")
    skip = measured["step_seconds"].sel(kind="skip")
    np.testing.assert_allclose(parts, skip, rtol=1e-12)
    shares = measured["part_share"].sel(skip="skip").sum("part")
    np.testing.assert_allclose(shares, measured["step_share"].sel(kind="skip"), rtol=1e-12)
    assert (measured["part_seconds"] > 0).all()


def test_ratios_by_hand():
    table = xr.Dataset(
        {
            "loop_seconds": (("model", "method", "repeat"), [[[10.0, 20], [2, 5], [np.nan, np.nan]]]),
            "full_passes": (("model", "method"), [[50, 8, np.nan]]),
            "step_seconds": (("model", "kind", "repeat"), [[[0.2, 0.4], [0.21, 0.4], [0.01, 0.02]]]),
            "part_seconds": (("model", "skip", "part", "repeat"), [[[[0.004, 0.012], [0.006, 0.008]]]]),
        },
        coords={"method": ["reference", "tap", "peer-x"], "kind": ["full", "full, hooked", "skip"], "skip": ["skip"]},
        attrs={"steps": 50},
    )
    found = with_ratios(table).isel(model=0)
    assert found["latency_ratio"].values[:2].tolist() == [[1, 1], [5, 4]]
    assert found["bound"].values[:2].tolist() == [1, 6.25]
    np.testing.assert_allclose(found["bound_share"].values[1], [0.8, 0.64])
    assert np.isnan(found["bound_share"].values[2]).all()
    np.testing.assert_allclose(found["step_share"].values, [[100, 100], [105, 100], [5, 5]])
    np.testing.assert_allclose(found["part_share"].values, [[[2, 3], [3, 2]]])


def test_share_of_the_bound_by_steps(measured):
    """4 full steps of 12 and 8 that take a quarter: 6 in place of 12, of 4 in place of 12 at best."""
    table = measured.assign(step_share=measured["step_share"] * 0 + 25)
    share = {row[0]: row[-1] for row in speed_table.step_rows(table, "tiny")}
    assert share["skip"] == "66.7 % [66.7, 66.7]"
    assert {share[name] for name in share if name != "skip"} == {""}


def test_middle_half_by_hand():
    steps = [{"a": a, "b": 1.0} for a in (100.0, 2, 3, 4, 0, 5, 1, 6)]
    assert middle(steps) == {"a": 3.5, "b": 1}  # of 2, 3, 4, 5
    assert middle([{"a": 2.0}]) == {"a": 2}
    with pytest.raises(ValueError, match="no steps"):
        middle([])


def test_marks_leave_no_gap(monkeypatch):
    """A part lasts until the next one begins, and comes back under its own name."""
    clock = iter([0.0, 1, 3, 7, 8])
    monkeypatch.setattr("tapstudy.bench.speed.steps.time.perf_counter", lambda: next(clock))
    marks = Marks(CPU)
    marks.open()
    for part in ("scoring", "assembly", "scoring", "end"):
        marks.begin(part)
    assert marks.steps() == [{"rest": 1, "scoring": 3, "assembly": 4}]


@pytest.mark.parametrize("depth", [0, 1])
def test_marks_change_nothing_and_leave_nothing(tiny_pipe, sample, depth):
    config, seen = TAPConfig(interval=4, probe_depth=depth), []
    with apply_policy(tiny_pipe, TAPPolicy(config)):
        expected = sample()
    found = tap_steps(tiny_pipe, lambda: seen.append(sample()), CPU, config=config)
    assert torch.equal(seen[0], expected)
    assert [len(found["full"]), len(found["skip"])] == [7, 13]
    assert all(set(step) == set(PARTS) for step in found["skip"])
    assert len(plain_steps(tiny_pipe, lambda: sample(steps=3), CPU)) == 3
    for module in tiny_pipe.transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not {"forward", "_diffusers_hook"} & set(vars(module))


def test_where_steps_cannot_be_cut(tiny_pipe, sample):
    with pytest.raises(ValueError, match="residual='latent'"):
        tap_steps(tiny_pipe, sample, CPU, config=TAPConfig(residual="latent"))


def test_euler_loop_against_its_sum():
    """Euler's rule on the noise levels 1, 2/3, 1/3, 0 of an unshifted flow."""
    torch.manual_seed(0)
    model = Preset("FluxTransformer2DModel", RealSize("tiny", (1, 4, 6), 5, FLUX), 1).build().eval()
    inputs = example_inputs(model, (1, 4, 6), text=5, batch=2)
    loop = EulerLoop(model, inputs, time_scale=1)
    x = inputs["hidden_states"].clone()
    levels = loop_levels(loop, 3)
    with torch.no_grad():
        for now, then in zip(levels, [*levels[1:], 0.0], strict=True):
            x = x + (then - now) * model(**inputs | {"hidden_states": x, "timestep": torch.full((2,), now)}).sample
    torch.testing.assert_close(loop(3), x, rtol=1e-5, atol=1e-6)
    with setting_of("tap", PLAN).attach(loop) as told:
        assert torch.equal(loop(12), loop(12))  # a new run is recognised as one
    assert told()[0] == PLAN.mask


def test_several_models(tmp_path, monkeypatch):
    """An embedded one in float32 and a preset in bfloat16 in one table, which survives the disk."""
    monkeypatch.setitem(PRESETS, "flux-tiny", Preset("FluxTransformer2DModel", RealSize("tiny", (1, 4, 6), 5, FLUX), 1))
    make_tiny_pipe().save_pretrained(tmp_path / "model")
    methods = ["tap", "peer-first-block", "peer-taylorseer-lite"]
    before = torch.random.get_rng_state()
    made = make_subject("flux-tiny")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (made.dtype, made.batch, next(made.model.parameters()).dtype) == (torch.bfloat16, 1, torch.bfloat16)
    found = speed([str(tmp_path / "model"), "flux-tiny"], PLAN, methods=methods, repeats=1, batch_size=1, device="cpu")
    assert found["dtype"].values.tolist() == ["float32", "bfloat16"]
    assert found["batch"].values.tolist() == [2, 1]
    assert found["mask"].sel({"method": "tap"}).values.tolist() == [PLAN.mask] * 2
    assert found["latency_ratio"].dims == ("model", "method", "repeat")
    assert found["failure"].sel({"method": "peer-taylorseer-lite"}).values.tolist()[1] == ""
    stored = load_table(save_table(found, tmp_path, "speed").parent, "speed")
    assert speed_table.page(stored) == speed_table.page(found)
    assert len(plot_speed(speed_table.quartiles(stored)).axes) == 4


def loop_levels(loop, steps):
    loop.scheduler.set_timesteps(steps)
    return (loop.scheduler.timesteps / 1000).tolist()


def test_preset_sizes():
    assert {name: preset.width for name, preset in PRESETS.items()} == {
        "flux-200m": 1536, "flux-500m": 1536, "flux-dev": 3072, "qwen-image": 3072, "hunyuan-video": 3072,
    }  # fmt: skip
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PRESETS["flux-200m"].build().parameters()) >= 200e6


def test_methods_put_the_reference_first():
    assert find_methods(["tap", "reference", "tap"]) == ["reference", "tap"]
    assert find_methods([]) == [name for name in TEXTS if name not in EXTRA]
    assert [len(form.config(PLAN).family.labels) for form in TAP_VARIANTS.values()] == [15, 15, 150]
    assert "compile=True" not in setting_of("tap", PLAN).text


@each_row(
    ("call", "message"),
    [
        (lambda: speed(["flux-201m"]), "did you mean 'flux-200m'"),
        (lambda: speed([]), "at least one model"),
        (lambda: speed(["mnist-dit"], repeats=0), "got 0"),
        (lambda: speed(["mnist-dit"], methods=["tapp"]), "no method 'tapp'"),
        (lambda: Plan(steps=3), "nothing to skip"),
        (lambda: Plan(interval=1), "nothing to skip"),
        (lambda: find_device("tpu9"), "choose auto, cpu or cuda"),
        (lambda: make_subject("mnist-dit", batch_size=0), "got batch_size 0"),
        (lambda: make_subject("mnist-dit@0"), "mnist-dit@32"),
        (lambda: make_subject("mnist-dit@many"), "goes a number of images"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="sees no GPU"):
        speed(["mnist-dit"], device="cuda")
    assert find_device("auto") == CPU


def test_images_of_a_name(tmp_path):
    """They go before the batch size; a folder may have an @ of its own."""
    assert [split_name(name) for name in ("mnist-dit", "mnist-dit@32")] == [("mnist-dit", None), ("mnist-dit", 32)]
    make_tiny_pipe().save_pretrained(tmp_path / "a@b")
    folder = str(tmp_path / "a@b")
    assert split_name(folder) == (folder, None)
    made = make_subject(f"{folder}@3", batch_size=5)
    assert (made.name, made.batch) == (f"{folder}@3", 6)
    assert make_subject(folder, batch_size=5).batch == 10


def test_every_form_of_tap_has_its_steps(monkeypatch):
    """Without a compiler the compiled form is left out, and says why."""
    monkeypatch.setattr("tapstudy.bench.speed.run.why_not_compiled", lambda device: "OSError: no compiler")
    pipe = make_tiny_pipe()
    subject = Subject("tiny", "tiny", pipe, lambda steps: pipe([1], steps), CPU, torch.float32, 2)
    found = time_subject(subject, PLAN, methods=["reference", "tap", "tap-compiled", "tap-150"], repeats=1)
    assert found["skip"].values.tolist() == ["skip", "skip, 150 candidates"]
    assert found["failure"].values.tolist() == [["", "", "OSError: no compiler", ""]]
    assert (found["step_seconds"] > 0).all()
    rows = [row[0] for row in speed_table.step_rows(found, "tiny")]
    assert rows[:4] == ["full", "full, hooked", "skip", "- embedding"]
    assert rows[9] == "skip, 150 candidates"


@pytest.mark.slow  # compiling takes seconds
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_step_has_no_assembly_of_its_own():
    assert why_not_compiled(CPU) == ""
    pipe = make_tiny_pipe()
    subject = Subject("tiny", "tiny", pipe, lambda steps: pipe([1], steps), CPU, torch.float32, 2)
    found = time_subject(subject, PLAN, methods=["reference", "tap-compiled"], repeats=1)
    assert found["mask"].values.tolist() == [["F" * 12, PLAN.mask]]
    assert found["kind"].values.tolist() == ["full", "full, hooked", "skip, compiled"]
    parts = found["part_seconds"].isel(model=0, skip=0, repeat=0)
    assert [part for part in PARTS if not parts.sel(part=part)] == ["assembly"]
    assert "- assembly" not in speed_table.page(found)


def test_quartiles_and_tables(measured):
    short = speed_table.quartiles(measured)
    assert short["latency_ratio"].dims == ("model", "method", "quartile")
    assert short["bound"].identical(measured["bound"])
    times = np.sort(measured["loop_seconds"].isel(model=0, method=1).values)
    assert short["loop_seconds"].isel(model=0, method=1).values[1] == times[1]
    rows = speed_table.loop_rows(measured, "tiny")
    assert [row[0] for row in rows][:2] == ["no acceleration", "TAP, 15 candidates"]
    assert rows[1][2] == "4"
    assert rows[4][1].startswith("does not run: ValueError")
    page = speed_table.page(measured)
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {7, 5}
    assert "median [quartiles] of 3" in page


def test_figure(measured):
    short = speed_table.quartiles(measured)
    figure = plot_speed(short)
    left, right = figure.axes
    shares = short["part_share"].sel(quartile=0.5).isel(model=0, skip=0).values
    np.testing.assert_allclose([bar.get_height() for bar in left.patches], shares)
    np.testing.assert_allclose([bar.get_y() for bar in left.patches], np.cumsum([0, *shares[:-1]]))
    ratios = short["latency_ratio"].sel(quartile=0.5).isel(model=0).values[1:]
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], ratios)
    assert [text.get_text() for text in right.texts].count("does not run") == 1
    assert right.get_xlabel()
    assert left.get_ylabel()


def test_command(tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path / "model")
    options = ["--steps", "6", "--interval", "3", "--repeats", "1", "--batch-size", "1", "--methods", "tap"]
    out = tmp_path / "new" / "speed.nc"
    result = invoke(app, ["bench", "speed", "--model", str(tmp_path / "model"), *options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "TAP, 15 candidates" in result.output
    table = load_table(out.parent, "speed")
    assert table["mask"].values.tolist() == [["FFFFFF", "FFF..F"]]
    again = invoke(app, ["bench", "speed", "--table", str(out), "--markdown"])
    assert again.output.strip() == speed_table.page(table).strip()
    for arguments, message in ((["--model", "nope"], "no model 'nope'"), (["--dtype", "int8"], "--dtype must be")):
        result = invoke(app, ["bench", "speed", *arguments])
        assert result.exit_code == 2
        assert message in result.output
