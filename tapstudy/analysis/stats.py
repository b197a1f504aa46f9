"""Intervals and tests over images, never over tokens: tokens of one image are not independent.

Intervals are 95 % percentile bootstraps; with few images (five, say) they are too narrow: report how many there were.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.floating]
Interval = tuple[float, float, float]

EQUAL_IMAGES = 200.0  # dB: what counts for the PSNR of equal images, which is infinite
BOUNDS = ["mean", "low", "high"]
RESAMPLES = 2000
SIGN_FLIPS = 2**14  # with up to 14 images all flips of signs are counted


def mean_interval(values: Array, *, resamples: int = RESAMPLES) -> Interval:
    """Average one value per image, with a percentile bootstrap interval over the images: (mean, low, high).

    Raises ValueError with fewer than two images or values that are not finite: no interval exists then.
    """
    values = _of_images(values, "an interval needs one value")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def paired_interval(a: Array, b: Array) -> Interval:
    """Compute `mean_interval` of a - b, where entry i of both belongs to image i.

    Raises ValueError if the two do not have one value per image each, and as `mean_interval` does.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values need one of each per image, got shapes {a.shape} and {b.shape}")
    return mean_interval(a - b)


def ratio_interval(a: Array, b: Array) -> Interval:
    """Compute mean(a) / mean(b), where entry i of both belongs to image i, as `mean_interval` does its mean.

    Raises ValueError if the two do not have one value per image each, and as `mean_interval` does.
    """
    a, b = (_of_images(values, "a ratio needs two values") for values in (a, b))
    if len(a) != len(b):
        raise ValueError(f"paired values need one of each per image, got {len(a)} and {len(b)}")
    at = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.percentile(a[at].mean(axis=1) / b[at].mean(axis=1), (2.5, 97.5))
    return float(a.mean() / b.mean()), float(low), float(high)


def with_interval(values: xr.DataArray) -> xr.DataArray:
    """Compute `mean_interval` over `sample`: the result has a dimension `bound` with `mean`, `low` and `high`.

    Raises ValueError without that dimension, and as `mean_interval` does.
    """
    if "sample" not in values.dims:
        raise ValueError(f"an interval over 'sample' needs that dimension, got {values.dims}: do not average it away")
    found = xr.apply_ufunc(
        lambda row: np.array(mean_interval(row)),
        values.compute(),
        input_core_dims=[["sample"]],
        output_core_dims=[["bound"]],
        vectorize=True,
    )
    return found.assign_coords(bound=BOUNDS).assign_attrs(values.attrs)


def interval_where_finite(values: xr.DataArray) -> xr.DataArray:
    """Compute `with_interval` of the rows whose values are finite for all images; NaN for the others."""
    finite = abs(values) < np.inf
    return with_interval(values.where(finite, 0.0)).where(finite.all("sample"))


def paired_difference(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    """Compute `with_interval` of a - b: the same images in the same order.

    Raises ValueError if sizes or coordinates along `sample` (seed, label) differ, and as `with_interval` does.
    """
    for name in set(a.coords) & set(b.coords):
        if "sample" in a[name].dims and not np.array_equal(a[name].values, b[name].values):
            raise ValueError(f"paired_difference: {name!r} differs along 'sample', so these are not the same images")
    a, b = xr.align(a, b, join="exact")
    return with_interval((a - b).assign_attrs(a.attrs))


def sign_flip_pvalue(differences: Array) -> float:
    """Test whether the mean of paired differences, one per image, is 0: the two-sided p-value under flips of signs.

    Counts all flips for up to 14 images (the least value is then 2 / 2^images), else 2^14 random ones.

    Raises ValueError with fewer than two images or values that are not finite.
    """
    found = stats.permutation_test(
        (_of_images(differences, "a test needs one difference"),),
        np.mean,
        permutation_type="samples",
        n_resamples=SIGN_FLIPS,
        vectorized=True,
        batch=1024,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(pvalues: ArrayLike) -> Array:
    """Adjust p-values: those at most alpha keep the chance of any false finding below alpha.

    Source: Holm, 1979. All entries, whatever the shape, are one family of tests. The i-th least of n is multiplied by
    n - i (i from 0), and never falls below the one before.

    Raises ValueError if a value is outside [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be in [0, 1], and not NaN: leave out tests that were not done")
    rank = np.argsort(p, axis=None)
    adjusted = np.empty(p.size)
    adjusted[rank] = np.maximum.accumulate(p.ravel()[rank] * np.arange(p.size, 0, -1)).clip(max=1)
    return adjusted.reshape(p.shape)


def _of_images(values: Array, needs: str) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{needs} for each of at least two images, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
    return values
