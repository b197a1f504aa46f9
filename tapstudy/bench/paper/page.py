"""The table of a run of the paper's protocol: every row as it is here, and below it as it was published."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from tapstudy.analysis.stats import mean_interval
from tapstudy.bench.paper.prompts import COUNT
from tapstudy.bench.paper.protocol import DIFFERENCES, SOURCE, STEPS, UNKNOWN
from tapstudy.tables import Table, interval_text

# measure -> head of the column, and digits
SHOWN = {
    "image-reward": ("ImageReward", 2), "clip": ("CLIP score", 2), "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3),
    "lpips": ("LPIPS", 3), "vbench": ("VBench", 2),
}  # fmt: skip
TO_REFERENCE = ("psnr", "ssim", "lpips")
HEADS = ("method", "numbers", "full passes", "step mask (F full, . skipped)", "FLOPs ratio", "latency ratio")


def paper_columns(found: xr.Dataset) -> list[str]:
    """Return the heads of the columns of `paper_rows`."""
    return [*HEADS, *(SHOWN[name][0] for name in _measures(found))]


def paper_rows(found: xr.Dataset) -> list[list[str]]:
    """Return what `run_paper` found as rows of text, each followed by its published numbers.

    Means over images, with a 95 % bootstrap interval over images where there are several.
    """
    rows = []
    for i in range(found.sizes["run"]):
        run = found.isel(run=i)
        masks = list(dict.fromkeys(run["mask"].values.tolist()))
        published = dict(zip(found["measure"].values.tolist(), run["published"].values.tolist(), strict=True))
        rows.append([
            str(run["title"].item()), "here", f"{float(run['full_passes'].mean()):g}",
            masks[0] if len(masks) == 1 else f"{masks[0]} and {len(masks) - 1} others",
            f"{float(run['flops_ratio']):.2f}", f"{float(run['latency_ratio']):.2f}",
            *(_here(run, name, reference=i == 0) for name in _measures(found)),
        ])  # fmt: skip
        rows.append([
            "", "published", "unknown", "unknown", _known(published["speed"]), "unknown",
            *("" if i == 0 and name in TO_REFERENCE else _known(published[name])
              for name in _measures(found)),
        ])  # fmt: skip
    return rows


def paper_page(found: xr.Dataset, *, command: str, machine: str) -> str:
    """Return the table as a page of Markdown, with what it rests on.

    Args:
        command: that made it.
        machine: that the wall times were measured on.
    """
    count, steps = found.sizes["sample"], found.attrs["steps"]
    other = [] if steps == STEPS else [f"{steps} steps are sampled here, {STEPS} in the paper."]
    if count != COUNT:
        other.append(f"{count} images here; DrawBench has {COUNT} prompts.")
    missing = [
        SHOWN[name][0] for name in SHOWN if name not in found and found["published"].sel(measure=name).notnull().any()
    ]
    if missing:
        other.append(f"Not measured here: {', '.join(missing)} (--metrics).")
    if "vbench" in found:
        other.append("VBench here is the mean of six dimensions on these prompts, in the paper the total of sixteen.")
    other += [f"Left out: {line}." for line in found.attrs["left_out"].splitlines()]
    lines = [
        f"# The paper's protocol on {found.attrs['model']}",
        "",
        f"Made by `{command}` on {machine}. {count} images of {steps} steps, guidance {found.attrs['guidance']}, "
        f"weights {found.attrs['weights']}. Rows and settings are those of {found.attrs['paper_model']}; published "
        f"numbers: {SOURCE}.",
        "",
        Table(paper_columns(found), paper_rows(found), left=2).markdown(),
        "",
        "Means over images, in brackets 95 % by bootstrap over images. PSNR, SSIM and LPIPS are to the images of the "
        "first row, on values in [0, 1]. Ratios are the first row's over own, medians over images: FLOPs of the "
        "transformer, multiply-add = 2; wall time of one image, as loaded as the machine was.",
        "",
        *(f"* {line}" for line in other),
        *([""] if other else []),
        "Other than in the paper:",
        "",
        *(f"* {line};" for line in DIFFERENCES),
        "",
        "Unknown of the paper:",
        "",
        *(f"* {line};" for line in UNKNOWN),
    ]
    return "\n".join(lines) + "\n"


def _measures(found: xr.Dataset) -> Sequence[str]:
    return [name for name in SHOWN if name in found or bool(found["published"].sel(measure=name).notnull().any())]


def _here(run: xr.Dataset, name: str, *, reference: bool) -> str:
    if reference and name in TO_REFERENCE:
        return ""
    if name not in run:
        return "not measured"
    digits = SHOWN[name][1]
    values = run[name].values
    if not np.isfinite(values).all():
        return f"{np.isinf(values).sum()} of {len(values)} equal" if np.isinf(values).any() else "-"
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return interval_text(mean_interval(values), f".{digits}f")


def _known(value: float) -> str:
    """Write a published number with the two digits that all of them have."""
    return f"{value:.2f}" if np.isfinite(value) else "unknown"
