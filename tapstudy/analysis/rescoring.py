"""What TAP would have chosen, from recorded features: any family, schedule or distance, without running the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from tapstudy.analysis.choice_maps import of_the_choice
from tapstudy.analysis.features import (
    Grid,
    Site,
    at_steps,
    grid_for,
    in_blocks,
    is_trajectory,
    probe_at,
    residual_at,
    site_of,
    step_runs,
)
from tapstudy.analysis.heterogeneity import chosen_order
from tapstudy.analysis.own_settings import Asked, settle
from tapstudy.analysis.result import means, shares
from tapstudy.analysis.selection import ErrorForms, Selection, fused_selection
from tapstudy.analysis.teacher_forced import (
    Array,
    Trajectories,
    Windows,
    anchors_at,
    boxed,
    full_steps_of,
    held_steps,
    one_torch_thread,
    windows_of,
)
from tapstudy.analysis.window_scores import WindowScores
from tapstudy.core.scoring import least, select
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family, candidates

# Losses found in one call: few enough that they stay in a processor's cache.
AT_ONCE = 1 << 17

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
    depth: int | None = None,
    site: Site | None = None,
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
        depth: block of the probe; `config.probe_depth` if None.
        site: variable that holds the residual; by default the one that holds `config.residual`.
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
    probe = in_blocks(probe_at(recording, config.probe_depth if depth is None else depth, "rescore"))
    residual = in_blocks(residual_at(recording, site or site_of(recording, config, "rescore"), "rescore"))
    full = full_steps_of(config, num_steps)
    grid = grid_for(recording, config, "rescore")
    outputs = SELECTED if selected_only else SCORES
    parts = []
    for steps in step_runs((probe, residual), num_steps):
        held = held_steps(steps, full, family.num_anchors)
        kernel = _Kernel(config, family, full, tuple(held), tuple(steps), grid, outputs)
        parts.append(_apply(kernel, at_steps(probe, held), at_steps(residual, held)))
    scores = xr.concat(parts, dim="step", coords="minimal", compat="override") if len(parts) > 1 else parts[0]
    leading = {dim: probe.sizes[dim] for dim in probe.dims if dim not in ("step", "token", "channel")}
    scores = scores.assign(_schedule(family, full, num_steps, leading)).set_coords(["order", "shift"])
    kept = recording.drop_dims(["predictor", "channel", "latent_channel", "depth"], errors="ignore")
    kept = kept.drop_vars([name for name in scores.variables if name in kept.variables])
    return kept.merge(scores, compat="override", join="exact").assign_attrs(
        rescoring=settled.told(num_steps, family=repr(family))
    )


def rescoring_summary(scores: xr.Dataset) -> xr.Dataset:
    """Of `rescore`: losses and errors of the choice, not of all predictors, and how often each order is chosen."""
    choice = scores["choice"]
    proxy, error = (of_the_choice(scores[name], choice) for name in ("proxy_loss", "true_error"))
    best = scores["true_error"].min("predictor", skipna=False)
    measured = xr.Dataset({
        name: values.assign_attrs(long_name=text, units="1")
        for name, values, text in (
            ("proxy_loss", proxy, "proxy loss of the choice"),
            ("true_error", error, "true error of the choice"),
            ("best_true_error", best, "least true error of any predictor"),
            ("regret", error - best, "true error of the choice minus the least"),
        )
    })  # fmt: skip
    orders = {order: f"order {order}" for order in np.unique(scores["order"].values).tolist()}
    order_share = shares(
        chosen_order(scores), orders, dim="chosen_order", long_name="share of the tokens at skip steps"
    )
    return means(measured, *map(str, measured.data_vars)).assign(order_share=order_share)


@dataclass(frozen=True)
class _Kernel:
    """Scores `wanted` steps of some trajectories, of which the features at the steps `held` are there."""

    config: TAPConfig
    family: Family
    full: tuple[int, ...]
    held: tuple[int, ...]
    wanted: tuple[int, ...]
    grid: Grid | None
    outputs: Outputs
    known: dict[tuple[int, ...], StepCandidates] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, probe: Array, residual: Array) -> tuple[Array, ...]:
        """Objects (held, token, channel), (...) twice -> the outputs, (..., wanted, ...)."""
        with one_torch_thread(), torch.inference_mode():
            h, r = Trajectories(probe, self.held), Trajectories(residual, self.held)
            sizes = {"step": len(self.wanted), "token": h.values[0].shape[1], "predictor": len(self.family.labels)}
            results = {
                name: torch.full((h.count, *(sizes[dim] for dim in dims)), fill, dtype=getattr(torch, dtype))
                for name, (dims, dtype, fill, _) in self.outputs.items()
            }
            for windows in windows_of(self.wanted, self.full, self.family.num_anchors, size=h.windows_at_once):
                found = self._candidates(windows)
                proxies = WindowScores(h, windows, history_dtype=self.config.probe_dtype)
                errors = WindowScores(r, windows, history_dtype=self.config.history_dtype)
                for start, scores in self._scores(found, proxies, errors):
                    for name, values in scores.items():
                        values = values.unflatten(1, (h.count, -1))  # (S, B, W, ...)
                        for window, steps in enumerate(windows.steps):
                            first = steps[start] - self.wanted[0]
                            results[name][:, first : first + len(values)] = values[:, :, window].transpose(0, 1)
        return tuple(result.view(*probe.shape, *result.shape[1:]).numpy() for result in results.values())

    def _candidates(self, windows: Windows) -> StepCandidates:
        """The predictors of windows; of alike ones they are found once, which takes as long as some hundred tokens."""
        newest = windows.anchors[0][0]
        alike = tuple(step - newest for step in (*windows.anchors[0], *windows.steps[0]))
        if alike not in self.known:
            self.known[alike] = StepCandidates.of(self.family, windows)
        return self.known[alike]

    def _scores(
        self, found: StepCandidates, proxies: WindowScores, errors: WindowScores
    ) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """The first of some steps, and the outputs at these, (S, B * W, ...)."""
        config, rows = self.config, proxies.rows
        if self.outputs is SELECTED and config.granularity == "token":
            fused = fused_selection(proxies, errors, found.forms, distance=config.distance)
            if fused is not None:
                yield 0, _selected(found, fused, rows)
                return
        count = max(1, AT_ONCE // (found.weights.shape[1] * proxies.tokens))
        for start in range(0, len(found.weights), count):
            some = found[start : start + count]
            proxy = proxies.losses(some.weights, config.distance, start=start)  # (S, P, T)
            error = errors.losses(some.weights, "l2", start=start)
            choice = self._choose(proxy, rows)
            if self.outputs is SELECTED:
                yield start, _selected(some, Selection.of(proxy, error, choice, rows=rows), rows)
            else:
                every = torch.arange(len(proxy))[:, None], some.inverse
                scores = {"proxy_loss": proxy[every].mT, "true_error": error[every].mT, "choice": some.labels(choice)}
                yield start, {name: values.unflatten(1, (rows, -1)) for name, values in scores.items()}

    def _choose(self, proxy: Tensor, rows: int) -> Tensor:
        """(S, P, T) -> (S, T)."""
        config = self.config
        if config.granularity == "token":
            return least(proxy)[1]  # what `select` does; of these losses all or none are not numbers
        tokens = proxy.unflatten(-1, (rows, -1)).movedim(1, -1)  # (S, B * W, N, P)
        return select(
            tokens.flatten(0, 1), granularity=config.granularity, grid=self.grid, region_size=config.region_size
        ).reshape(len(proxy), -1)


def _selected(found: StepCandidates, selection: Selection, rows: int) -> Mapping[str, Tensor]:
    """The outputs of `SELECTED`, (S, B * W, ...)."""
    of_tokens = {
        "choice": found.labels(selection.choice),
        "best": found.labels(selection.best),
        "chosen_proxy_loss": selection.chosen_proxy,
        "chosen_true_error": selection.chosen_error,
        "best_true_error": selection.best_error,
        "regret": selection.chosen_error - selection.best_error,
    }
    means = {"mean_proxy_loss": selection.mean_proxy, "mean_true_error": selection.mean_error}
    return {name: values.unflatten(1, (rows, -1)) for name, values in of_tokens.items()} | {
        name: values.take_along_dim(found.inverse[..., None], 1).mT for name, values in means.items()
    }


@dataclass(frozen=True)
class StepCandidates:
    """The distinct predictors at each of S steps; where there are fewer, the first one comes again at the end.

    Attributes:
        weights: (S, P, J).
        first: (S, P), as in `Candidates`.
        inverse: (S, label), as in `Candidates`.
    """

    weights: Tensor
    first: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, family: Family, windows: Windows) -> StepCandidates:
        """At the steps of windows."""
        found = [candidates(family, windows.anchors[0], step) for step in windows.steps[0]]
        count = max(len(one.first) for one in found)
        count = count if count < 32 else -(-count // 8) * 8  # as `least` likes it
        padded = [[*range(len(one.first)), *[0] * (count - len(one.first))] for one in found]
        return cls(
            torch.stack([one.weights[rows] for one, rows in zip(found, padded, strict=True)]),
            torch.stack([one.first[rows] for one, rows in zip(found, padded, strict=True)]),
            torch.stack([one.inverse for one in found]),
        )

    @cached_property
    def forms(self) -> ErrorForms:
        """For the compiled loops."""
        return ErrorForms.of(self.weights)

    def __getitem__(self, steps: slice) -> StepCandidates:
        return StepCandidates(self.weights[steps], self.first[steps], self.inverse[steps])

    def labels(self, choice: Tensor) -> Tensor:
        """Of the family, by position among the distinct predictors, (S, T) -> (S, T)."""
        return self.first.gather(1, choice)


def _apply(kernel: _Kernel, probe: xr.DataArray, residual: xr.DataArray) -> xr.Dataset:
    found = xr.apply_ufunc(
        kernel,
        boxed(probe),
        boxed(residual),
        output_core_dims=[dims for dims, *_ in kernel.outputs.values()],
        join="exact",
        dask="parallelized",
        output_dtypes=[dtype for _, dtype, *_ in kernel.outputs.values()],
        dask_gufunc_kwargs={
            "output_sizes": {
                "step": len(kernel.wanted),
                "token": probe.sizes["token"],
                "predictor": len(kernel.family.labels),
            },
        },
    )
    return xr.Dataset(
        {
            name: array.assign_attrs(long_name=long_name, units="1")
            for array, (name, (*_, long_name)) in zip(found, kernel.outputs.items(), strict=True)
        }
    )


def _schedule(
    family: Family, full: tuple[int, ...], num_steps: int, leading: Mapping[Any, int]
) -> Mapping[str, xr.DataArray]:
    """What depends on the schedule and the family alone, the same for all samples, without taking memory for each."""
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
