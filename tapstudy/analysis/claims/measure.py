"""From recorded trajectories to the tables of the claims, one image in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import xarray as xr

from tapstudy.analysis.error_propagation import against, error_propagation, per_image
from tapstudy.analysis.heterogeneity import chosen_order, relation, token_dynamics
from tapstudy.analysis.proxy_correlation import proxy_correlation, shuffled_proxy
from tapstudy.analysis.require import require
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.variance_shares import variance_shares
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family

DETAILED = "tap N=8"
MEASURES = ("spearman", "top1", "regret", "normalised_regret")
PHASES = ("first", "middle", "last")
OUTPUT = " output"  # behind the name of a ranking whose truth is the error of the model's output


class Ranked(NamedTuple):
    """Hold settings that recorded trajectories are scored with; `family` None: that of the configuration."""

    config: TAPConfig
    family: Family | None = None


class Clock(NamedTuple):
    """Hold what is known of the predictors of S(8, 3) without a probe of the image, from other images.

    Attributes:
        probe: the image-blind probe, its mean over images and tokens, (context, step, channel).
        hidden, output: the table, mean true error over images and tokens, (context, step, predictor).
    """

    probe: xr.DataArray
    hidden: xr.DataArray
    output: xr.DataArray


def clock_of(recording: xr.Dataset) -> Clock:
    """Average what is held out: see `Clock`.

    Args:
        recording: features (`probe`, `residual`, `latent_residual`) of images that nothing is judged on.
    """
    over = ("sample", "token")
    tables = [
        rescore(recording, config, selected_only=True)["mean_true_error"].mean("sample").compute()
        for config in (TAPConfig(), TAPConfig(residual="latent"))
    ]
    probe = recording["probe"].isel(depth=0, drop=True).mean(over, dtype=np.float64).astype(np.float32)
    return Clock(probe.compute().reset_coords(drop=True), *(table.reset_coords(drop=True) for table in tables))


def ranking_table(image: xr.Dataset, settings: Mapping[str, Ranked], clock: Clock) -> xr.Dataset:
    """Tell how well the probe, and what stands in for it, rank the predictors along the recorded trajectories.

    Args:
        image: recorded features of one image, see `rescore`, with `seed` on sample; loaded, or it is read several
            times for every setting.
        settings: by name; "tap N=8", which must be S(8, 3), must be among them. It is also ranked by controls: its own
            losses shuffled over the tokens of a step ("shuffled N=8"), the image-blind probe ("blind N=8"), the table
            ("table N=8"), and the true error of another token ("other token N=8"), which is what a ranking that knows
            the step and the image, but not the token, can reach. All of these again, with " output" behind the name,
            against the error of the same predictors on the residual of the model's output, where "hidden error N=8
            output" ranks by the true error in hidden space.
        clock: of held-out images.

    Returns:
        `MEASURES` and `least_error`, the true error of the best predictor (cell, sample), means over contexts, skip
        steps and tokens; `spearman_at_distance` (ranker, sample, distance) and `spearman_in_phase` (ranker, sample,
        phase), of "tap N=8" and "table N=8" in parts.

    Raises:
        ValueError: no setting "tap N=8", or what `rescore` lacks.
    """
    if DETAILED not in settings:
        raise ValueError(f"ranking_table: needs the setting {DETAILED!r}, got {list(settings)}")
    require(image, "ranking_table", seed=("sample",))
    scored = {name: rescore(image, one.config, family=one.family).compute() for name, one in settings.items()}
    own = scored[DETAILED]
    config = settings[DETAILED].config
    seen = image["probe"].isel(depth=0, drop=True) if "depth" in image["probe"].dims else image["probe"]
    blind = rescore(image.drop_dims("depth", errors="ignore").assign(probe=_like(clock.probe, seen)), config).compute()
    output = rescore(image, replace(config, residual="latent")).compute()
    seed = int(image["seed"].values[0])
    rankings = dict(scored)
    for truth, table, space in ((own, clock.hidden, ""), (output, clock.output, OUTPUT)):
        by = {
            DETAILED: own["proxy_loss"],
            "blind N=8": blind["proxy_loss"],
            "table N=8": _like(table, truth["true_error"]),
            **({"hidden error N=8": own["true_error"]} if space else {}),
        }
        rankings |= {f"{name}{space}": _ranked_by(truth, losses) for name, losses in by.items()}
        for name, losses in (("shuffled N=8", own["proxy_loss"]), ("other token N=8", truth["true_error"])):
            rankings[f"{name}{space}"] = shuffled_proxy(_ranked_by(truth, losses), seed=seed)
    found = xr.concat([agreement(one) for one in rankings.values()], dim="cell", coords="minimal", compat="override")
    rankers = [DETAILED, "table N=8"]
    parts = xr.concat([_parts(rankings[name]) for name in rankers], dim="ranker").assign_coords(ranker=rankers)
    return found.assign_coords(cell=list(rankings)).merge(parts)


def untrained_table(recording: xr.Dataset) -> xr.Dataset:
    """Tell how well the probe of a model ranks, and its controls, where the only images are those that are judged.

    The table is that of the other images.

    Args:
        recording: `proxy_loss` and `true_error` of several images.

    Returns:
        `MEASURES` (ranker, sample) of "own", "shuffled" and "table".
    """
    scores = recording.compute()
    truth = scores["true_error"]
    over = truth.mean("token")
    others = (over.sum("sample") - over) / (over.sizes["sample"] - 1)
    rankings = {
        "own": scores,
        "shuffled": shuffled_proxy(scores, seed=0),
        "table": _ranked_by(scores, _like(others, truth)),
    }
    found = xr.concat([agreement(one) for one in rankings.values()], dim="ranker", coords="minimal", compat="override")
    return found.assign_coords(ranker=list(rankings))


def _like(values: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Spread values over the dimensions that they lack."""
    spread, _ = xr.broadcast(values, other)
    return spread.transpose(*other.dims).astype(other.dtype)


def _ranked_by(scores: xr.Dataset, losses: xr.DataArray) -> xr.Dataset:
    return scores.drop_vars("choice", errors="ignore").assign(proxy_loss=losses.reset_coords(drop=True))


def agreement(scores: xr.Dataset) -> xr.Dataset:
    """Return `MEASURES` and `least_error`, (sample,): means over everything else, what is not defined left out."""
    found = proxy_correlation(scores, measures=MEASURES)
    found["least_error"] = scores["true_error"].min("predictor")
    means = found[[*MEASURES, "least_error"]].mean([dim for dim in found["spearman"].dims if dim != "sample"])
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
