"""The features of a recording, as lazy arrays that are read a few trajectories, or steps of one, at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import dask
import numpy as np
import xarray as xr

from tapstudy.analysis.own_settings import recorded_settings
from tapstudy.analysis.require import require
from tapstudy.policies.config import TAPConfig

Site = Literal["residual", "latent_residual"]
Grid = tuple[int, int, int]

# Float32 features of one task. A longer trajectory is cut into runs of steps, each with the anchors it needs.
BLOCK_BYTES = 256 << 20

# Features of one task where they are in memory already: a task costs a millisecond or more, however small it is.
IN_MEMORY_BYTES = 32 << 20

# The dimensions of one trajectory; those before them tell trajectories apart.
OF_TRAJECTORY = ("step", "depth", "token", "channel", "latent_channel")


def probe_at(recording: xr.Dataset, depth: int, analysis: str) -> xr.DataArray:
    """The probe of one block, (..., step, token, channel)."""
    require(recording, analysis, probe=("step", "token", "channel"))
    probe = recording["probe"]
    if "depth" in probe.dims:
        depths = recording["depth"].values.tolist() if "depth" in recording.coords else [*range(probe.sizes["depth"])]
        if depth not in depths:
            raise ValueError(
                f"{analysis}: no probe of block {depth}, the recording has {depths}: record depths=[{depth}]"
            )
        probe = probe.isel(depth=depths.index(depth), drop=True)
    elif depth:
        raise ValueError(f"{analysis}: no probe of block {depth}, the recording does not tell its depths")
    return probe.reset_coords(drop=True).transpose(..., "step", "token", "channel")


def residual_at(recording: xr.Dataset, site: str, analysis: str) -> xr.DataArray:
    """The residual, (..., step, token, channel)."""
    require(recording, analysis, **{site: ("step", "token")})
    residual = recording[site].rename({"latent_channel": "channel"} if "latent_channel" in recording[site].dims else {})
    return residual.reset_coords(drop=True).transpose(..., "step", "token", "channel")


def site_of(recording: xr.Dataset, config: TAPConfig, analysis: str) -> Site:
    """The variable that holds the residual of a configuration.

    A recording made with residual="latent" keeps that one as `residual`.
    """
    recorded = recorded_settings(recording).get("residual", "hidden")
    if config.residual == recorded:
        return "residual"
    if config.residual == "latent":
        return "latent_residual"
    raise ValueError(
        f"{analysis}: the recording holds the latent residual only: set residual='latent', or record with "
        "residual='hidden' and the field latent_residual"
    )


def grid_for(recording: xr.Dataset, config: TAPConfig, analysis: str) -> Grid | None:
    """The token grid, if the granularity needs it."""
    if config.granularity == "global":
        raise ValueError(
            f"{analysis}: granularity 'global' is one choice per batch, and a recording has no batches: use 'step'"
        )
    grid = token_grid(recording) if config.granularity == "region" else None
    if config.granularity == "region" and grid is None:
        raise ValueError(f"{analysis}: regions need row and col of the tokens, in order, on a full grid")
    return grid


def step_runs(arrays: Sequence[xr.DataArray], num_steps: int) -> list[range]:
    """The trajectory cut into runs of steps such that the features of a run take about `BLOCK_BYTES`."""
    per_step = 0
    for array in arrays:
        lengths = [
            array.sizes[dim] if dim in OF_TRAJECTORY else max(array.chunksizes[dim])
            for dim in array.dims
            if dim != "step"
        ]
        per_step += int(np.prod(lengths)) * 4
    length = min(num_steps, max(1, BLOCK_BYTES // max(1, per_step)))
    return [range(start, min(start + length, num_steps)) for start in range(0, num_steps, length)]


def in_blocks(array: xr.DataArray) -> xr.DataArray:
    """Lazy, a few whole trajectories at a time if it was not lazy yet; the chunks of lazy arrays stay."""
    if array.chunks is not None:
        return array
    with dask.config.set({"array.chunk-size": IN_MEMORY_BYTES}):
        return array.chunk({dim: -1 if dim in OF_TRAJECTORY else "auto" for dim in array.dims})


def at_steps(array: xr.DataArray, steps: Sequence[int]) -> xr.DataArray:
    """Some steps of a lazy array, in one chunk along everything but the leading dimensions."""
    found = array if list(steps) == list(range(array.sizes["step"])) else array.isel(step=list(steps))
    return found.chunk({dim: -1 for dim in array.dims if dim in OF_TRAJECTORY})


def on_trajectories(
    function: Callable[..., tuple[Any, ...]],
    arrays: Mapping[str, xr.DataArray],
    outputs: Mapping[str, tuple[Sequence[str], Any]],
    sizes: Mapping[str, int],
) -> xr.Dataset:
    """Apply a function of arrays (step, token, channel) to the trajectories of lazy arrays, one by one.

    Args:
        arrays: by name, whose steps are those of `at_steps`.
        outputs: name -> dimensions and dtype of what the function gives.
        sizes: of these dimensions.
    """
    found = xr.apply_ufunc(
        function,
        *(array.rename(step="held", token="held token", channel=f"channel of {n}") for n, array in arrays.items()),
        input_core_dims=[["held", "held token", f"channel of {name}"] for name in arrays],
        output_core_dims=[list(dims) for dims, _ in outputs.values()],
        join="exact",
        vectorize=True,
        dask="parallelized",
        output_dtypes=[dtype for _, dtype in outputs.values()],
        dask_gufunc_kwargs={"output_sizes": {dim: sizes[dim] for dims, _ in outputs.values() for dim in dims}},
    )
    return xr.Dataset(dict(zip(outputs, found, strict=True)))


def token_grid(recording: xr.Dataset) -> Grid | None:
    """Frames, rows and columns of the tokens, None if the recording does not tell or they are no full grid."""
    if not {"row", "col"} <= set(recording.variables):
        return None
    frame = recording["frame"].values if "frame" in recording.variables else np.zeros(recording.sizes["token"], int)
    row, col = recording["row"].values, recording["col"].values
    grid = (int(frame.max()) + 1, int(row.max()) + 1, int(col.max()) + 1)
    expected = np.arange(np.prod(grid))
    return grid if np.array_equal((frame * grid[1] + row) * grid[2] + col, expected) else None


def is_trajectory(recording: xr.Dataset, analysis: str) -> int:
    """The number of steps.

    Raises ValueError unless the steps are 0, 1, .., T - 1: with some left out, distances between anchors are unknown.
    """
    count = recording.sizes["step"]
    if "step" in recording.coords and not np.array_equal(recording["step"].values, np.arange(count)):
        raise ValueError(
            f"{analysis} needs every step of the trajectory, 0..{count - 1}, got {recording['step'].values.tolist()}: "
            "do not select steps before"
        )
    return count
