"""The runs that the claims compare, by what they are: "tap N=8", "order1 even", "tap N=8 +hermite"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tapstudy.analysis.claims.measure import PHASES, Ranked
from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.held_out import HeldOut, Slot
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.methods import find_method
from tapstudy.bench.plan import StudyPlan
from tapstudy.core.scoring import Granularity
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.chebyshev import Chebyshev
from tapstudy.predictors.family import Family
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.least_squares import LeastSquares
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.union import Union

INTERVALS = (4, 6, 8)
MASKS = ("even", "start-dense", "best")
RUN_DEPTHS = (1, 2, 4)  # probes deeper than the first block; those in between are only ranked

PLACES = (*(f"N={n}" for n in INTERVALS), *MASKS)
# methods of `bench.methods` everywhere; where the best fixed predictor is chosen; on a smoothed clock
EVERYWHERE = ("order0", "order1", "order2", "tap", "step", "shuffled", "step-table")
BEST_FIXED = ("N=4", "N=8", "even", "start-dense")
SMOOTHED = {
    "order0": ("N=8",), "order1": ("N=8", *MASKS), "order2": ("N=8",), "tap": PLACES,
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    "least-squares": LeastSquares(), "hermite": HermiteFamily(orders=(1, 2)), "chebyshev": Chebyshev(),
}  # fmt: skip
ORACLES = {  # name -> what is chosen by, and who chooses together
    "oracle": {},
    "oracle-step": {"granularity": "step"},
    "oracle-output": {"residual": "latent"},
    "oracle-output-step": {"residual": "latent", "granularity": "step"},
}
# a greedy choice toward the reference: where its images come from is told in `toward_reference`
TOWARD: dict[str, tuple[str, Granularity]] = {
    f"oracle-reference{'' if granularity == 'token' else '-step'} {on}": (on, granularity)
    for on in ("N=8", "best") for granularity in ("token", "step")
}  # fmt: skip
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
        few: so many of the test seeds serve for what is costly, or an ablation: recordings, oracles, other settings.
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
        if (skipped := self.steps - len(self.usual_mask(8))) < len(PHASES):
            raise ValueError(
                f"Plan: {self.steps} steps leave {skipped} to skip on S(8, 3), fewer than the {len(PHASES)} parts of a "
                "trajectory that are told apart: take more steps"
            )
        if not 1 <= self.few <= len(self.seeds):
            raise ValueError(f"Plan: needs at least {self.few} test seeds, got {self.seeds}")

    def interval(self, passes: int) -> int:
        """Return the N of S(N, 3) with so many full steps; of several, 8 before the least: the claims are about it."""
        return 8 if passes == self.passes else super().interval(passes)

    @property
    def few_images(self) -> ImageSet:
        """Return the test images that serve for what is costly: the first ones."""
        return self.images(self.seeds[: self.few])

    @property
    def passes(self) -> int:
        """Return the number of full steps at N = 8."""
        return len(self.usual_mask(8))


@dataclass(frozen=True)
class Run:
    """Hold one run of the claims.

    Attributes:
        method: of `bench.methods`.
        on: "N=8", or one of `MASKS`, with as many full steps.
        changes: settings of TAPConfig.
        few: on the images of `few` seeds only.
        smooth: on a smoothed clock.
    """

    method: str
    on: str = "N=8"
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    few: bool = False
    smooth: bool = False

    @property
    def name(self) -> str:
        """Return all of it as words, such as "tap even residual=latent smooth"."""
        changes = [f"{name}={value}" for name, value in self.changes.items()]
        return " ".join([self.method, self.on, *changes, *(["smooth"] if self.smooth else [])])

    def setting(self, held: HeldOut, plan: Plan) -> Setting:
        """Tell how its images are sampled."""
        sigma = held.best_sigma if self.smooth else 0.0
        if self.method == "reference":
            return Setting.plain(plan.steps).on_smooth_clock(sigma)
        return find_method(self.method).on(self.slot(held, plan)).on_smooth_clock(sigma)

    def slot(self, held: HeldOut, plan: Plan) -> Slot:
        """Tell the schedule, and what methods are fitted to."""
        if self.on in MASKS:
            schedule = held.best_schedule(plan.passes) if self.on == "best" else self.on
            config = TAPConfig(full_steps=held.mask(schedule, plan.passes))
        else:
            schedule, config = f"S({self.on[2:]},3)", TAPConfig(interval=int(self.on[2:]))
        config = replace(config, **self.changes)
        return Slot(held, len(config.schedule.steps(plan.steps)), schedule, config)


def claim_runs(plan: Plan) -> dict[str, Run]:
    """Return all runs on the test images, the reference first."""
    runs = {"reference": Run("reference"), "reference smooth": Run("reference", few=True, smooth=True)}

    def add(name: str, method: str, on: str = "N=8", **more: Any) -> None:
        runs[name] = Run(method, on, **more)

    for on in PLACES:
        for method in EVERYWHERE:
            add(f"{method} {on}", method, on)
    for on in BEST_FIXED:
        add(f"best-fixed {on}", "best-fixed", on)
    for method, places in SMOOTHED.items():
        for on in places:
            add(f"{method} {on} smooth", method, on, smooth=True)
    for n in INTERVALS:
        for method in ("fewer", "random"):
            add(f"{method} N={n}", method, f"N={n}", few=n != 8)
    add("oracle N=4", "oracle", "N=4", few=True)
    for name, changes in ORACLES.items():
        for on in ("N=8", "best") if "output" in name else ("N=8",):
            add(f"{name} {on}", "oracle", on, changes=changes, few=True)
    for method in ("order1", "tap", "step"):
        add(f"{method}-output N=8", method, changes={"residual": "latent"})
    add("step-table-output N=8", "step-table-output")
    for name, changes in VARIANTS.items():
        settings = dict(changes)
        add(name, "tap", f"N={settings.pop('interval', 8)}", changes=settings, few=True)
    for depth in plan.depths:
        if depth in RUN_DEPTHS:
            add(f"tap N=8 depth={depth}", "tap", changes={"probe_depth": depth}, few=True)
    for name in (*FAMILIES, "dmd"):
        add(f"tap N=8 +{name}", f"tap+{name}", few=True)
    for method in ("hermite", "chebyshev", "dmd"):
        add(f"{method} N=8", method, few=True)
    add("first-window N=8", "first-window")
    return runs


def toward_configs(held: HeldOut, plan: Plan) -> dict[str, TAPConfig]:
    """Tell what chooses toward the reference, on the images of `few`."""
    return {
        name: Run("oracle", on, {"residual": "latent", "granularity": granularity}).slot(held, plan).config
        for name, (on, granularity) in TOWARD.items()
    }


def ranked_settings(plan: Plan) -> dict[str, Ranked]:
    """Tell what recorded trajectories are scored with: intervals, distances, depths of the probe, families."""
    found = {
        **{f"tap N={n}": TAPConfig(interval=n) for n in INTERVALS},
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
