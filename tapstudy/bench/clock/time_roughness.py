"""How rough a model is in time: how much of what changes from step to step is its clock alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from tapstudy.bench.clock.trajectory_differences import (
    ORDERS,
    RESIDUAL,
    Array,
    TrajectoryDifferences,
    powers,
    relative,
    wide,
)
from tapstudy.instrument.passes import QUANTITIES, FullPasses, full_passes
from tapstudy.instrument.smooth_time import smoothed_sigma
from tapstudy.recording.calls import pipeline_arguments, samples_of

OFFSETS = (0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 40.0)
# a share of the clock below this is no reason to touch the model
NEGLIGIBLE = 0.1
# Noise of variance v at every time makes 6 v in a second difference (1, -2, 1) and 70 v in a fourth (1, -4, 6, -4, 1).
SECOND_PER_FOURTH = 6 / 70


def time_roughness(
    pipe: Any,
    call: Mapping[str, Any],
    *,
    steps: Sequence[int] = (20, 28, 50),
    offsets: Sequence[float] = OFFSETS,
    places: int = 5,
    points: int = 8,
    interval: int = 8,
) -> xr.Dataset:
    """Move the timestep with the latent held fixed, and compare with what changes along real trajectories.

    The share of the clock is the part of the second difference between consecutive steps, |f(i+1) - 2 f(i) + f(i-1)|^2,
    that comes from a trembling of f in time at a fixed latent. What trembles independently at every time with variance
    v makes 6 v in a second difference and 70 v in a fourth one, of which a smooth function makes next to nothing. So
    the share is 6/70 |f(t+2h) - 4 f(t+h) + 6 f(t) - 4 f(t-h) + f(t-2h)|^2, latent fixed and h the step, over the
    former: the median over points of the trajectory, at most 1. Differences as a measure of noise: J. J. More and
    S. M. Wild, Estimating computational noise, SIAM J. Sci. Comput. 33, 2011.

    Cost in full passes, for c calls of the transformer a step (1 if guidance goes as one batch): c times
    sum(steps) + places (2 len(offsets) + 1) + 5 points len(steps); 293 c with the defaults. Memory: features of three
    passes, three residuals, and the arguments of the model at `places` + `points` steps. In half precision rounding
    trembles, too.

    Args:
        pipe: a pipeline with a supported transformer. A `smooth_time` in force is measured with it.
        call: keyword arguments of the pipeline with `seed` (see `record`), but for the number of steps.
        steps: numbers of sampling steps T, at least 6 each.
        offsets: by which the timestep is moved, in units of time, of which there are 1000 from image to noise.
        places: along the trajectory of the most steps, at which it is.
        points: of every trajectory, at which the share is measured.
        interval: N of the schedule S(N, 3) that the forecasts are made on.

    Returns:
        Over `quantity` ("probe", "residual" in hidden space, "output"), all relative to |f| there:
        `clock_change`, `clock_second_difference` (quantity, place, offset, sample): latent fixed, at `place_time`; NaN
            where t would leave 0..1000.
        `change`, `second_difference` (quantity, steps, step, sample): of the trajectory, at `time` (steps, step).
        `tremble` (quantity, steps, point, sample): what trembling makes of a second difference, at `point_step`.
        `clock_share` (quantity, steps, sample): its share.
        `forecast_error` (order, steps, sample): of Taylor forecasts of the residual on S(N, 3), along the exact
            trajectory.
        `suggested_order` (steps): that of the least error; -1 where nothing was skipped.
        `suggested_sigma` (steps): for `smooth_time`, in units of time: twice the median step, or 0 where the share of
            the residual, averaged over samples, is below 0.1.
        The attributes tell the number of full passes and the smoothing in force.

    Raises:
        TypeError: no pipeline with a supported transformer.
        RuntimeError: it runs under a policy or a cache.
        ValueError: too few steps or points, no usable `seed`, a batch that does not divide by the samples.
    """
    if not callable(pipe) or not hasattr(pipe, "scheduler"):
        raise TypeError(f"time_roughness needs a pipeline, which samples real trajectories, got {type(pipe).__name__}")
    steps = sorted(set(steps))
    if not steps or steps[0] < 6 or min(places, points, interval) < 1:
        raise ValueError(
            f"steps must be at least 6, and places, points and interval at least 1, got {steps}, {places}, {points} "
            f"and {interval}"
        )
    if not offsets or min(offsets) <= 0:
        raise ValueError(f"offsets must be above 0, got {offsets}")
    samples = samples_of(0, call)
    with full_passes(pipe) as passes:
        parts = []
        for count in steps:
            where = _spread(2, count - 3, points)
            keep = {*where, *(_spread(count // 10, count - 1 - count // 10, places) if count == steps[-1] else [])}
            run = _Run.sample(passes, pipe, call, count, TrajectoryDifferences(
                len(samples), interval=interval, keep=keep, copy=passes.kept
            ))  # fmt: skip
            parts.append(_of_trajectory(run, where, points))
        clock = _of_clock(run, _spread(count // 10, count - 1 - count // 10, places), offsets)
        total = passes.count
    if hasattr(pipe, "maybe_free_model_hooks"):
        pipe.maybe_free_model_hooks()
    found = xr.concat(parts, xr.Variable("steps", steps), join="outer", coords="minimal", compat="override")
    found = found.merge(clock).assign_coords(
        quantity=list(QUANTITIES),
        seed=("sample", [sample.seed for sample in samples]),
        label=("sample", [sample.label for sample in samples]),
    )
    for name, text in LONG_NAMES.items():
        found[name].attrs = {"long_name": text, "units": UNITS.get(name, "1")}
    found.attrs = {
        "title": "roughness in time of a diffusion transformer",
        "full_passes": total,
        "smooth_time": smoothed_sigma(pipe),
        "interval": interval,
        "call": json.dumps(dict(call), sort_keys=True, default=str),
    }
    return found


LONG_NAMES = {
    "clock_change": "relative change when only the timestep moves",
    "clock_second_difference": "relative second difference when only the timestep moves",
    "change": "relative change from the step before",
    "second_difference": "relative second difference over three steps",
    "tremble": "relative second difference that trembling in time makes",
    "clock_share": "share of the clock in the second difference of a step",
    "forecast_error": "relative error of Taylor forecasts of the residual",
    "suggested_order": "order of the least forecast error",
    "suggested_sigma": "width of a low-pass of the clock to begin with",
    "time": "time, of which there are 1000 from image to noise",
    "place_time": "time at which the latent is held",
    "offset": "by which the time is moved",
    "point_step": "step at which trembling was measured, -1 where it was not",
    "steps": "sampling steps",
    "step": "step in sampling order",
}
TIME = "1/1000 of the training times"
UNITS = dict.fromkeys(("suggested_sigma", "time", "place_time", "offset"), TIME)


class _Run(NamedTuple):
    """Hold a sampled trajectory, and one unit of time as its model is told it."""

    passes: FullPasses
    differences: TrajectoryDifferences
    unit: float

    @classmethod
    def sample(
        cls, passes: FullPasses, pipe: Any, call: Mapping[str, Any], count: int, differences: TrajectoryDifferences
    ) -> _Run:
        arguments = pipeline_arguments({"output_type": "latent", **call, "num_inference_steps": count})
        passes.run(lambda: pipe(**arguments), differences.add)
        # models are told times from 0 to 1000 or from 0 to 1
        return cls(passes, differences, 1e-3 if differences.timesteps.max() <= 1 else 1.0)

    @property
    def times(self) -> Array:
        """Return (step,), in units of time."""
        return self.differences.timesteps / self.unit

    def moved(self, step: int, groups: Sequence[tuple[Sequence[float], Sequence[Sequence[float]]]]) -> list[Array]:
        """Return combinations of features at a step's latent and moved times, relative to those at its own time.

        Args:
            groups: each offsets in units of time, and rows of weights: of the features at the step's own time, then at
                each offset.

        Returns:
            For each group (row, quantity, sample).
        """
        samples = self.differences.samples
        sums = [np.zeros((len(rows), len(QUANTITIES), samples)) for _, rows in groups]
        of = np.zeros((len(QUANTITIES), samples))
        for one in self.differences.kept[step]:
            centre = wide(self.passes.again(one, 0.0))
            of += powers(centre, samples)
            for total, (offsets, rows) in zip(sums, groups, strict=True):
                features = [centre, *(wide(self.passes.again(one, offset * self.unit)) for offset in offsets)]
                for index, row in enumerate(rows):
                    combined = [
                        sum(weight * feature for weight, feature in zip(row, parts, strict=True))
                        for parts in zip(*features, strict=True)
                    ]
                    total[index] += powers(combined, samples)
        return [relative(total, of) for total in sums]


def _spread(first: int, last: int, count: int) -> list[int]:
    """Spread at most `count` steps from `first` to `last`."""
    return sorted({round(step) for step in np.linspace(first, last, count).tolist()})


def _of_trajectory(run: _Run, where: Sequence[int], points: int) -> xr.Dataset:
    """Tell what depends on the number of steps; trembling at the steps `where`."""
    times, second = run.times, run.differences.second_differences()
    tremble = np.full((len(QUANTITIES), points, run.differences.samples), np.nan)
    beside = tremble.copy()  # what the trajectory does at the same steps
    taken = np.full(points, -1)
    for point, step in enumerate(where):
        if not 0 < step < len(times) - 1 or np.isnan(second[:, step]).any():
            continue  # the pipeline made fewer passes, or changed the transformer
        h = min(abs(times[step + 1] - times[step - 1]) / 2, times[step] / 2, (1000 - times[step]) / 2)
        if h > 0:
            fourth = ((h, -h, 2 * h, -2 * h), ((6.0, -4.0, -4.0, 1.0, 1.0),))
            taken[point], beside[:, point] = step, second[:, step]
            tremble[:, point] = np.sqrt(SECOND_PER_FOURTH) * run.moved(step, [fourth])[0][0]
    if (taken < 0).all():
        raise ValueError(f"none of the steps {list(where)} has a step before and behind: take more sampling steps")
    share = np.minimum(np.nanmedian(relative(tremble**2, beside**2) ** 2, axis=1), 1)  # (quantity, sample)
    errors = run.differences.forecast_errors()
    gaps = np.abs(np.diff(times))
    rough = share[RESIDUAL].mean() >= NEGLIGIBLE
    return xr.Dataset(
        {
            "time": ("step", times),
            "change": (("quantity", "step", "sample"), run.differences.changes()),
            "second_difference": (("quantity", "step", "sample"), second),
            "point_step": ("point", taken),
            "tremble": (("quantity", "point", "sample"), tremble),
            "clock_share": (("quantity", "sample"), share),
            "forecast_error": (("order", "sample"), errors),
            "suggested_order": ((), -1 if np.isnan(errors).any() else int(errors.mean(axis=1).argmin())),
            "suggested_sigma": ((), round(2 * float(np.median(gaps[gaps > 0]))) if rough else 0),
        },
        {"order": list(ORDERS), "step": np.arange(len(times))},
    )


def _of_clock(run: _Run, places: Sequence[int], offsets: Sequence[float]) -> xr.Dataset:
    """Change and second difference with the latent held fixed."""
    places = [step for step in places if step in run.differences.kept]
    times = run.times[places]
    found = np.full((2, len(QUANTITIES), len(places), len(offsets), run.differences.samples), np.nan)
    for place, step in enumerate(places):
        inside = [i for i, offset in enumerate(offsets) if offset <= times[place] <= 1000 - offset]
        rows = ((-1.0, 1.0, 0.0), (-2.0, 1.0, 1.0))
        groups = [((offsets[i], -offsets[i]), rows) for i in inside]
        for i, values in zip(inside, run.moved(step, groups), strict=True):
            found[:, :, place, i] = values  # (change and second difference, quantity, sample)
    dims = ("quantity", "place", "offset", "sample")
    return xr.Dataset(
        {"clock_change": (dims, found[0]), "clock_second_difference": (dims, found[1])},
        {"place_time": ("place", times), "offset": list(offsets)},
    )
