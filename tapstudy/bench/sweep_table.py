"""The results of a sweep as one dataset, and as rows of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from tapstudy.bench.cells import SETTINGS, Cell
from tapstudy.bench.image_error import psnr, ssim

VARIABLES = {
    "psnr": ("PSNR to the reference (data range 1)", "dB"),
    "ssim": ("SSIM to the reference (data range 1)", "1"),
    "correct": ("classified as its label", "1"),
    "full_passes": ("full passes of the model", "1"),
    "seconds": ("wall time of one image, on the machine that ran it", "s"),
    "flops": ("FLOPs of one image (multiply-add = 2, matrix products only)", "1"),
    "flops_ratio": ("FLOPs of the reference over own", "1"),
}
TEXTS = ("method", "model", "orders", "shifts", "distance", "residual", "differences", "basis", "clip",
         "history_dtype", "probe_dtype", "granularity", "full_steps")  # fmt: skip


def tidy(
    cells: Sequence[Cell], read: Callable[[Cell], xr.Dataset | None], failures: Mapping[Cell, str] | None = None
) -> xr.Dataset:
    """Put the results of cells together.

    Args:
        cells: the rows.
        read: gives the result of a part of a cell, or None.
        failures: why parts have no result.

    Returns:
        Dims `cell` (by name) and `sample` (every seed with every label). Variables as in `VARIABLES`, and `mask` (F
        full, . skipped, s skipped with a full pass beside), all (cell, sample); NaN, or "", for images that a cell does
        not have. Coordinates on cell: every setting, NaN or "" where it makes no difference to the method; and
        `error`. PSNR and SSIM are to the image of the same model, steps, guidance, seed and label without acceleration.
    """
    failures = failures or {}
    pairs = list(dict.fromkeys((seed, label) for cell in cells for seed in cell.seeds for label in cell.labels))
    column = {pair: i for i, pair in enumerate(pairs)}
    values = {name: np.full((len(cells), len(pairs)), np.nan) for name in VARIABLES}
    masks = np.full((len(cells), len(pairs)), "", dtype=object)
    errors = []
    for i, cell in enumerate(cells):
        failed = []
        for part in cell.parts:
            own, reference = read(part), read(part.reference)
            if own is None or reference is None:
                failed.append(failures.get(part) or f"the reference failed: {failures.get(part.reference)}")
                continue
            columns = [column[seed, label] for seed in part.seeds for label in part.labels]
            for name, found in _row(own, reference).items():
                values[name][i, columns] = found
            masks[i, columns] = own.attrs["mask"]
        errors.append("; ".join(dict.fromkeys(failed)))
    return xr.Dataset(
        {
            name: (("cell", "sample"), values[name], {"long_name": long_name, "units": units})
            for name, (long_name, units) in VARIABLES.items()
        }
        | {"mask": (("cell", "sample"), masks, {"long_name": "F full, . skipped, s skipped with a pass beside"})},
        coords={
            "cell": [cell.name for cell in cells],
            **{name: ("cell", _settings(cells, name)) for name in SETTINGS},
            "error": ("cell", np.array(errors, dtype=object)),
            "seed": ("sample", [seed for seed, _ in pairs]),
            "label": ("sample", [label for _, label in pairs]),
        },
    )


def _row(own: xr.Dataset, reference: xr.Dataset) -> dict[str, Any]:
    """A value, or one per image, for every variable."""
    images, target = (torch.from_numpy(result["image"].values) for result in (own, reference))  # (B, band, row, column)
    return {
        "psnr": psnr(images, target, data_range=1.0),
        "ssim": ssim(images, target, data_range=1.0),
        "correct": own["correct"].values,
        "full_passes": own.attrs["full_passes"],
        "seconds": own.attrs["seconds"],
        "flops": own.attrs["flops"],
        "flops_ratio": reference.attrs["flops"] / own.attrs["flops"],
    }


def _settings(cells: Sequence[Cell], name: str) -> Any:
    found = [cell.read_settings.get(name, "" if name in TEXTS else np.nan) for cell in cells]
    if name not in TEXTS:
        return np.array(found, dtype=np.float64)
    texts = [",".join(map(str, value)) if isinstance(value, list) else str(value).lower() for value in found]
    return np.array(texts, dtype=object)


def table_rows(
    dataset: xr.Dataset, settings: Sequence[str], interval_of: Callable[[Any], tuple[float, float, float]]
) -> list[list[str]]:
    """One row per cell: the values of `settings`, full passes, FLOPs ratio, PSNR [95 %], SSIM, label accuracy.

    A cell with an error has it in place of the measures.
    """
    rows = []
    for name in dataset["cell"].values:
        cell = dataset.sel(cell=name)
        row = [_text(cell[setting].item()) for setting in settings]
        if cell["error"].item():
            rows.append([*row, str(cell["error"].item())])
            continue
        values = cell["psnr"].dropna("sample").values
        dB = f"{values.mean():.2f}"
        if len(values) > 1 and np.isfinite(values).all():
            dB = "{:.2f} [{:.2f}, {:.2f}]".format(*interval_of(values))
        row += [
            f"{float(cell['full_passes'].mean()):g}",
            f"{float(cell['flops_ratio'].mean()):.2f}",
            dB,
            f"{float(cell['ssim'].mean()):.3f}",
            f"{100 * float(cell['correct'].mean()):.0f}%",
        ]
        rows.append(row)
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:g}"
    return str(value) or "-"
