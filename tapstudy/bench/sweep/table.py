"""The results of a sweep as one dataset, and as rows of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.bench.compare import alike
from tapstudy.bench.conditions import Call
from tapstudy.bench.engine import Job, kept
from tapstudy.bench.flops import StepFlops
from tapstudy.bench.image_error import MASK, MEASURES, measures
from tapstudy.bench.image_set import ImageSet, pipe_of, weights_fingerprint
from tapstudy.bench.judge import Judge
from tapstudy.bench.methods import find_method
from tapstudy.bench.results import Results, short_hash
from tapstudy.bench.sweep.cells import SETTINGS, Cell
from tapstudy.tables import interval_text, percent

VARIABLES = {
    **MEASURES,
    "seconds": ("wall time of one image, on the machine that ran it", "s"),
    "flops": ("FLOPs of one image (multiply-add = 2, matrix products, convolutions and attention)", "1"),
    "flops_ratio": ("FLOPs of the reference over own", "1"),
}
TEXTS = ("method", "model", "orders", "shifts", "distance", "residual", "differences", "basis", "clip",
         "history_dtype", "probe_dtype", "granularity", "full_steps")  # fmt: skip


def tidy(cells: Sequence[Cell], results: Results, failures: Mapping[Job, str] | None = None) -> xr.Dataset:
    """Put the results of cells together.

    Args:
        cells: the rows.
        results: with the images of every cell, and of its reference, that did not fail.
        failures: why there are none, as `run_all` returns it.

    Returns:
        Dims `cell` (by name) and `sample` (every seed with every label). Variables as in `VARIABLES`, and `mask` (F
        full, . skipped, s skipped with a full pass beside), all (cell, sample); NaN, or "", for images that a cell does
        not have. Coordinates on cell: every setting, NaN or "" where it makes no difference to the method; and
        `error`. PSNR and SSIM are to the image of the same model, steps, guidance, seed and label without acceleration.
    """
    failures = failures or {}
    pairs = list(dict.fromkeys(pair for cell in cells for pair in cell.images.pairs))
    column = {pair: i for i, pair in enumerate(pairs)}
    values = {name: np.full((len(cells), len(pairs)), np.nan) for name in VARIABLES}
    masks = np.full((len(cells), len(pairs)), "", dtype=object)
    errors = []
    read = lru_cache(maxsize=64)(partial(kept, results=results))  # references are read for every cell
    for i, cell in enumerate(cells):
        failed = []
        setting, reference = cell.setting, cell.reference.setting
        for images in cell.images.units():
            if (images, setting) in failures or (images, reference) in failures:
                failed.append(
                    failures.get((images, setting)) or f"the reference failed: {failures.get((images, reference))}"
                )
                continue
            columns = [column[pair] for pair in images.pairs]
            own = read((images, setting))
            for name, found in _measures(cell, images, own, read((images, reference)), results).items():
                values[name][i, columns] = found
            masks[i, columns] = own["mask"].values
        errors.append("; ".join(dict.fromkeys(failed)))
    return xr.Dataset(
        {
            name: (("cell", "sample"), values[name], {"long_name": long_name, "units": units})
            for name, (long_name, units) in VARIABLES.items()
        }
        | {"mask": (("cell", "sample"), masks, {"long_name": MASK})},
        coords={
            "cell": [cell.name for cell in cells],
            **{name: ("cell", _settings(cells, name)) for name in SETTINGS},
            "error": ("cell", np.array(errors, dtype=object)),
            "seed": ("sample", [seed for seed, _ in pairs]),
            "label": ("sample", ImageSet("", tuple(pairs)).texts),
        },
    )


def _measures(cell: Cell, images: ImageSet, own: xr.Dataset, reference: xr.Dataset, results: Results) -> dict[str, Any]:
    """Return a value per image for every variable."""
    sized = alike(images)
    costs = {image: (_flops(cell, image, results), _flops(cell.reference, image, results)) for image in {*sized}}
    each = [float(costs[image][0].of(mask)) for image, mask in zip(sized, own["mask"].values, strict=True)]
    whole = [float(costs[image][1].of(mask)) for image, mask in zip(sized, reference["mask"].values, strict=True)]
    return {
        **measures(own, reference, Judge.of(cell.model)),
        "seconds": own["seconds"].values,
        "flops": each,
        "flops_ratio": [full / one for full, one in zip(whole, each, strict=True)],
    }


def _flops(cell: Cell, image: ImageSet, results: Results) -> StepFlops:
    """Count the FLOPs of a full and a skip step of one image, kept for all schedules and all images of its size."""
    guided = None if cell.guidance is None else cell.guidance > 1
    label = image.labels[0]
    size = label.beside_prompt if isinstance(label, Call) else {}
    guidance = None if guided is None else 2.0 if guided else 1.0
    image = replace(image, guidance=guidance)
    config = cell.config
    if not find_method(cell.method).partial:  # all skip steps cost the same, whatever the schedule
        config = replace(config, full_steps=None, interval=1, warmup_steps=1, cooldown_steps=0)
    key = {
        "method": cell.method, "config": repr(config), "guided": guided, "weights": weights_fingerprint(cell.model),
        **({"size": size} if size else {}), "steps": cell.steps,
    }  # fmt: skip

    def measure() -> list[float]:
        return list(find_method(cell.method).flops(pipe_of(cell.model), image, cell.config))

    return StepFlops(*results.value(f"flops/{cell.method}-{short_hash(key)}", key, measure))


def _settings(cells: Sequence[Cell], name: str) -> Any:
    found = [cell.read_settings.get(name, "" if name in TEXTS else np.nan) for cell in cells]
    if name not in TEXTS:
        return np.array(found, dtype=np.float64)
    texts = [",".join(map(str, value)) if isinstance(value, list) else str(value).lower() for value in found]
    return np.array(texts, dtype=object)


def table_rows(
    dataset: xr.Dataset, settings: Sequence[str], interval_of: Callable[[Any], tuple[float, float, float]]
) -> list[list[str]]:
    """Return one row per cell: the values of `settings`, full passes, FLOPs ratio, PSNR [95 %], SSIM, label accuracy.

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
            dB = interval_text(interval_of(values))
        row += [
            f"{float(cell['full_passes'].mean()):g}",
            f"{float(cell['flops_ratio'].mean()):.2f}",
            dB,
            f"{float(cell['ssim'].mean()):.3f}",
            percent(float(cell["correct"].mean())),
        ]
        rows.append(row)
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:g}"
    return str(value) or "-"
