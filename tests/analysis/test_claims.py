from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.claims.all_claims import all_claims
from tapstudy.analysis.claims.finding import Claim, Part, judge
from tapstudy.analysis.claims.hypothesis import MASKS, range_of, shares_of_variance
from tapstudy.analysis.claims.measure import (
    Ranked,
    agreement,
    clock_of,
    propagation_table,
    ranking_table,
    token_table,
    untrained_table,
)
from tapstudy.analysis.claims.report import claims_page
from tapstudy.analysis.rescoring import rescore
from tapstudy.bench.claims.runs import TOWARD, claim_runs
from tapstudy.policies.config import TAPConfig
from tests.analysis.synthetic_claims import PLAN, make_evidence, remember_statistics
from tests.table import each_row

DEPTHS = [f"tap N=8 depth={depth}" for depth in (1, 2, 4)]
RANKED = [*DEPTHS, "tap N=8 l2", "tap N=8 l1", "shuffled N=8"]
BY_RANK = dict(zip(RANKED, (0.25, 0.2, 0.15, 0.1, 0.05, -0.1), strict=True))
MASKED = ("order0", "order1", "tap", "step")
PLACES = ("N=8", "even", "start-dense", "best")
KNOWN = {name: -0.3 for space in ("", " output") for name in (f"shuffled N=8{space}", f"other token N=8{space}")}


@pytest.fixture(autouse=True)
def statistics(monkeypatch):
    remember_statistics(monkeypatch)


def runs(method, *places, by):
    return {f"{method} {place}": by for place in places}


# claim -> evidence under which it holds, and under which it fails
PLANTED = {
    "H1": ({"rank": {"table N=8": -0.2, "blind N=8": -0.2}}, {"rank": {"table N=8": 0.2, "blind N=8": -0.2}}),
    "H2": (
        {"rank": {"tap N=8 l2": 0.1}, "top1": {"tap N=8 l2": 0.1}, "psnr": {"tap N=8 l2": 1}},
        {"rank": {"tap N=8 l2": 0.1}, "top1": {"tap N=8 l2": 0.1}, "psnr": {"tap N=8 l2": -1}},
    ),
    "H3": ({"rank": KNOWN}, {"rank": {**KNOWN, "shuffled N=8 output": 0.1}}),
    "H4": (
        {"psnr": runs("best-fixed", "N=8", "even", "start-dense", by=-3)},
        {"psnr": {**runs("best-fixed", "N=8", "start-dense", by=-3), "best-fixed even": 3}},
    ),
    "H5": ({"psnr": {"oracle N=4": -2, "oracle N=8": -2}}, {"psnr": {"oracle N=4": -2, "oracle N=8": 2}}),
    "H6": ({"psnr": dict.fromkeys(DEPTHS, -2)}, {"psnr": {**dict.fromkeys(DEPTHS, -2), DEPTHS[1]: 2}}),
    "H7": ({"psnr": {"tap N=8 orders=1+2": -5}}, {"psnr": {"tap N=8 orders=1+2": -5, "tap N=8 lambda=6": 2}}),
    "H8": ({"tokens": {"speed_and_order": 0.3}}, {"tokens": {"speed_and_order": -0.3}}),
    "H9": ({"tokens": {"speed_share": 0.3, "order_share": 0.2}}, {"tokens": {"speed_share": 0.3, "order_share": -0.1}}),
    "H10": ({}, {"least": {"tap N=8 +hermite": -0.2}}),
    "H11": (
        {"rank": {"shuffled N=8": -0.2, "table N=8": -0.2}},
        {"rank": {"shuffled N=8": -0.2, "table N=8": -0.2}, "untrained": {"table": -0.5}},
    ),
    "H12": (
        {"rank": BY_RANK, "psnr": {name: 20 * value for name, value in BY_RANK.items()}},
        {"rank": BY_RANK, "psnr": {name: -20 * value for name, value in BY_RANK.items()}},
    ),
    "H13": ({"distance": dict.fromkeys(range(1, 8), 0.2)}, {"distance": {**dict.fromkeys(range(1, 7), 0.2), 7: -0.5}}),
    "H14": (
        {"psnr": {"order1 N=8": -5, "first-window N=8": -0.2}},
        {"psnr": {"order1 N=8": -5, "first-window N=8": -3}},
    ),
    "H15": ({}, {"psnr": {"step N=6": -2}}),
    "H16": (
        {"psnr": {f"{name} best": 5 for name in MASKED}},
        {"psnr": runs("order0", *PLACES, by=-5)},
    ),
    "H17": (
        {"propagation": {"path_length": -0.5, "deviation": 0.2}, "psnr": {"oracle-output N=8": 3}},
        {"propagation": {"path_length": -0.5, "deviation": 0.2}, "psnr": {"oracle-output N=8": -3}},
    ),
    "C1": (
        {"psnr": {"order2 N=8": -8, "order2 N=8 smooth": -2}},
        {"psnr": {"order2 N=8": -8, "order2 N=8 smooth": -7}},
    ),
    "C2": (
        {"psnr": {f"tap {on} smooth": 2 for on in ("N=4", "N=6", "N=8", "best")}},
        {"psnr": {**{f"tap {on} smooth": 2 for on in ("N=6", "N=8", "best")}, "tap N=4 smooth": -2}},
    ),
    "C3": (
        {"psnr": runs("step-table", "N=8", "even", "start-dense", by=-2)},
        {"psnr": {**runs("step-table", "N=8", "start-dense", by=-2), "step-table even": 2}},
    ),
    "C4": (
        {"psnr": {f"order{m} N={n}": 3 * m - 9 for m in (0, 2) for n in (4, 6, 8)}},
        {"psnr": {f"order{m} N={n}": -3 * m - 3 for m in (0, 2) for n in (4, 6, 8)}},
    ),
    "C5": (
        {"psnr": {**runs("step", "N=8", "even", by=-2), **runs("shuffled", "N=8", "even", by=-2)}},
        {"psnr": {**runs("step", "N=8", "even", by=-2), "shuffled N=8": -2, "shuffled even": 2}},
    ),
    "S1": ({"psnr": {"selected": 9}}, {"psnr": {"selected": 7}}),
    "S2": (
        {"psnr": {"token selector fixed": -2, "token selector shuffled": -1}},
        {"psnr": {"token selector fixed": -2, "token selector shuffled": 1}},
    ),
    "P1": ({"psnr": {f"order{m} N=8": -3 for m in (0, 1, 2)}}, {"psnr": {"order2 N=8": 3}}),
    "P2": ({"psnr": {"tap N=8 lambda=0": -2}}, {"psnr": {"tap N=8 lambda=0": 2}}),
    "P3": ({}, {"psnr": {"tap N=8 delta=0.1": 2}}),
    "P4": ({}, {"psnr": {"tap N=8 depth=2": 2}}),
    "P5": ({}, {"psnr": {"tap N=8 l1": 2}}),
    "P6": ({"psnr": {f"order2 N={n}": -3 for n in (4, 6, 8)}}, {"psnr": {"order2 N=6": 3}}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_answer_is_found(name):
    """Alone, and at the largest factor that Holm's adjustment for all claims can take."""
    for expected, planted in zip(("holds", "fails"), PLANTED[name], strict=True):
        claim = next(claim for claim in all_claims(make_evidence(**planted)) if claim.name == name)
        (finding,) = judge([claim])
        assert finding.verdict == expected
        assert claim.pvalue * len(PLANTED) < 0.05
        if expected == "fails":
            assert finding.decisive.side == "fails"


def test_every_claim_is_planted_and_in_order():
    names = [claim.name for claim in all_claims(make_evidence())]
    assert names == list(PLANTED)
    counts = {"H": 17, "C": 5, "S": 2, "P": 6}
    assert names == [f"{letter}{i}" for letter, count in counts.items() for i in range(1, count + 1)]


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


@each_row("values", [np.ones(1), np.array([1.0, np.nan]), np.ones((2, 2))])
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
        all_claims(replace(evidence, ranking=other))
    uneven = evidence.quality.copy(deep=True)
    uneven["full_passes"].loc[{"cell": "tap even"}] = 9
    with pytest.raises(ValueError, match="equally many full steps"):
        all_claims(replace(evidence, quality=uneven))


def test_the_price_of_depth_counts_the_probe():
    """8 passes, and d blocks of a tenth of a pass at 42 skip steps."""
    claim = next(claim for claim in all_claims(make_evidence()) if claim.name == "H6")
    prices = [part.interval[0] for part in claim.shown if part.name.startswith("FLOPs")]
    assert prices == pytest.approx([(8 + 4.2 * depth) / 8 for depth in (1, 2, 4)])


def test_noise_alone_has_no_range():
    """The best and worst mask of other images, where all masks are alike."""
    found = [range_of(0, MASKS)(make_evidence(noise=1.0, seed=seed)).mean() for seed in range(20)]
    assert -0.2 < np.mean(found) < 0.1  # the range of the means themselves is 0.3
    planted = make_evidence(psnr={f"{name} best": 5 for name in MASKED})
    np.testing.assert_allclose(range_of(0, MASKS)(planted), 5, atol=0.3)


def test_variance_is_split_between_mask_and_predictor():
    evidence = make_evidence(psnr={f"{name} best": 5 for name in MASKED}, noise=0.001)
    assert shares_of_variance(evidence).endswith("100 % mask, 0 % predictor, 0 % interaction.")


def test_images_that_a_run_lacks_are_left_out():
    evidence = make_evidence()
    few = [name for name, run in claim_runs(PLAN).items() if run.few]
    assert {"oracle N=8", *DEPTHS} <= set(few)
    for name in ("psnr", "flops"):
        evidence.quality[name].loc[{"cell": few}] = evidence.quality[name].sel(cell=few).where(np.arange(30) < 20)
    for claim in all_claims(evidence):  # all of them can be judged
        assert {len(part.values) for part in (*claim.parts, *claim.shown)} <= {30, 20, 10}
        if claim.name == "H5":
            assert [len(part.values) for part in claim.parts] == [20, 20]
    assert "## H6" in claims_page(judge(all_claims(evidence)), evidence, {})


def test_what_a_model_cannot_run_is_left_out_and_equal_images_count():
    """Choices toward the reference need both guidance branches in one batch; a PSNR may be infinite."""
    whole = make_evidence()
    row = "toward the reference, per token minus per step, best"
    assert row in claims_page(judge(all_claims(whole)), whole, {})
    part = replace(whole, quality=whole.quality.drop_sel(cell=list(TOWARD)))
    assert row not in claims_page(judge(all_claims(part)), part, {})
    psnr = whole.quality["psnr"].copy()
    psnr[{"cell": whole.quality["cell"].values.tolist().index("tap N=8"), "sample": 4}] = np.inf
    found = replace(whole, quality=whole.quality.assign(psnr=psnr)).rows(["tap N=8", "order1 N=8"])
    assert len(found[0]) == whole.quality.sizes["sample"]
    assert found[0][4] == 200


def test_page_shows_every_verdict():
    evidence = make_evidence(**PLANTED["H14"][0])
    findings = judge(all_claims(evidence))
    page = claims_page(findings, evidence, {"Model": "m"})
    for finding in findings:
        assert f"\n## {finding.claim.name}: {finding.verdict}\n" in page
        assert finding.claim.statement in page
    assert "| full passes | 14 | 10 | 8 |" in page
    assert page == claims_page(judge(all_claims(evidence)), evidence, {"Model": "m"})
    assert "Beside other" not in page
    other = judge(all_claims(make_evidence(**PLANTED["H14"][1])))
    both = claims_page(findings, evidence, {"Model": "m"}, {"rough": other})
    (row,) = [line for line in both.splitlines() if line.startswith("| H14 | **")]
    verdicts = [next(one.verdict for one in found if one.claim.name == "H14") for found in (findings, other)]
    assert verdicts == ["holds", "fails"]
    assert f"| H14 | **{verdicts[0]}** | **{verdicts[1]}**" in row
    h14 = next(finding.claim for finding in findings if finding.claim.name == "H14")
    assert h14.parts[0].interval[0] == pytest.approx(5, abs=0.1)


def test_page_pairs_tap_with_its_controls_by_both_references():
    evidence = make_evidence(psnr={"random N=8": -2.0, "step best": 1.0})
    quality, few = evidence.quality, 6
    better = quality["psnr"] + (quality["cell"] == "random N=8")
    fine = better.where(xr.DataArray(np.arange(quality.sizes["sample"]) < few, dims="sample"))
    evidence = replace(evidence, quality=quality.assign(psnr_fine=fine))
    page = claims_page(judge(all_claims(evidence)), evidence, {"Model": "m"})

    def pairs(title):
        rows = page.split(title)[1].lstrip(":\n ").split("\n\n")[0].splitlines()
        columns, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        return {(row[0], column): cell for row in rows for column, cell in zip(columns[1:], row[1:], strict=True)}

    whole = pairs("TAP minus a control on the same full steps and the same images, dB")
    usual = pairs(f"TAP minus a control on the {few} images that have a finer reference, by the usual one, dB")
    finer = pairs("and by the finer one")
    psnr = quality["psnr"]
    for found, taken, more in ((whole, slice(None), 0), (usual, slice(few), 0), (finer, slice(few), 1)):
        for text, run, on in (("random choice", "random", "N=8"), ("TAP, one choice per step", "step", "best")):
            differences = psnr.sel(cell=f"tap {on}", drop=True) - psnr.sel(cell=f"{run} {on}", drop=True)
            wanted = differences[taken].mean() - more * (run == "random")
            assert found[text, on.replace("=", " = ")].split(" ")[0] == f"{float(wanted):+.2f}"
    assert ("TAP", "N = 8") not in whole
    assert whole["random choice", "best"] == ""


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
            "latent_residual": ((*dims, "token", "latent_channel"), residual[None, None]),
        },
        coords={"step": range(STEPS), "depth": range(depth), "seed": ("sample", [1003]), "label": ("sample", ["3"]),
                "sigma": ("step", np.linspace(1, 0.04, STEPS))},
    ).astype({"probe": "f4", "residual": "f4", "latent_residual": "f4"})  # fmt: skip


SETTINGS = {
    "tap N=8": Ranked(TAPConfig(distance="l2")),
    "tap N=4": Ranked(TAPConfig(distance="l2", interval=4)),
}


def ranked(residual_of, *, others=4):
    """Rank one image, by itself and by what four others tell."""
    rest = [make_recording(residual_of, seed=seed) for seed in range(1, 1 + others)]
    return ranking_table(make_recording(residual_of), SETTINGS, clock_of(xr.concat(rest, dim="sample")))


def test_ranking_is_perfect_if_the_residual_is_the_probe():
    table = ranked(lambda probe, _: probe)
    own = table.sel(cell=["tap N=8", "tap N=4", "tap N=8 output", "hidden error N=8 output"])
    np.testing.assert_allclose(own["spearman"], 1)
    np.testing.assert_allclose(own["top1"], 1)
    np.testing.assert_allclose(own["normalised_regret"], 0)
    assert table["distance"].values.tolist() == list(range(1, 8))
    for part in ("spearman_at_distance", "spearman_in_phase"):
        np.testing.assert_allclose(table[part].sel(ranker="tap N=8"), 1)
        assert (table[part].sel(ranker="table N=8") < 1).all()
    for control in ("shuffled", "blind", "table", "other token"):
        assert table["spearman"].sel(cell=f"{control} N=8").item() < 0.9


def test_a_clock_is_found_to_be_one():
    """All tokens of all images alike but for their size: the table of others ranks as well as the own probe."""
    steps = np.cumsum(np.random.default_rng(9).normal(size=(STEPS, 1, 1)), axis=0)

    def alike(_, rng):
        return 20 + steps * np.exp(rng.normal(size=(1, TOKENS, 1))) * np.ones(CHANNELS) * [1, 1, -1, 1, -1, 1]

    table = ranked(alike)["spearman"]
    assert table.sel(cell="table N=8").item() > 0.95
    assert table.sel(cell="other token N=8").item() > 0.95


def test_the_table_is_that_of_other_images():
    """By hand: mean over images and tokens of the true error at a step, and the mean probe."""
    images = xr.concat([make_recording(lambda probe, rng: probe + rng.normal(size=probe.shape), seed=s)
                        for s in (1, 2)], dim="sample")  # fmt: skip
    clock = clock_of(images)
    scores = rescore(images, TAPConfig())
    by_hand = scores["true_error"].isel(step=4).mean(["sample", "token"])
    np.testing.assert_allclose(clock.hidden.isel(step=4), by_hand, rtol=1e-5)
    np.testing.assert_allclose(clock.probe, images["probe"].isel(depth=0).mean(["sample", "token"]), rtol=1e-5)


def test_untrained_models_are_judged_by_the_other_images():
    rng = np.random.default_rng(0)
    order = rng.permutation(5)
    truth = order + 0.1 * rng.random((3, 1, 4, 6, 5))  # the same ranking in all images and tokens
    dims = ("sample", "context", "step", "token", "predictor")
    scores = xr.Dataset(
        {"proxy_loss": (dims, rng.random(truth.shape)), "true_error": (dims, truth),
         "is_distinct": (dims[:3] + dims[4:], np.ones((3, 1, 4, 5), "i1"))},
        coords={"seed": ("sample", [1, 2, 3])},
    )  # fmt: skip
    found = untrained_table(scores)["spearman"]
    np.testing.assert_allclose(found.sel(ranker="table"), 1)
    assert abs(found.sel(ranker="own")).max() < 0.4


def test_parts_make_up_the_whole():
    """Every third of the 18 skip steps has as many tokens, so the mean of the thirds is the mean."""
    table = ranked(lambda probe, rng: probe + rng.normal(size=probe.shape))
    whole = table["spearman"].sel(cell="tap N=8").item()
    assert float(table["spearman_in_phase"].sel(ranker="tap N=8").mean()) == pytest.approx(whole)
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
        ranking_table(recording, {"tap N=4": Ranked(TAPConfig(interval=4))}, clock_of(recording))
    with pytest.raises(ValueError, match="seed"):
        ranking_table(recording.drop_vars("seed"), SETTINGS, clock_of(recording))


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
