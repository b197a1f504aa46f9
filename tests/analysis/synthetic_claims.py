"""Evidence with planted answers: every run has the same quality unless told otherwise."""

from functools import cache

import numpy as np
import xarray as xr

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.bench.claims.runs import Plan, claim_cells, ranked_settings

PLAN = Plan(seeds=(1, 2, 3), labels=tuple(range(10)), held_out=(9,))
FIXED = dict.fromkeys((2, 3, 4, 6, 8), "fixed1")
MASKS = dict.fromkeys(("even", "start-dense", "best-mask"), (0, 7, 13, 19, 25, 31, 37, 43))
PASSES = {2: 26, 3: 18, 4: 14, 5: 12, 6: 10, 8: 8}


@cache
def run_names():
    return list(claim_cells(PLAN, FIXED, MASKS))


def make_evidence(*, psnr=(), rank=(), top1=(), tokens=(), propagation=(), distance=(), phase=(), noise=0.05, seed=0):
    """`psnr` etc.: name -> what the run has more than the others (dB, or correlation)."""
    rng = np.random.default_rng(seed)
    cells = run_names()
    pairs = [(s, label) for s in PLAN.seeds for label in PLAN.labels]
    images = rng.normal(35, 3, len(pairs))  # some images are easier, for all methods

    def table(names, base, changes):
        assert not set(changes) - set(names), set(changes) - set(names)
        rows = [base + dict(changes).get(name, 0.0) + noise * rng.normal(size=len(pairs)) for name in names]
        return np.stack(rows)

    coords = {"seed": ("sample", [s for s, _ in pairs]), "label": ("sample", [label for _, label in pairs])}
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
    ranked = [*ranked_settings(PLAN), "shuffled N=8", "untrained N=8"]
    few = slice(20)
    ranking = xr.Dataset(
        {
            "spearman": (("cell", "sample"), table(ranked, 0.6, rank)[:, few]),
            "top1": (("cell", "sample"), table(ranked, 0.5, top1)[:, few]),
            "spearman_at_distance": (("distance", "sample"), table(range(1, 8), 0.6, distance)[:, few]),
            "spearman_in_phase": (("phase", "sample"), table(["first", "middle", "last"], 0.6, phase)[:, few]),
        },
        coords={"cell": ranked, "distance": range(1, 8), "phase": ["first", "middle", "last"],
                **{name: ("sample", values[few]) for name, (_, values) in coords.items()}},
    )  # fmt: skip
    names = ["speed_and_order", "speed_and_best_order", "speed_share", "order_share"]
    policies = ["tap", "oracle", "oracle-latent"]
    return Evidence(
        quality,
        ranking,
        xr.Dataset({name: ("sample", row[few]) for name, row in zip(names, table(names, 0.0, tokens), strict=True)}),
        xr.Dataset(
            {name: (("policy", "sample"), row[None, :10] + np.zeros((3, 1)))
             for name, row in zip(["path_length", "deviation"], table(["path_length", "deviation"], 0.0, propagation),
                                  strict=True)},
            coords={"policy": policies},
        ),
        {"mask": "F......F"},
    )  # fmt: skip


def _passes(name):
    interval = next((int(part[2:]) for part in name.split() if part.startswith("N=")), 8)
    return 50.0 if name == "reference" else float(PASSES[interval])


def _probe_cost(name):
    """A tenth of a full pass for every block of the probe, at 42 skip steps."""
    return 4.2 * int(name.split("depth=")[1]) if "depth=" in name else 0.0
