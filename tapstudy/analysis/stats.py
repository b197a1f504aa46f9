"""Intervals over images."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.floating]


def mean_interval(
    values: Array, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of one value per image, with a percentile bootstrap interval over the images.

    Raises ValueError with fewer than two images or values that are not finite: no interval exists then.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs one value for each of at least two images, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def with_interval(values: xr.DataArray, dim: str = "sample", **options: float) -> xr.DataArray:
    """`mean_interval` over `dim`: the result has a dimension `bound` with `mean`, `low` and `high`."""
    found = xr.apply_ufunc(
        lambda row: np.array(mean_interval(row, **options)),  # type: ignore[arg-type]
        values,
        input_core_dims=[[dim]],
        output_core_dims=[["bound"]],
        vectorize=True,
    )
    return found.assign_coords(bound=["mean", "low", "high"]).assign_attrs(values.attrs)
