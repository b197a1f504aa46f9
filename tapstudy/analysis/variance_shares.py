"""Whose is the variance of a quantity: the image's, the step's, or the token's?"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.floating]
SOURCES = ("sample", "step", "position", "token", "residual")


def variance_shares(values: xr.DataArray, *, log: bool = False, permutations: int = 200, seed: int = 0) -> xr.Dataset:
    """Analysis of variance of one quantity per (sample, step, token), with a permutation null for the tokens' shares.

    Sums of squares over the balanced table, as shares of the total (their sum is 1):

    - `sample`, `step`: main effects, between image means and between step means;
    - `position`: main effect of the token, an offset that all images share;
    - `token`: what else is constant along a token's trajectory in its own image (token within sample, less position;
      0 if there is but one image);
    - `residual`: the rest, interactions with the step included.

    The null shuffles the tokens within every (sample, step), independently: token offsets vanish, everything else
    stays. Even then the shares are not 0, since means of few values scatter; so compare with `null_mean`.

    Args:
        values: (step, token), and `sample` if there are several images; further dimensions (`context`) are taken one
            by one. Steps where no value is finite (the first ones of a derivative, full steps) are left out.
        log: decompose the logarithm: for quantities that spread over decades.
        permutations: of the null; 0 leaves it out.
        seed: of the permutations.

    Returns:
        `share`, `null_mean`, `null_low`, `null_high` and `p_value` (one-sided: share at least this large under the
        null) over `source`; the null only for "position" and "token", NaN elsewhere. One sample is read at a time.

    Raises:
        ValueError: a missing dimension, values that are not finite at a step that has others, values of 0 or less
            under `log`, fewer than two steps or tokens, no variance at all.
    """
    lacking = [dim for dim in ("step", "token") if dim not in values.dims]
    if lacking:
        raise ValueError(f"variance_shares: values lack {lacking}: they have {tuple(map(str, values.dims))}")
    if "sample" not in values.dims:
        values = values.expand_dims("sample")
    quantity = values.attrs.get("long_name", values.name or "values")
    attrs = {"quantity": f"log of {quantity}" if log else quantity, "permutations": permutations}
    other = next((dim for dim in values.dims if dim not in ("sample", "step", "token")), None)
    if other is None:
        found = _table(values, log=log, permutations=permutations, seed=seed)
        return found.assign_attrs(attrs)
    parts = [
        variance_shares(values.isel({other: i}), log=log, permutations=permutations, seed=seed)
        for i in range(values.sizes[other])
    ]
    return xr.concat(parts, dim=values[other] if other in values.coords else str(other))


def _table(values: xr.DataArray, *, log: bool, permutations: int, seed: int) -> xr.Dataset:
    shares = _shares(values.transpose("sample", "step", "token"), log=log, permutations=permutations, seed=seed)
    null = np.full((max(permutations, 1), len(SOURCES)), np.nan)
    p_value = np.full(len(SOURCES), np.nan)
    if permutations:
        # of one image nobody can tell which offsets others would share: all count as position
        tokens = [SOURCES.index("position")] + [SOURCES.index("token")] * (values.sizes["sample"] > 1)
        null[:, tokens] = shares[1:, tokens]
        p_value[tokens] = (1 + (shares[1:, tokens] >= shares[0, tokens]).sum(axis=0)) / (1 + permutations)
    columns = {
        "share": (shares[0], "share of the variance"),
        "null_mean": (null.mean(axis=0), "share under the permutation null, mean"),
        "null_low": (np.quantile(null, 0.025, axis=0), "share under the permutation null, lower bound"),
        "null_high": (np.quantile(null, 0.975, axis=0), "share under the permutation null, upper bound"),
        "p_value": (p_value, "p-value of the share under the permutation null"),
    }
    return xr.Dataset(
        {name: ("source", row, {"long_name": text, "units": "1"}) for name, (row, text) in columns.items()},
        coords={"source": list(SOURCES)},
    )


def _shares(values: xr.DataArray, *, log: bool, permutations: int, seed: int) -> Array:
    """(1 + permutations, source): the observed shares, then those of every permutation."""
    samples, _, tokens = values.shape
    position = np.zeros((1 + permutations, tokens))  # sums over samples of token means
    own = np.zeros(1 + permutations)  # sum of squared token means
    image_means, step_sums, squares, shift = [], 0.0, 0.0, None
    used: NDArray[np.bool_] | None = None
    for index in range(samples):
        table, kept = _finite_steps(values.isel(sample=index), log=log)
        if used is not None and not np.array_equal(used, kept):
            raise ValueError(
                f"variance_shares: image {index} has values at other steps than image 0; the table must be balanced: "
                "select steps that all images have"
            )
        used = kept
        shift = table.mean() if shift is None else shift  # squares of large numbers would cancel
        table = table - shift  # (step, token)
        rng = np.random.default_rng([seed, index])
        for which in range(1 + permutations):
            means = (rng.permuted(table, axis=1) if which else table).mean(axis=0)  # (token,)
            position[which] += means
            own[which] += (means**2).sum()
        image_means.append(table.mean())
        step_sums = step_sums + table.mean(axis=1)
        squares += float((table**2).sum())
    assert used is not None
    steps, grand = int(used.sum()), float(np.mean(image_means))
    total = squares - samples * steps * tokens * grand**2
    if not total > 1e-12 * max(squares, np.finfo(float).tiny):
        raise ValueError("variance_shares: all values are equal: there is no variance to share")
    by_sample = steps * tokens * ((np.array(image_means) - grand) ** 2).sum()
    by_step = samples * tokens * ((np.asarray(step_sums) / samples - grand) ** 2).sum()
    by_position = samples * steps * ((position / samples - grand) ** 2).sum(axis=1)  # (1 + P,)
    within_image = steps * own - steps * tokens * (np.array(image_means) ** 2).sum()
    by_token = within_image - by_position if samples > 1 else np.zeros(1 + permutations)
    rest = total - by_sample - by_step - within_image
    constant = np.ones(1 + permutations)
    return np.stack([by_sample * constant, by_step * constant, by_position, by_token, rest], axis=1) / total


def _finite_steps(values: xr.DataArray, *, log: bool) -> tuple[Array, NDArray[np.bool_]]:
    """The table (step, token) of one image without the steps that have no value, and which steps those are not."""
    table = values.values.astype(np.float64)
    finite = np.isfinite(table)
    kept: NDArray[np.bool_] = np.asarray(finite.any(axis=1))
    if not finite[kept].all():
        raise ValueError(
            f"variance_shares: {(~finite[kept]).sum()} values are not finite at steps that have others: fill or drop"
        )
    table = table[kept]
    if min(table.shape) < 2:
        raise ValueError(f"variance_shares needs at least two steps and two tokens with values, got {table.shape}")
    if log:
        if (table <= 0).any():
            raise ValueError(f"variance_shares: log of {(table <= 0).sum()} values of 0 or less: pass log=False")
        table = np.log(table)
    return table, kept
