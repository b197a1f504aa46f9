"""The frontier: masks and distances against brute force, thresholds on made-up curves, and a run of the tiny model."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.bench import engine
from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.held_out import SCHEDULES, USUAL, HeldOut
from tapstudy.bench.fit.masks import best_window_mask, dpcache_mask, lemica_mask, window_errors
from tapstudy.bench.fit.tuning import Tuner, improve_mask
from tapstudy.bench.frontier import comparison as module
from tapstudy.bench.frontier.comparison import EVERYWHERE, Row, compared, frontier, rows_of
from tapstudy.bench.frontier.distance import distribution_distance, kernel_distance
from tapstudy.bench.frontier.join import joined
from tapstudy.bench.frontier.table import COLUMNS, tables
from tapstudy.bench.methods import CORE, OWN, compared_methods
from tapstudy.bench.plan import FrontierPlan
from tapstudy.bench.results import Results
from tapstudy.models.quality import frechet_distance
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.taylor import TaylorFamily
from tests.conftest import make_tiny_pipe
from tests.table import each_row

ORDER1 = TaylorFamily(orders=(1,), shifts=(0,))

# Masks


def window_cost(features, lengths, mask, family):
    """By explicit predictions, features (step, value)."""
    total = 0.0
    for start, stop in itertools.pairwise([*mask, len(features)]):
        drift = np.zeros(features.shape[1])
        for step in range(start + 1, stop):
            anchors = [at for at in reversed(mask) if at < step][:3]
            if family is None:
                row = np.linalg.lstsq(features[anchors].T, features[step], rcond=None)[0]
            else:
                row = np.array(family.rows(anchors, step)[0])
            drift += lengths[step] * (row @ features[anchors[: len(row)]] - features[step])
        total += drift @ drift
    return total


@each_row(("passes", "family"), [(2, ORDER1), (3, None), (4, ORDER1)])
def test_the_window_mask_is_the_best_of_all(passes, family):
    rng = np.random.default_rng(passes)
    features, lengths = rng.standard_normal((9, 12)).cumsum(axis=0), rng.uniform(-2, -1, 9)
    found = best_window_mask(features @ features.T, lengths, passes, family=family, ridge=0)
    masks = [(0, *rest) for rest in itertools.combinations(range(1, 9), passes - 1)]
    costs = {mask: window_cost(features, lengths, mask, family) for mask in masks}
    assert costs[found] == pytest.approx(min(costs.values()), rel=1e-8)


def test_a_window_costs_the_square_of_its_summed_errors():
    """Constant slope error e at k = 1, 2: |e|^2 and then |e + 2e|^2, not |e|^2 + |2e|^2."""
    features = np.array([[0.0], [0.0], [1.0], [2.0]])
    errors = window_errors(features @ features.T, np.ones(4), longest=4, family=ORDER1)
    assert errors[1, 1, 0, :3] == pytest.approx([0, 1, 9])


def test_lemica_bounds_the_worst_window():
    """What is reused moves at steps 3, 5 and 6. From 3 on the errors are 0, 1, and from 5 on 1, 1, which is 4."""
    features = np.array([[0.0], [0.0], [0.0], [6.0], [6.0], [7.0], [8.0], [8.0]])
    gram, growth = features @ features.T, np.ones(8)
    assert lemica_mask(gram, np.ones(8), 4, growth) == (0, 3, 5, 6)
    assert lemica_mask(gram, np.ones(8), 3, growth) == (0, 3, 6)
    assert lemica_mask(gram, np.ones(8), 3, np.where(np.arange(8) == 3, 10.0, 1.0)) == (0, 3, 5)


def test_dpcache_sums_errors_of_features_behind_three_full_steps():
    features = np.random.default_rng(1).standard_normal((10, 6)).cumsum(axis=0)
    found = dpcache_mask(features @ features.T, 5)

    def cost(mask):
        total = 0.0
        for step in set(range(10)) - set(mask):
            last, before = [at for at in reversed(mask) if at < step][:2]
            slope = (features[last] - features[before]) / (last - before)
            total += ((features[last] + (step - last) * slope - features[step]) ** 2).sum()
        return total

    costs = {(0, 1, 2, *rest): cost((0, 1, 2, *rest)) for rest in itertools.combinations(range(3, 10), 2)}
    assert costs[found] == pytest.approx(min(costs.values()), rel=1e-8)
    assert dpcache_mask(features @ features.T, 2) == (0, 1)


def test_masks_that_cannot_be_made():
    with pytest.raises(ValueError, match="between 1 and 3 full ones, got 4"):
        best_window_mask(np.eye(3), np.ones(3), 4)


def test_growth_moves_full_steps_to_where_errors_grow():
    rng = np.random.default_rng(5)
    features = rng.standard_normal((12, 40)).cumsum(axis=0)
    growth = np.where(np.arange(12) < 6, 10.0, 0.1)
    gram, lengths = features @ features.T, np.ones(12)
    early, late = (best_window_mask(gram, lengths, 6, amplification=g) for g in (growth, growth[::-1]))
    assert sum(step < 6 for step in early) > sum(step < 6 for step in late)
    assert best_window_mask(gram, lengths, 6, amplification=np.full(12, 3.0)) == best_window_mask(gram, lengths, 6)


def test_a_search_ends_where_no_move_helps():
    """Quality is least distance to one mask, which moves of one and two reach."""
    target, asked = (0, 3, 7, 8), []

    def quality(mask):
        asked.append(mask)
        return -sum(abs(a - b) for a, b in zip(mask, target, strict=True))

    assert improve_mask((0, 1, 2, 9), 10, quality, trials=100) == target
    assert len(set(asked)) == len(asked)
    assert all(list(mask) == sorted(set(mask)) and mask[0] == 0 and mask[-1] < 10 for mask in asked)
    asked.clear()
    improve_mask((0, 1, 2, 9), 10, quality, trials=3)
    assert len(asked) <= 4


# Distance


@given(st.integers(3, 8), st.integers(0, 99))
def test_kernel_distance_against_loops(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, 4, generator=generator, dtype=torch.float64) for _ in range(2))

    def kernel(a, b):
        return float((a @ b / 4 + 1) ** 3)

    def estimate(rows):
        pairs = list(itertools.permutations(rows, 2))
        terms = [kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i]) for i, j in pairs]
        return sum(terms) / len(pairs)

    found, error = kernel_distance(x, y)
    assert found == pytest.approx(estimate(range(count)), rel=1e-9, abs=1e-12)
    without = np.array([estimate([i for i in range(count) if i != out]) for out in range(count)])
    assert error == pytest.approx(np.sqrt((count - 1) * without.var()), rel=1e-6, abs=1e-12)
    assert kernel_distance(x, x) == pytest.approx((0, 0), abs=1e-12)


def test_frechet_distance_where_there_are_rows_enough():
    x, y = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    assert distribution_distance(x, y)[0] == frechet_distance(x, y)
    assert distribution_distance(x[:4], y[:4])[0] == kernel_distance(x[:4], y[:4])[0]
    with pytest.raises(ValueError, match="equally many rows, at least 3"):
        kernel_distance(x[:2], y[:2])


# Thresholds


@given(st.floats(-2.5, -1), st.integers(2, 14))
def test_a_threshold_is_found_and_trials_are_shared(place, target):
    asked = []

    def passes_of(threshold):
        asked.append(threshold)
        return 10 - 6 * np.tanh(np.log10(threshold) - place)  # between 4 and 16

    tuner = Tuner(passes_of, trials=30, tolerance=0.01)
    found = passes_of(tuner.threshold(target))
    assert found == pytest.approx(np.clip(target, 4.2, 14), abs=0.3)
    count = len(asked)
    tuner.threshold(target)
    assert len(asked) <= count + 30
    if 5 < target < 15:
        assert len(asked) == count, "nothing new to try"


def test_of_steps_the_nearer_one_and_the_more_expensive_of_equals():
    tuner = Tuner(lambda threshold: 12 if threshold < 0.1 else 8, trials=20, tolerance=0)
    assert tuner.passes_of(tuner.threshold(9)) == 8
    assert tuner.passes_of(tuner.threshold(10)) == 12


# Plans and rows


def test_intervals_of_passes():
    plan = FrontierPlan()
    assert [plan.interval(passes) for passes in (14, 10, 8)] == [4, 6, 8]
    assert plan.usual_mask(8) == (0, 1, 2, 10, 18, 26, 34, 42)
    assert not {*plan.test.seeds} & {*plan.fitted_to.seeds, *plan.tuned_on.seeds}
    assert (len(plan.test), len(plan.fitted_to), len(plan.tuned_on)) == (20, 10, 20)
    assert {*plan.tuned_on.seeds} == {42, 43}


@each_row(
    ("changes", "message"),
    [
        ({"held_out": (32,)}, r"\[32\] are both tested and held out"),
        ({"passes": (11, 8)}, "makes 11 full passes; there are"),
        ({"tuning": 30}, "more held-out images than"),
        ({"labels": (1,), "seeds": (1,)}, "at least two test images"),
    ],
)
def test_plans_that_cannot_be_meant(changes, message):
    with pytest.raises(ValueError, match=message):
        FrontierPlan(**changes)


def test_every_method_is_run():
    plan = FrontierPlan()
    rows = rows_of(plan, compared_methods())
    assert len({row.name for row in rows}) == len(rows)
    fewest = {(row.method, row.schedule) for row in rows if row.passes == 8}
    assert fewest == {(method.name, schedule) for method in compared_methods() for schedule in method.schedules}
    assert {row.method for row in rows if row.passes == 14} == CORE
    assert {row.schedule for row in rows if row.passes == 14} == {USUAL, OWN, *EVERYWHERE}
    assert {row.method for row in rows_of(plan, compared_methods(), thorough=True) if row.passes == 14} == {
        m.name for m in compared_methods()
    }
    few = [row for row in rows_of(plan, compared_methods(["tap"]), schedules=["even"]) if row.passes == 8]
    assert [row.schedule for row in few] == [USUAL, "even"]
    assert Row("tap", "tap", 8, 8, USUAL).name == "tap N=8"
    assert Row("tap", "tap", 8, 8, "even").name == "tap even N=8"
    with pytest.raises(ValueError, match="no method nothing: there are fewer"):
        compared_methods(["tap", "nothing"])


def test_differences_are_paired_and_on_the_same_schedule():
    names = [("reference", 5, OWN), ("tap", 8, USUAL), ("best-fixed", 8, USUAL), ("tap", 8, "even"),
             ("best-fixed", 8, "even"), ("zeus", 8, OWN), ("peer", 8, OWN)]  # fmt: skip
    image = np.array([0.0, 5.0, 1.0])
    levels = np.array([np.inf, 30, 28, 36, 35, 20, np.nan])
    held_out = [np.nan, 1, 4, 3, 2, np.nan, np.nan]
    methods, passes, schedules = zip(*names, strict=True)
    coords = {"method": list(methods), "passes": list(passes), "schedule": list(schedules)}
    table = xr.Dataset(
        {"psnr": (("cell", "sample"), levels[:, None] + image), "held_out_psnr": ("cell", held_out)},
        coords={name: ("cell", values) for name, values in coords.items()},
    )
    found = compared(table)
    assert found["gain_over_tap"].values[:, 0] == pytest.approx([np.nan, 0, -2, 6, 5, -10, np.nan], nan_ok=True)
    assert found["gain_over_best_fixed"].values[:, 1] == pytest.approx([np.nan, 2, 0, 1, 0, -8, np.nan], nan_ok=True)
    assert found["psnr_interval"].values[1, 0] == pytest.approx(32)
    assert np.isnan(found["psnr_interval"].values[[0, 6]]).all()
    assert found["chosen"].values.tolist() == [False, False, True, True, False, False, False]


# A run


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return FrontierPlan(model=str(folder), seeds=(3,), held_out=(4,), labels=(1, 2, 3), passes=(5,), steps=12, tuning=1)


NAMES = ["fewer", "order1", "best-fixed", "first-block", "magcache", "ertacache", "channel-groups", "teacache", "tap",
         "fitted", "step-table", "oracle", "peer-first-block", "peer-magcache", "peer-taylorseer"]  # fmt: skip


# beside S(N, 3) and those that methods bring along: one by rule, one fitted, and one found by search
ON = ["even", "growth-fitted-hidden", "searched"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def found(plan, work):
    return frontier(plan, work, methods=NAMES, schedules=ON, repeats=1, progress=False)


def test_what_a_run_measures(found, plan):
    reference = found.sel(cell="reference")
    assert np.isinf(reference["psnr"]).all()
    assert float(reference["distance"]) == 0
    passes = found["full_passes"].mean("sample")
    masks = found["mask"]
    for name in (
        "fewer",
        "order1",
        "tap",
        "magcache",
        "ertacache",
        "fitted even",
        "tap growth-fitted-hidden",
        "tap searched",
    ):
        assert float(passes.sel(cell=f"{name} N=4")) == 5, name
    assert masks.sel(cell="fewer N=4").values.tolist() == ["FFFFF"] * 3
    assert masks.sel(cell="tap N=4").values.tolist() == ["FFF...F...F."] * 3
    assert masks.sel(cell="tap even N=4").values[0] == "F.F.F..F.F.."
    assert set(masks.sel(cell="oracle N=4").values[0]) == {"F", "s"}
    ratio = found["flops"].isel(sample=0) / reference["flops"].isel(sample=0)
    assert float(ratio.sel(cell="fewer N=4")) == pytest.approx(5 / 12)
    assert 5 / 12 < float(ratio.sel(cell="order1 N=4")) < float(ratio.sel(cell="tap N=4")) < 0.5
    assert float(ratio.sel(cell="oracle N=4")) > 0.9
    # tokens, channels and float32 of two anchors, two branches
    assert float(found["cache_bytes"].sel(cell="order1 N=4")[0]) == 2 * 2 * 16 * 32 * 4
    assert found["seed"].values.tolist() == [3, 3, 3]
    for name in ("psnr", "ssim", "correct", "flops", "seconds"):
        assert {"long_name", "units"} <= set(found[name].attrs)


def test_peers_agree_with_the_policies_of_their_name_or_say_why_not(found):
    for name in ("first-block", "magcache"):
        own, peer = (found.sel(cell=f"{kind}{name} N=4") for kind in ("", "peer-"))
        assert own["mask"].values.tolist() == peer["mask"].values.tolist()
        np.testing.assert_allclose(own["psnr"], peer["psnr"], rtol=1e-3)
    refused = found.sel(cell="peer-taylorseer N=4")
    assert "finds nothing to act on in DiTTransformer2DModel" in str(refused["error"].values)
    assert np.isnan(refused["psnr"]).all()
    (rows,) = tables(found).values()
    by_method = {(row[0], row[1].removesuffix(" *")): row for row in rows}
    assert len(by_method["peer-taylorseer", OWN]) == 3
    assert len(by_method["tap", USUAL]) == len(COLUMNS)
    means = [float(row[6].split()[0]) for row in rows if len(row) == len(COLUMNS)]
    assert means == sorted(means, reverse=True)


def test_choices_are_made_on_held_out_images(found, plan, work):
    held = HeldOut(make_tiny_pipe(), plan, Results(work), progress=False)
    fixed = found.sel(cell="best-fixed N=4")["setting"].item()
    order, shift = held.best_fixed(TAPConfig(interval=plan.interval(5)), f"{USUAL}-5")
    assert f"orders=({order},), shifts=({shift},)" in fixed
    assert set(held.recording["seed"].values) == {4001, 4002}
    tuned = xr.open_dataset(work / "tuning.nc")
    assert tuned["seed"].values.tolist() == [4]
    assert tuned["label"].values.tolist() == [3]
    chosen = found.isel(cell=np.flatnonzero(found["chosen"].values))
    assert sorted(chosen["method"].values) == ["best-fixed", "fitted", "order1", "tap"]
    for schedule in SCHEDULES:
        mask = held.mask(schedule, 5)
        assert len(mask) == 5
        assert mask[0] == 0
    with pytest.raises(ValueError, match="no schedule 'odd'"):
        held.mask("odd", 5)


def test_runs_of_some_methods_join_into_one(found):
    """Rows are all there, compared across runs, in the order of one run; times are in units of plain sampling."""
    methods = found["method"].values
    first = found.isel(cell=np.isin(methods, ["reference", "tap", "oracle", "fewer"])).assign_attrs(commands="a")
    second = found.isel(cell=np.isin(methods, ["reference", "tap", "best-fixed", "peer-taylorseer", "order1"]))
    second = second.assign(seconds=3 * second["seconds"], seconds_each=3 * second["seconds_each"])
    both = joined({"first": compared(first), "second": compared(second).assign_attrs(commands="b")})
    expected = compared(found.isel(cell=np.isin(methods, [*first["method"].values, *second["method"].values])))
    assert both.attrs.pop("commands") == "a\nb"
    assert both.attrs.pop("machine") == ""
    assert both.attrs == expected.attrs
    xr.testing.assert_allclose(both, expected, rtol=1e-12)
    gain = both["gain_over_best_fixed"].sel(cell="tap even N=4")
    assert np.isnan(compared(first)["gain_over_best_fixed"].sel(cell="tap even N=4")).all()
    assert np.isfinite(gain).all()


@each_row(
    ("change", "message"),
    [
        (lambda t: t.assign_attrs(weights="other"), "second has another weights than first"),
        (lambda t: t.assign_attrs(plan=t.attrs["plan"].replace('"tuning": 1', '"tuning": 2')), "another plan"),
        (lambda t: t.assign(psnr=t["psnr"] + 0.2), "dB in first and .* the runs do not compare"),
        (lambda t: t.assign_coords(setting=t["setting"] + "!"), "in first and .*! in second: leave one"),
        (lambda t: t.isel(repeat=[0, 0]), "second has 2 wall times of each row, first 1"),
    ],
)
def test_runs_that_do_not_compare_are_not_joined(found, change, message):
    with pytest.raises(ValueError, match=message):
        joined({"first": found, "second": change(found)})
    with pytest.raises(ValueError, match="no tables"):
        joined({})


def test_a_second_call_samples_nothing(found, plan, work, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr(engine.ImageSet, "sample", refuse)
    again = frontier(plan, work, methods=NAMES, schedules=ON, repeats=1, progress=False)
    xr.testing.assert_identical(again, found)


def test_a_folder_belongs_to_one_plan(plan, work, found):
    other = FrontierPlan(**{**vars(plan), "held_out": (5,)})
    with pytest.raises(ValueError, match="results of another plan"):
        frontier(other, work)


def test_what_breaks_in_a_policy_is_not_hidden(plan, tmp_path, monkeypatch):
    def broken(*_args):
        raise ValueError("broken")

    monkeypatch.setattr(module, "_slot", broken)
    with pytest.raises(ValueError, match="broken"):
        frontier(plan, tmp_path, methods=["tap"], progress=False)


def test_one_image_at_a_time_if_a_batch_decides_together(plan):
    pipe = make_tiny_pipe()
    alone = engine.run(pipe, plan.test, Setting.of(TAPPolicy(), alone=True))
    together = engine.run(pipe, plan.test, Setting.of(TAPPolicy()))
    np.testing.assert_allclose(alone["image"], together["image"], atol=1e-5)
    np.testing.assert_allclose(alone["cache_bytes"], together["cache_bytes"])
    assert Setting.of(FixedPolicy(1)).text != Setting.of(FixedPolicy(2)).text
    assert Setting.of(FixedPolicy(1)).text == Setting.of(FixedPolicy(1)).text
