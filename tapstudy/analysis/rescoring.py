"""What TAP would have chosen, from recorded features: any family, schedule or distance, without running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from tapstudy.analysis.choice_maps import of_the_choice
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
from tapstudy.analysis.heterogeneity import chosen_order
from tapstudy.analysis.own_settings import Asked, settle
from tapstudy.analysis.result import described, means, shares
from tapstudy.analysis.teacher_forced import (
    Array,
    Features,
    Job,
    Scores,
    anchors_at,
    held_steps,
    one_torch_thread,
    scored,
)
from tapstudy.predictors.family import Family, candidates

# name -> dims after the leading ones, dtype, value at full steps, long name
Outputs = dict[str, tuple[tuple[str, ...], str, float, str]]
CHOICE: Outputs = {"choice": (("step", "token"), "int16", -1, "chosen predictor (-1 at full steps)")}
SCORES: Outputs = {
    "proxy_loss": (("step", "token", "predictor"), "float32", np.nan, "distance of predicted and actual probe"),
    "true_error": (("step", "token", "predictor"), "float32", np.nan, "relative error of the predicted residual"),
    **CHOICE,
}
SELECTED: Outputs = {
    **CHOICE,
    "best": (("step", "token"), "int16", -1, "predictor of least true error (-1 at full steps)"),
    "chosen_proxy_loss": (("step", "token"), "float32", np.nan, "proxy loss of the chosen predictor"),
    "chosen_true_error": (("step", "token"), "float32", np.nan, "true error of the chosen predictor"),
    "best_true_error": (("step", "token"), "float32", np.nan, "least true error of any predictor"),
    "regret": (("step", "token"), "float32", np.nan, "true error of the chosen predictor minus the least"),
    "mean_proxy_loss": (("step", "predictor"), "float32", np.nan, "proxy loss, mean over tokens"),
    "mean_true_error": (("step", "predictor"), "float32", np.nan, "true error, mean over tokens"),
}


def rescore(
    recording: xr.Dataset,
    config: Asked = None,
    *,
    family: Family | None = None,
    selected_only: bool = False,
) -> xr.Dataset:
    """Score a family along recorded trajectories, teacher-forced, as a recording under `config` would have.

    Every prediction is made from the exact features at the full steps of the schedule, and compared with the exact
    features at the skip step. Nothing is read before the result is computed, but which steps a closed-loop recording
    ran in full.

    Args:
        recording: with `probe` (..., step, [depth,] token, channel) and the residual (..., step, token, channel), every
            step of the trajectory; `row` and `col` (and `frame`) on token for granularity "region".
        config: schedule, family, distance, granularity, probe depth and residual site; or a mapping of fields of
            `TAPConfig` to change in the recording's own configuration. None is that one as it is, schedule and all.
        family: any other family of linear predictors.
        selected_only: small outputs: no losses of every token and predictor, but the choice, what it costs, the best
            there is, and the means of every predictor over tokens.

    Returns:
        Lazily, what a recording holds: `proxy_loss`, `true_error` (..., step, token, predictor), `choice` (..., step,
        token), `is_full`, `distance` (..., step), `is_distinct` (..., step, predictor), NaN or -1 at full steps; or,
        with `selected_only`, in place of the losses `chosen_proxy_loss`, `chosen_true_error`, `best_true_error`,
        `best`, `regret` (..., step, token), `mean_proxy_loss` and `mean_true_error` (..., step, predictor). Coordinates
        and images of the recording stay. The attribute `rescoring` tells, as JSON, the configuration, the mask of full
        steps, and whether the schedule is the recording's own.

    Raises:
        ValueError: a feature, depth or grid that the recording lacks, steps left out, granularity "global", a recording
            whose samples ran in full at different steps and no schedule asked for.

    Memory: per thread, the features of one trajectory, or of a run of its steps where that is more than 256 MiB.
    """
    settled = settle(recording, config, "rescore")
    config = settled.config
    family = family or config.family
    num_steps = is_trajectory(recording, "rescore")
    probe = in_blocks(probe_at(recording, config.probe_depth, "rescore"))
    residual = in_blocks(residual_at(recording, site_of(recording, config, "rescore"), "rescore"))
    full = config.schedule.steps(num_steps)
    outputs = SELECTED if selected_only else SCORES
    job = Job(config, family, full, grid_for(recording, config, "rescore"))
    parts = []
    for steps in step_runs((probe, residual), num_steps):
        held = held_steps(steps, full, family.num_anchors)
        found = on_trajectories(
            partial(_score_steps, job=job, held=held, wanted=steps, outputs=outputs),
            {"probe": at_steps(probe, held), "residual": at_steps(residual, held)},
            {name: (dims, dtype) for name, (dims, dtype, *_) in outputs.items()},
            {"step": len(steps), "token": probe.sizes["token"], "predictor": len(family.labels)},
        )
        for name, (*_, long_name) in outputs.items():
            found[name].attrs = {"long_name": long_name, "units": "1"}
        parts.append(found)
    scores = xr.concat(parts, dim="step", coords="minimal", compat="override") if len(parts) > 1 else parts[0]
    leading = {dim: probe.sizes[dim] for dim in probe.dims if dim not in ("step", "token", "channel")}
    scores = scores.assign(_schedule(family, full, num_steps, leading)).set_coords(["order", "shift"])
    kept = recording.drop_dims(["predictor", "channel", "latent_channel", "depth"], errors="ignore")
    kept = kept.drop_vars([name for name in scores.variables if name in kept.variables])
    return kept.merge(scores, compat="override", join="exact").assign_attrs(
        rescoring=settled.told(num_steps, family=repr(family))
    )


def rescoring_summary(scores: xr.Dataset) -> xr.Dataset:
    """Summarise `rescore`: losses and errors of the choice, and how often each order is chosen."""
    choice = scores["choice"]
    proxy, error = (of_the_choice(scores[name], choice) for name in ("proxy_loss", "true_error"))
    best = scores["true_error"].min("predictor", skipna=False)
    measured = described({
        "proxy_loss": (proxy, "proxy loss of the choice", "1"),
        "true_error": (error, "true error of the choice", "1"),
        "best_true_error": (best, "least true error of any predictor", "1"),
        "regret": (error - best, "true error of the choice minus the least", "1"),
    })  # fmt: skip
    orders = {order: f"order {order}" for order in np.unique(scores["order"].values).tolist()}
    order_share = shares(
        chosen_order(scores), orders, dim="chosen_order", long_name="share of the tokens at skip steps"
    )
    return means(measured, *map(str, measured.data_vars)).assign(order_share=order_share)


def _score_steps(
    probe: Array, residual: Array, *, job: Job, held: Sequence[int], wanted: Sequence[int], outputs: Outputs
) -> tuple[Array, ...]:
    """Score `wanted` steps of a trajectory, whose features (held, token, channel) are there."""
    sizes = {"step": len(wanted), "token": probe.shape[1], "predictor": len(job.family.labels)}
    results = {
        name: np.full([sizes[dim] for dim in dims], fill, dtype) for name, (dims, dtype, fill, _) in outputs.items()
    }
    tell = _selected if outputs is SELECTED else _all
    with one_torch_thread(), torch.inference_mode():
        h, r = Features(probe, held, job.config.probe_dtype), Features(residual, held, job.config.history_dtype)
        for position, one in scored(h, r, job, wanted):
            for name, values in tell(one).items():
                results[name][position] = values
    return tuple(results.values())


def _all(one: Scores) -> dict[str, Tensor]:
    """Make the outputs of `SCORES`."""
    found = one.found
    return {
        "proxy_loss": one.proxy[:, found.inverse],
        "true_error": one.error[:, found.inverse],
        "choice": found.first[one.choice],
    }


def _selected(one: Scores) -> dict[str, Tensor]:
    """Make the outputs of `SELECTED`."""
    found = one.found
    proxy, error, least = (
        losses.gather(1, index[:, None])[:, 0]
        for losses, index in ((one.proxy, one.choice), (one.error, one.choice), (one.error, one.best))
    )
    return {
        "choice": found.first[one.choice],
        "best": found.first[one.best],
        "chosen_proxy_loss": proxy,
        "chosen_true_error": error,
        "best_true_error": least,
        "regret": error - least,
        "mean_proxy_loss": one.proxy.mean(dim=0)[found.inverse],
        "mean_true_error": one.error.mean(dim=0)[found.inverse],
    }


def _schedule(
    family: Family, full: tuple[int, ...], num_steps: int, leading: Mapping[Any, int]
) -> Mapping[str, xr.DataArray]:
    """Tell what depends on schedule and family alone, the same for all samples, without memory for each."""
    anchors = [anchors_at(step, full, family.num_anchors) for step in range(num_steps)]
    distance = np.array([0 if i in full else i - anchors[i][0] for i in range(num_steps)], dtype=np.int16)
    distinct = np.full((num_steps, len(family.labels)), -1, dtype=np.int8)
    for step in set(range(num_steps)) - set(full):
        distinct[step] = np.isin(np.arange(len(family.labels)), candidates(family, anchors[step], step).first)
    is_full = np.isin(np.arange(num_steps), full).astype(np.int8)

    def spread(values: Array, dims: tuple[str, ...], long_name: str) -> xr.DataArray:
        shape = (*leading.values(), *values.shape)
        return xr.DataArray(
            np.broadcast_to(values, shape), dims=(*leading, *dims), attrs={"long_name": long_name, "units": "1"}
        )

    order, shift = ([getattr(label, name) for label in family.labels] for name in ("order", "shift"))
    return {
        "is_full": spread(is_full, ("step",), "the schedule runs the model in full (1) or skips it (0)"),
        "distance": spread(distance, ("step",), "steps since the last anchor, 0 at a full step"),
        "is_distinct": spread(distinct, ("step", "predictor"), "first of the predictors that are identical here"),
    } | {
        "order": xr.DataArray(order, dims="predictor", attrs={"long_name": "order m", "units": "1"}),
        "shift": xr.DataArray(
            [float(s) for s in shift], dims="predictor", attrs={"long_name": "shift s", "units": "1"}
        ),
    }
