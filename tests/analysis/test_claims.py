from itertools import product

import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.claims.all_claims import all_claims
from tapstudy.analysis.claims.finding import Claim, Part, judge
from tapstudy.analysis.claims.hypothesis import equal_cost
from tapstudy.analysis.claims.measure import agreement, propagation_table, ranking_table, token_table
from tapstudy.analysis.claims.report import claims_page
from tapstudy.policies.config import TAPConfig
from tests.analysis.synthetic_claims import make_evidence

DEPTHS = [f"tap N=8 depth={depth}" for depth in (1, 2, 4)]
RANKED = ["tap N=4", "tap N=6", "tap N=8 l2", "tap N=8 l1", "tap N=2", "tap N=3"]
BY_RANK = dict(zip(RANKED, (0.25, 0.2, 0.15, 0.1, 0.05, -0.1), strict=True))
MASKED = ("order0", "order1", "tap", "step")

# claim -> evidence under which it holds, and under which it fails
PLANTED = {
    "H1": ({}, {"rank": {"tap N=8": -0.5}}),
    "H2": (
        {"rank": {"tap N=8 l2": 0.1}, "top1": {"tap N=8 l2": 0.1}, "psnr": {"tap N=8 l2": 1}},
        {"rank": {"tap N=8 l2": 0.1}, "top1": {"tap N=8 l2": 0.1}, "psnr": {"tap N=8 l2": -1}},
    ),
    "H3": (
        {"rank": {"shuffled N=8": -0.3}, "psnr": {"shuffled N=8": -2, "step N=8": -2}},
        {"rank": {"shuffled N=8": 0.1}, "psnr": {"shuffled N=8": -2, "step N=8": -2}},
    ),
    "H4": ({"psnr": {"best-fixed N=8": -3}}, {"psnr": {"best-fixed N=8": 3}}),
    "H5": ({"psnr": {"oracle N=4": -2, "oracle N=8": -2}}, {"psnr": {"oracle N=4": -2, "oracle N=8": 2}}),
    "H6": ({"psnr": dict.fromkeys(DEPTHS, -2)}, {"psnr": {**dict.fromkeys(DEPTHS, -2), DEPTHS[1]: 2}}),
    "H7": ({"psnr": {"tap N=8 orders=1+2": -5}}, {"psnr": {"tap N=8 orders=1+2": -5, "tap N=8 lambda=6": 2}}),
    "H8": ({"tokens": {"speed_and_order": 0.3}}, {"tokens": {"speed_and_order": -0.3}}),
    "H9": ({"tokens": {"speed_share": 0.3, "order_share": 0.2}}, {"tokens": {"speed_share": 0.3, "order_share": -0.1}}),
    "H10": ({}, {"psnr": {"tap N=8 +hermite": 2}}),
    "H11": ({"rank": {"untrained N=8": -0.5}}, {}),
    "H12": (
        {"rank": BY_RANK, "psnr": {name: 20 * value for name, value in BY_RANK.items()}},
        {"rank": BY_RANK, "psnr": {name: -20 * value for name, value in BY_RANK.items()}},
    ),
    "H13": ({}, {"distance": {7: -0.5}}),
    "H14": (
        {"psnr": {"order1 N=8": -5, "first-window N=8": -0.2}},
        {"psnr": {"order1 N=8": -5, "first-window N=8": -3}},
    ),
    "H15": ({}, {"psnr": {"step N=6": -2}}),
    "H16": (
        {"psnr": {f"{name} best-mask": 5 for name in MASKED}},
        {"psnr": {f"order0 {mask}": -5 for mask in ("N=8", "even", "start-dense", "best-mask")}},
    ),
    "H17": (
        {"propagation": {"path_length": -0.5, "deviation": 0.2}, "psnr": {"oracle-latent N=8": 3}},
        {"propagation": {"path_length": -0.5, "deviation": 0.2}, "psnr": {"oracle-latent N=8": -3}},
    ),
    "P1": ({"psnr": {f"order{m} N=8": -3 for m in (0, 1, 2)}}, {"psnr": {"order2 N=8": 3}}),
    "P2": ({"psnr": {"tap N=8 lambda=0": -2}}, {"psnr": {"tap N=8 lambda=0": 2}}),
    "P3": ({}, {"psnr": {"tap N=8 delta=0.1": 2}}),
    "P4": ({}, {"psnr": {"tap N=8 depth=2": 2}}),
    "P5": ({}, {"psnr": {"tap N=8 l1": 2}}),
    "P6": ({"psnr": {f"order2 N={n}": -3 for n in (4, 6, 8)}}, {"psnr": {"order2 N=6": 3}}),
}


@pytest.mark.parametrize(("name", "expected"), list(product(PLANTED, ("holds", "fails"))))
def test_planted_answer_is_found(name, expected):
    """Alone, and at the largest factor that Holm's adjustment for all claims can take."""
    evidence = make_evidence(**PLANTED[name][expected == "fails"])
    claim = next(claim for claim in all_claims(evidence) if claim.name == name)
    (finding,) = judge([claim])
    assert finding.verdict == expected
    assert claim.pvalue * len(PLANTED) < 0.05
    if expected == "fails":
        assert finding.decisive.side == "fails"


def test_every_claim_is_planted_and_in_order():
    names = [claim.name for claim in all_claims(make_evidence())]
    assert names == [f"H{i}" for i in range(1, 18)] + [f"P{i}" for i in range(1, 7)] == list(PLANTED)


def test_part_counts_sign_flips():
    values, threshold = np.array([1.2, 0.3, -0.1, 0.8, 0.9, 0.4]), 0.2
    shifted = values - threshold
    means = [np.mean(shifted * signs) for signs in product((1, -1), repeat=6)]
    for above in (True, False):
        part = Part("p", values, threshold, above)
        least = np.mean(np.array(means) >= shifted.mean() - 1e-12)  # chance of a mean so far on this side
        assert part.pvalues[0 if above else 1] == pytest.approx(least)


def test_holm_counts_all_claims():
    values = np.full(6, 1.0) + np.arange(6) * 0.01  # p = 2 / 2^6 two-sided
    clear = Claim("H1", "", "", (Part("p", values),))
    assert clear.pvalue == pytest.approx(2 / 64)
    assert judge([clear])[0].verdict == "holds"
    family = judge([clear, clear, clear])
    assert [finding.adjusted for finding in family] == pytest.approx([6 / 64] * 3)
    assert {finding.verdict for finding in family} == {"undecided"}
    with pytest.raises(ValueError, match="no claims"):
        judge([])


def test_a_conjunction_needs_all_parts_and_fails_by_one():
    up, down, flat = (
        Part(name, value + np.linspace(-0.1, 0.1, 20)) for name, value in zip("udf", (1, -1, 0), strict=True)
    )
    assert judge([Claim("A", "", "", (up, up))])[0].verdict == "holds"
    (finding,) = judge([Claim("A", "", "", (up, down))])
    assert (finding.verdict, finding.decisive) == ("fails", down)
    (finding,) = judge([Claim("A", "", "", (up, flat))])
    assert (finding.verdict, finding.decisive) == ("undecided", flat)


def test_at_the_threshold_verdicts_are_rare():
    rng = np.random.default_rng(0)
    found = [judge([Claim("A", "", "", (Part("p", rng.normal(0.3, 1, 10), 0.3),))])[0].verdict for _ in range(200)]
    assert found.count("undecided") >= 180


@pytest.mark.parametrize("values", [np.ones(1), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_part_needs_images(values):
    with pytest.raises(ValueError, match="one finite value for each of at least two images"):
        Part("gain", values)


def test_missing_runs_are_named():
    evidence = make_evidence()
    with pytest.raises(ValueError, match="no run 'tap N=7' in psnr"):
        evidence.mix({"tap N=7": 1, "tap N=8": -1})
    with pytest.raises(ValueError, match="no run 'tap N=9'"):
        evidence.cells("tap N=9")
    other = evidence.ranking.assign_coords(seed=evidence.ranking["seed"] + 50)
    with pytest.raises(ValueError, match="were not run"):
        all_claims(type(evidence)(evidence.quality, other, evidence.tokens, evidence.propagation))
    uneven = evidence.quality.copy(deep=True)
    uneven["full_passes"].loc[{"cell": "tap even"}] = 9
    with pytest.raises(ValueError, match="equally many full steps"):
        all_claims(type(evidence)(uneven, evidence.ranking, evidence.tokens, evidence.propagation))


def test_equal_cost_counts_the_probe():
    """8 passes and d blocks of 10 at 42 skip steps: 12.2 and 16.4 passes pay for N = 5 (12) and N = 4 (14)."""
    evidence = make_evidence()
    assert [equal_cost(evidence, cell) for cell in DEPTHS] == ["tap N=5", "tap N=4", "tap N=3"]


def test_images_that_a_run_lacks_are_left_out():
    evidence = make_evidence()
    evidence.quality["psnr"].loc[{"cell": "oracle N=8"}] = np.where(np.arange(30) < 20, 30.0, np.nan)
    claim = next(claim for claim in all_claims(evidence) if claim.name == "H5")
    assert [len(part.values) for part in claim.parts] == [30, 20]


def test_page_shows_every_verdict():
    evidence = make_evidence(**PLANTED["H14"][0])
    findings = judge(all_claims(evidence))
    page = claims_page(findings, evidence, {"Model": "m"})
    for finding in findings:
        assert f"\n## {finding.claim.name}: {finding.verdict}\n" in page
        assert finding.claim.statement in page
    assert "| full passes | 26 | 18 | 14 | 12 | 10 | 8 |" in page
    assert page == claims_page(judge(all_claims(evidence)), evidence, {"Model": "m"})
    h14 = next(finding.claim for finding in findings if finding.claim.name == "H14")
    assert h14.parts[0].interval[0] == pytest.approx(5, abs=0.1)


STEPS, TOKENS, CHANNELS = 23, 12, 6


def make_recording(residual_of, *, seed=0, depth=1):
    """One image; smooth random probes, and residuals made of them."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, STEPS)[:, None, None]
    a, b, c = rng.normal(size=(3, TOKENS, CHANNELS))
    probe = 2 * a + b * np.sin(3 * time + 3 * c) + 0.01 * rng.normal(size=(STEPS, TOKENS, CHANNELS))
    residual = residual_of(probe, rng)
    dims = ("sample", "context", "step")
    return xr.Dataset(
        {
            "probe": ((*dims, "depth", "token", "channel"), np.stack([probe] * depth, axis=1)[None, None]),
            "residual": ((*dims, "token", "channel"), residual[None, None]),
        },
        coords={"step": range(STEPS), "depth": range(depth), "seed": ("sample", [1003]), "label": ("sample", ["3"]),
                "sigma": ("step", np.linspace(1, 0.04, STEPS))},
    ).astype({"probe": "f4", "residual": "f4"})  # fmt: skip


SETTINGS = {"tap N=8": TAPConfig(distance="l2"), "tap N=4": TAPConfig(distance="l2", interval=4)}


def test_ranking_is_perfect_if_the_residual_is_the_probe():
    table = ranking_table(make_recording(lambda probe, _: probe), SETTINGS)
    assert table["cell"].values.tolist() == ["tap N=8", "shuffled N=8", "tap N=4"]
    own = table.sel(cell=["tap N=8", "tap N=4"])
    np.testing.assert_allclose(own["spearman"], 1)
    np.testing.assert_allclose(own["top1"], 1)
    np.testing.assert_allclose(table["spearman_at_distance"], 1)
    assert table["distance"].values.tolist() == list(range(1, 8))
    np.testing.assert_allclose(table["spearman_in_phase"], 1)
    assert table["spearman"].sel(cell="shuffled N=8").item() < 0.9


def test_parts_make_up_the_whole():
    """Every third of the 18 skip steps has as many tokens, so the mean of the thirds is the mean."""
    table = ranking_table(make_recording(lambda probe, rng: probe + rng.normal(size=probe.shape)), SETTINGS)
    whole = table["spearman"].sel(cell="tap N=8").item()
    assert float(table["spearman_in_phase"].mean()) == pytest.approx(whole)
    assert whole < 0.9


def test_tokens_of_different_speed_and_of_the_same():
    def by_speed(probe, rng):
        speed = np.geomspace(0.1, 10, TOKENS)[:, None]
        return 5 + speed * np.arange(STEPS)[:, None, None] + 0.05 * speed * rng.normal(size=probe.shape)

    def alike(probe, rng):
        return 5 + np.arange(STEPS)[:, None, None] + 0.3 * rng.normal(size=probe.shape)

    fast, same = (token_table(make_recording(residual)) for residual in (by_speed, alike))
    assert fast["speed_share"].item() > 0.05 > same["speed_share"].item()
    assert abs(same["order_share"].item()) < 0.1


def test_bad_recordings():
    recording = make_recording(lambda probe, _: probe)
    with pytest.raises(ValueError, match="needs the setting 'tap N=8'"):
        ranking_table(recording, {"tap N=4": TAPConfig(interval=4)})
    with pytest.raises(ValueError, match="seed"):
        ranking_table(recording.drop_vars("seed"), SETTINGS)


def test_agreement_of_recorded_scores():
    truth = np.random.default_rng(0).random((2, 1, 3, 4, 5))
    dims = ("sample", "context", "step", "token", "predictor")
    scores = xr.Dataset(
        {"proxy_loss": (dims, truth), "true_error": (dims, truth * np.array([1, -1]).reshape(2, 1, 1, 1, 1)),
         "is_distinct": (dims[:3] + dims[4:], np.ones((2, 1, 3, 5), "i1"))},
        coords={"seed": ("sample", [1, 2])},
    )  # fmt: skip
    found = agreement(scores)
    np.testing.assert_allclose(found["spearman"], [1, -1])
    np.testing.assert_allclose(found["top1"], [1, 0])


def test_propagation_is_relative_to_order_1():
    rng = np.random.default_rng(0)
    shape = (3, 2, 5, 4, 2)  # policy, sample, step, token, channel
    used, exact = rng.normal(size=(2, *shape))
    exact[1:] = exact[0]  # no transport: errors add up
    used[0] = exact[0]
    used[2] = exact[0] + 2 * (used[1] - exact[0])  # twice the errors
    sigma = np.linspace(1, 0, 6)
    state = np.concatenate([np.zeros((3, 2, 1, 4, 2)), np.cumsum(np.diff(sigma)[:, None, None] * used, axis=2)], axis=2)
    dims = ("policy", "sample", "step", "token", "latent_channel")
    runs = xr.Dataset(
        {"state": (("policy", "sample", "node", "token", "latent_channel"), state), "velocity_used": (dims, used),
         "velocity_exact": (dims, exact), "is_full": (dims[:3], np.zeros((3, 2, 5), "i1"))},
        coords={"policy": ["reference", "order1", "tap"], "node_sigma": ("node", sigma), "step": range(5)},
    )  # fmt: skip
    table = propagation_table(runs)
    assert table["policy"].values.tolist() == ["tap"]
    np.testing.assert_allclose(table["path_length"], np.log(2))
    np.testing.assert_allclose(table["deviation"], np.log(2))
