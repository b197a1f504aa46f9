"""Methods side by side, for the demo: full passes, FLOPs, latency, distance to the reference, label accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from tapstudy.bench.engine import kept
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.methods import find_method
from tapstudy.bench.plan import WARMUP
from tapstudy.bench.results import Results
from tapstudy.bench.sweep.cells import Cell
from tapstudy.bench.sweep.run import sweep

METHODS = ("fewer", "order0", "order1", "order2", "tap")


def compare(images: ImageSet, folder: str | Path, *, intervals: Sequence[int] = (4, 6, 8)) -> xr.Dataset:
    """Sweep `METHODS` at every interval N on the schedule S(N, 3), beside the reference.

    Args:
        images: every seed with every label.
        folder: keeps the results.

    Returns:
        What `sweep` returns, with the dim `run` (reference first) for `cell`; `image` (run, sample, band, y, x), and
        `latency` (run), the wall time of all samples on this machine, as loaded as it is; `method` by its title.

    Raises:
        ValueError: a method failed.
    """
    plan = [("reference", 1), *((name, interval) for interval in intervals for name in METHODS)]
    common = {"model": images.model, "steps": images.steps, "guidance": images.guidance, "warmup_steps": WARMUP,
              "seeds": tuple(dict.fromkeys(images.seeds)), "labels": tuple(dict.fromkeys(images.labels))}  # fmt: skip
    cells = [Cell.of({"method": name, "interval": interval, **common}) for name, interval in plan]
    table = sweep(cells, folder).rename(cell="run")
    if failed := [error for error in table["error"].values.tolist() if error]:
        raise ValueError("; ".join(failed))
    results = Results(folder)
    made = np.stack([kept((cell.images, cell.setting), results)["image"].values for cell in cells])
    return table.assign(
        image=(("run", "sample", "band", "y", "x"), made, {"long_name": "image", "units": "1"}),
        latency=table["seconds"].sum("sample").assign_attrs(long_name="wall time of all samples", units="s"),
    ).assign_coords(
        method=("run", [find_method(name).title or name for name, _ in plan]),
        interval=("run", [interval for _, interval in plan]),
    )  # fmt: skip


def table_rows(dataset: xr.Dataset, interval_of: Callable[[np.ndarray], tuple[float, float, float]]) -> list[list[str]]:
    """Return the comparison as rows of text."""
    rows = []
    for i in range(dataset.sizes["run"]):
        run = dataset.isel(run=i)
        reference = i == 0
        mean, low, high = (np.inf, np.inf, np.inf) if reference else interval_of(run.psnr.values)
        rows.append([
            "" if reference else f"{int(run.interval)}",
            str(run.method.item()),
            f"{int(run.full_passes[0])}",
            str(run["mask"].values[0]),
            f"{float(run.flops_ratio.mean()):.2f}",
            f"{float(dataset.latency[0] / run.latency):.2f}",
            "-" if reference else f"{mean:.2f} [{low:.2f}, {high:.2f}]",
            f"{100 * float(run.correct.mean()):.0f}%",
        ])  # fmt: skip
    return rows
