"""Wall time of steps and of whole loops: TAP beside plain sampling and beside other people's caches.

Conventions. A loop is one call of the pipeline, from its noise to its last step, with an empty history at its start.
The first loop of every method, a short one, is not counted; First-Block Cache, which has no schedule, gets the
threshold that makes about as many full passes as the others. Then come `repeats`. In a repeat every method
runs before plain sampling and, in reverse order, behind it, and its mean counts: a machine that slows down steadily
does so for all alike. Whatever stands in one ratio was measured in the same repeat. Steps are timed in loops of their
own. On a GPU times of steps are those of its stream, all else is the clock's. A repeat that was cut short is finished
by the call that goes on: it times what is missing, and the attribute `calls` counts the calls that a table is from.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import xarray as xr

import tapstudy
from tapstudy.bench.fit.tuning import Tuner
from tapstudy.bench.progress import Progress, to_go_on_from
from tapstudy.bench.speed.methods import (
    REFERENCE,
    TAP_VARIANTS,
    TEXTS,
    THIRD_PARTY,
    TUNED,
    Plan,
    find_methods,
    setting_of,
    why_not_compiled,
)
from tapstudy.bench.speed.steps import PARTS, Step, middle, plain_steps, tap_steps
from tapstudy.bench.speed.subjects import Subject, check_name, make_subject
from tapstudy.models.machine import find_device

FULL = ("full", "full, hooked")


def speed(
    names: Sequence[str],
    plan: Plan | None = None,
    *,
    methods: Sequence[str] = (),
    repeats: int = 3,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    keep: Callable[[xr.Dataset], object] | None = None,
    earlier: xr.Dataset | None = None,
) -> xr.Dataset:
    """Time models, one after the other.

    Args:
        names: presets, embedded models or folders of models, see `make_subject`.
        plan: steps and schedule.
        methods: of `TEXTS`; all but `EXTRA` by default, and always the reference.
        repeats: how many count.
        batch_size, dtype: see `make_subject`.
        device: "auto", "cpu" or "cuda".
        keep: called with what is measured so far after every loop of a method and the steps of every repeat, the rest
            NaN: what a call that is cut short leaves behind.
        earlier: what such a call has left behind, to go on from; a finished table changes nothing.

    Returns:
        Dims `model`, `method`, `kind` (of step: `full` without hooks and under TAP, and the skip steps of every form of
        TAP), `skip` (the latter alone), `part` (of a skip step) and `repeat`. Measured: `loop_seconds`, `timed_loops`,
        `full_passes`, `mask`, `step_seconds` and `part_seconds`; and what `with_ratios` adds to them. What does not run
        on a model, or cannot be compiled, has NaN, and a line in `failure`. Attributes tell the machine and the
        versions.

    Raises:
        ValueError: no such model, method or device, no step to skip, no repeat, or `earlier` is of other settings or
            another machine.
    """
    if not names:
        raise ValueError("speed: name at least one model")
    if repeats < 1:
        raise ValueError(f"speed: at least one repeat is needed, got {repeats}")
    plan, place, chosen = plan or Plan(), find_device(device), find_methods(methods)
    for name in names:
        check_name(name)
    short = [Path(name).name for name in names]
    if earlier is not None:
        about = {**_machine(place), **_settings(plan)}
        earlier = to_go_on_from(earlier, short, repeats=repeats, methods=chosen, **about)
    there = [] if earlier is None else earlier["model"].values.tolist()
    found: list[xr.Dataset] = []
    for model, name in zip(short, names, strict=True):
        before = None if earlier is None or model not in there else earlier.sel(model=[model])
        if before is not None and Progress.of(before.isel(model=0)).finished:
            found.append(before)
            continue
        subject = make_subject(name, batch_size=batch_size, dtype=dtype, device=place)
        kept = None if keep is None else partial(_keep, keep, (*found,))
        found.append(time_subject(subject, plan, methods=chosen, repeats=repeats, keep=kept, earlier=before))
        del subject
        gc.collect()
    calls = 1 if earlier is None else int(earlier.attrs["calls"]) + 1
    return _joined([table.assign_attrs(calls=calls) for table in found])


def _keep(keep: Callable[[xr.Dataset], object], before: Sequence[xr.Dataset], table: xr.Dataset) -> None:
    keep(_joined([one.assign_attrs(calls=table.attrs["calls"]) for one in (*before, table)]))


def _joined(tables: Sequence[xr.Dataset]) -> xr.Dataset:
    return xr.concat(
        tables, dim="model", coords="different", compat="equals", join="exact", combine_attrs="no_conflicts"
    )


def time_subject(
    subject: Subject,
    plan: Plan,
    *,
    methods: Sequence[str],
    repeats: int,
    keep: Callable[[xr.Dataset], object] | None = None,
    earlier: xr.Dataset | None = None,
) -> xr.Dataset:
    """Do what `speed` does for one model; the first of the methods is the reference."""
    calls = 1
    if earlier is None:
        progress = Progress.none(len(methods), repeats)
        progress.failures = _warm_up(subject, plan, methods)
        if TUNED in methods and not progress.failures[methods.index(TUNED)]:
            plan = replace(plan, threshold=_threshold(subject, plan))
    else:
        _check_same(subject, earlier)
        progress, calls = Progress.of(earlier.isel(model=0)), int(earlier.attrs["calls"]) + 1
        plan = replace(plan, threshold=float(earlier["threshold"].item()))
        left = {row for repeat in range(repeats) for row in progress.rows(repeat)}
        _warm_up(subject, plan, [methods[row] for row in sorted({0, *left})])
    works = [name for name in TAP_VARIANTS if name in methods and not progress.failures[methods.index(name)]]
    variants = works or ["tap"]
    if not len(progress.kinds):
        progress.kinds = np.full((len(FULL) + len(variants), repeats), np.nan)
        progress.parts = np.full((len(variants), len(PARTS), repeats), np.nan)

    def table() -> xr.Dataset:
        return _table(subject, plan, methods, variants, progress).assign_attrs(calls=calls)

    for repeat in range(repeats):
        gc.collect()
        rows = progress.rows(repeat)
        progress.timed[rows, repeat] = 0
        for row in [*reversed(rows), *(row for row in rows if row)]:  # the reference is the first
            once, progress.masks[row] = _loop(subject, plan, methods[row])
            progress.add(row, repeat, once)
            if keep is not None:
                keep(table())
        if not progress.has_steps(repeat):
            full, skips = _steps(subject, plan, variants)
            progress.kinds[:, repeat] = [sum(step.values()) for step in (*full, *skips)]
            progress.parts[..., repeat] = [[skip.get(part, 0.0) for part in PARTS] for skip in skips]
            if keep is not None:
                keep(table())
    return table()


def _check_same(subject: Subject, earlier: xr.Dataset) -> None:
    for name, now in _coordinates(subject).items():
        if (before := earlier[name].item()) != now:
            raise ValueError(
                f"{subject.name} was measured with {name} {before} until the call was cut short, and is {now} now: ask "
                "for the same to go on, or write to another file"
            )


def _coordinates(subject: Subject) -> dict[str, Any]:
    return {"dtype": str(subject.dtype).removeprefix("torch."), "batch": subject.batch}


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "steps": plan.steps,
        "interval": plan.interval,
        "warmup_steps": plan.warmup_steps,
        "tap_mask": plan.mask,
    }


def _table(
    subject: Subject, plan: Plan, methods: Sequence[str], variants: Sequence[str], progress: Progress
) -> xr.Dataset:
    """Put what was measured of one model into a dataset."""
    passes = [mask.count("F") or np.nan for mask in progress.masks]
    names = [TAP_VARIANTS[name].kind for name in variants]
    loops, timed = (("method", "repeat"), progress.loops.copy()), (("method", "repeat"), progress.timed.copy())
    parts = ("skip", "part", "repeat"), progress.parts.copy()
    table = xr.Dataset(
        {
            "loop_seconds": (*loops, _about("wall time of a whole loop", "s")),
            "timed_loops": (*timed, _about("loops that it is the mean of")),
            "full_passes": ("method", passes, _about("full passes of the model in a loop")),
            "mask": ("method", [*progress.masks], _about("what every step of a loop did: F full, . skipped")),
            "failure": ("method", [*progress.failures], _about("why the method does not run on the model")),
            "step_seconds": (("kind", "repeat"), progress.kinds.copy(), _about("wall time of a step", "s")),
            "part_seconds": (*parts, _about("wall time within a skip step", "s")),
        },
        coords={
            "method": list(methods),
            "text": ("method", [TEXTS[method] for method in methods], _about("the method")),
            "kind": [*FULL, *names],
            "skip": names,
            "part": list(PARTS),
            "repeat": range(progress.loops.shape[1]),
        },
    )  # fmt: skip
    where = _coordinates(subject)
    about: dict[str, tuple[Any, dict[str, str]]] = {
        "label": (subject.label, _about("the model")),
        "dtype": (where["dtype"], _about("dtype of the weights")),
        "batch": (where["batch"], _about("samples in one call of the transformer")),
        "parameters": (subject.parameters, _about("parameters of the transformer")),
        "threshold": (plan.threshold, _about("threshold of First-Block Cache")),
    }
    table = table.expand_dims(model=[Path(subject.name).name])
    table = table.assign_coords({name: ("model", [value], attrs) for name, (value, attrs) in about.items()})
    return with_ratios(table.assign_attrs(_machine(subject.device), **_settings(plan)))


def with_ratios(table: xr.Dataset) -> xr.Dataset:
    """Add what follows from the measured times, repeat by repeat.

    Args:
        table: `loop_seconds` (model, method, repeat), `full_passes` (model, method), `step_seconds` (model, kind,
            repeat), `part_seconds` (model, skip, part, repeat), attribute `steps`.

    Returns:
        Also `latency_ratio`, time of the reference by that of the method; `bound`, steps by full passes, which skip
        steps that cost nothing would reach; `bound_share`, the former by the latter; `step_share` and `part_share` in
        percent of a full step without hooks.
    """
    loops, steps = table["loop_seconds"], table["step_seconds"]
    ratio = loops.sel({"method": REFERENCE}, drop=True) / loops
    bound = table.attrs["steps"] / table["full_passes"]
    full = steps.sel(kind="full", drop=True)
    added = {
        "latency_ratio": (ratio, "time of plain sampling by that of the method", "1"),
        "bound": (bound, "steps by full passes", "1"),
        "bound_share": (ratio / bound, "latency ratio by its bound", "1"),
        "step_share": (100 * steps / full, "wall time of a step, in terms of a full one without hooks", "percent"),
        "part_share": (100 * table["part_seconds"] / full, "part of a skip step, in terms of a full step", "percent"),
    }
    order = ("model", "method", "kind", "skip", "part", "repeat")
    return table.assign({
        name: values.transpose(*order, missing_dims="ignore").assign_attrs(long_name=text, units=unit)
        for name, (values, text, unit) in added.items()
    })  # fmt: skip


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _warm_up(subject: Subject, plan: Plan, methods: Sequence[str]) -> list[str]:
    """Run a loop of every method, just long enough to skip; return why some caches do not run, "" for those that do."""
    short = plan.mask.index(".") + 2
    failures = []
    for method in methods:
        variant = TAP_VARIANTS.get(method)
        failure = why_not_compiled(subject.device) if variant is not None and variant.compile else ""
        if failure:
            failures.append(failure)
            continue
        try:
            with setting_of(method, plan).attach(subject.target):
                subject.loop(min(short, plan.steps))
        except Exception as error:  # whatever a foreign package stumbles over
            if method not in THIRD_PARTY:
                raise
            failure = f"{type(error).__name__}: {error}"
        failures.append(failure)
    return failures


def _threshold(subject: Subject, plan: Plan) -> float:
    """Find the threshold with which First-Block Cache runs in full about as often as the schedule."""

    def passes(threshold: float) -> float:
        return _loop(subject, replace(plan, threshold=threshold), TUNED)[1].count("F")

    return Tuner(passes, low=0.01, high=1.0, trials=5, tolerance=1).threshold(len(plan.full))


def _loop(subject: Subject, plan: Plan, method: str) -> tuple[float, str]:
    """Time a loop: seconds, and its mask."""
    with setting_of(method, plan).attach(subject.target) as told:
        synchronize(subject.device)
        started = time.perf_counter()
        subject.loop(plan.steps)
        synchronize(subject.device)
        seconds = time.perf_counter() - started
        mask, _ = told()
    if len(mask) != plan.steps:
        raise ValueError(f"{plan.steps} steps called the model {len(mask)} times: one call a step is expected")
    return seconds, mask


def _steps(subject: Subject, plan: Plan, variants: Sequence[str]) -> tuple[tuple[Step, Step], list[Step]]:
    """Time a full step without hooks and one under TAP; the skip step of every variant by parts.

    Loops without and with TAP alternate, so that the two kinds of full steps see the same machine.
    """
    full, hooked, skips = [], [], []
    for index, name in enumerate(variants):
        for plain in (True, False) if index % 2 else (False, True):
            if plain:
                full += plain_steps(subject.target, lambda: subject.loop(len(plan.full)), subject.device)
                continue
            variant = TAP_VARIANTS[name]
            found = tap_steps(
                subject.target, lambda: subject.loop(plan.steps), subject.device,
                config=variant.config(plan), compile=variant.compile,
            )  # fmt: skip
            hooked += found["full"]
            skips.append(middle(found["skip"]))
    return (middle(full), middle(hooked)), skips


def _about(long_name: str, units: str = "1") -> dict[str, str]:
    return {"long_name": long_name, "units": units}


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "tapstudy": tapstudy.__version__,
    }


def _processor() -> str:
    """Return the processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
