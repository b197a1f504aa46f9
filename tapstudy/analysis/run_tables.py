"""From the table of accelerated runs, (cell, sample), to what the figures show: means with intervals over images.

Runs are named by what they are: "tap N=8", "order1 N=4", "tap N=8 lambda=2".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tapstudy.analysis.require import require
from tapstudy.analysis.stats import interval_where_finite, paired_difference, with_interval

REFERENCE = "reference"
METHODS = (
    "fewer", "order0", "order1", "order2", "best-fixed", "step-table", "random", "shuffled", "step", "tap", "oracle",
)  # fmt: skip
TABLE = ("cell", "sample")
NAMED = ("long_name", "units")
COSTS = {
    "flops": ("FLOPs of one image", "1"),
    "full_passes": ("full passes", "1"),
    "seconds": ("wall time of one image", "s"),
    "seconds_range": ("wall time of one image: median, least and most of the repeats", "s"),
}


def frontier(quality: xr.Dataset, methods: Sequence[str] = METHODS) -> xr.Dataset:
    """Compare quality and cost of every method at every interval N, on the images that all of these runs have.

    Args:
        quality: `psnr`, `correct`, `flops`, `full_passes` and perhaps `seconds` (cell, sample); runs "METHOD N=8" and
            perhaps "reference".
        methods: left out if there is no such run.

    Returns:
        `psnr` in dB, `accuracy` and perhaps `seconds_range` (run, bound) with bounds mean, low, high; `flops`,
        `full_passes` and perhaps `seconds` (run), means; coordinates `method` and `interval` on run. An oracle's FLOPs
        count the passes that tell it the truth, so it gets those of TAP at the same N. The reference has an infinite
        PSNR. Attribute `images`.

    Raises:
        ValueError: no such run, or no two images that all runs have.
    """
    require(quality, "frontier", psnr=TABLE, correct=TABLE, flops=TABLE, full_passes=TABLE)
    names = quality["cell"].values.tolist()
    found = [(name, *parsed) for name in names if (parsed := _method_and_interval(name)) and parsed[0] in methods]
    found.sort(key=lambda row: (methods.index(row[1]), row[2]))
    if not found:
        raise ValueError(f"frontier: no run of {list(methods)} at 'N=...': there are {names}")
    known = [REFERENCE] * (REFERENCE in names)
    runs = [*known, *(name for name, *_ in found)]
    table = _common(quality, [name for name, *_ in found]).sel(cell=runs)
    psnr = interval_where_finite(table["psnr"]).fillna(np.inf)
    cost = {
        name: table[name].mean("sample").values.copy() for name in ("flops", "full_passes", "seconds") if name in table
    }
    for i, run in enumerate(runs):
        if run.startswith("oracle ") and run.replace("oracle", "tap") in runs:
            cost["flops"][i] = cost["flops"][runs.index(run.replace("oracle", "tap"))]
    if "seconds_each" in table:
        each = table["seconds_each"].mean("sample") if "sample" in table["seconds_each"].dims else table["seconds_each"]
        cost["seconds_range"] = np.stack([cost["seconds"], each.min("repeat"), each.max("repeat")], axis=-1)
    return xr.Dataset(
        {
            "psnr": psnr.assign_attrs(long_name="PSNR to the reference", units="dB"),
            "accuracy": with_interval(table["correct"]).assign_attrs(long_name="label accuracy", units="1"),
            **{
                name: (("cell", "bound")[: values.ndim], values, dict(zip(NAMED, COSTS[name], strict=True)))
                for name, values in cost.items()
            },
        },
        attrs={"images": table.sizes["sample"]},
    ).rename(cell="run").assign_coords(
        run=runs,
        method=("run", [*known, *(method for _, method, _ in found)]),
        interval=("run", [1] * len(known) + [interval for *_, interval in found]),
    )  # fmt: skip


def at_fewest_passes(found: xr.Dataset, *, best: int | None = None) -> xr.Dataset:
    """Select the rows of `bench.frontier.comparison` with values at the fewest passes, best mean PSNR first.

    Args:
        best: of every method one schedule, that chosen on held-out images, or the best where there was no choice, and
            so many of these; always TAP as published, too. None: all rows.

    Returns:
        `psnr_interval` (cell, bound), `time_ratio` and `flops_ratio` (cell), wall time and FLOPs of the reference over
        those of the row, and the coordinates, with `as_published` (cell) for TAP on S(N, 3). Attribute `images`.
    """
    require(found, "at_fewest_passes", psnr_interval=("cell", "bound"), seconds=TABLE, flops=TABLE, passes=("cell",))
    costs = found[["seconds", "flops"]].mean("sample")
    ratios = (costs.sel(cell=REFERENCE, drop=True) / costs).rename(seconds="time_ratio", flops="flops_ratio")
    table = found[["psnr_interval"]].assign(ratios.data_vars)
    mean = found["psnr_interval"].sel(bound="mean").values
    rows = np.flatnonzero((found["passes"].values == found["passes"].values.min()) & np.isfinite(mean))
    rows = rows[np.argsort(-mean[rows], kind="stable")]
    if best is not None:
        methods, published = found["method"].values[rows], _as_published(found)[rows]
        fair = np.flatnonzero(on_chosen_schedule(found.isel(cell=rows)))
        first = fair[np.sort(np.unique(methods[fair], return_index=True)[1])][:best]
        rows = rows[np.union1d(first, np.flatnonzero(published))]
    table = table.assign_coords(as_published=("cell", _as_published(found)))
    return table.isel(cell=rows).assign_attrs(images=found.sizes["sample"])


def on_chosen_schedule(found: xr.Dataset) -> np.ndarray:
    """Tell which rows, of one number of passes, are on the schedule chosen for their method, or had no such choice."""
    methods, chosen = found["method"].values, found["chosen"].values
    return np.asarray(chosen | ~np.isin(methods, methods[chosen]))


def _as_published(found: xr.Dataset) -> np.ndarray:
    """Tell which rows are TAP on its own schedule, (cell,)."""
    return ((found["method"] == "tap") & (found["schedule"] == "S(N,3)")).values


def gains(quality: xr.Dataset, runs: Mapping[str, str | tuple[str, str]], baseline: str = "") -> xr.Dataset:
    """Return PSNR of runs minus that of a baseline, paired by image: each on all images that both have.

    Args:
        quality: with `psnr` (cell, sample).
        runs: what to call a run -> its name, or its name and that of a baseline of its own; those that are not there
            are left out.
        baseline: name of a run.

    Returns:
        `gain` (run, bound) and `gain_of_image` (run, sample; NaN where one is missing) in dB, `images` (run).

    Raises:
        ValueError: no baseline, or none of the runs.
    """
    require(quality, "gains", psnr=TABLE)
    names = quality["cell"].values.tolist()
    pairs = {label: (run, baseline) if isinstance(run, str) else run for label, run in runs.items()}
    kept = {label: pair for label, pair in pairs.items() if {*pair} <= {*names} and pair[0] != pair[1]}
    if not kept:
        raise ValueError(f"gains: needs two runs of one of {list(pairs.values())}: there are {names}")
    psnr, rows, differences, counts = quality["psnr"].reset_coords(drop=True), [], [], []
    for run, other in kept.values():
        pair = _common(quality, [run, other])["psnr"].reset_coords(drop=True)
        rows.append(paired_difference(pair.sel(cell=run, drop=True), pair.sel(cell=other, drop=True)))
        differences.append(psnr.sel(cell=run, drop=True) - psnr.sel(cell=other, drop=True))
        counts.append(pair.sizes["sample"])
    label = xr.Variable("run", list(kept))
    about = {"long_name": f"PSNR minus that of {baseline or 'the baseline'}", "units": "dB"}
    return xr.Dataset(
        {
            "gain": xr.concat(rows, dim=label).assign_attrs(about),
            "gain_of_image": xr.concat(differences, dim=label).assign_attrs(about),
            "images": ("run", counts, {"units": "1"}),
        }
    )


def placements(quality: xr.Dataset) -> list[str]:
    """List where TAP's full steps are in its plain runs, "N=8" or the name of a mask: run "tap N=8", "tap even"."""
    found = [re.fullmatch(r"tap (N=\d+|even|start-dense|best)", str(name)) for name in quality["cell"].values]
    return [match[1] for match in found if match]


def cost_and_quality(quality: xr.Dataset, runs: Sequence[str]) -> xr.Dataset:
    """Return `psnr` (run, bound), and mean `flops` (run), of the runs that are there, on the images that all have."""
    require(quality, "cost_and_quality", psnr=TABLE, flops=TABLE)
    names = [name for name in runs if name in quality["cell"].values]
    if not names:
        raise ValueError(f"cost_and_quality: none of {list(runs)}: there are {quality['cell'].values.tolist()}")
    table = _common(quality, names).sel(cell=names)
    return xr.Dataset(
        {
            "psnr": with_interval(table["psnr"]).assign_attrs(long_name="PSNR to the reference", units="dB"),
            "flops": table["flops"].mean("sample").assign_attrs(long_name="FLOPs of one image", units="1"),
        },
        attrs={"images": table.sizes["sample"]},
    ).rename(cell="run")


def fixed_quality(sweep: xr.Dataset) -> tuple[xr.DataArray, dict[str, xr.DataArray], int]:
    """Return PSNR of fixed predictors, and of other methods beside them, on the images that all have.

    Args:
        sweep: `psnr` (cell, sample) with the coordinate `method` (cell): "fixed0", "fixed2-1" (order and shift),
            others ("tap", "oracle").

    Returns:
        (predictor, bound) with the coordinates `order` and `shift`; method -> (bound) for the others; number of images.
    """
    require(sweep, "fixed_quality", psnr=TABLE, method=("cell",))
    table = _common(sweep, sweep["cell"].values.tolist())
    bounds = with_interval(table["psnr"].reset_coords(drop=True)).drop_vars("cell")  # (cell, bound)
    methods = [str(method) for method in sweep["method"].values]
    single = [i for i, method in enumerate(methods) if re.fullmatch(r"fixed\d+(-[\d.]+)?", method)]
    labels = [tuple(methods[i].removeprefix("fixed").split("-")) for i in single]
    fixed = bounds.isel(cell=single).rename(cell="predictor").assign_coords(
        order=("predictor", [int(label[0]) for label in labels]),
        shift=("predictor", [float(label[1]) if len(label) > 1 else 0.0 for label in labels]),
    )  # fmt: skip
    others = {method: bounds.isel(cell=i) for i, method in enumerate(methods) if i not in single}
    return fixed, others, table.sizes["sample"]


def rank_by_depth(ranking: xr.Dataset, *, run: str = "tap N=8") -> xr.Dataset:
    """Return agreement of probe and truth by the depth of the probe and by distance, with its controls.

    Args:
        ranking: `spearman` (cell, sample), with the cells "tap N=8" (depth 0), "tap N=8 depth=1", ..., and perhaps
            "shuffled N=8", "blind N=8" and "table N=8"; `spearman_at_distance` (ranker, sample, distance).

    Returns:
        `spearman` (depth, bound), `of_control` (control, bound), `at_distance` (ranker, distance, bound).
    """
    require(ranking, "rank_by_depth", spearman=TABLE, spearman_at_distance=("ranker", "sample", "distance"))
    names = ranking["cell"].values.tolist()
    depths = {0: run} | {int(name.split("depth=")[1]): name for name in names if name.startswith(f"{run} depth=")}
    depths = dict(sorted(depths.items()))
    controls = [name for one in ("shuffled", "blind", "table") if (name := run.replace("tap", one)) in names]
    found = with_interval(ranking["spearman"].reset_coords(drop=True))  # (cell, bound)
    attrs = {"long_name": "rank correlation of proxy loss and true error", "units": "1"}
    parts: dict[str, Any] = {
        "spearman": found.sel(cell=list(depths.values())).drop_vars("cell").rename(cell="depth"),
        "of_control": found.sel(cell=controls).drop_vars("cell").rename(cell="control"),
        "at_distance": with_interval(ranking["spearman_at_distance"].reset_coords(drop=True)),
    }
    return xr.Dataset({name: values.assign_attrs(attrs) for name, values in parts.items()},
                      coords={"depth": list(depths), "control": [name.split()[0] for name in controls]},
                      attrs={"images": ranking.sizes["sample"]})  # fmt: skip


def _method_and_interval(name: str) -> tuple[str, int] | None:
    found = re.fullmatch(r"(\S+) N=(\d+)", name)
    return (found[1], int(found[2])) if found else None


def _common(quality: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """Return the images that all these runs have."""
    has = np.isfinite(quality["psnr"].sel(cell=list(names)).transpose(*TABLE).values).all(axis=0)
    if has.sum() < 2:
        raise ValueError(f"no two images that all of these runs have: {list(names)}")
    return quality.isel(sample=np.flatnonzero(has))


COLUMNS = ("model", "method", "name", "interval", "speedup", "metric", "value", "source")


def published_table(path: str | Path) -> xr.Dataset:
    """Read a CSV of published numbers, one per row: `value` (row), with the other columns as coordinates.

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
    table = frame[list(COLUMNS)].rename_axis("row").to_xarray().drop_vars("row").set_coords(set(COLUMNS) - {"value"})
    return table.assign(value=table["value"].assign_attrs(long_name="as published"))
