"""Inner products of a trajectory's features at all pairs of steps."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

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
