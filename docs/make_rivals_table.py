"""Writes the table of rivals in docs/findings.md: `python docs/make_rivals_table.py`, from anywhere, in a source tree.

Every row of data/study/frontier.nc at its fewest full passes, the best first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import xarray as xr

from tapstudy.analysis.run_tables import REFERENCE, at_fewest_passes
from tapstudy.analysis.study import load_table
from tapstudy.bench.methods import find_method
from tapstudy.tables import Table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "findings.md"
PLACE = re.compile(r"(?<=<!-- made by docs/make_rivals_table.py -->\n\n).*?(?=\n\n)", re.S)

# what methods are called where their titles are short
NAMES = {
    "bac": "BAC", "best-fixed": "best fixed predictor", "cg-taylor": "CG-Taylor", "dbcache": "DBCache",
    "delta-dit": "Delta-DiT", "dicache": "DiCache", "drift": "TAP that minimises drift", "duca": "DuCa",
    "easycache": "EasyCache", "ertacache": "ERTACache", "first-block": "First-Block Cache",
    "fitted": "predictors fitted to recordings", "hsa": "HSA", "magcache": "MagCache",
    "model-switch": "switch to a small model",
    "oracle": "oracle: the best predictor of every token, by the true residual",
    "order2": "Taylor order 2 (TaylorSeer)", "pab": "PAB", "profiling": "ProfilingDiT",
    "profiling-foreground": "ProfilingDiT, foreground left out", "ras": "RAS",
    "router": "router, learned", "router-random": "router, random table", "seacache": "SeaCache",
    "shuffled": "TAP by the probes of other tokens",
    "step": "TAP, one choice for all tokens of a step", "step-table": "a table of one predictor per step, no probe",
    "teacache": "TeaCache", "temporal-delta": "temporal delta, blocks", "toca": "ToCa", "zeus": "ZEUS",
}  # fmt: skip
SCHEDULES = {
    "even": "evenly spaced", "start-dense": "dense at the start", "window-fitted-hidden": "fitted schedule",
    "lemica": "LeMiCa's schedule", "dpcache": "DPCache's schedule",
}  # fmt: skip


def table(found: xr.Dataset) -> str:
    """Return the table in Markdown.

    Args:
        found: from `bench.frontier.comparison`.
    """
    best = at_fewest_passes(found)
    passes, interval = int(best["passes"].values[0]), int(best["interval"].values[0])
    steps, model = json.loads(found.attrs["plan"])["steps"], json.loads(found.attrs["plan"])["model"]
    usual = f"S({interval}, 3)"
    flops = found["flops"].mean("sample")
    rows = []
    for place, name in enumerate(best["cell"].values.tolist()):
        row = found.sel(cell=name)
        method, schedule = str(row["method"].item()), str(row["schedule"].item())
        published = bool(best["as_published"].values[place])
        called = NAMES.get(method) or find_method(method).title or method
        called = f"{passes} plain steps" if method == "fewer" else called + " as published" * published
        on = "" if schedule == "own" else ", " + SCHEDULES.get(schedule, usual if schedule == "S(N,3)" else schedule)
        quality, gain = _bounds(row["psnr_interval"].values), _bounds(row["gain_over_tap"].values, "+")
        rows.append([
            f"**{called}{on}**" if place == 0 else called + on,
            f"{float(row['full_passes'].mean()):.3g}",
            f"{float(flops.sel(cell=REFERENCE) / flops.sel(cell=name)):.2f}",
            f"**{quality}**" if place == 0 else quality,
            "" if published else gain,
        ])  # fmt: skip
    told = f"`{model}`, {passes} full passes of {steps}, {found.sizes['sample']} images"
    columns = (told, "full passes", "FLOPs ratio", "PSNR [95 %], dB", f"minus TAP on {usual}")
    return Table(columns, rows).markdown()


def _bounds(values: np.ndarray, sign: str = "") -> str:
    mean, low, high = (format(float(value), f"{sign}.1f") for value in values)
    return f"{mean} [{low}, {high}]"


def page(text: str) -> str:
    """Put the table into the text of the page, where its comment stands."""
    made = table(load_table(ROOT / "data" / "study", "frontier"))
    written, count = PLACE.subn(lambda _: made, text)
    if count != 1:
        raise SystemExit(f"{PAGE} must have the comment of the table once, above it, with a line between")
    return written


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(f"wrote {PAGE}")
