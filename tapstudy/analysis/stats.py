"""Intervals and tests over images, never over tokens: tokens of one image are not independent.

Intervals are percentile bootstraps; with few images (five, say) they are too narrow, so report how many there were.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.floating]
Interval = tuple[float, float, float]

# With up to 14 images all 2^14 flips of signs are counted.
SIGN_FLIPS = 2**14


def mean_interval(values: Array, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of one value per image, with a percentile bootstrap interval over the images: (mean, low, high).

    Raises ValueError with fewer than two images or values that are not finite: no interval exists then.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs one value for each of at least two images, got shape {values.shape}")
    _check_finite(values)
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


def paired_interval(a: Array, b: Array, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """`mean_interval` of a - b, where entry i of both belongs to image i.

    Raises ValueError if the two do not have one value per image each, and as `mean_interval` does.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values need one of each per image, got shapes {a.shape} and {b.shape}")
    return mean_interval(a - b, confidence=confidence, resamples=resamples, seed=seed)


def clustered_interval(
    values: Array, clusters: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of all values, with a percentile bootstrap interval that resamples whole clusters.

    For several values per image (one per context, say): `clusters` names the image of each. A resample's mean is the
    sum of its values over their number, so a cluster counts by its size.

    Args:
        values: (row,).
        clusters: (row,), any labels.

    Raises:
        ValueError: fewer than two clusters, lengths that differ, or values that are not finite.
    """
    values, clusters = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if values.ndim != 1 or values.shape != clusters.shape:
        raise ValueError(f"every value needs its cluster, got shapes {values.shape} and {clusters.shape}")
    _check_finite(values)
    names, member = np.unique(clusters, return_inverse=True)  # (cluster,), (row,)
    if len(names) < 2:
        raise ValueError(f"an interval needs at least two clusters (images), got {len(names)}: {names.tolist()}")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0]), float(values[0])
    sums, sizes = np.bincount(member, weights=values), np.bincount(member)  # (cluster,) each
    found = stats.bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def with_interval(
    values: xr.DataArray, dim: str = "sample", *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.DataArray:
    """`mean_interval` over `dim`: the result has a dimension `bound` with `mean`, `low` and `high`.

    Raises ValueError without that dimension, and as `mean_interval` does.
    """
    if dim not in values.dims:
        raise ValueError(f"an interval over {dim!r} needs that dimension, got {values.dims}: do not average it away")
    found = xr.apply_ufunc(
        lambda row: np.array(mean_interval(row, confidence=confidence, resamples=resamples, seed=seed)),
        values.compute(),
        input_core_dims=[[dim]],
        output_core_dims=[["bound"]],
        vectorize=True,
    )
    return found.assign_coords(bound=["mean", "low", "high"]).assign_attrs(values.attrs)


def paired_difference(
    a: xr.DataArray,
    b: xr.DataArray,
    dim: str = "sample",
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.DataArray:
    """`with_interval` of a - b: the same images in the same order along `dim`.

    Raises ValueError if sizes or coordinates along `dim` (seed, label) differ, and as `with_interval` does.
    """
    for name in set(a.coords) & set(b.coords):
        if dim in a[name].dims and not np.array_equal(a[name].values, b[name].values):
            raise ValueError(f"paired_difference: {name!r} differs along {dim!r}, so these are not the same images")
    a, b = xr.align(a, b, join="exact")
    difference = (a - b).assign_attrs(a.attrs)
    return with_interval(difference, dim, confidence=confidence, resamples=resamples, seed=seed)


def best_on_held_out(
    scores: xr.DataArray,
    choice_dim: str,
    *,
    held_out: ArrayLike,
    higher_is_better: bool = False,
    dim: str = "sample",
) -> xr.DataArray:
    """The entry of `choice_dim` with the best mean over held-out images, seen on the other images only.

    Args:
        scores: with `dim` and `choice_dim`; other dimensions (interval, say) get a choice of their own each.
        held_out: what to choose on: one boolean per image, or labels of `dim` (positions if it has none).

    Returns:
        `scores` on the images that are not held out, without `choice_dim`; the coordinate `choice_dim` says which
        entry it is. An entry that is NaN on a held-out image is never chosen.

    Raises:
        ValueError: no image held out or none left, unknown labels, or nothing to choose from.
    """
    lacking = [name for name in (dim, choice_dim) if name not in scores.dims]
    if lacking:
        raise ValueError(f"best_on_held_out needs the dimensions {(dim, choice_dim)}, but {lacking} are missing")
    mask = _held_out_mask(scores, dim, np.asarray(held_out))  # (sample,)
    if mask.all() or not mask.any():
        raise ValueError(
            f"best_on_held_out: {mask.sum()} of {len(mask)} images are held out, but some must be and some not"
        )
    mean = scores.isel({dim: mask}).mean(dim, skipna=False).compute()
    mean = (-mean if higher_is_better else mean).fillna(np.inf)
    if bool((mean.min(choice_dim) == np.inf).any()):
        raise ValueError(f"best_on_held_out: no entry of {choice_dim!r} has a finite mean over the held-out images")
    best = mean.argmin(choice_dim)
    label = scores[choice_dim][best].drop_vars(choice_dim, errors="ignore")
    return scores.isel({dim: ~mask}).isel({choice_dim: best}).assign_coords({choice_dim: label})


def sign_flip_pvalue(differences: Array, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences, one per image, when every sign is a coin's toss.

    Counts all flips for up to 14 images (the least value is then 2 / 2^images), else 2^14 random ones.

    Raises ValueError with fewer than two images or values that are not finite.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 1 or len(differences) < 2:
        raise ValueError(f"a test needs one difference for each of at least two images, got {differences.shape}")
    _check_finite(differences)
    return float(
        stats.permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            n_resamples=SIGN_FLIPS,
            vectorized=True,
            batch=1024,
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def holm(pvalues: ArrayLike) -> Array:
    """Adjusted p-values: those at most alpha keep the chance of any false finding below alpha.

    Source: Holm, 1979. All entries, whatever the shape, are one family of tests. The i-th least of n is multiplied by
    n - i (i from 0), and never falls below the one before.

    Raises ValueError if a value is outside [0, 1].
    """
    p = _probabilities(pvalues)
    rank = np.argsort(p, axis=None)
    adjusted = np.empty(p.size)
    adjusted[rank] = np.maximum.accumulate(p.ravel()[rank] * np.arange(p.size, 0, -1)).clip(max=1)
    return adjusted.reshape(p.shape)


def benjamini_hochberg(pvalues: ArrayLike) -> Array:
    """Adjusted p-values: those at most alpha keep the expected share of false findings among them below alpha.

    Source: Benjamini and Hochberg, 1995. All entries, whatever the shape, are one family of tests.

    Raises ValueError if a value is outside [0, 1].
    """
    p = _probabilities(pvalues)
    return np.asarray(stats.false_discovery_control(p, axis=None)).reshape(p.shape)


def _check_finite(values: Array) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")


def _probabilities(pvalues: ArrayLike) -> Array:
    p = np.asarray(pvalues, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be in [0, 1], and not NaN: leave out tests that were not done")
    return p


def _held_out_mask(scores: xr.DataArray, dim: Hashable, held_out: NDArray[np.generic]) -> NDArray[np.bool_]:
    if held_out.dtype == bool:
        if held_out.shape != (scores.sizes[dim],):
            raise ValueError(f"held_out must have one entry per image, {scores.sizes[dim]}, got {held_out.shape}")
        return held_out.astype(bool)
    labels: Sequence[Hashable] = scores[dim].values.tolist()
    unknown = [label for label in held_out.ravel().tolist() if label not in labels]
    if unknown:
        raise ValueError(f"held_out names {unknown}, which are no labels of {dim!r}: there are {labels}")
    return np.isin(scores[dim].values, held_out)
