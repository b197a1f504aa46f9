"""Evidence with planted answers: every run has the same quality unless told otherwise."""

from functools import cache

import numpy as np
import xarray as xr

from tapstudy.analysis.claims import finding
from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.bench.claims.runs import TOWARD, Plan, claim_runs, ranked_settings

_PVALUE, _INTERVAL = (cache(lambda *values, made=made: made(np.array(values)))
                      for made in (finding.sign_flip_pvalue, finding.mean_interval))  # fmt: skip


def remember_statistics(monkeypatch):
    """Let the same values be tested once, wherever they are judged again: that takes most of the time of claims."""
    monkeypatch.setattr(finding, "sign_flip_pvalue", lambda values: _PVALUE(*values.tolist()))
    monkeypatch.setattr(finding, "mean_interval", lambda values: _INTERVAL(*values.tolist()))


PLAN = Plan(seeds=(1, 2, 3), labels=tuple(range(10)), held_out=(7, 8, 9))
PASSES = {4: 14, 6: 10, 8: 8}
BY = ("shuffled", "blind", "table", "other token")


@cache
def run_names():
    return [*claim_runs(PLAN), *TOWARD, "selected", "token selector", "token selector shuffled", "token selector fixed"]


@cache
def ranked_names():
    return [
        *ranked_settings(PLAN),
        *(f"{name} N=8" for name in BY),
        *(f"{name} N=8 output" for name in ("tap", "hidden error", *BY)),
    ]


def make_evidence(*, psnr=(), rank=(), tokens=(), propagation=(), distance=(), untrained=(), least=(), top1=(),
                  noise=0.05, seed=0):  # fmt: skip
    """`psnr` etc.: name -> what the run has more than the others (dB, correlation, or share of the error)."""
    rng = np.random.default_rng(seed)
    cells = run_names()
    pairs = [(s, label) for s in PLAN.seeds for label in PLAN.labels]
    images = rng.normal(35, 3, len(pairs))  # some images are easier, for all methods

    def table(names, base, changes, noise=noise):
        assert not set(changes) - set(names), set(changes) - set(names)
        rows = [base + dict(changes).get(name, 0.0) + noise * rng.normal(size=len(pairs)) for name in names]
        return np.stack(rows)

    coords = {"seed": ("sample", [s for s, _ in pairs]), "label": ("sample", [str(label) for _, label in pairs])}
    passes = np.array([_passes(name) for name in cells])[:, None].repeat(len(pairs), axis=1)
    quality = xr.Dataset(
        {
            "psnr": (("cell", "sample"), table(cells, images, psnr)),
            "full_passes": (("cell", "sample"), passes),
            "flops": (("cell", "sample"), passes + np.array([_probe_cost(name) for name in cells])[:, None]),
            "flops_ratio": (("cell", "sample"), 50 / passes),
        },
        coords={"cell": cells, **coords},
    )
    ranked = ranked_names()
    few = slice(20)
    few_coords = {name: ("sample", values[few]) for name, (_, values) in coords.items()}
    by = ["tap N=8", "table N=8"]
    at = np.stack([table(range(1, 8), 0.6, distance if name == "tap N=8" else ()) for name in by])
    ranking = xr.Dataset(
        {
            "spearman": (("cell", "sample"), table(ranked, 0.6, rank)[:, few]),
            "top1": (("cell", "sample"), table(ranked, 0.5, top1)[:, few]),
            "normalised_regret": (("cell", "sample"), table(ranked, 0.5, ())[:, few]),
            "least_error": (("cell", "sample"), 0.1 * (1 + table(ranked, 0.0, least, noise=0.001)[:, few])),
            "spearman_at_distance": (("ranker", "distance", "sample"), at[..., few]),
            "spearman_in_phase": (("ranker", "phase", "sample"), at[:, :3, few]),
        },
        coords={"cell": ranked, "ranker": by, "distance": range(1, 8), "phase": ["first", "middle", "last"],
                **few_coords},
    )  # fmt: skip
    names = ["speed_and_order", "speed_and_best_order", "speed_share", "order_share"]
    rankers = ["own", "shuffled", "table"]
    blank = np.stack([table(rankers, 0.6, untrained)[:, few] for _ in range(2)])
    policies = ["tap", "oracle", "oracle-output"]
    return Evidence(
        quality,
        ranking,
        xr.Dataset({name: ("sample", row[few]) for name, row in zip(names, table(names, 0.0, tokens), strict=True)}),
        xr.Dataset({"spearman": (("weights", "ranker", "sample"), blank)}, coords={"ranker": rankers}),
        xr.Dataset(
            {name: (("policy", "sample"), row[None, few] + np.zeros((3, 1)))
             for name, row in zip(["path_length", "deviation"], table(["path_length", "deviation"], 0.0, propagation),
                                  strict=True)},
            coords={"policy": policies},
        ),
        {"best mask": "even: F......F"},
    )  # fmt: skip


def _passes(name):
    interval = next((int(part[2:]) for part in name.split() if part.startswith("N=")), 8)
    return 50.0 if name.startswith("reference") else float(PASSES[interval])


def _probe_cost(name):
    """A tenth of a full pass for every block of the probe, at 42 skip steps."""
    return 4.2 * int(name.split("depth=")[1]) if "depth=" in name else 0.0
