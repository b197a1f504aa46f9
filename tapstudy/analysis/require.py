"""Says clearly what a dataset lacks for an analysis."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr


def require(dataset: xr.Dataset, analysis: str, /, **variables: Sequence[str]) -> None:
    """Check that variables (or coordinates) are there and have at least the given dimensions.

    >>> require(scores, "proxy_correlation", proxy_loss=("sample", "step", "token", "predictor"))  # doctest: +SKIP

    Raises:
        TypeError: not a dataset.
        ValueError: a variable is missing, or lacks a dimension; names what there is.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"{analysis} needs an xarray.Dataset, got {type(dataset).__name__}")
    missing = [name for name in variables if name not in dataset.variables]
    if missing:
        raise ValueError(
            f"{analysis} needs the variables {list(variables)}, but {missing} are missing (there are "
            f"{sorted(map(str, dataset.variables))}): record them, with fields=[...]"
        )
    for name, dims in variables.items():
        lacking = [dim for dim in dims if dim not in dataset[name].dims]
        if lacking:
            raise ValueError(
                f"{analysis}: {name} must have the dimensions {tuple(dims)}, but lacks {lacking}: it has "
                f"{tuple(map(str, dataset[name].dims))}"
            )
