"""Runs the model for everything the claims need; what is done is kept, and the same call resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.measure import agreement, propagation_table, ranking_table, token_table
from tapstudy.analysis.schedules import best_mask, even_mask, start_dense_mask
from tapstudy.bench.claims.runs import (
    Plan,
    claim_cells,
    held_out_cells,
    propagation_policies,
    ranked_settings,
)
from tapstudy.bench.claims.solver_runs import solver_runs
from tapstudy.bench.image_set import UNTRAINED, pipe_of, weights_fingerprint
from tapstudy.bench.results import Results
from tapstudy.bench.sweep.cells import Cell
from tapstudy.bench.sweep.run import sweep
from tapstudy.core.schedule import mask_text
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.recording.record import record

QUALITY = ("psnr", "ssim", "correct", "full_passes", "flops", "flops_ratio")


def collect(plan: Plan, folder: str | Path, *, scheduler: str | None = None, progress: bool = True) -> Evidence:
    """Everything that is measured for the claims.

    Fixed predictors and one of the masks are chosen on held-out seeds first. Then come the accelerated runs on the test
    seeds, and on some of them exact trajectories with their features, read one image at a time.

    Args:
        plan: images and model.
        folder: keeps all results. A plan has its own.
        scheduler: address of a dask scheduler whose workers do the accelerated runs; None does all here.
        progress: show bars, and what begins.

    Raises:
        ValueError: a folder of another plan or of other weights, runs that failed.
        FileNotFoundError: no such model.

    Disk: 0.1 GB per image of `few_seeds` with the embedded model. Memory: one such image.
    """
    say: Callable[[str], object] = tqdm.write if progress else lambda _: None
    results = Results(folder, say=say)
    results.belongs_to(_told(plan))
    pipe = pipe_of(plan.model)

    say("[1/6] single predictors on held-out images")
    best_fixed = choose_fixed(held_out_cells(plan), results.folder, scheduler=scheduler, progress=progress)
    say("[2/6] full steps on held-out images")
    masks = choose_masks(pipe, plan, results, progress=progress)
    say("[3/6] accelerated runs")
    quality = _run_cells(claim_cells(plan, best_fixed, masks), results.folder, scheduler=scheduler, progress=progress)
    say("[4/6] features along exact trajectories")
    ranking, tokens = _features(pipe, plan, results, progress=progress)
    say("[5/6] scores of the untrained model")
    untrained = _untrained(plan, results, progress=progress)
    ranking = _below(ranking[[*untrained.data_vars]], untrained).merge(ranking.drop_dims("cell"))
    say("[6/6] local errors along accelerated trajectories")
    propagation = results.dataset(
        "propagation",
        None,
        lambda: propagation_table(
            solver_runs(pipe, propagation_policies(), plan.images(plan.few_seeds[:1]), progress=progress)
        ),
    )
    chosen = {f"fixed N={n}": method for n, method in best_fixed.items()} | {
        "mask": mask_text(masks["best-mask"], plan.steps)
    }
    return Evidence(quality, ranking, tokens, propagation, chosen)


def choose_fixed(
    cells: Mapping[tuple[int, str], Cell], folder: Path, *, scheduler: str | None = None, progress: bool = True
) -> dict[int, str]:
    """For every interval the method with the highest mean PSNR over its (held-out) images, the first one on a tie."""
    names = {f"{method} N={interval}": cell for (interval, method), cell in cells.items()}
    means = _run_cells(names, folder, scheduler=scheduler, progress=progress)["psnr"].mean("sample")
    return {
        interval: max(
            (method for n, method in cells if n == interval),
            key=lambda method, n=interval: float(means.sel(cell=f"{method} N={n}")),  # type: ignore[misc]
        )
        for interval in dict.fromkeys(interval for interval, _ in cells)
    }


def choose_masks(
    pipe: EmbeddedPipeline, plan: Plan, results: Results, *, progress: bool = True
) -> dict[str, tuple[int, ...]]:
    """Masks with as many full steps as N = 8 has: even, start-dense, and the best for order 1 on held-out images."""
    recording = record(
        pipe, [plan.images(plan.held_out[:1]).call(pipe)], results.folder / "held-out.zarr", fields=("residual",),
        model=plan.model, progress=progress,
    )  # fmt: skip
    found = results.dataset("mask", None, lambda: best_mask(recording, plan.passes)[["full_steps"]].compute())
    return {
        "even": even_mask(plan.steps, plan.passes),
        "start-dense": start_dense_mask(plan.steps, plan.passes),
        "best-mask": tuple(int(step) for step in found["full_steps"].values),
    }


def _run_cells(cells: Mapping[str, Cell], folder: Path, *, scheduler: str | None, progress: bool) -> xr.Dataset:
    """`QUALITY` by name, (cell, sample); NaN for images that a cell does not have."""
    found = sweep(list(cells.values()), folder, scheduler=scheduler, progress=progress)
    failed = [f"{name}: {found['error'].sel(cell=cell.name).item()}" for name, cell in cells.items()
              if found["error"].sel(cell=cell.name).item()]  # fmt: skip
    if failed:
        raise ValueError("runs failed, so the claims cannot be judged; " + "; ".join(failed))
    table = found[list(QUALITY)].sel(cell=[cell.name for cell in cells.values()])
    return table.reset_coords(drop=True).assign_coords(
        cell=list(cells), seed=found["seed"].reset_coords(drop=True), label=found["label"].reset_coords(drop=True)
    )


def _below(upper: xr.Dataset, lower: xr.Dataset) -> xr.Dataset:
    """Two tables of the same images, one below the other; what one of them lacks is NaN."""
    return xr.concat([upper, lower], dim="cell", data_vars="all", coords="minimal", compat="override", join="outer")


def _features(pipe: EmbeddedPipeline, plan: Plan, results: Results, *, progress: bool) -> tuple[xr.Dataset, xr.Dataset]:
    """The ranking and the token table of `few_seeds`."""
    recording = record(
        pipe,
        [part.call(pipe) for part in plan.images(plan.few_seeds).by_seed()],
        results.folder / "features.zarr",
        fields=("probe", "residual"),
        depths=(0, *plan.depths),
        model=plan.model,
        progress=progress,
    )
    settings = ranked_settings(plan)

    def tables(index: int) -> tuple[xr.Dataset, xr.Dataset]:
        """Of one image, which is read when it is needed."""
        image = lru_cache(maxsize=1)(recording.isel(sample=[index]).compute)
        return (
            results.dataset(f"ranking/{index}", None, lambda: ranking_table(image(), settings)),
            results.dataset(f"tokens/{index}", None, lambda: token_table(image())),
        )

    samples = tqdm(range(recording.sizes["sample"]), desc="rank", unit="image", disable=not progress)
    ranking, tokens = zip(*map(tables, samples), strict=True)
    return _of_plan(xr.concat(ranking, dim="sample", coords="minimal")), _of_plan(xr.concat(tokens, dim="sample"))


def _untrained(plan: Plan, results: Results, *, progress: bool) -> xr.Dataset:
    """The ranking table of the same model with random weights, "untrained N=8"."""
    images = replace(plan.images(plan.few_seeds), model=plan.model + UNTRAINED)
    blank = pipe_of(images.model)
    recording = record(
        blank,
        [part.call(blank) for part in images.by_seed()],
        results.folder / "untrained.zarr",
        fields=("proxy_loss", "true_error"),
        model=images.model,
        progress=progress,
    )
    table = results.dataset("untrained", None, lambda: agreement(recording))
    return _of_plan(table).expand_dims(cell=["untrained N=8"])


def _of_plan(table: xr.Dataset) -> xr.Dataset:
    """With the seeds of the plan in place of those of the noise."""
    return table.assign_coords(seed=table["seed"] // 1000)


def _told(plan: Plan) -> dict[str, Any]:
    """What the results in a folder depend on."""
    return {
        **asdict(plan),
        "weights": weights_fingerprint(plan.model),
        "settings": {name: repr(config) for name, config in ranked_settings(plan).items()},
    }
