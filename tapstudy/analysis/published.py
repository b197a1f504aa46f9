"""Numbers that others published."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import xarray as xr

COLUMNS = ("model", "method", "name", "interval", "speedup", "metric", "value", "source")


def published_table(path: str | Path) -> xr.Dataset:
    """A CSV of published numbers, one per row: `value` (row), with the other columns as coordinates.

    `speedup` is as published (FLOPs), `interval` NaN where the method has none, `source` says where it was read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}")
    frame = pd.read_csv(path)
    if lacking := [name for name in COLUMNS if name not in frame]:
        raise ValueError(f"{path} lacks the columns {lacking}: it has {list(frame)}")
    coords = {name: ("row", frame[name].to_numpy()) for name in COLUMNS if name != "value"}
    return xr.Dataset({"value": ("row", frame["value"].to_numpy(), {"long_name": "as published"})}, coords=coords)
