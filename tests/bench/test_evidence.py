import numpy as np
import pytest
import torch
import xarray as xr

from tapstudy.analysis.claims.all_claims import all_claims
from tapstudy.bench.claims import evidence
from tapstudy.bench.claims.runs import Plan, Run, claim_runs, ranked_settings
from tapstudy.bench.claims.selectors import selector_runs
from tapstudy.bench.fit.held_out import SIGMAS, HeldOut
from tapstudy.bench.image_set import pipe_of
from tapstudy.bench.results import Results
from tapstudy.core.schedule import Schedule
from tapstudy.instrument.smooth_time import smooth_time
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.predictors.family import rows_of
from tapstudy.predictors.taylor import TaylorFamily
from tests.conftest import make_tiny_pipe
from tests.table import each_row


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def plan(model):
    return Plan(
        model=model, seeds=(3,), held_out=(4, 5), few=1, labels=(1, 2), steps=12, depths=(1,), tuning=2, fine_steps=15,
        untrained=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for what is recorded and measured once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def held(plan, kept):
    return HeldOut(pipe_of(plan.model), plan, Results(kept), progress=False)


@each_row(
    ("changes", "message"),
    [
        ({"held_out": (32, 60)}, r"seeds \[32\] are both tested and held out"),
        ({"seeds": (11,)}, "at least 2 test seeds"),
        ({"held_out": ()}, "more held-out images than are used for tuning"),
        ({"tuning": 30}, "more held-out images than are used for tuning"),
    ],
)
def test_plans_that_cannot_be_meant(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**changes)


def test_held_out_images_are_never_test_images():
    plan = Plan()
    held = {*plan.fitted_to.noise_seeds, *plan.tuned_on.noise_seeds}
    assert len(held) == 30
    assert not held & {*plan.test.noise_seeds}
    assert not {*plan.fitted_to.pairs} & {*plan.tuned_on.pairs}
    assert len(plan.tuned_on) >= 20
    assert len(plan.test) >= 60
    assert plan.few_images.pairs == plan.test.pairs[: len(plan.few_images)]


@each_row("steps", [20, 28, 50])
def test_the_schedule_with_as_many_passes_as_n_8_is_that_of_n_8(steps):
    plan = Plan(steps=steps)
    assert plan.interval(plan.passes) == 8
    assert plan.interval(len(plan.usual_mask(4))) <= 4


def test_runs_are_what_their_names_say():
    runs = claim_runs(Plan())
    for name, run in runs.items():
        words = name.split()
        place = next(
            (word for word in words[1:] if word.startswith("N=") or word in ("even", "start-dense", "best")), ""
        )
        assert place in ("", run.on), name
        assert ("smooth" in words) == run.smooth, name
        method = words[0].removesuffix("-output").removesuffix("-output-step").removesuffix("-step")
        assert run.method.startswith(method), name
        assert ("output" in words[0]) == (run.changes.get("residual") == "latent" or "output" in run.method), name
    assert runs["tap N=8 delta=0.1"].changes["shifts"][:3] == (0, 0.1, 0.2)
    assert runs["oracle-output-step N=8"].changes == {"residual": "latent", "granularity": "step"}
    assert runs["oracle N=8"].few
    assert not runs["tap N=8"].few
    for name, ranked in ranked_settings(Plan()).items():
        if name in runs and ranked.family is None:
            changes = {**runs[name].changes, "interval": int(runs[name].on[2:])}
            assert all(getattr(ranked.config, key) == value for key, value in changes.items())


@each_row("on", ["even", "start-dense", "best"])
def test_masks_have_equally_many_full_steps(plan, held, on):
    setting = Run("tap", on).setting(held, plan)
    with setting.attach(held.pipe) as told:
        plan.test.sample(held.pipe)
        mask, _ = told()
    assert mask.count("F") == plan.passes == len(Schedule(8, 3).steps(12))


def test_a_smooth_run_is_of_the_smoothed_model(plan, held):
    """Every step in full: exactly the images of the model with its clock smoothed, and the weights come back."""
    plain, smooth = (Run("reference", smooth=smooth).setting(held, plan) for smooth in (False, True))
    before = plan.test.sample(held.pipe)
    assert held.best_sigma in SIGMAS
    with smooth_time(held.pipe, held.best_sigma):
        expected = plan.test.sample(held.pipe)
    with smooth.attach(held.pipe):
        found = plan.test.sample(held.pipe)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert torch.equal(plan.test.sample(held.pipe), before)
    assert plain.text != smooth.text
    assert plain.name != smooth.name


def test_the_table_holds_the_best_member_of_every_step(plan, held):
    """Against the true errors of the held-out recording, summed by hand."""
    setting = Run("step-table", "N=4").setting(held, plan)
    found = [cell.cell_contents for cell in setting.attach.__wrapped__.__closure__]
    (rows,) = [value.rows for value in found if hasattr(value, "rows")]
    residual = held.recording["residual"].values.astype(np.float64)  # (sample, context, step, token, channel)
    full = Schedule(4, 3).steps(12)

    def error(row, step):
        anchors = [anchor for anchor in reversed(full) if anchor < step]
        forecast = sum(w * residual[:, :, a] for w, a in zip(row, anchors, strict=False))
        size = (residual**2).mean(axis=(2, 3, 4), keepdims=True)[:, :, 0]
        return float((((forecast - residual[:, :, step]) ** 2) / size).sum())

    for step, row in rows.items():
        anchors = [anchor for anchor in reversed(full) if anchor < step][:3]
        best = min(error(member, step) for member in rows_of(TaylorFamily(), anchors, step))
        assert error(row, step) == pytest.approx(best, rel=1e-4)


def test_failed_runs_are_named(plan, tmp_path, monkeypatch):
    runs = {"reference": Run("reference"), "too deep": Run("tap", changes={"probe_depth": 9})}
    monkeypatch.setattr(evidence, "claim_runs", lambda _: runs)
    monkeypatch.setattr(evidence, "selector_runs", lambda *_: {})
    with pytest.raises(ValueError, match=r"runs failed, .*too deep: .*probe_depth"):
        evidence.collect(plan, tmp_path, progress=False)


@pytest.mark.slow
def test_everything_the_claims_need_is_collected(plan, tmp_path, monkeypatch):
    """On the tiny pipeline; the second time everything comes from the files, and nothing differs."""
    found = evidence.collect(plan, tmp_path, progress=False)
    assert len(all_claims(found)) == 30
    assert float(found.quality["psnr"].sel(cell="reference").min()) == np.inf
    assert np.isfinite(found.quality["psnr_fine"].sel(cell="reference")).all()
    assert float(found.quality["perceptual"].sel(cell="reference").max()) == 0
    assert (found.quality["perceptual"].sel(cell="tap N=8") > 0).all()
    assert found.untrained.sizes["weights"] == 2
    assert {"best mask", "smooth", "best-fixed N=8", "best-fixed even", "selected", "token selector"} <= set(
        found.chosen
    )

    usual = LabelPipeline.sample

    def only_to_warm_up(self, latents, velocity, steps, **more):
        assert steps == 2, "run again"
        return usual(self, latents, velocity, steps, **more)

    monkeypatch.setattr(LabelPipeline, "sample", only_to_warm_up)
    again = evidence.collect(plan, tmp_path, progress=False)
    for name in ("quality", "ranking", "tokens", "untrained", "propagation"):
        xr.testing.assert_identical(getattr(found, name), getattr(again, name))


def test_selectors_are_the_best_of_what_was_tried(plan, held, monkeypatch):
    """By planted qualities: the best of all, the best that knows the tokens, and its two controls."""
    quality = {
        "drift-start-dense": 40, "tap-even-residual=latent-smooth": 39, "tap-best": 38,
        "fixed2-1-even-residual=latent-smooth": 20,
    }  # fmt: skip
    asked = {}

    def kept_quality(self, name, setting):
        asked[name] = setting.text
        return quality.get(name, 10)

    monkeypatch.setattr(HeldOut, "kept_quality", kept_quality)
    found = {name: run.setting(held, plan) for name, run in selector_runs(held, plan).items()}
    assert found["selected"].text == Run("drift", "start-dense").setting(held, plan).text
    token = Run("tap", "even", {"residual": "latent"}, smooth=True)
    assert found["token selector"].text == token.setting(held, plan).text
    assert "smoothed in time" in found["token selector"].text
    shuffled, fixed = found["token selector shuffled"].text, found["token selector fixed"].text
    assert shuffled.startswith("ShuffledPolicy")
    assert "latent" in shuffled
    assert "smoothed in time" in shuffled
    assert fixed.startswith("FixedPolicy")
    assert "latent" in fixed
    assert "smoothed in time" in fixed
    assert len(asked) <= 9 * 3 * 2 + 11
