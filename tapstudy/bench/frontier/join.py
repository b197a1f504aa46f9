"""Tables of the comparison made by several runs on the same images, put together."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import xarray as xr

from tapstudy.bench.fit.held_out import SCHEDULES, USUAL
from tapstudy.bench.frontier.comparison import REFERENCE, compared
from tapstudy.bench.methods import METHODS, OWN, SEARCHED

CLOSE = 0.1  # dB, between the means of one row in two runs: other processors round differently
DERIVED = ("gain_over_tap", "gain_over_best_fixed", "psnr_interval", "chosen", "bound")


def joined(tables: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put the rows of several runs into one table, and compare them anew.

    A row that several runs have is taken from the first. Wall times of a later run are multiplied by the time of plain
    sampling in the first over that in its own.

    Args:
        tables: as `tapstudy bench frontier` writes them, by what to call them in errors.

    Returns:
        The same; attributes `commands` and `machine` have those of all tables, one per line.

    Raises:
        ValueError: no tables, tables of other images, weights or held-out images, repeats of another number, a row
            that two runs have and that differs in its setting or by more than `CLOSE`.
    """
    if not tables:
        raise ValueError("no tables to put together")
    (first_name, first), *others = tables.items()
    held_out = {row: np.nan for table in tables.values() for row in table["cell"].values.tolist()}
    for table in tables.values():  # a run measures them where it has several schedules
        for row, value in zip(table["cell"].values.tolist(), table["held_out_psnr"].values.tolist(), strict=True):
            held_out[row] = value if np.isnan(held_out[row]) else held_out[row]
    parts, rows = [first], dict.fromkeys(first["cell"].values.tolist(), (first_name, first))
    for name, table in others:
        if differing := [part for part in ("plan", "weights") if _told(table)[part] != _told(first)[part]]:
            raise ValueError(f"{name} has another {' and other '.join(differing)} than {first_name}")
        if table.sizes["repeat"] != first.sizes["repeat"]:
            raise ValueError(
                f"{name} has {table.sizes['repeat']} wall times of each row, {first_name} {first.sizes['repeat']}: "
                f"measure both with the same --repeats"
            )
        for row in table["cell"].values.tolist():
            if row in rows:
                _must_agree(row, rows[row], (name, table))
        new = [row for row in table["cell"].values.tolist() if row not in rows]
        pace = float(first["seconds"].sel(cell=REFERENCE).mean() / table["seconds"].sel(cell=REFERENCE).mean())
        times = {time: table[time] * pace for time in ("seconds", "seconds_each")}
        parts.append(table.assign(times).sel(cell=new))
        rows |= dict.fromkeys(new, (name, table))
    bare = [part.drop_vars(DERIVED, errors="ignore") for part in parts]
    whole = xr.concat(bare, dim="cell", coords="minimal", compat="override", join="override", combine_attrs="override")
    whole = whole.isel(cell=_order(whole))
    whole["held_out_psnr"].values = np.array([held_out[row] for row in whole["cell"].values.tolist()])
    passes = sorted({*whole["passes"].values[1:].tolist()}, reverse=True)
    plan = {**json.loads(first.attrs["plan"]), "passes": passes}
    lines = {name: _lines(name, tables) for name in ("commands", "machine")}
    return compared(whole.assign_attrs({**first.attrs, **lines, "plan": json.dumps(plan)}))


def _lines(name: str, tables: Mapping[str, xr.Dataset]) -> str:
    """Return what an attribute says in all tables, one per line, each once."""
    return "\n".join(
        dict.fromkeys(line for table in tables.values() for line in table.attrs.get(name, "").splitlines())
    )


def _told(table: xr.Dataset) -> dict[str, object]:
    plan = {name: value for name, value in json.loads(table.attrs["plan"]).items() if name != "passes"}
    return {"plan": plan, "weights": table.attrs["weights"]}


def _must_agree(row: str, one: tuple[str, xr.Dataset], other: tuple[str, xr.Dataset]) -> None:
    """Refuse a row that two runs do not have alike."""
    settings = [str(table["setting"].sel(cell=row).item()) for _, table in (one, other)]
    if settings[0] != settings[1]:
        raise ValueError(f"{row} is {settings[0]} in {one[0]} and {settings[1]} in {other[0]}: leave one of them out")
    quality = [float(table["psnr"].sel(cell=row).mean()) for _, table in (one, other)]
    if abs(quality[0] - quality[1]) > CLOSE:  # NaN where it failed, and infinite, agree
        raise ValueError(
            f"{row} has {quality[0]:.2f} dB in {one[0]} and {quality[1]:.2f} in {other[0]}: the runs do not compare"
        )


def _order(table: xr.Dataset) -> np.ndarray:
    """Return the rows in the order of a single run: the reference, then by passes, method and schedule."""
    methods, schedules = [REFERENCE, *METHODS], [USUAL, OWN, *SCHEDULES[1:], SEARCHED]
    keys = [
        (method != REFERENCE, -passes, methods.index(method), schedules.index(schedule))
        for method, passes, schedule in zip(
            *(table[name].values.tolist() for name in ("method", "passes", "schedule")), strict=True
        )
    ]
    return np.array(sorted(range(len(keys)), key=lambda i: keys[i]))
