"""Everything that is fitted or chosen, on held-out images only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.analysis.schedules import best_mask, end_dense_mask, even_mask, start_dense_mask, step_gram
from tapstudy.analysis.stats import EQUAL_IMAGES
from tapstudy.bench.engine import Setting, run
from tapstudy.bench.fit.amplification import measure_amplification
from tapstudy.bench.fit.masks import best_window_mask, dpcache_mask, lemica_mask
from tapstudy.bench.fit.tuning import Tuner, best_of, improve_mask
from tapstudy.bench.image_error import psnr
from tapstudy.bench.plan import StudyPlan
from tapstudy.bench.results import Results
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.policies.base import ResidualSite
from tapstudy.policies.calibrated import CalibratedPolicy, fit_rows
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.recording.record import record

Mask = tuple[int, ...]
SITES: tuple[ResidualSite, ...] = ("hidden", "latent", "output")
FIXED = [(0, 0), *((order, shift) for order in (1, 2) for shift in range(5))]  # the distinct ones of TAP's family
TRIALS = 40  # masks in a search
FEW = 2  # images on which the growth of errors is measured
ROWS = [(site, anchors) for site in SITES[:2] for anchors in (2, 3)]
SIGMAS = (10.0, 20.0, 30.0, 40.0, 60.0)
USUAL = "S(N,3)"
SCHEDULES = (
    USUAL, "even", "start-dense", "end-dense", "dp-order1", "dp-best", "window-order1-latent", "window-fitted-hidden",
    "growth-order1-latent", "growth-fitted-hidden", "lemica", "dpcache",
)  # fmt: skip
# what is chosen from: results that were chosen from anything else are others
OPTIONS = {"schedules": SCHEDULES, "sigmas": SIGMAS, "fixed": FIXED, "rows": ROWS, "trials": TRIALS}
SCHEDULE_TITLES = {  # of those that the comparison is usually run on
    "even": "evenly spaced", "start-dense": "dense at the start", "window-fitted-hidden": "fitted steps",
    "lemica": "LeMiCa's steps", "dpcache": "DPCache's steps",
}  # fmt: skip


class HeldOut:
    """Tell what methods are fitted to and chosen on: worked out when asked for, and kept where it takes the model.

    Args:
        pipe: with the plan's model, without a policy.
        results: of this plan.
        progress: show bars.
    """

    def __init__(self, pipe: EmbeddedPipeline, plan: StudyPlan, results: Results, *, progress: bool = True) -> None:
        self.pipe, self.plan, self.results, self.progress = pipe, plan, results, progress
        self._tuners: dict[str, Tuner] = {}

    # What is recorded

    @cached_property
    def recording(self) -> xr.Dataset:
        """Return exact trajectories of the held-out images that are fitted to."""
        return record(
            self.pipe, [batch.call for batch in self.plan.fitted_to.batches()],
            self.results.folder / "held-out.zarr", fields=("probe", "residual", "latent", "latent_residual"),
            model=self.plan.model, progress=self.progress,
        )  # fmt: skip

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Return the lengths of the solver's steps, (step,)."""
        return np.asarray(np.diff(self.recording["sigma"].values.astype(np.float64), append=0.0))

    @cache  # noqa: B019 (one object per run)
    def gram(self, site: ResidualSite) -> NDArray[np.float64]:
        """Average inner products of the steps as shares of a trajectory's mean square over trajectories, (step, step).

        In latent space of what guidance makes of both branches, which is what the solver sees.
        """
        if site == "hidden":
            features = self.recording["residual"]
        else:
            features = self._guided(self.recording["latent_residual"]).rename(latent_channel="channel")
            if site == "output":  # the input is the same in both branches
                features = features + self.recording["latent"].isel(context=0).rename(latent_channel="channel")
        found = step_gram(features).values.reshape(-1, self.plan.steps, self.plan.steps)
        size = np.trace(found, axis1=1, axis2=2) / self.plan.steps  # (trajectory,)
        return np.asarray((found / size[:, None, None]).mean(axis=0))

    def _guided(self, values: xr.DataArray) -> xr.DataArray:
        if values.sizes["context"] == 1:
            return values.isel(context=0)
        free, guided = (values.sel(context=name, drop=True) for name in ("uncond", "cond"))
        scale = self.pipe.guidance_at(torch.from_numpy(values["timestep"].values), self.plan.guidance)
        return free + values["timestep"].copy(data=scale.numpy()) * (guided - free)

    @cached_property
    def amplification(self) -> NDArray[np.float64]:
        """Tell by how much an error of the state after each step grows until the end, (step,)."""

        def make() -> list[float]:
            velocities = self._guided(self.recording["latent_residual"].isel(sample=slice(FEW)))
            values = velocities.transpose("sample", "step", ...).values.astype(np.float64)
            found = measure_amplification(
                self.pipe, self.plan.fitted_to[: len(values)], values.reshape(*values.shape[:2], -1),
                lengths=self.lengths,
            )  # fmt: skip
            return [float(value) for value in found]

        return np.array(self.value("amplification", make))

    def features(self, name: str, *, samples: int | None = None) -> list[Tensor]:
        """Return a recorded variable at every step, (samples * contexts, token, channel) each."""
        values = self.recording[name].isel(sample=slice(samples))
        if "depth" in values.dims:
            values = values.isel(depth=0)
        found = torch.from_numpy(values.transpose("step", "sample", "context", "token", ...).values)
        return list(found.flatten(1, 2))

    # What is chosen

    @cached_property
    def exact(self) -> Tensor:
        """Return the tuning images without acceleration, (B, band, row, column)."""
        plain = Setting.plain(self.plan.steps)
        found = self.results.dataset("tuning", plain.text, lambda: run(self.pipe, self.plan.tuned_on, plain))
        return torch.from_numpy(found["image"].values)

    def quality(self, setting: Setting) -> float:
        """Return the mean PSNR over the tuning images."""
        found = torch.from_numpy(run(self.pipe, self.plan.tuned_on, setting)["image"].values)
        return float(psnr(found, self.exact, data_range=1.0).clamp(max=EQUAL_IMAGES).mean())

    def kept_quality(self, name: str, setting: Setting) -> float:
        """Return what `quality` returns, kept under a name."""
        return float(self.value(f"quality-{name}", lambda: self.quality(setting)))

    def choose(self, name: str, options: Callable[[], dict[str, Setting]]) -> str:
        """Return the option of the highest quality."""
        return best_of(self.value(name, lambda: {key: self.quality(setting) for key, setting in options().items()}))

    def threshold(self, name: str, make: Callable[[float], Setting], passes: int, *, low: float = 1e-4) -> float:
        """Return the threshold at which the tuning images take `passes` full passes, about."""

        def passes_of(threshold: float) -> float:
            masks = run(self.pipe, self.plan.tuned_on, make(threshold))["mask"].values
            return float(np.mean([mask.count("F") for mask in masks]))

        tuner = self._tuners.setdefault(name, Tuner(passes_of, low=low))
        return float(self.value(f"{name}-{passes}", lambda: tuner.threshold(passes)))

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a plain value that takes the model to find out, kept under its name."""
        return self.results.value(f"chosen/{name}", None, make)

    def mask(self, schedule: str, passes: int) -> Mask:
        """Return the full steps of one of `SCHEDULES`, `passes` of them.

        "dp-order1" and "dp-best" are `best_mask` for order 1, and for the best member of TAP's family at every step;
        "window-..." are `best_window_mask`, for order 1 or fitted rows, by the hidden or the latent residual, and
        "growth-..." the same with the growth of errors taken into account. "lemica" and "dpcache" are named after their
        sources.

        Raises:
            ValueError: no such schedule.
        """
        plan = self.plan
        if schedule == USUAL:
            return plan.usual_mask(plan.interval(passes))
        named = {"even": even_mask, "start-dense": start_dense_mask, "end-dense": end_dense_mask}
        if schedule in named:
            return named[schedule](plan.steps, passes)
        if schedule not in SCHEDULES:
            raise ValueError(f"no schedule {schedule!r}: there are {', '.join(SCHEDULES)}")
        return tuple(
            self.value(f"mask-{schedule}-{passes}", lambda: [int(step) for step in self._searched(schedule, passes)])
        )

    def _searched(self, schedule: str, passes: int) -> Sequence[int]:
        if schedule.startswith("dp-"):
            order: Literal[1, "best"] = 1 if schedule == "dp-order1" else "best"
            found: list[int] = best_mask(self.recording, passes, order=order)["full_steps"].values.tolist()
            return found
        if schedule == "lemica":
            return lemica_mask(self.gram("latent"), self.lengths, passes, self.amplification)
        if schedule == "dpcache":
            return dpcache_mask(self.gram("hidden"), passes)
        kind, rows, site = schedule.split("-")
        return best_window_mask(
            self.gram(SITES[site == "latent"]),
            self.lengths,
            passes,
            amplification=self.amplification if kind == "growth" else None,
            family=TaylorFamily(orders=(1,), shifts=(0,)) if rows == "order1" else None,
        )

    def best_schedule(self, passes: int) -> str:
        """Return the one of `SCHEDULES` with so many full passes that is best for order 1 on the tuning images."""

        def options() -> dict[str, Setting]:
            masks = {name: self.mask(name, passes) for name in SCHEDULES}
            return {name: Setting.of(FixedPolicy(1, config=TAPConfig(full_steps=mask))) for name, mask in masks.items()}

        return self.choose(f"schedule-{passes}", options)

    @property
    def best_sigma(self) -> float:
        """Return the one of `SIGMAS` with which TAP on S(8, 3) is closest to the unsmoothed tuning images."""
        tap = Setting.of(TAPPolicy())
        return float(self.choose("sigma", lambda: {f"{sigma:g}": tap.on_smooth_clock(sigma) for sigma in SIGMAS}))

    def searched_mask(self, method: str, passes: int, make: Callable[[str, Mask], Setting]) -> Mask:
        """Return the one of `SCHEDULES` that is best for a method on the tuning images, improved on them.

        Args:
            make: the method's setting on a mask, given a name of it.
        """

        def quality(mask: Mask) -> float:
            return self.quality(make("searched", mask))

        def search() -> Mask:
            options = {name: self.mask(name, passes) for name in SCHEDULES}
            start = best_of({name: self.quality(make(name, mask)) for name, mask in options.items()})
            return improve_mask(options[start], self.plan.steps, quality, trials=TRIALS)

        return tuple(self.value(f"mask-searched-{method}-{passes}", search))

    def best_fixed(self, config: TAPConfig, name: str) -> tuple[int, float]:
        """Order and shift of the single predictor of TAP's family that does best on the tuning images."""
        found = self.choose(
            f"best-fixed-{name}",
            lambda: {f"{m} {s}": Setting.of(FixedPolicy(m, s, config=config)) for m, s in FIXED},
        )
        order, shift = found.split()
        return int(order), int(shift)

    def fitted(self, mask: Mask, name: str) -> CalibratedPolicy:
        """Return fitted rows, with the residual and the number of anchors that do best on the tuning images."""

        def policy(site: ResidualSite, anchors: int) -> CalibratedPolicy:
            gram = torch.from_numpy(self.gram(site))
            return CalibratedPolicy(fit_rows(gram, mask, num_anchors=anchors), TAPConfig(residual=site))

        found = self.choose(
            f"rows-{name}", lambda: {f"{site} {anchors}": Setting.of(policy(site, anchors)) for site, anchors in ROWS}
        )
        index = [f"{site} {anchors}" for site, anchors in ROWS].index(found)
        return policy(*ROWS[index])


@dataclass(frozen=True)
class Slot:
    """Hold a schedule with so many full passes, and what a method may be fitted to.

    Attributes:
        held_out: what may be fitted and chosen on.
        passes: number of full passes.
        schedule: its name.
        config: with the schedule and all else at its default.
    """

    held_out: HeldOut
    passes: int
    schedule: str
    config: TAPConfig

    @property
    def mask(self) -> tuple[int, ...]:
        """Return the full steps."""
        return self.config.schedule.steps(self.steps)

    @property
    def steps(self) -> int:
        """Return the number of steps T."""
        return self.held_out.plan.steps

    def threshold(self, name: str, make: Callable[[float], Setting], *, low: float = 1e-4) -> float:
        """Return the threshold at which the tuning images take `passes` full passes, about."""
        return self.held_out.threshold(name, make, self.passes, low=low)

    @property
    def name(self) -> str:
        """Return a name for files."""
        return f"{self.schedule}-{self.passes}"
