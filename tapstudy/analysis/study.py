"""The tables of a study on disk: small netCDF files, one per table, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xarray as xr

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.netcdf import read_netcdf, write_netcdf

TABLES = ("quality", "ranking", "tokens", "untrained", "propagation")
CHOSEN = "chosen.json"


def save_study(evidence: Evidence, folder: str | Path) -> list[Path]:
    """Write the tables of `evidence` and what was chosen on held-out images; files of the same names are replaced."""
    folder = Path(folder)
    paths = [save_table(getattr(evidence, name), folder, name) for name in TABLES]
    chosen = folder / CHOSEN
    chosen.write_text(json.dumps(dict(evidence.chosen), indent=1) + "\n")
    return [*paths, chosen]


def load_study(folder: str | Path) -> dict[str, Any]:
    """Return the tables by name, in memory, and `chosen`: `Evidence(**load_study(folder))`.

    Raises:
        FileNotFoundError: a table is missing.
    """
    chosen = load_chosen(folder)
    return {name: load_table(folder, name) for name in TABLES} | {"chosen": chosen}


def load_chosen(folder: str | Path) -> dict[str, str]:
    """Return what was chosen on held-out images; FileNotFoundError where there is no study."""
    chosen = Path(folder) / CHOSEN
    if not chosen.is_file():
        raise FileNotFoundError(f"no study in {folder}: there is no {CHOSEN}")
    found: dict[str, str] = json.loads(chosen.read_text())
    return found


def save_table(table: xr.Dataset, folder: str | Path, name: str) -> Path:
    """Write a small table as `name.nc`, with text as netCDF strings, packed without loss."""
    return write_netcdf(table, Path(folder) / f"{name}.nc", packed=True)


def load_table(folder: str | Path, name: str) -> xr.Dataset:
    """Return the table `name.nc`, in memory.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(folder) / f"{name}.nc"
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}")
    return read_netcdf(path)
