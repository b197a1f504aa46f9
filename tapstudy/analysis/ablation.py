"""Many settings of TAP on the same recorded trajectories, each chunk of features read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr

from tapstudy.analysis.features import (
    at_steps,
    grid_for,
    in_blocks,
    is_trajectory,
    on_trajectories,
    probe_at,
    residual_at,
    site_of,
    step_runs,
)
from tapstudy.analysis.own_settings import Asked, Settled, settle
from tapstudy.analysis.result import lazily
from tapstudy.analysis.teacher_forced import (
    Array,
    Features,
    Job,
    held_steps,
    one_torch_thread,
    scored,
)
from tapstudy.core.schedule import mask_text
from tapstudy.policies.config import TAPConfig

METRICS = {
    "true_error": "true error of the chosen predictor",
    "oracle_true_error": "true error of every token's best predictor",
    "random_true_error": "true error of a random predictor (mean over the distinct ones)",
    "top1": "share of tokens that take their best predictor",
}


def grid(**axes: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return settings at every point of a grid of `TAPConfig` fields, the last axis fastest.

    >>> list(grid(interval=(4, 8), distance=("cosine", "l2")))
    ['interval=4 distance=cosine', 'interval=4 distance=l2', 'interval=8 distance=cosine', 'interval=8 distance=l2']

    Raises:
        TypeError: a field that does not exist.
    """
    known = {field.name for field in fields(TAPConfig)}
    TAPConfig.of({name: values for name, values in axes.items() if name not in known})  # says which it does not know
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return {" ".join(f"{name}={_text(value)}" for name, value in point.items()): point for point in points}


def ablate(recording: xr.Dataset, settings: Mapping[str, Asked] | Sequence[Asked]) -> xr.Dataset:
    """Rescore recorded trajectories under many settings, to one number per image and setting.

    Args:
        recording: as for `rescore`, with the probe of every block and the residual of every site that is asked for.
        settings: by name, or in order, each as the `config` of `rescore`: what a setting of `grid` does not name, the
            schedule too, is the recording's own.

    Returns:
        Lazily, per setting and image the mean over contexts, skip steps and tokens: `true_error` of TAP's choice,
        `oracle_true_error`, `random_true_error`, `top1` and `regret`, `normalised_regret` (the regret over that of a
        random predictor: 0 for the oracle, 1 for chance), all (sample, setting), and `fixed_true_error` (sample,
        setting, predictor), NaN for predictors that a setting lacks. `best_fixed_true_error` (setting, sample) is that
        of the fixed predictor with the least error on images of other seeds (see `best_fixed_elsewhere`). Coordinates:
        on setting the fields of `TAPConfig` that differ, `full_passes`, `mask` and `schedule` (where it comes from); on
        predictor `order` and `shift`.

    Raises:
        ValueError: no settings, a setting that never skips, and all that `rescore` raises.
    """
    asked = dict(settings) if isinstance(settings, Mapping) else {str(i): one for i, one in enumerate(settings)}
    if not asked:
        raise ValueError("ablate needs at least one setting")
    num_steps = is_trajectory(recording, "ablate")
    named = {name: settle(recording, one, "ablate") for name, one in asked.items()}
    configs = [one.config for one in named.values()]
    full = [config.schedule.steps(num_steps) for config in configs]
    for name, steps in zip(named, full, strict=True):
        if len(steps) == num_steps:
            raise ValueError(f"ablate: setting {name!r} skips none of the {num_steps} steps: there is nothing to score")
    depths = sorted({config.probe_depth for config in configs})
    sites = [str(site_of(recording, config, "ablate")) for config in configs]
    arrays = {f"probe {depth}": in_blocks(probe_at(recording, depth, "ablate")) for depth in depths}
    arrays |= {site: in_blocks(residual_at(recording, site, "ablate")) for site in sorted(set(sites))}
    labels = sorted({(label.order, float(label.shift)) for config in configs for label in config.family.labels})
    jobs = [Job(c, c.family, f, grid_for(recording, c, "ablate")) for c, f in zip(configs, full, strict=True)]
    plan = [
        (job, site, [labels.index((label.order, float(label.shift))) for label in job.family.labels])
        for job, site in zip(jobs, sites, strict=True)
    ]
    outputs = {name: (["setting"], np.float64) for name in METRICS}
    outputs["fixed_true_error"] = (["setting", "predictor"], np.float64)
    total: xr.Dataset | None = None
    for run in step_runs(list(arrays.values()), num_steps):
        held = sorted({step for job in jobs for step in held_steps(run, job.full, job.family.num_anchors)})
        part = on_trajectories(
            partial(_add_up, names=list(arrays), plan=plan, held=held, wanted=run, predictors=len(labels)),
            {name: at_steps(array, held) for name, array in arrays.items()},
            outputs,
            {"setting": len(jobs), "predictor": len(labels)},
        )
        total = part if total is None else total + part
    assert total is not None
    skips = xr.DataArray([num_steps - len(steps) for steps in full], dims="setting")
    means = total / skips
    found = means.mean([dim for dim in means.dims if dim not in ("setting", "sample", "predictor")])
    return _described(found, recording, named, full, labels)


def best_fixed_elsewhere(fixed: xr.DataArray, seed: xr.DataArray | None = None) -> xr.DataArray:
    """Return, for every image, the error of the fixed predictor that is best on average on images of other seeds.

    So no image takes part in choosing the predictor that it is judged by, nor does one that began from its noise.
    Without seeds, or with a single one, the other images choose. NaN where there is no other image.

    Args:
        fixed: (..., sample, predictor), NaN for predictors that are not there.
        seed: (sample,).

    Returns:
        (..., sample).
    """
    count = fixed.sizes["sample"]
    groups = np.arange(count) if seed is None or len(np.unique(seed)) < 2 else np.unique(seed, return_inverse=True)[1]
    other = groups[:, None] != groups  # (sample, sample)

    def pick(errors: Array) -> Array:
        if not other.any():
            return np.full(errors.shape[:-1], np.nan)
        sums = other.astype(np.float64) @ np.nan_to_num(errors)  # (..., sample, predictor)
        best = np.where(np.isnan(errors), np.inf, sums).argmin(axis=-1)  # (..., sample)
        return np.take_along_axis(errors, best[..., None], axis=-1)[..., 0]

    return lazily(pick, fixed, core=("sample predictor",), out=("sample",), dtypes=(fixed.dtype,))


def _add_up(
    *features: Array,
    names: Sequence[str],
    plan: Sequence[tuple[Job, str, list[int]]],
    held: Sequence[int],
    wanted: Sequence[int],
    predictors: int,
) -> tuple[Array, ...]:
    """Sum means over tokens over the `wanted` skip steps of a trajectory: (setting,) for every metric, (setting, p)."""
    arrays = dict(zip(names, features, strict=True))
    # products of the features are found once for all settings
    of = cache(lambda name, dtype: Features(arrays[name], held, dtype))
    metrics, fixed = np.zeros((len(METRICS), len(plan))), np.full((len(plan), predictors), np.nan)
    with one_torch_thread(), torch.inference_mode():
        for row, (job, site, members) in enumerate(plan):
            fixed[row, members] = 0
            probe = of(f"probe {job.config.probe_depth}", job.config.probe_dtype)
            for _, one in scored(probe, of(site, job.config.history_dtype), job, wanted):
                chosen, best = (one.error.gather(1, index[:, None]).mean() for index in (one.choice, one.best))
                metrics[:, row] += chosen, best, one.error.mean(), (one.choice == one.best).double().mean()
                fixed[row, members] += one.error.mean(dim=0)[one.found.inverse].numpy()
    return *metrics, fixed


def _described(
    found: xr.Dataset,
    recording: xr.Dataset,
    named: Mapping[str, Settled],
    full: Sequence[tuple[int, ...]],
    labels: Sequence[tuple[int, float]],
) -> xr.Dataset:
    """Add what follows from the metrics, coordinates and attributes."""
    regret = found["true_error"] - found["oracle_true_error"]
    chance = found["random_true_error"] - found["oracle_true_error"]
    names = {
        **METRICS,
        "regret": "true error of the chosen predictor minus the least",
        "normalised_regret": "regret over that of a random predictor",
        "fixed_true_error": "true error of one predictor for all tokens and steps",
    }
    found = found.assign(regret=regret, normalised_regret=regret / chance.where(chance > 0))
    if "sample" in found.dims:
        names["best_fixed_true_error"] = "true error of the fixed predictor that is best on images of other seeds"
        seed = recording["seed"] if "seed" in recording.coords else None
        found["best_fixed_true_error"] = best_fixed_elsewhere(found["fixed_true_error"], seed)
    for name, long_name in names.items():
        found[name].attrs.update(long_name=long_name, units="1")
    configs = [one.config for one in named.values()]
    varying = [f.name for f in fields(TAPConfig) if len({getattr(c, f.name) for c in configs}) > 1]
    num_steps = recording.sizes["step"]
    return found.assign_coords(
        {"setting": list(named)}
        | {name: ("setting", _coordinate([getattr(c, name) for c in configs])) for name in varying}
        | {
            "full_passes": ("setting", [len(steps) for steps in full]),
            "mask": ("setting", [mask_text(steps, num_steps) for steps in full]),
            "schedule": ("setting", [one.schedule for one in named.values()]),
            "order": ("predictor", [order for order, _ in labels], {"long_name": "order m", "units": "1"}),
            "shift": ("predictor", [shift for _, shift in labels], {"long_name": "shift s", "units": "1"}),
        }
        | {name: array for name, array in recording.coords.items() if array.dims == ("sample",)}
    )


def _coordinate(values: Sequence[Any]) -> list[Any]:
    """Keep numbers, so that they can be an axis; turn anything else into text."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return list(values) if numbers else [_text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_text, value))
    return str(value).removeprefix("torch.")
