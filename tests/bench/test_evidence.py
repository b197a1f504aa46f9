import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.claims.all_claims import all_claims
from tapstudy.bench.claims import evidence
from tapstudy.bench.claims.runs import FIXED, Plan, claim_cells, held_out_cells, ranked_settings
from tapstudy.bench.results import Results
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.config import TAPConfig
from tests.conftest import make_tiny_pipe
from tests.table import each_row

MASK = dict.fromkeys(("even", "start-dense", "best-mask"), (0, 1, 5, 9))
BEST = dict.fromkeys((2, 3, 4, 6, 8), "fixed1-2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def plan(model):
    return Plan(model=model, seeds=(3,), held_out=(4,), few=1, labels=(1, 2), steps=12, depths=(1,))


@each_row(
    ("changes", "message"),
    [
        ({"held_out": (12, 30)}, r"seeds \[12\] are both tested and held out"),
        ({"seeds": (11,)}, "at least 2 test seeds"),
        ({"held_out": ()}, "one held out"),
    ],
)
def test_plans_that_cannot_be_meant(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**changes)


def test_held_out_images_are_never_test_images():
    plan = Plan()
    chosen = {seed for cell in held_out_cells(plan).values() for seed in cell.seeds}
    tested = {seed for cell in claim_cells(plan, BEST, MASK).values() for seed in cell.seeds}
    noise = {*plan.images(plan.few_seeds).noise_seeds}
    assert not chosen & tested
    assert noise <= {1000 * seed + label for seed in tested for label in plan.labels}


def test_cells_are_what_their_names_say():
    plan = Plan()
    cells = claim_cells(plan, BEST, MASK)
    assert cells["best-fixed N=6"].config == TAPConfig(interval=6, orders=(1,), shifts=(2,))
    assert cells["tap N=8 delta=0.1"].config.shifts[:3] == (0, 0.1, 0.2)
    assert len(cells["tap N=8 delta=0.1"].config.family.labels) == 3 * 41
    assert cells["tap even"].full_steps == (0, 1, 5, 9)
    assert cells["step N=4"].config.granularity == "step"
    assert cells["oracle-latent N=8"].config.residual == "latent"
    assert "LeastSquares" in cells["tap N=8 +least-squares"].setting.text
    assert cells["first-window N=8"].setting.text.startswith("FirstWindowPolicy")
    assert len(cells["oracle N=8"].seeds) == 2 < len(cells["tap N=8"].seeds)
    for name, config in ranked_settings(plan).items():
        assert name not in cells or cells[name].config == config
    # the 11 distinct predictors of the family
    assert len({cell.config.family.labels for cell in held_out_cells(plan).values()}) == len(FIXED) == 11


def test_masks_have_equally_many_full_steps(plan, tmp_path):
    results = Results(tmp_path)
    masks = evidence.choose_masks(make_tiny_pipe(), plan, results, progress=False)
    assert {len(mask) for mask in masks.values()} == {plan.passes} == {4}
    assert masks == evidence.choose_masks(make_tiny_pipe(), plan, results, progress=False)
    assert masks["even"] == (0, 3, 6, 9)


def test_best_fixed_predictor_has_the_highest_mean(monkeypatch, tmp_path):
    cells = held_out_cells(Plan())
    best = {2: "fixed0", 3: "fixed1-0", 4: "fixed2-4", 6: "fixed1-3", 8: "fixed0"}

    def fake(names, *_, **__):
        values = [[40.0, 38.0] if name == f"{best[int(name.split('=')[1])]} N={name.split('=')[1]}" else [30.0, 41.0]
                  for name in names]  # fmt: skip
        return xr.Dataset({"psnr": (("cell", "sample"), values)}, coords={"cell": list(names)})

    monkeypatch.setattr(evidence, "_run_cells", fake)
    assert evidence.choose_fixed(cells, tmp_path) == best


def test_failed_runs_are_named(plan, tmp_path):
    cells = {"too deep": plan.cell("tap", plan.seeds, probe_depth=9)}
    with (
        pytest.warns(RuntimeWarning, match="runs of the sweep failed"),
        pytest.raises(ValueError, match=r"too deep: .*probe_depth"),
    ):
        evidence._run_cells(cells, tmp_path, scheduler=None, progress=False)


@pytest.mark.slow
def test_everything_the_claims_need_is_collected(plan, tmp_path, monkeypatch):
    """On the tiny pipeline; the second time everything comes from the files, and nothing differs."""
    found = evidence.collect(plan, tmp_path, progress=False)
    assert len(all_claims(found)) == 23
    assert float(found.quality["psnr"].sel(cell="reference").min()) == np.inf
    assert set(found.chosen) == {"mask", *(f"fixed N={n}" for n in (2, 3, 4, 6, 8))}

    def never(*_, **__):
        raise AssertionError("run again")

    monkeypatch.setattr(LabelPipeline, "sample", never)
    again = evidence.collect(plan, tmp_path, progress=False)
    for name in ("quality", "ranking", "tokens", "propagation"):
        xr.testing.assert_identical(getattr(found, name), getattr(again, name))
