"""The runs that the claims compare, by what they are: "tap N=8", "order1 even", "tap N=8 +hermite"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tapstudy.analysis.claims.measure import Ranked
from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.held_out import HeldOut, Slot
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.methods import find_method
from tapstudy.bench.plan import StudyPlan
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.chebyshev import Chebyshev
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.least_squares import LeastSquares
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.union import Union

INTERVALS = (4, 6, 8)
SMALL_INTERVALS = (2, 3)
MASKS = ("even", "start-dense", "best")
RUN_DEPTHS = (1, 2, 4)  # probes deeper than the first block; those in between are only ranked
SMOOTH = 2  # steps: sigma of the smoothed clock

# methods of `bench.methods` at every interval and on every mask, also on a smoothed clock, and at intervals only
ALL_PLACES = ("order0", "order1", "order2", "best-fixed", "tap", "step", "shuffled", "step-table")
AT_INTERVALS = ("fewer", "random")
SMOOTHED = ("order0", "order1", "order2", "tap")
FAMILIES = {
    "least-squares": LeastSquares(), "hermite": HermiteFamily(orders=(1, 2)), "chebyshev": Chebyshev(),
}  # fmt: skip
ORACLES = {  # name -> what is chosen by, and who chooses together
    "oracle": {},
    "oracle-step": {"granularity": "step"},
    "oracle-output": {"residual": "latent"},
    "oracle-output-step": {"residual": "latent", "granularity": "step"},
}
# TAP with other settings
VARIANTS: dict[str, dict[str, Any]] = {
    "tap N=8 l2": {"distance": "l2"},
    "tap N=8 l1": {"distance": "l1"},
    "tap N=4 l2": {"distance": "l2", "interval": 4},
    **{f"tap N=8 orders={name}": {"orders": tuple(map(int, name.split("+")))}
       for name in ("1+2", "0+2", "0+1", "1", "2")},
    **{f"tap N=8 lambda={most}": {"shifts": tuple(range(most + 1))} for most in (0, 2, 6)},
    "tap N=8 delta=0.5": {"shifts": tuple(shift / 2 for shift in range(9))},
    "tap N=8 delta=0.1": {"shifts": tuple(shift / 10 for shift in range(41))},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan(StudyPlan):
    """Tell what is run for the claims; further arguments as of `StudyPlan`.

    Args:
        few: so many of the test seeds serve for what is costly: recordings, oracles, small intervals.
        depths: blocks of further probes.
        fine_steps: of a second, finer reference, on the images of `few`; 0: none.
        untrained: so many models of random weights are the control of training.

    Raises:
        ValueError: fewer seeds than `few`, fewer than two labels.
    """

    seeds: tuple[int, ...] = (31, 32, 33, 34, 35, 36)
    few: int = 2
    depths: tuple[int, ...] = (1, 2, 4, 7)
    fine_steps: int = 400
    untrained: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.labels) < 2:
            raise ValueError(f"Plan: intervals over images need at least two labels, got {self.labels}")
        if not 1 <= self.few <= len(self.seeds):
            raise ValueError(f"Plan: needs at least {self.few} test seeds, got {self.seeds}")

    @property
    def few_images(self) -> ImageSet:
        """Return the test images that serve for what is costly: the first ones."""
        return self.images(self.seeds[: self.few])

    @property
    def passes(self) -> int:
        """Return the number of full steps at N = 8."""
        return len(self.usual_mask(8))

    @property
    def sigma(self) -> float:
        """Return the width of the smoothed clock, in units of time: that of two steps."""
        return SMOOTH * 1000 / self.steps


@dataclass(frozen=True)
class Run:
    """Hold one run of the claims.

    Attributes:
        method: of `bench.methods`.
        on: "N=8", or one of `MASKS`, with as many full steps.
        changes: settings of TAPConfig.
        few: on the costly images only.
        smooth: on a smoothed clock.
    """

    method: str
    on: str = "N=8"
    changes: Mapping[str, Any] = field(default_factory=dict)
    few: bool = False
    smooth: bool = False

    def setting(self, held: HeldOut, plan: Plan) -> Setting:
        """Tell how its images are sampled."""
        sigma = plan.sigma if self.smooth else 0.0
        if self.method == "reference":
            return Setting.plain(plan.steps).on_smooth_clock(sigma)
        if self.on in MASKS:
            schedule = held.best_schedule(plan.passes) if self.on == "best" else self.on
            config = TAPConfig(full_steps=held.mask(schedule, plan.passes))
        else:
            schedule, config = f"S({self.on[2:]},3)", TAPConfig(interval=int(self.on[2:]))
        config = replace(config, **self.changes)
        slot = Slot(held, len(config.schedule.steps(plan.steps)), schedule, config)
        return find_method(self.method).on(slot).on_smooth_clock(sigma)


def claim_runs(plan: Plan) -> dict[str, Run]:
    """Return all runs on the test images, the reference first."""
    runs = {"reference": Run("reference"), "reference smooth": Run("reference", smooth=True)}

    def add(name: str, method: str, on: str = "N=8", **more: Any) -> None:
        runs[name] = Run(method, on, **more)

    for on in (*(f"N={n}" for n in INTERVALS), *MASKS):
        for method in ALL_PLACES:
            add(f"{method} {on}", method, on)
        for method in SMOOTHED:
            add(f"{method} {on} smooth", method, on, smooth=True)
        for method in AT_INTERVALS if on not in MASKS else ():
            add(f"{method} {on}", method, on, few=on != "N=8")
    for n in SMALL_INTERVALS:
        for method in ("tap", "best-fixed"):
            add(f"{method} N={n}", method, f"N={n}", few=True)
    add("oracle N=4", "oracle", "N=4", few=True)
    for name, changes in ORACLES.items():
        add(f"{name} N=8", "oracle", changes=changes, few=True)
    for method in ("order1", "tap", "step"):
        add(f"{method}-output N=8", method, changes={"residual": "latent"})
    add("step-table-output N=8", "step-table-output")
    for name, changes in VARIANTS.items():
        settings = dict(changes)
        add(name, "tap", f"N={settings.pop('interval', 8)}", changes=settings)
    for depth in plan.depths:
        if depth in RUN_DEPTHS:
            add(f"tap N=8 depth={depth}", "tap", changes={"probe_depth": depth})
    for name in (*FAMILIES, "dmd"):
        add(f"tap N=8 +{name}", f"tap+{name}")
    for method in ("first-window", "hermite", "chebyshev", "dmd"):
        add(f"{method} N=8", method)
    return runs


def ranked_settings(plan: Plan) -> dict[str, Ranked]:
    """Tell what recorded trajectories are scored with: intervals, distances, depths of the probe, families."""
    found = {
        **{f"tap N={n}": TAPConfig(interval=n) for n in (*SMALL_INTERVALS, *INTERVALS)},
        **{name: TAPConfig(**changes) for name, changes in VARIANTS.items() if "distance" in changes},
        **{f"tap N=8 depth={depth}": TAPConfig(probe_depth=depth) for depth in plan.depths},
    }
    families = {f"tap N=8 +{name}": Union(TaylorFamily(), family) for name, family in FAMILIES.items()}
    return {
        **{name: Ranked(config) for name, config in found.items()},
        **{name: Ranked(TAPConfig(), family) for name, family in families.items()},
    }


def propagation_policies() -> dict[str, AnchoredPolicy]:
    """Tell whose local errors are followed to the end."""
    return {
        "order1": FixedPolicy(1),
        "tap": TAPPolicy(),
        "oracle": OraclePolicy(),
        "oracle-output": OraclePolicy(TAPConfig(residual="latent")),
    }
