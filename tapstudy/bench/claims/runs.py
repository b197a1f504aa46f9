"""The runs that the claims compare, by what they are: "tap N=8", "order1 even", "tap N=8 +hermite"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapstudy.bench.image_set import Condition, ImageSet
from tapstudy.bench.sweep.cells import Cell
from tapstudy.core.schedule import Schedule
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.tap import TAPPolicy

INTERVALS = (4, 6, 8)
SMALL_INTERVALS = (2, 3)
CONTROLS = ("fewer", "random", "shuffled")
RUN_DEPTHS = (1, 2, 4)  # probes deeper than the first block; those in between are only ranked
# single predictors to choose the best of: the distinct ones of TAP's family
FIXED = ("fixed0", *(f"fixed{order}-{shift}" for order in (1, 2) for shift in range(5)))


FURTHER = ("first-window", "tap+least-squares", "tap+hermite", "tap+chebyshev", "tap+dmd")  # at N = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tell what is run.

    Args:
        model: embedded model or model folder.
        seeds: test seeds; every label is sampled with each.
        held_out: seeds on which fixed predictors and masks are chosen.
        few: so many of the test seeds serve for what is costly: recordings, oracles, small intervals.
        labels: sampled with every seed.
        steps: T.
        guidance: scale of classifier-free guidance.
        depths: blocks of further probes.

    Raises:
        ValueError: seeds that are both tested and held out, fewer seeds than `few`, fewer than two labels.
    """

    model: str = "mnist-dit"
    seeds: tuple[int, ...] = (11, 12, 13, 14)
    held_out: tuple[int, ...] = (21, 22)
    few: int = 2
    labels: tuple[Condition, ...] = tuple(range(10))
    steps: int = 50
    guidance: float = 2.0
    depths: tuple[int, ...] = (1, 2, 4, 7)

    def __post_init__(self) -> None:
        if both := sorted(set(self.seeds) & set(self.held_out)):
            raise ValueError(f"Plan: the seeds {both} are both tested and held out: choose others")
        if len(self.labels) < 2:
            raise ValueError(f"Plan: intervals over images need at least two labels, got {self.labels}")
        if not 1 <= self.few <= len(self.seeds) or not self.held_out:
            raise ValueError(
                f"Plan: needs at least {self.few} test seeds and one held out, got {self.seeds} and {self.held_out}"
            )

    @property
    def few_seeds(self) -> tuple[int, ...]:
        return self.seeds[: self.few]

    @property
    def passes(self) -> int:
        """Return the number of full steps at N = 8."""
        return len(Schedule(8, 3).steps(self.steps))

    def cell(self, method: str, seeds: tuple[int, ...], **settings: Any) -> Cell:
        own = {"model": self.model, "labels": self.labels, "steps": self.steps, "guidance": self.guidance}
        return Cell.of({"method": method, "seeds": seeds, **own, **settings})

    def images(self, seeds: Sequence[int]) -> ImageSet:
        """Return every label with each of these seeds."""
        return ImageSet.of(self.model, seeds=seeds, labels=self.labels, steps=self.steps, guidance=self.guidance)


def held_out_cells(plan: Plan) -> dict[tuple[int, str], Cell]:
    """Make a cell of every single predictor at every interval on held-out images: (interval, method) -> cell."""
    return {
        (interval, method): plan.cell(method, plan.held_out if interval >= 6 else plan.held_out[:1], interval=interval)
        for interval in (*SMALL_INTERVALS, *INTERVALS)
        for method in FIXED
    }


def claim_cells(plan: Plan, best_fixed: Mapping[int, str], masks: Mapping[str, tuple[int, ...]]) -> dict[str, Cell]:
    """Return all runs on the test images that a cell can express.

    Args:
        best_fixed: the method chosen on held-out images for every interval.
        masks: name -> full steps.
    """
    cells: dict[str, Cell] = {"reference": plan.cell("reference", plan.seeds)}

    def add(name: str, method: str, *, few: bool = False, **settings: Any) -> None:
        cells[name] = plan.cell(method, plan.few_seeds if few else plan.seeds, **settings)

    for n in INTERVALS:
        for order in (0, 1, 2):
            add(f"order{order} N={n}", f"fixed{order}", interval=n)
        for method in ("tap", "step"):
            add(f"{method} N={n}", method, interval=n)
        for method in CONTROLS:
            add(f"{method} N={n}", method, interval=n, few=n != 8)
        add(f"best-fixed N={n}", best_fixed[n], interval=n)
    for n in SMALL_INTERVALS:
        add(f"tap N={n}", "tap", interval=n, few=True)
        add(f"best-fixed N={n}", best_fixed[n], interval=n, few=True)
    add("tap N=5", "tap", interval=5)
    for n in (4, 8):
        add(f"oracle N={n}", "oracle", interval=n, few=True)
    add("oracle-latent N=8", "oracle-latent", few=True)
    add("order1-latent N=8", "fixed1", residual="latent")
    for name, settings in VARIANTS.items():
        add(name, "tap", **settings)
    for depth in plan.depths:
        if depth in RUN_DEPTHS:
            add(f"tap N=8 depth={depth}", "tap", probe_depth=depth)
    for mask, steps in masks.items():
        for name, method in (("order0", "fixed0"), ("order1", "fixed1"), ("tap", "tap"), ("step", "step")):
            add(f"{name} {mask}", method, full_steps=steps)
    for method in FURTHER:
        add(f"{method} N=8" if method == "first-window" else f"tap N=8 +{method.removeprefix('tap+')}", method)
    return cells


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


def ranked_settings(plan: Plan) -> dict[str, TAPConfig]:
    """Tell what recorded trajectories are scored with: intervals, distances and depths of the probe."""
    return {
        **{f"tap N={n}": TAPConfig(interval=n) for n in (*SMALL_INTERVALS, *INTERVALS)},
        **{name: TAPConfig(**changes) for name, changes in VARIANTS.items() if "distance" in changes},
        **{f"tap N=8 depth={depth}": TAPConfig(probe_depth=depth) for depth in plan.depths},
    }


def propagation_policies() -> dict[str, AnchoredPolicy]:
    """Tell whose local errors are followed to the end."""
    return {
        "order1": FixedPolicy(1),
        "tap": TAPPolicy(),
        "oracle": OraclePolicy(),
        "oracle-latent": OraclePolicy(TAPConfig(residual="latent")),
    }
