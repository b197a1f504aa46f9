"""Runs the model for everything the claims need; what is done is kept, and the same call goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.measure import agreement, propagation_table, ranking_table, token_table
from tapstudy.analysis.schedules import best_mask, even_mask, start_dense_mask
from tapstudy.bench.cells import Cell
from tapstudy.bench.claim_runs import (
    FIXED,
    INTERVALS,
    SMALL_INTERVALS,
    Plan,
    claim_cells,
    claim_policies,
    held_out_cells,
    propagation_policies,
    ranked_settings,
)
from tapstudy.bench.measure import weights_fingerprint
from tapstudy.bench.policy_runs import kept, run_policies
from tapstudy.bench.solver_runs import solver_runs
from tapstudy.bench.sweep import read_result, sweep
from tapstudy.core.schedule import mask_text
from tapstudy.models.embedded import load, untrained_like
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.recording.record import describe, record

SECONDS_PER_PASS = 0.045  # of one image of the embedded model on two cores
QUALITY = ("psnr", "ssim", "correct", "full_passes", "flops", "flops_ratio")


def collect(plan: Plan, folder: str | Path, *, scheduler: str | None = None, progress: bool = True) -> Evidence:
    """Everything that is measured for the claims.

    Fixed predictors and one of the masks are chosen on held-out seeds first. Then come the accelerated runs on the test
    seeds, and on some of them exact trajectories with their features, read one image at a time.

    Args:
        plan: images and model.
        folder: keeps all results. A plan has its own.
        scheduler: address of a dask scheduler whose workers do the accelerated runs; None does all here.
        progress: show bars, and before every stage about how long it all still takes.

    Raises:
        ValueError: a folder of another plan or of other weights, runs that failed.
        FileNotFoundError: no such model.

    Disk: 0.1 GB per image of `few_seeds` with the embedded model. Memory: one such image.
    """
    folder = Path(folder)
    _check_plan(plan, folder)
    pipe = load(plan.model)
    pipe.set_progress_bar_config(disable=True)
    stages = _Stages(_costs(plan), tqdm.write if progress else lambda _: None)

    stages.begin("single predictors on held-out images")
    best_fixed = choose_fixed(held_out_cells(plan), folder, scheduler=scheduler, progress=progress)
    stages.begin("full steps on held-out images")
    masks = choose_masks(pipe, plan, folder, progress=progress)
    stages.begin("accelerated runs")
    quality = _run_cells(claim_cells(plan, best_fixed, masks), folder, scheduler=scheduler, progress=progress)
    stages.begin("accelerated runs of further predictors")
    special = run_policies(pipe, claim_policies(), _references(plan, folder), folder=folder, progress=progress)
    stages.begin("features along exact trajectories")
    ranking, tokens = _features(pipe, plan, folder, progress=progress)
    stages.begin("scores of the untrained model")
    untrained = _untrained(pipe, plan, folder, progress=progress)
    ranking = _below(ranking[[*untrained.data_vars]], untrained).merge(ranking.drop_dims("cell"))
    stages.begin("local errors along accelerated trajectories")
    propagation = kept(
        folder / "propagation.nc",
        lambda: propagation_table(
            solver_runs(pipe, propagation_policies(), plan.calls(plan.few_seeds[:1]), progress=progress)
        ),
    )
    chosen = {f"fixed N={n}": method for n, method in best_fixed.items()} | {
        "mask": mask_text(masks["best-mask"], plan.steps)
    }
    return Evidence(_below(quality, special), ranking, tokens, propagation, chosen)


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


def choose_masks(pipe: LabelPipeline, plan: Plan, folder: Path, *, progress: bool = True) -> dict[str, tuple[int, ...]]:
    """Masks with as many full steps as N = 8 has: even, start-dense, and the best for order 1 on held-out images."""
    recording = record(
        pipe, plan.calls(plan.held_out[:1]), folder / "held-out.zarr", fields=("residual",), model=plan.model,
        progress=progress,
    )  # fmt: skip
    found = kept(folder / "mask.nc", lambda: best_mask(recording, plan.passes)[["full_steps"]].compute())
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


def _references(plan: Plan, folder: Path) -> list[xr.Dataset]:
    """Images without acceleration, one dataset per test seed, from the sweep that made them."""
    parts = plan.cell("reference", plan.seeds).parts
    found = [read_result(folder / "cells", part) for part in parts]
    return [result for result in found if result is not None]


def _features(pipe: LabelPipeline, plan: Plan, folder: Path, *, progress: bool) -> tuple[xr.Dataset, xr.Dataset]:
    """The ranking and the token table of `few_seeds`."""
    recording = record(
        pipe,
        plan.calls(plan.few_seeds),
        folder / "features.zarr",
        fields=("probe", "residual"),
        depths=(0, *plan.depths),
        model=plan.model,
        progress=progress,
    )
    settings = ranked_settings(plan)
    ranking, tokens = [], []
    for index in tqdm(range(recording.sizes["sample"]), desc="rank", unit="image", disable=not progress):
        image = recording.isel(sample=[index])

        @lru_cache(maxsize=1)
        def loaded(image: xr.Dataset = image) -> xr.Dataset:
            return image.compute()

        ranking.append(kept(folder / "ranking" / f"{index}.nc", lambda load=loaded: ranking_table(load(), settings)))  # type: ignore[misc]
        tokens.append(kept(folder / "tokens" / f"{index}.nc", lambda load=loaded: token_table(load())))  # type: ignore[misc]
    return _of_plan(xr.concat(ranking, dim="sample", coords="minimal")), _of_plan(xr.concat(tokens, dim="sample"))


def _untrained(pipe: LabelPipeline, plan: Plan, folder: Path, *, progress: bool) -> xr.Dataset:
    """The ranking table of the same model with random weights, "untrained N=8"."""
    blank = untrained_like(pipe)
    blank.set_progress_bar_config(disable=True)
    recording = record(
        blank,
        plan.calls(plan.few_seeds),
        folder / "untrained.zarr",
        fields=("proxy_loss", "true_error"),
        model=f"{plan.model}-untrained",
        progress=progress,
    )
    table = kept(folder / "untrained.nc", lambda: agreement(recording))
    return _of_plan(table).expand_dims(cell=["untrained N=8"])


def _of_plan(table: xr.Dataset) -> xr.Dataset:
    """With the seeds of the plan in place of those of the noise."""
    return table.assign_coords(seed=table["seed"] // 1000)


def _check_plan(plan: Plan, folder: Path) -> None:
    """Raises ValueError if the folder holds results of another plan, or of a model that has changed."""
    told = {
        **asdict(plan),
        "weights": weights_fingerprint(plan.model),
        "settings": {name: repr(config) for name, config in ranked_settings(plan).items()},
        "policies": {name: describe(policy) for name, policy in claim_policies().items()},
    }
    text, file = json.dumps(told, sort_keys=True, indent=1), folder / "plan.json"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{folder} holds results of another plan, or of other weights, see {file}: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _costs(plan: Plan) -> list[int]:
    """Full passes of every stage, nearly."""

    def of(cells: Sequence[Cell]) -> int:
        passes = [plan.steps if cell.method.startswith("oracle") else len(cell.full_steps) for cell in cells]
        return sum(n * len(cell.seeds) * len(plan.labels) for n, cell in zip(passes, cells, strict=True))

    exact = plan.steps * len(plan.labels)  # of one seed
    masks = dict.fromkeys(("even", "start-dense", "best-mask"), even_mask(plan.steps, plan.passes))
    some = dict.fromkeys((*SMALL_INTERVALS, *INTERVALS), FIXED[0])
    policies = len(claim_policies()) * plan.passes * len(plan.labels) * len(plan.seeds)
    follow = exact * (2 + 2 * len(propagation_policies()))
    return [
        of(list(held_out_cells(plan).values())) + exact * len(plan.held_out),
        exact,
        of(list(claim_cells(plan, some, masks).values())),
        policies,
        5 * exact * plan.few,  # writing and scoring them take longer than the passes
        exact * plan.few,
        follow,
    ]


class _Stages:
    """Says how long what is left still takes, going by what took place."""

    def __init__(self, costs: Sequence[int], say: Callable[[str], object]) -> None:
        self.costs, self.say = costs, say
        self.started, self.number = time.monotonic(), 0

    def begin(self, name: str) -> None:
        spent, done, left = time.monotonic() - self.started, sum(self.costs[: self.number]), self.costs[self.number :]
        seconds = spent / done if done else SECONDS_PER_PASS
        self.number += 1
        self.say(f"[{self.number}/{len(self.costs)}] {name}; about {seconds * sum(left) / 60:.0f} min left")
