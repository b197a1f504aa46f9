"""Whether the errors of caching and of rounded weights add, which is first, and what corrections take away."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tapstudy.analysis.stats import BOUNDS, ratio_interval
from tapstudy.tables import interval_text

COLUMNS = ("method", "N", "bits", "caching", "rounding", "both", "both / sum [95 %]", "cosine", "variance", "affine",
           "cumulative")  # fmt: skip

STEP_COLUMNS = ("bits", "rounded at", "steps", "error", "over all [95 %]", "over late [95 %]", "over spread [95 %]")


def additivity(found: xr.Dataset) -> xr.Dataset:
    """Compare the squared errors that `bench.sweep.quantised` measured, as ratios of means over images.

    Returns:
        With `bound` (mean, low, high; bootstrap over images, paired): `sum_ratio` (method, interval, bits, bound), the
        error of both over the sum of either alone, 1 where they add; `first_ratio`, of rounding over caching;
        `corrected_ratio` (method, interval, bits, correction, bound), with a correction over without.
    """
    plain = found["both"].sel(correction="none", drop=True)
    return xr.Dataset({
        "sum_ratio": _ratio(plain, found["caching"] + found["rounding"]),
        "first_ratio": _ratio(found["rounding"], found["caching"]).transpose(*plain.dims[:-1], "bound"),
        "corrected_ratio": _ratio(found["both"].drop_sel(correction="none"), plain),
    })  # fmt: skip


def table_rows(found: xr.Dataset) -> list[list[str]]:
    """List rows of `COLUMNS`: squared errors times 1000, the ratio, and what corrections leave of the error of both."""
    ratios, mean = additivity(found), found.mean("sample")
    rows = []
    for interval in found["interval"].values.tolist():
        for method in found["method"].values.tolist():
            for bits in found["bits"].values.tolist():
                at = {"method": method, "interval": interval, "bits": bits}
                own, told = mean.sel(at), ratios.sel(at)
                errors = (own["caching"], own["rounding"], own["both"].sel(correction="none"))
                rows.append([
                    method, str(interval), str(bits), *(f"{1000 * float(value):.3g}" for value in errors),
                    interval_text(told["sum_ratio"]), f"{float(own['cosine']):+.2f}",
                    *(interval_text(one) for one in told["corrected_ratio"]),
                ])  # fmt: skip
    return rows


def step_rows(found: xr.Dataset) -> list[list[str]]:
    """List rows of `STEP_COLUMNS`: squared errors times 1000 of `bench.sweep.rounded_steps`, and over one another's."""
    error = found["error"]
    ratios = [_ratio(error, error.sel(when=other, drop=True)) for other in ("all", "late", "spread")]
    return [
        [
            str(bits), when, str(int(found["rounded"].sel(when=when))),
            f"{1000 * float(error.sel(bits=bits, when=when).mean()):.3g}",
            *(interval_text(one.sel(bits=bits, when=when)) for one in ratios),
        ]
        for bits in found["bits"].values.tolist()
        for when in found["when"].values.tolist()
    ]  # fmt: skip


def _ratio(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    found = xr.apply_ufunc(
        lambda x, y: np.array(ratio_interval(x, y)),
        *xr.broadcast(a, b),
        input_core_dims=[["sample"], ["sample"]],
        output_core_dims=[["bound"]],
        vectorize=True,
    )
    return found.assign_coords(bound=BOUNDS)
