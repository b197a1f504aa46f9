"""The frontier as a page of text."""

from __future__ import annotations

import json
from collections.abc import Iterable

import xarray as xr

from tapstudy.bench.frontier.table import COLUMNS, tables
from tapstudy.tables import Table

PAGE = """\
# All methods on one model

* Made by: `{command}`
* Model: {model}, {steps} steps, guidance {guidance:g}; {images} test images (seeds {seeds} x labels {labels})
* Chosen and fitted on held-out seeds alone: {held_out}; thresholds, masks, weights and fixed predictors
* Machine: {machine}

PSNR and SSIM are of images in [0, 1], to those of the same noise without acceleration; intervals are 95 % bootstrap
intervals over images, differences are paired by image: "minus TAP" to TAP on S(N, 3) with as many full passes, "minus
best fixed" to the single predictor chosen on held-out images, on the same schedule (for methods with a schedule of
their own, on S(N, 3)). A star marks the schedule that is best for its method on held-out images. FLOPs count a
multiply-add as 2; the time ratio is of one image, the methods taking turns. What a method is, and how faithful:
[methods.md](methods.md).
Distance: {distance}.

"""


def frontier_page(found: xr.Dataset, *, command: str, machine: str) -> str:
    """Markdown of what `bench.frontier.comparison` found.

    Args:
        command: that made it.
        machine: what the wall times were measured on.
    """
    plan = json.loads(found.attrs["plan"])
    text = PAGE.format(
        command=command,
        machine=machine,
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
