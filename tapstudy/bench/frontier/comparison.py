"""All methods on one model in one run: cost against closeness to the unaccelerated images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.stats import BOUNDS, interval_where_finite, paired_interval
from tapstudy.bench.engine import Setting, kept, measure_costs
from tapstudy.bench.fit.held_out import OPTIONS, SCHEDULES, USUAL, HeldOut, Slot
from tapstudy.bench.frontier.distance import distribution_distance
from tapstudy.bench.image_error import MASK, MEASURES, measures
from tapstudy.bench.image_set import pipe_of, weights_fingerprint
from tapstudy.bench.judge import Judge
from tapstudy.bench.methods import CORE, OWN, SEARCHED, Kind, Method, compared_methods
from tapstudy.bench.plan import FrontierPlan
from tapstudy.bench.results import Results, short_hash
from tapstudy.models.embedded import small_sibling
from tapstudy.policies.config import TAPConfig

EVERYWHERE = ("start-dense",)  # run at every number of passes, as S(N, 3) is; other schedules at the fewest only
REFERENCE = "reference"
VARIABLES = {
    **MEASURES,
    "flops": ("FLOPs of one image (multiply-add = 2, matrix products, convolutions and attention)", "1"),
    "seconds": ("wall time of one image, of the first test image: median of repeats, all methods in one run", "s"),
    "cache_bytes": ("largest history of one image, both guidance branches", "bytes"),
}


@dataclass(frozen=True)
class Row:
    """Hold one cell: a method on a schedule, at a number of full passes."""

    method: str
    kind: Kind
    passes: int
    interval: int
    schedule: str

    @property
    def name(self) -> str:
        """Return "tap N=8", or on another schedule "tap even N=8"; N is that of S(N, 3) with as many full passes."""
        if self.method == REFERENCE:
            return REFERENCE
        on = "" if self.schedule in (USUAL, OWN) else f" {self.schedule}"
        return f"{self.method}{on} N={self.interval}"


def frontier(
    plan: FrontierPlan,
    folder: str | Path,
    *,
    methods: Sequence[str] = (),
    schedules: Sequence[str] = (),
    thorough: bool = False,
    repeats: int = 3,
    progress: bool = True,
) -> xr.Dataset:
    """Run every method at every number of full passes, and the reference.

    Args:
        plan: images, numbers of passes, held-out images.
        folder: keeps the results, method by method and seed by seed; the same call resumes. A plan has its
            own, but methods and passes may differ from call to call.
        methods: names from `METHODS`; all by default.
        schedules: to run beside S(N, 3) and those that methods bring along; all by default.
        thorough: run all of them at every number of passes, not only those in `CORE` and what is named.
        repeats: of the measurement of the wall time.
        progress: show bars.

    Returns:
        Dims `cell` ("tap N=8") and `sample`; `VARIABLES` and `mask` (cell, sample); `seconds_each` (cell, repeat);
        `distance`, `distance_error` (cell) to the reference as a distribution, and `held_out_psnr` (cell), see
        `choose_schedules`; with bounds mean, low, high (95 % over images) `psnr_interval`, and paired by image
        `gain_over_tap` (TAP on S(N, 3) with as many passes) and `gain_over_best_fixed` (the single predictor chosen on
        held-out images, on the same schedule, or on S(N, 3) for methods with a schedule of their own). Coordinates on
        cell: `method`, `kind`, `passes` (asked for), `interval`, `schedule`, `setting` (in full), `error` (why a method
        has no values), `chosen` (the schedule of the method that is best on held-out images).

    Raises:
        ValueError: unknown methods or schedules, methods asked for that this model lacks something for, a folder of
            another plan or of other weights, an invalid plan.
        FileNotFoundError: no such model.
    """
    wanted = compared_methods(methods)
    lacking = {method.name: reason for method in wanted if (reason := method.lacks(plan.model))}
    if methods and lacking:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in lacking.items()))
    pipe = pipe_of(plan.model)
    results = Results(folder)
    results.belongs_to(_told(plan))
    held = HeldOut(pipe, plan, results, progress=progress)
    runs: dict[Row, xr.Dataset] = {}
    settings: dict[Row, Setting] = {}
    errors: dict[Row, str] = {}
    plans = rows_of(plan, wanted, thorough=thorough or bool(methods), schedules=schedules)
    for row, method in tqdm(plans.items(), desc="frontier", unit="cell", disable=not progress):
        if row.method in lacking:
            errors[row] = lacking[row.method]
            continue
        try:
            setting = Setting.plain(plan.steps) if method is None else method.on(_slot(held, row, method))
            runs[row] = kept((plan.test, setting), results, pipe=pipe)
            settings[row] = setting
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, ImportError) as error:
            if row.kind != "peer":
                raise
            errors[row] = f"{type(error).__name__}: {error}"  # what other people's code cannot do is a result
    timed = {cost_name(row, settings): settings[row] for row in settings if cost_name(row, settings) == row.name}
    told = {"repeats": repeats, **{name: setting.text for name, setting in timed.items()}}
    costs = results.dataset(  # measured anew as a whole: one run for all rows
        f"costs-{short_hash(told)}",
        told,
        lambda: measure_costs(pipe, plan.test[:1], timed, repeats=repeats, progress=progress),
    )
    costs = costs.sel(cell=[cost_name(row, settings) for row in settings])
    costs = costs.assign_coords(cell=[row.name for row in settings])
    table = assemble(plan, list(plans), runs, costs, errors)
    texts = [settings[row].text if row in settings else "" for row in plans]
    table = table.assign_coords(setting=("cell", np.array(texts, dtype=object)))
    return compared(table.assign(held_out_psnr=("cell", _held_out_psnr(held, settings, list(plans)))))


def rows_of(
    plan: FrontierPlan, methods: Sequence[Method], *, thorough: bool = False, schedules: Sequence[str] = ()
) -> dict[Row, Method | None]:
    """Return the reference, then every method on its schedules; further schedules at the fewest passes only.

    Args:
        thorough: all methods at every number of passes, not only those in `CORE`.
        schedules: which ones beside S(N, 3) and the methods' own; all by default.

    Raises:
        ValueError: an unknown schedule.
    """
    further = [*SCHEDULES[1:], SEARCHED]
    if unknown := [name for name in schedules if name not in further]:
        raise ValueError(f"no schedule {', '.join(unknown)}: there are {', '.join(further)}")
    kept_schedules = (USUAL, OWN, *(schedules or further))
    rows: dict[Row, Method | None] = {Row(REFERENCE, "control", plan.steps, 1, OWN): None}
    for passes in plan.passes:
        for method in methods:
            if not (thorough or method.name in CORE or passes == min(plan.passes)):
                continue
            for schedule in (name for name in method.schedules if name in kept_schedules):
                if schedule in (USUAL, OWN, *EVERYWHERE) or passes == min(plan.passes):
                    rows[Row(method.name, method.kind, passes, plan.interval(passes), schedule)] = method
    return rows


def cost_name(row: Row, settings: Mapping[Row, Setting]) -> str:
    """Return the row whose cost this one has: the same method with as many passes on S(N, 3), if it is of one kind."""
    usual = replace(row, schedule=USUAL)
    return (usual if usual in settings and settings[usual].kind == settings[row].kind else row).name


def _slot(held: HeldOut, row: Row, method: Method) -> Slot:
    if row.schedule in (USUAL, OWN):
        config = TAPConfig(interval=row.interval)
    elif row.schedule == SEARCHED:

        def make(schedule: str, mask: tuple[int, ...]) -> Setting:
            return method.on(Slot(held, row.passes, schedule, TAPConfig(full_steps=mask)))

        config = TAPConfig(full_steps=held.searched_mask(row.method, row.passes, make))
    else:
        config = TAPConfig(full_steps=held.mask(row.schedule, row.passes))
    return Slot(held, row.passes, row.schedule, config)


def _held_out_psnr(held: HeldOut, settings: Mapping[Row, Setting], rows: Sequence[Row]) -> list[float]:
    """Measure on the tuning images methods that are run on several schedules at this number of passes; else NaN."""
    found = []
    for row in rows:
        others = [other for other in settings if (other.method, other.passes) == (row.method, row.passes)]
        if len(others) < 2 or row not in settings:
            found.append(np.nan)
            continue
        found.append(held.kept_quality(row.name.replace(" ", "_"), settings[row]))
    return found


def assemble(
    plan: FrontierPlan,
    rows: Sequence[Row],
    runs: Mapping[Row, xr.Dataset],
    costs: xr.Dataset,
    errors: Mapping[Row, str],
) -> xr.Dataset:
    """Return the table of `frontier`, from images and costs."""
    exact = torch.from_numpy(runs[rows[0]]["image"].values)  # (B, band, row, column)
    judge = Judge.of(plan.model)
    assert judge is not None  # only embedded models are compared in this way
    features = judge.features(exact)
    values = {name: np.full((len(rows), len(exact)), np.nan) for name in VARIABLES}
    masks = np.full((len(rows), len(exact)), "", dtype=object)
    distances = np.full((len(rows), 2), np.nan)
    each = np.full((len(rows), costs.sizes["repeat"]), np.nan)
    measure = ""
    for i, row in enumerate(rows):
        if row not in runs:
            continue
        run, cost = runs[row], costs.sel(cell=row.name)
        images = torch.from_numpy(run["image"].values)
        masks[i] = run["mask"].values
        for name, found in measures(run, runs[rows[0]], judge).items():
            values[name][i] = found
        full, steps = values["full_passes"][i], np.array([len(mask) for mask in masks[i]])
        values["flops"][i] = full * float(cost["flops_full"]) + (steps - full) * float(cost["flops_skip"])
        values["seconds"][i] = float(cost["seconds"])
        values["cache_bytes"][i] = run["cache_bytes"].values
        each[i] = cost["seconds_each"].values
        if len(exact) > 2:
            *distances[i], measure = distribution_distance(judge.features(images), features)
    return xr.Dataset(
        {
            name: (("cell", "sample"), values[name], {"long_name": long_name, "units": units})
            for name, (long_name, units) in VARIABLES.items()
        }
        | {
            "mask": (("cell", "sample"), masks, {"long_name": MASK}),
            "seconds_each": (("cell", "repeat"), each, {"long_name": "wall time of one image", "units": "s"}),
            "distance": ("cell", distances[:, 0], {"long_name": f"{measure} to the reference", "units": "1"}),
            "distance_error": ("cell", distances[:, 1], {"long_name": "its jackknife standard error", "units": "1"}),
        },
        coords={
            "cell": [row.name for row in rows],
            **{name: ("cell", [getattr(row, name) for row in rows])
               for name in ("method", "kind", "passes", "interval", "schedule")},
            "error": ("cell", np.array([errors.get(row, "") for row in rows], dtype=object)),
            "seed": ("sample", plan.test.seeds),
            "label": ("sample", plan.test.texts),
        },
        attrs={"plan": json.dumps(asdict(plan)), "weights": weights_fingerprint(plan.model)},
    )  # fmt: skip


def compared(table: xr.Dataset) -> xr.Dataset:
    """Add intervals over images, paired differences, and the schedule chosen for every method."""
    finite = np.isfinite(table["psnr"].values)
    own = interval_where_finite(table["psnr"])
    names = [table[name].values.tolist() for name in ("method", "schedule", "passes")]
    keys = list(zip(*names, strict=True))
    gains = {"gain_over_tap": "tap", "gain_over_best_fixed": "best-fixed"}
    found = {name: np.full((len(keys), 3), np.nan) for name in gains}
    for i, (_, schedule, passes) in enumerate(keys):
        for name, baseline in gains.items():
            on = USUAL if name == "gain_over_tap" or schedule in (OWN, SEARCHED) else schedule
            key = (baseline, on, passes)
            if key in keys and finite[i].all() and finite[keys.index(key)].all():
                found[name][i] = paired_interval(table["psnr"].values[i], table["psnr"].values[keys.index(key)])
    texts = {
        "gain_over_tap": "PSNR minus that of TAP on S(N, 3)",
        "gain_over_best_fixed": "PSNR minus that of the fixed predictor chosen on held-out images, same schedule",
    }
    variables: dict[str, Any] = {
        name: (("cell", "bound"), values, {"long_name": texts[name], "units": "dB"}) for name, values in found.items()
    }
    variables["psnr_interval"] = own.assign_attrs(long_name="PSNR to the reference, 95 % over images", units="dB")
    return table.assign(variables).assign_coords(bound=BOUNDS, chosen=("cell", choose_schedules(table)))


def choose_schedules(table: xr.Dataset) -> list[bool]:
    """Tell whether a cell's schedule is, by `held_out_psnr`, the best of its method with as many passes.

    None of them is where one of several was not measured: NaN compares with nothing.
    """
    quality, methods, passes = (table[name].values for name in ("held_out_psnr", "method", "passes"))
    alike = [np.flatnonzero((methods == methods[i]) & (passes == passes[i])) for i in range(len(quality))]
    return [
        bool(np.isfinite(quality[rows]).all() and i == rows[quality[rows].argmax()]) for i, rows in enumerate(alike)
    ]


def _told(plan: FrontierPlan) -> dict[str, Any]:
    """Tell what the results in a folder depend on; numbers of passes may be added later."""
    told = json.loads(json.dumps(asdict(plan))) | {"weights": weights_fingerprint(plan.model)}
    if (small := small_sibling(plan.model)) is not None:
        told["small"] = weights_fingerprint(small)
    told.pop("passes")
    told["options"] = OPTIONS
    return dict(told)
