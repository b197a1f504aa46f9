"""Which steps to run in full: masks of a given number of full passes, and the best one for recorded trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.features import in_blocks, is_trajectory, residual_at
from tapstudy.analysis.mask_search import best_path, mask_cost, skip_errors
from tapstudy.analysis.require import require
from tapstudy.core.schedule import Schedule
from tapstudy.predictors.taylor import TaylorFamily

Mask = tuple[int, ...]


def even_mask(num_steps: int, passes: int) -> Mask:
    """Return `passes` full steps as evenly as they go, step 0 first: floor(i T / passes)."""
    _check_passes(num_steps, passes)
    return tuple(i * num_steps // passes for i in range(passes))


def start_dense_mask(num_steps: int, passes: int, *, power: float = 2.0) -> Mask:
    """Place `passes` full steps near T (i / passes)^power, later where they would meet: gaps grow.

    Args:
        power: at least 1, where 1 is the even mask.
    """
    _check_passes(num_steps, passes)
    if not power >= 1:
        raise ValueError(f"start_dense_mask: power must be at least 1, got {power}")
    mask = [0]
    for i in range(1, passes):
        mask.append(max(int(num_steps * (i / passes) ** power), mask[-1] + 1))
    return tuple(mask)


def end_dense_mask(num_steps: int, passes: int, *, power: float = 2.0) -> Mask:
    """Return `start_dense_mask` with its gaps in the opposite order: they shrink along the trajectory."""
    forward = start_dense_mask(num_steps, passes, power=power)
    gaps = np.diff([*forward, num_steps])[::-1]  # the last one reaches to the end
    return (0, *(int(step) for step in np.cumsum(gaps)[:-1]))


def masks(num_steps: int, passes: int) -> dict[str, Mask]:
    """Return masks of exactly `passes` full steps by name, for `grid(full_steps=list(masks(50, 8).values()))`, say.

    S(N, 3) is there for every interval N that makes as many full steps.
    """
    found = {f"S({n},3)": Schedule(n, 3).steps(num_steps) for n in range(1, num_steps + 1)}
    return {name: mask for name, mask in found.items() if len(mask) == passes} | {
        "even": even_mask(num_steps, passes),
        "start dense": start_dense_mask(num_steps, passes),
        "end dense": end_dense_mask(num_steps, passes),
    }


def best_mask(recording: xr.Dataset, passes: int, *, order: int | Literal["best"] = 1) -> xr.Dataset:
    """Find the `passes` full steps that cost least on recorded trajectories, by dynamic programming.

    The cost of a mask is the sum over its skip steps of the squared error of the predicted residual, over all tokens
    and channels, as a share of the mean squared residual of its trajectory, mean over trajectories, times the squared
    length of the solver's step, (sigma_(i+1) - sigma_i)^2 with sigma 0 after the last step, which is how far an error
    of the velocity moves an Euler step. Predictions are made from exact residuals (teacher-forced). A prediction is
    linear in the residuals, so all costs follow from one steps-by-steps Gram matrix. The mask is the best of all masks,
    not of a neighbourhood. Choose it on other seeds than those it is judged on.

    Args:
        recording: with `residual` (..., step, token, channel), every step of the trajectory, and the coordinate `sigma`
            on step.
        passes: number of full steps.
        order: of the Taylor predictor with the exact horizon (0, 1 or 2), or "best": at every skip step the single
            predictor of TAP's family that is best for these trajectories.

    Returns:
        `full_steps` (pass,), `mask` (step,), `cost` (), and for comparison `schedule_cost` (schedule,) and
        `schedule_mask` (schedule, step) of the best, the even, the dense masks and every S(N, 3) of as many full steps.

    Raises:
        ValueError: no such mask, or something that the recording lacks.
    """
    num_steps = is_trajectory(recording, "best_mask")
    _check_passes(num_steps, passes)
    if order not in (0, 1, 2, "best"):
        raise ValueError(f"best_mask: order must be 0, 1, 2 or 'best', got {order!r}")
    family = TaylorFamily() if order == "best" else TaylorFamily(orders=(order,), shifts=(0,))
    require(recording, "best_mask", sigma=("step",))
    importance = np.diff(recording["sigma"].values.astype(np.float64), append=0.0) ** 2
    gram = step_gram(in_blocks(residual_at(recording, "residual", "best_mask")))  # (..., step, step2)
    size = sum(gram.isel(step=i, step2=i) for i in range(num_steps)) / num_steps
    share = (gram / size).mean([dim for dim in gram.dims if dim not in ("step", "step2")])
    inner = np.asarray(share.transpose("step", "step2"), dtype=np.float64)
    best, _ = best_path(skip_errors(inner, family, importance, longest=num_steps).cumsum(axis=-1), passes)
    named = {"best": best, **masks(num_steps, passes)}
    return _described(named, [mask_cost(inner, family, importance, mask) for mask in named.values()], num_steps)


def _check_passes(num_steps: int, passes: int) -> None:
    if not 1 <= passes <= num_steps:
        raise ValueError(f"a mask of {num_steps} steps has between 1 and {num_steps} full ones, got {passes}")


def _described(named: Mapping[str, Mask], costs: Sequence[float], num_steps: int) -> xr.Dataset:
    """Describe masks, the best one first."""
    table = np.array([np.isin(np.arange(num_steps), mask) for mask in named.values()]).astype(np.int8)
    relative = {"long_name": "cost of the mask: weighted squared error over mean squared residual", "units": "1"}
    kinds = {"long_name": "full step (1) or skip step (0)", "units": "1"}
    best = next(iter(named.values()))
    return xr.Dataset(
        {
            "full_steps": ("pass", np.array(best), {"long_name": "full steps of the best mask", "units": "1"}),
            "mask": ("step", table[0], kinds),
            "cost": ((), costs[0], relative),
            "schedule_cost": ("schedule", list(costs), relative),
            "schedule_mask": (("schedule", "step"), table, kinds),
        },
        coords={"schedule": list(named), "step": np.arange(num_steps)},
    )


Array = NDArray[Any]


def step_gram(features: xr.DataArray) -> xr.DataArray:
    """Return <X_i, X_j> over tokens and channels, float64, lazily.

    Steps in several chunks are paired chunk by chunk, so a long trajectory is never in memory as a whole.

    Args:
        features: (..., step, token, channel), dask-backed.

    Returns:
        (..., step, step2).
    """
    features = features.chunk({"token": -1, "channel": -1})
    leading = tuple(range(features.ndim - 3))
    step, step2, token, channel = range(features.ndim - 3, features.ndim + 1)
    gram = da.blockwise(
        _block,
        (*leading, step, step2),
        features.data,
        (*leading, step, token, channel),
        features.data,
        (*leading, step2, token, channel),
        dtype=np.float64,
        concatenate=True,
    )
    dims = (*features.dims[:-2], "step2")
    return xr.DataArray(gram, dims=dims, attrs={"long_name": "inner product of two steps' features", "units": "1"})


def _block(one: Array, other: Array) -> Array:
    """Turn (..., s, token, channel), (..., t, token, channel) into (..., s, t), summed token by token in float64."""
    result = np.zeros((*one.shape[:-2], other.shape[-3]))
    size = max(1, (8 << 20) // (8 * one.shape[-3] * one.shape[-1]))  # tokens that make 8 MiB in float64
    for start in range(0, one.shape[-2], size):
        parts = [_rows(array[..., start : start + size, :]) for array in (one, other)]
        result += parts[0] @ parts[1].swapaxes(-1, -2)
    return result


def _rows(values: Array) -> Array:
    return values.reshape(*values.shape[:-2], -1).astype(np.float64)
