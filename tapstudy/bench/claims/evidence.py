"""Runs the model for everything the claims need; what is done is kept, and the same call resumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.measure import (
    Clock,
    clock_of,
    propagation_table,
    ranking_table,
    token_table,
    untrained_table,
)
from tapstudy.bench.claims.runs import (
    BEST_FIXED,
    Plan,
    Run,
    claim_runs,
    propagation_policies,
    ranked_settings,
    toward_configs,
)
from tapstudy.bench.claims.selectors import selector_runs
from tapstudy.bench.claims.solver_runs import check_sampler, solver_runs
from tapstudy.bench.claims.toward_reference import toward_reference
from tapstudy.bench.engine import Setting, kept, measure_costs, run_all, text_of
from tapstudy.bench.fit.held_out import OPTIONS, HeldOut
from tapstudy.bench.image_error import MEASURES, measures, psnr
from tapstudy.bench.image_set import UNTRAINED, pipe_of, weights_fingerprint
from tapstudy.bench.judge import Judge
from tapstudy.bench.results import Results, short_hash
from tapstudy.core.schedule import mask_text
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.recording.record import record

logger = logging.getLogger(__name__)

REFERENCE = "reference"
QUALITY = {
    **MEASURES,
    "psnr_fine": ("PSNR to the image of many more steps (data range 1)", "dB"),
    "flops": ("FLOPs of one image (multiply-add = 2, matrix products, convolutions and attention)", "1"),
    "flops_ratio": ("FLOPs of the reference over own", "1"),
}


def collect(plan: Plan, folder: str | Path, *, scheduler: str | None = None, progress: bool = True) -> Evidence:
    """Return everything that is measured for the claims.

    Predictors, tables and masks are fitted to and chosen on held-out seeds first. Then come the accelerated runs on the
    test seeds, and on some of them exact trajectories with their features, read one image at a time.

    Args:
        plan: images and model.
        folder: keeps all results. A plan has its own.
        scheduler: address of a dask scheduler whose workers do the accelerated runs; None does all here.
        progress: show bars, and what begins.

    Raises:
        ValueError: a folder of another plan or of other weights, runs that failed.
        FileNotFoundError: no such model.

    Disk: 0.1 GB per image of `few` and held out with the embedded model. Memory: the residuals of the held-out images.
    """
    results = Results(folder)
    results.belongs_to(_told(plan))
    pipe = pipe_of(plan.model)
    check_sampler(pipe, "claims")  # before hours of other runs
    held = HeldOut(pipe, plan, results, progress=progress)

    logger.info("[1/6] what is fitted and chosen on held-out images")
    runs = claim_runs(plan) | selector_runs(held, plan)
    bar = tqdm(runs.items(), desc="settings", unit="run", disable=not progress)
    settings = {name: run.setting(held, plan) for name, run in bar}
    logger.info("[2/6] accelerated runs")
    jobs = {name: (plan.few_images if run.few else plan.test, settings[name]) for name, run in runs.items()}
    if failures := run_all(list(jobs.values()), results, scheduler=scheduler, progress=progress):
        names = {setting.text: name for name, (_, setting) in jobs.items()}
        told = "; ".join(f"{names[setting.text]}: {error}" for (_, setting), error in failures.items())
        raise ValueError(f"runs failed, so the claims cannot be judged; {told}")
    found = {name: kept(job, results, pipe=pipe) for name, job in jobs.items()}
    # a step costs the same on every schedule and clock: that of the first run that does the same
    first: dict[str, str] = {}
    alike = {
        name: first.setdefault(f"{run.method} {run.changes} {settings[name].kind}", name) for name, run in runs.items()
    }
    costs = step_costs(pipe, plan, {name: settings[name] for name in first.values()}, results, progress=progress)
    toward = _toward_reference(pipe, held, plan, results, progress=progress)
    alike |= dict.fromkeys(toward, alike["order1-output N=8"])  # knowing the reference is counted as free
    costs = costs.sel(cell=list(alike.values())).assign_coords(cell=list(alike))
    quality = quality_table(plan, found | toward, costs, results, pipe=pipe)
    logger.info("[3/6] what is known without a probe of the image")
    clock = clock_of(held.recording)
    logger.info("[4/6] features along exact trajectories")
    ranking, tokens = _features(pipe, plan, clock, results, progress=progress)
    logger.info("[5/6] scores of untrained models")
    untrained = xr.concat(
        [_untrained(plan, seed, results, progress=progress) for seed in range(plan.untrained)], dim="weights"
    )
    logger.info("[6/6] local errors along accelerated trajectories")
    propagation = results.dataset(
        "propagation",
        None,
        lambda: propagation_table(solver_runs(pipe, propagation_policies(), plan.few_images, progress=progress)),
    )
    about = {"plan": json.dumps(asdict(plan), default=str)}
    quality, ranking, tokens, untrained, propagation = (
        table.assign_attrs(about) for table in (quality, ranking, tokens, untrained, propagation)
    )
    return Evidence(quality, ranking, tokens, untrained, propagation, _chosen(held, plan, runs))


def _toward_reference(
    pipe: EmbeddedPipeline, held: HeldOut, plan: Plan, results: Results, *, progress: bool
) -> dict[str, xr.Dataset]:
    """Make the images of the choices toward the reference; none where branches are passes of their own."""
    if not isinstance(pipe, LabelPipeline):
        return {}
    configs = toward_configs(held, plan)

    def make() -> xr.Dataset:
        made = toward_reference(pipe, plan.few_images, configs, progress=progress)
        return xr.concat(made.values(), dim="cell").assign_coords(cell=list(made))

    found = results.dataset("toward", {name: repr(config) for name, config in configs.items()}, make)
    return {name: found.sel(cell=name) for name in configs}


def quality_table(
    plan: Plan,
    found: Mapping[str, xr.Dataset],
    costs: xr.Dataset,
    results: Results,
    *,
    pipe: EmbeddedPipeline,
) -> xr.Dataset:
    """Return `QUALITY` by name of a run, (cell, sample); NaN for images that a run does not have.

    PSNR to the finer reference is there for the images of `plan.few_images`.

    Args:
        found: what `engine.run` made, the reference among them.
        costs: `flops_full` and `flops_skip` of every run, (cell).
    """
    reference, judge = found[REFERENCE], Judge.of(plan.model)
    fine = None
    if plan.fine_steps:
        finer = kept((plan.few_images, Setting.plain(plan.fine_steps)), results, pipe=pipe)
        fine = torch.from_numpy(finer["image"].values)
    whole = float(costs["flops_full"].sel(cell=REFERENCE)) * plan.steps
    values = {name: np.full((len(found), len(plan.test)), np.nan) for name in QUALITY}
    for row, (name, run) in enumerate(found.items()):
        count, cost = run.sizes["sample"], costs.sel(cell=name)  # the costly images are the first ones
        for measure, column in measures(run, reference.isel(sample=slice(count)), judge).items():
            values[measure][row, :count] = column
        if lost := [plan.test.pairs[i] for i in np.flatnonzero(np.isnan(values["psnr"][row, :count]))]:
            raise ValueError(f"the run {name!r} made values that are no numbers of {lost}: load the model in float32")
        if fine is not None:
            values["psnr_fine"][row, : len(fine)] = psnr(torch.from_numpy(run["image"].values[: len(fine)]), fine)
        full = values["full_passes"][row]
        steps = np.array([*map(len, run["mask"].values), *[np.nan] * (len(plan.test) - count)])
        values["flops"][row] = full * float(cost["flops_full"]) + (steps - full) * float(cost["flops_skip"])
    values["flops_ratio"] = whole / values["flops"]
    return xr.Dataset(
        {
            name: (("cell", "sample"), values[name], {"long_name": text, "units": unit})
            for name, (text, unit) in QUALITY.items()
        },
        coords={
            "cell": list(found),
            "seed": ("sample", plan.test.seeds),
            "label": ("sample", [str(label) for label in plan.test.labels]),
        },
    )


def step_costs(
    pipe: EmbeddedPipeline, plan: Plan, settings: Mapping[str, Setting], results: Results, *, progress: bool
) -> xr.Dataset:
    """Return FLOPs of a full and of a skip step, `flops_full` and `flops_skip` (cell)."""
    texts = {name: setting.text for name, setting in settings.items()}
    return results.dataset(
        f"costs-{short_hash(texts)}",
        texts,
        lambda: measure_costs(pipe, plan.test[:1], settings, repeats=0, progress=progress),
    )


def _chosen(held: HeldOut, plan: Plan, runs: Mapping[str, Run]) -> dict[str, str]:
    schedule = held.best_schedule(plan.passes)
    slots = {on: Run("best-fixed", on).slot(held, plan) for on in BEST_FIXED}
    fixed = {on: held.best_fixed(slot.config, slot.name) for on, slot in slots.items()}
    return {
        **{f"best-fixed {on}": f"order {order}, shift {shift}" for on, (order, shift) in fixed.items()},
        "best mask": f"{schedule}: {mask_text(held.mask(schedule, plan.passes), plan.steps)}",
        "smooth": f"sigma {held.best_sigma:g}",
        **{name: runs[name].name for name in ("selected", "token selector", "token selector fixed")},
    }


def _features(
    pipe: EmbeddedPipeline, plan: Plan, clock: Clock, results: Results, *, progress: bool
) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the ranking and the token table of the costly images."""
    recording = record(
        pipe,
        [part.call for part in plan.few_images.by_seed()],
        results.folder / "features.zarr",
        fields=("probe", "residual", "latent_residual"),
        depths=(0, *plan.depths),
        model=plan.model,
        progress=progress,
    )
    settings = ranked_settings(plan)

    def tables(index: int) -> tuple[xr.Dataset, xr.Dataset]:
        """Make the tables of one image, which is read when it is needed."""
        image = lru_cache(maxsize=1)(recording.isel(sample=[index]).compute)
        return (
            results.dataset(f"ranking/{index}", None, lambda: ranking_table(image(), settings, clock)),
            results.dataset(f"tokens/{index}", None, lambda: token_table(image())),
        )

    samples = tqdm(range(recording.sizes["sample"]), desc="rank", unit="image", disable=not progress)
    ranking, tokens = zip(*map(tables, samples), strict=True)
    return _of_plan(xr.concat(ranking, dim="sample", coords="minimal")), _of_plan(xr.concat(tokens, dim="sample"))


def _untrained(plan: Plan, seed: int, results: Results, *, progress: bool) -> xr.Dataset:
    """Return `untrained_table` of the same model with random weights of a seed, on the costly images."""
    images = replace(plan.few_images, model=f"{plan.model}{UNTRAINED}{seed}")

    def make() -> xr.Dataset:
        blank = pipe_of(images.model)
        recording = record(
            blank,
            [part.call for part in images.by_seed()],
            results.folder / f"untrained-{seed}.zarr",
            fields=("proxy_loss", "true_error"),
            model=images.model,
            progress=progress,
        )
        return untrained_table(recording)

    return _of_plan(results.dataset(f"untrained-{seed}", None, make))


def _of_plan(table: xr.Dataset) -> xr.Dataset:
    """Put the seeds of the plan in place of those of the noise."""
    return table.assign_coords(seed=table["seed"] // 1000)


def _told(plan: Plan) -> dict[str, Any]:
    """Tell what the results in a folder depend on."""
    return {
        **asdict(plan),
        "weights": weights_fingerprint(plan.model),
        "settings": {name: repr(one) for name, one in ranked_settings(plan).items()},
        "options": OPTIONS,
        "propagation": {name: text_of(policy) for name, policy in propagation_policies().items()},
    }
