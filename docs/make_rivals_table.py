"""Writes the tables of rivals in docs/findings.md, and that of the winners in README.md.

`python docs/make_rivals_table.py`, from anywhere, in a source tree; each stands below its comment. They are made from
what `tapstudy bench frontier` found.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import xarray as xr

from tapstudy.analysis.run_tables import REFERENCE, at_fewest_passes, on_chosen_schedule
from tapstudy.analysis.study import load_table
from tapstudy.bench.fit.held_out import SCHEDULE_TITLES, USUAL
from tapstudy.bench.methods import OWN, find_method
from tapstudy.tables import Table, interval_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"findings": ROOT / "docs" / "findings.md", "readme": ROOT / "README.md"}
FOLDERS = {"mnist-dit": ROOT / "data" / "study", "emoji-flux": ROOT / "data" / "study" / "emoji-flux"}


def rivals(found: xr.Dataset) -> str:
    """Return the rows at the fewest full passes in Markdown, the best first.

    A method stands there on its own schedule, on S(N, 3) and on the one that was chosen for it on held-out images.

    Args:
        found: from `bench.frontier.comparison`.
    """
    best = at_fewest_passes(found)
    passes, usual = int(best["passes"].values[0]), _usual(best)
    rows: list[list[str]] = []
    for name, published in zip(best["cell"].values.tolist(), best["as_published"].values, strict=True):
        row = found.sel(cell=name)
        if not (str(row["schedule"].item()) in (OWN, USUAL) or bool(row["chosen"])):
            continue
        quality = interval_text(row["psnr_interval"].values, ".1f")
        rows.append([
            called(row) if rows else f"**{called(row)}**",
            f"{float(row['full_passes'].mean()):.3g}",
            f"{float(best['flops_ratio'].sel(cell=name)):.2f}",
            quality if rows else f"**{quality}**",
            "" if published else interval_text(row["gain_over_tap"].values, "+.1f"),
        ])  # fmt: skip
    columns = (_told(found, passes), "full passes", "FLOPs ratio", "PSNR [95 %], dB", f"minus TAP on {usual}")
    return Table(columns, rows).markdown()


def winners(tables: dict[str, xr.Dataset]) -> str:
    """Return in Markdown, for every model and number of full passes, the best row and TAP's and plain sampling's.

    Each method stands there on the schedule that was chosen for it on held-out images.
    """
    rows = []
    for found in tables.values():
        for passes in sorted({*found["passes"].values[1:].tolist()}, reverse=True):
            there = found.isel(cell=np.flatnonzero(found["passes"].values == passes))
            methods, schedules, chosen = there["method"].values, there["schedule"].values, on_chosen_schedule(there)
            ratio = np.array([_flops_ratio(found, name) for name in there["cell"].values])
            plain = ratio[methods == "fewer"]  # some partial methods cannot become as cheap
            best, at_best = (_best(there, chosen & which) for which in (ratio > 0.9 * plain, methods == "tap"))
            rows.append([
                _told(found, passes),
                f"**{called(best)}** {_quality(best)}",
                f"{SCHEDULE_TITLES.get(str(at_best['schedule'].item()), _usual(at_best))}: {_quality(at_best)}",
                _quality(_best(there, (methods == "tap") & (schedules == USUAL))),
                _quality(_best(there, methods == "fewer")),
            ])  # fmt: skip
    columns = (
        "full passes, of 50",
        "the best",
        "TAP on the steps chosen for it",
        "TAP as published",
        "as many plain steps",
    )
    return Table(columns, rows).markdown()


def called(row: xr.Dataset) -> str:
    """Return what a row is called: "TAP as published, S(8, 3)", "8 plain steps"."""
    method, schedule = str(row["method"].item()), str(row["schedule"].item())
    if method == "fewer":
        return f"{int(row['passes'])} plain steps"
    name = find_method(method).title or method
    name += " as published" * (method == "tap" and schedule == USUAL)
    return name if schedule == OWN else f"{name}, {SCHEDULE_TITLES.get(schedule, _usual(row))}"


def _usual(rows: xr.Dataset) -> str:
    return f"S({int(rows['interval'].values.flat[0])}, 3)"


def _quality(row: xr.Dataset) -> str:
    return interval_text(row["psnr_interval"].values, ".1f")


def _flops_ratio(found: xr.Dataset, name: str) -> float:
    flops = found["flops"].mean("sample")
    return float(flops.sel(cell=REFERENCE) / flops.sel(cell=name))


def _plan(found: xr.Dataset) -> dict[str, int | str]:
    plan: dict[str, int | str] = json.loads(found.attrs["plan"])
    return plan


def _told(found: xr.Dataset, passes: int) -> str:
    return f"`{_plan(found)['model']}`, {passes} full passes of {_plan(found)['steps']}, {found.sizes['sample']} images"


def pages(texts: dict[str, str]) -> dict[str, str]:
    """Put the tables into the texts of the pages."""
    tables = {model: load_table(folder, "frontier") for model, folder in FOLDERS.items()}
    made = {
        "findings": {model: rivals(found) for model, found in tables.items()},
        "readme": {"winners": winners(tables)},
    }
    return {page: _with_tables(page, text, made[page]) for page, text in texts.items()}


def _best(rows: xr.Dataset, which: np.ndarray) -> xr.Dataset:
    """Return the one of these rows whose mean PSNR is highest."""
    mean = rows["psnr_interval"].sel(bound="mean").values
    return rows.isel(cell=int(np.nanargmax(np.where(which, mean, np.nan))))


def _with_tables(page: str, text: str, made: dict[str, str]) -> str:
    for what, table in made.items():
        comment = re.escape(f"<!-- made by docs/make_rivals_table.py: {what} -->")
        text, count = re.subn(rf"(?<={comment}\n\n).*?(?=\n\n)", lambda _, table=table: table, text, flags=re.S)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{PAGES[page]} must have the comment of the table of {what} once, with a line between")
    return text


if __name__ == "__main__":
    for page, text in pages({page: path.read_text() for page, path in PAGES.items()}).items():
        PAGES[page].write_text(text)
        print(f"wrote {PAGES[page]}")
