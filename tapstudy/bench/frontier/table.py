"""The frontier as rows of text."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import xarray as xr

from tapstudy.bench.frontier.comparison import VARIABLES
from tapstudy.tables import Table, interval_text, percent

COLUMNS = (
    "method", "schedule", "full passes", "FLOPs ratio", "time ratio", "history MiB", "PSNR [95 %], dB", "SSIM",
    "label accuracy", "distance", "minus TAP, dB", "minus best fixed, dB",
)  # fmt: skip


def tables(found: xr.Dataset) -> dict[int, list[list[str]]]:
    """List for every number of passes the rows of `COLUMNS`, the best PSNR first; an error in place of values.

    A star marks the schedule that is best for its method on held-out images.
    """
    reference = found.isel(cell=0)
    flops, seconds = float(reference["flops"].mean()), float(reference["seconds"].mean())
    result: dict[int, list[list[str]]] = {}
    numbers = found["passes"].values
    for passes in dict.fromkeys(numbers[1:].tolist()):
        part = found.isel(cell=1 + np.flatnonzero(numbers[1:] == passes))
        order = np.argsort(-np.nan_to_num(part["psnr_interval"].sel(bound="mean").values, nan=-np.inf), kind="stable")
        result[passes] = [_row(part.isel(cell=i), flops, seconds) for i in order]
    return result


def _row(cell: xr.Dataset, flops: float, seconds: float) -> list[str]:
    start = [str(cell["method"].item()), str(cell["schedule"].item()) + (" *" if cell["chosen"].item() else "")]
    if cell["error"].item():
        return [*start, str(cell["error"].item())]
    own = cell[list(VARIABLES)].mean("sample")
    return [
        *start,
        f"{float(own['full_passes']):.3g}",
        f"{flops / float(own['flops']):.2f}",
        f"{seconds / float(own['seconds']):.2f}",
        _number(float(own["cache_bytes"]) / 2**20, 2),
        interval_text(cell["psnr_interval"].values),
        f"{float(own['ssim']):.3f}",
        percent(float(own["correct"])),
        _number(float(cell["distance"]), 4),
        interval_text(cell["gain_over_tap"].values, "+.2f"),
        interval_text(cell["gain_over_best_fixed"].values, "+.2f"),
    ]


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


PAGE = """\
# Methods compared on {model}

* Made by: {commands}
* Model: {model}, {steps} steps, guidance {guidance:g}; {images} test images (seeds {seeds} x labels {labels})
* Chosen and fitted on held-out seeds alone: {held_out}; thresholds, masks, weights and fixed predictors
* Machine: {machine}

PSNR and SSIM are of images in [0, 1], to those of the same noise without acceleration; intervals are 95 % bootstrap
intervals over images, differences are paired by image: "minus TAP" to TAP on S(N, 3) with as many full passes, "minus
best fixed" to the single predictor chosen on held-out images, on the same schedule (for methods with a schedule of
their own, on S(N, 3)). A star marks the schedule that is best for its method on held-out images. FLOPs count a
multiply-add as 2; the time ratio is of one image, the methods of one command taking turns. What a method is, and how
faithful: [methods.md](methods.md).
Distance: {distance}.

"""


def frontier_page(found: xr.Dataset) -> str:
    """Return Markdown of what `bench.frontier.comparison` found.

    Args:
        found: with the attributes `commands`, that made it, and `machine`, that times were measured on, one per line.
    """
    plan = json.loads(found.attrs["plan"])
    text = PAGE.format(
        commands=", ".join(f"`{command}`" for command in found.attrs["commands"].splitlines()),
        machine=", ".join(found.attrs["machine"].splitlines()),
        model=plan["model"],
        steps=plan["steps"],
        guidance=plan["guidance"],
        images=found.sizes["sample"],
        seeds=_join(plan["seeds"]),
        labels=_join(plan["labels"]),
        held_out=_join(plan["held_out"]),
        distance=found["distance"].attrs["long_name"],
    )
    for passes, rows in tables(found).items():
        text += f"## {passes} full passes of {plan['steps']}\n\n"
        text += Table(COLUMNS, [row for row in rows if len(row) == len(COLUMNS)], left=2).markdown() + "\n"
        failed = [f"* {row[0]} does not run: {row[-1]}\n" for row in rows if len(row) != len(COLUMNS)]
        text += "\n" + "".join([*failed, "\n"] if failed else [])
    return text.rstrip("\n") + "\n"


def _join(values: Iterable[object]) -> str:
    return ",".join(map(str, values))
