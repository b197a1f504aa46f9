"""From recorded trajectories to the tables of the claims, one image in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from tapstudy.analysis.error_propagation import against, error_propagation, per_image
from tapstudy.analysis.heterogeneity import chosen_order, relation, token_dynamics
from tapstudy.analysis.proxy_correlation import proxy_correlation, shuffled_proxy
from tapstudy.analysis.require import require
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.variance_shares import variance_shares
from tapstudy.policies.config import TAPConfig

DETAILED = "tap N=8"
MEASURES = ("spearman", "top1")
PHASES = ("first", "middle", "last")


def ranking_table(image: xr.Dataset, settings: Mapping[str, TAPConfig]) -> xr.Dataset:
    """Tell how well the probe ranks the predictors along the recorded trajectories, for every setting.

    Args:
        image: recorded features of one image, see `rescore`, with `seed` on sample; loaded, or it is read once for
            every setting.
        settings: by name; "tap N=8" must be among them. It is also scored with shuffled losses, as "shuffled N=8".

    Returns:
        `spearman`, `top1` (cell, sample), means over contexts, skip steps and tokens; `spearman_at_distance` (sample,
        distance) and `spearman_in_phase` (sample, phase), the same of "tap N=8" in parts.

    Raises:
        ValueError: no setting "tap N=8", or what `rescore` lacks.
    """
    if DETAILED not in settings:
        raise ValueError(f"ranking_table: needs the setting {DETAILED!r}, got {list(settings)}")
    require(image, "ranking_table", seed=("sample",))
    found: dict[str, xr.Dataset] = {}
    for name, config in settings.items():
        scores = rescore(image, config).compute()
        found[name] = agreement(scores)
        if name == DETAILED:
            parts = _parts(scores)
            shuffled = shuffled_proxy(scores, seed=int(image["seed"].values[0]))
            found[DETAILED.replace("tap", "shuffled")] = agreement(shuffled)
    table = xr.concat(list(found.values()), dim="cell", coords="minimal", compat="override")
    return table.assign_coords(cell=list(found)).merge(parts)


def agreement(scores: xr.Dataset) -> xr.Dataset:
    """Return `spearman` and `top1`, (sample,): means over everything else, what is not defined left out."""
    found = proxy_correlation(scores, measures=MEASURES)
    means = found[list(MEASURES)].mean([dim for dim in found["spearman"].dims if dim != "sample"])
    return means.reset_coords(drop=True).assign_coords(_labels(scores)).compute()


def _parts(scores: xr.Dataset) -> xr.Dataset:
    rank = proxy_correlation(scores, measures=("spearman",))["spearman"].reset_coords(drop=True)
    rank = rank.mean([dim for dim in rank.dims if dim not in ("sample", "step")])  # NaN at full steps
    first = {dim: 0 for dim in scores["distance"].dims if dim != "step"}
    distance, full = (scores[name].isel(first).values for name in ("distance", "is_full"))
    skipped = np.flatnonzero(full == 0)
    reached = sorted(set(distance[skipped].tolist()))
    at = [rank.isel(step=np.flatnonzero(distance == k)).mean("step") for k in reached]
    phases = [rank.isel(step=steps).mean("step") for steps in np.array_split(skipped, len(PHASES))]
    return xr.Dataset({
        "spearman_at_distance": xr.concat(at, dim="distance").assign_coords(distance=reached),
        "spearman_in_phase": xr.concat(phases, dim="phase").assign_coords(phase=list(PHASES)),
    })  # fmt: skip


def token_table(image: xr.Dataset, config: TAPConfig | None = None, *, permutations: int = 50) -> xr.Dataset:
    """Tell whether tokens differ, and whether the fast ones choose differently.

    Args:
        image: recorded features of one image, see `rescore`.
        config: of the choices; by default TAP's, N = 8.
        permutations: of the null of the shares.

    Returns:
        (sample,): `speed_and_order` and `speed_and_best_order`, the rank correlation across tokens of the residual's
        speed and the order of the chosen, or truly best, predictor, mean over skip steps and contexts (0 if the order
        is never different between tokens); `speed_share` and `order_share`, the share of the variance of the log
        relative speed, or of the truly best order, between tokens, minus its mean under the null of `variance_shares`.
    """
    scores = rescore(image, config or TAPConfig(), selected_only=True).compute()
    order = chosen_order(scores)
    best = chosen_order(scores.assign(choice=scores["best"]))
    dynamics = token_dynamics(image, variable="residual")[["velocity", "relative_velocity"]].compute()
    found = {
        "speed_and_order": (_mean(relation(dynamics["velocity"], order)), "rank correlation, speed and chosen order"),
        "speed_and_best_order": (_mean(relation(dynamics["velocity"], best)), "rank correlation, speed and best order"),
        "speed_share": (
            _excess(dynamics["relative_velocity"], permutations, log=True),
            "excess share of tokens, log relative speed",
        ),
        "order_share": (_excess(best, permutations), "excess share of tokens, order of the best predictor"),
    }
    return xr.Dataset(
        {
            name: ("sample", np.atleast_1d(value), {"long_name": text, "units": "1"})
            for name, (value, text) in found.items()
        },
        coords=_labels(image),
    )


def _mean(values: xr.DataArray) -> np.ndarray:
    others = [dim for dim in values.dims if dim != "sample"]
    return np.asarray(values.mean(others).fillna(0).values)


def _excess(values: xr.DataArray, permutations: int, *, log: bool = False) -> np.ndarray:
    """Return the share of tokens and positions beyond the null, sample by sample, mean over contexts, (sample,)."""
    excess = []
    for index in range(values.sizes["sample"]):
        one = values.isel(sample=index).reset_coords(drop=True)
        if float(one.max()) == float(one.min()):
            excess.append(0.0)  # no variance, so none between tokens
            continue
        shares = variance_shares(one, log=log, permutations=permutations).sel(source=["position", "token"])
        excess.append(float((shares["share"] - shares["null_mean"]).sum("source").mean()))
    return np.array(excess)


def propagation_table(runs: xr.Dataset) -> xr.Dataset:
    """Return log ratios of every policy to "order1" of what makes up its final deviation, (policy, sample).

    Args:
        runs: from `bench.claims.solver_runs`, with the policy "order1".
    """
    return against(per_image(error_propagation(runs)), "order1").compute()


def _labels(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    return {name: dataset[name].reset_coords(drop=True) for name in ("seed", "label") if name in dataset.coords}
