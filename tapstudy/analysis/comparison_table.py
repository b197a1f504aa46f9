"""The table of a comparison of methods, as text."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from tapstudy.tables import interval_text, percent

COLUMNS = (
    "N", "method", "full passes", "step mask (F full, . skipped)", "FLOPs ratio", "latency ratio",
    "PSNR to reference [95 %], dB", "SSIM",
)  # fmt: skip
SHOWN = ("psnr", "ssim", "full_passes", "flops_ratio", "latency_ratio", "seconds", "flops")


def comparison_table(table: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Return columns, and a row for every run, of what `tapstudy.compare` returned.

    Means over images; further measures stand behind where they are known. PSNR has its 95 % interval where there are
    several images. The latency ratio is that of the sums.
    """
    further = [
        str(name)
        for name, values in table.data_vars.items()
        if values.dims == ("run", "sample")
        and values.dtype.kind == "f"
        and name not in SHOWN
        and values.notnull().any()
    ]
    heads = [*COLUMNS, *("label accuracy" if name == "correct" else name for name in further)]
    rows = [_row(table, i, further) for i in range(table.sizes["run"])]
    return heads, rows


def _row(table: xr.Dataset, i: int, further: Sequence[str]) -> list[str]:
    run = table.isel(run=i)
    masks = list(dict.fromkeys(run["mask"].values.tolist()))
    means = {name: float(run[name].mean()) for name in further}
    return [
        f"{int(run['interval'])}" if int(run["interval"]) else "",
        str(run["method"].item()),
        f"{float(run['full_passes'].mean()):g}",
        masks[0] if len(masks) == 1 else f"{masks[0]} and {len(masks) - 1} others",
        f"{float(run['flops_ratio'].mean()):.2f}",
        f"{float(table['seconds'].isel(run=0).sum() / run['seconds'].sum()):.2f}",
        "-" if i == 0 else interval_text(run["psnr_interval"].values),
        f"{float(run['ssim'].mean()):.3f}",
        *(percent(value) if name == "correct" else f"{value:.4g}" for name, value in means.items()),
    ]
