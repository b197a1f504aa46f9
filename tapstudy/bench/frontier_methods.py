"""The rows of the frontier: how to build every method for a number of full passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tapstudy.bench import frontier_calibrated as calibrated
from tapstudy.bench import peers
from tapstudy.bench.frontier_held_out import SCHEDULES, USUAL, HeldOut
from tapstudy.bench.frontier_plan import Setting
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.base import Policy
from tapstudy.policies.blended import BlendedPolicy
from tapstudy.policies.calibrated import CalibratedPolicy, best_rows
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.drift import DriftPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.margin import MarginPolicy
from tapstudy.policies.nonlinear import NonlinearPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.ridge import RidgePolicy
from tapstudy.policies.several_depths import SeveralDepthsPolicy
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.smoothed import SmoothedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.adams_bashforth import AdamsBashforth
from tapstudy.predictors.chebyshev import Chebyshev
from tapstudy.predictors.dmd import DynamicModes
from tapstudy.predictors.foca import FoCa
from tapstudy.predictors.frequency import FrequencySplit
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.learned import LearnedLinear
from tapstudy.predictors.pade import Pade
from tapstudy.predictors.token_least_squares import TokenLeastSquares

Kind = Literal["control", "fixed", "cache", "tap", "beyond", "peer"]
OWN = "own"  # a schedule that the method brings along


@dataclass(frozen=True)
class Slot:
    """Where a method is to run.

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
    def name(self) -> str:
        """For files."""
        return f"{self.schedule}-{self.passes}"


@dataclass(frozen=True)
class FrontierMethod:
    """A row.

    Attributes:
        kind: "control"; "fixed" (one predictor for all tokens); "cache" (published, with rules of their own); "tap";
            "beyond" (the paper); "peer" (other people's code).
        make: the setting.
        schedules: on which it is run. Those beside S(N, 3) only at the fewest passes, but for `EVERYWHERE`.
    """

    name: str
    kind: Kind
    make: Callable[[Slot], Setting]
    schedules: tuple[str, ...] = (USUAL,)


EVERYWHERE = ("start-dense",)
FURTHER = (USUAL, "start-dense", "window-fitted-hidden")
SEARCHED = "searched"  # a schedule found for one method, see `HeldOut.searched_mask`
# run at every number of passes; the others at the fewest only, unless all is asked for
CORE = frozenset({
    "fewer", "order0", "order1", "order2", "best-fixed", "hermite", "learned", "diffusers-taylor", "teacache",
    "first-block", "magcache", "dicache", "cg-taylor", "zeus", "ertacache", "tap", "step", "adaptive-tap", "fitted",
    "peer-dbcache", "peer-dbcache-taylor",
})  # fmt: skip


def _policy(make: Callable[[TAPConfig], Policy]) -> Callable[[Slot], Setting]:
    return lambda slot: Setting.of(make(slot.config))


def _tap(**settings: object) -> Callable[[Slot], Setting]:
    alone = settings.get("granularity") == "global"  # where samples mix
    return lambda slot: Setting.of(TAPPolicy(replace(slot.config, **settings)), alone=alone)  # type: ignore[arg-type]


def _best_fixed(slot: Slot) -> Setting:
    order, shift = slot.held_out.best_fixed(slot.config, slot.name)
    return Setting.of(FixedPolicy(order, shift, config=slot.config))


def _margin(slot: Slot) -> Setting:
    return Setting.of(MarginPolicy(slot.config, default=slot.held_out.best_fixed(slot.config, slot.name)))


def _learned(slot: Slot) -> Setting:
    held = slot.held_out
    gram = torch.from_numpy(held.gram("hidden"))
    return Setting.of(SinglePolicy(LearnedLinear.fit(gram, held.mask(slot.schedule, slot.passes)), slot.config))


def _step_table(slot: Slot) -> Setting:
    held, family = slot.held_out, slot.config.family
    gram = torch.from_numpy(held.gram("hidden"))
    return Setting.of(CalibratedPolicy(best_rows(gram, held.mask(slot.schedule, slot.passes), family), slot.config))


def _fitted(slot: Slot) -> Setting:
    held = slot.held_out
    return Setting.of(held.fitted(held.mask(slot.schedule, slot.passes), slot.name))


def _adaptive_tap(slot: Slot) -> Setting:
    held = slot.held_out
    config = TAPConfig(interval=max(2 * slot.config.interval, 2))

    def make(threshold: float) -> Setting:
        return Setting.of(AdaptiveTAPPolicy(threshold, config))

    return make(held.threshold(f"adaptive-tap-{config.interval}", make, slot.passes, low=1e-7))


def _dbcache(order: int | None) -> Callable[[Slot], Setting]:
    def build(slot: Slot) -> Setting:
        def make(threshold: float) -> Setting:
            settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 3, "residual_diff_threshold": threshold}
            return Setting.peer(
                lambda pipe: peers.dbcache(pipe, taylor_order=order, **settings),
                f"cache-dit DBCache({settings}, taylor_order={order})",
            )

        name = "dbcache" if order is None else f"dbcache-taylor{order}"
        return make(slot.held_out.threshold(name, make, slot.passes))

    return build


def _peer_first_block(slot: Slot) -> Setting:
    threshold = calibrated.first_block_threshold(slot.held_out, slot.passes)
    return Setting.peer(
        lambda pipe: peers.first_block_cache(pipe, threshold), f"diffusers FirstBlockCache(threshold={threshold})"
    )


def _peer_taylorseer(slot: Slot) -> Setting:
    interval = calibrated.diffusers_interval(slot.held_out.plan.steps, slot.passes)
    return Setting.peer(
        lambda pipe: peers.taylorseer_cache(pipe, interval=interval), f"diffusers TaylorSeer(interval={interval})"
    )


METHODS: tuple[FrontierMethod, ...] = (
    FrontierMethod("fewer", "control", lambda slot: Setting.plain(slot.passes), (OWN,)),
    FrontierMethod("order0", "fixed", _policy(lambda c: FixedPolicy(0, config=c))),
    FrontierMethod("order1", "fixed", _policy(lambda c: FixedPolicy(1, config=c)), (*SCHEDULES, SEARCHED)),
    FrontierMethod("order2", "fixed", _policy(lambda c: FixedPolicy(2, config=c))),
    FrontierMethod("best-fixed", "fixed", _best_fixed, SCHEDULES),
    FrontierMethod("order1-tail", "fixed", _policy(lambda c: FixedPolicy(1, config=replace(c, residual="tail")))),
    FrontierMethod("order1-output", "fixed", _policy(lambda c: FixedPolicy(1, config=replace(c, residual="output")))),
    FrontierMethod("newton2", "fixed", _policy(
        lambda c: FixedPolicy(2, config=replace(c, differences="divided", basis="newton")))),
    FrontierMethod("hermite", "fixed", _policy(lambda c: SinglePolicy(HermiteFamily(), c))),
    FrontierMethod("adams-bashforth", "fixed", _policy(lambda c: SinglePolicy(AdamsBashforth(), c))),
    FrontierMethod("foca", "fixed", _policy(lambda c: SinglePolicy(FoCa(), c))),
    FrontierMethod("chebyshev", "fixed", _policy(lambda c: SinglePolicy(Chebyshev(), c))),
    FrontierMethod("learned", "fixed", _learned),
    FrontierMethod("dmd", "fixed", _policy(lambda c: NonlinearPolicy(DynamicModes(), c))),
    FrontierMethod("token-least-squares", "fixed", _policy(lambda c: NonlinearPolicy(TokenLeastSquares(), c))),
    FrontierMethod("freqca", "fixed", _policy(lambda c: NonlinearPolicy(FrequencySplit(), c))),
    FrontierMethod("pade", "fixed", _policy(lambda c: NonlinearPolicy(Pade(), c))),
    FrontierMethod("diffusers-taylor", "cache", lambda slot: calibrated.diffusers_taylor(slot.held_out, slot.passes),
                   (OWN,)),
    FrontierMethod("teacache", "cache", lambda slot: calibrated.teacache(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("first-block", "cache", lambda slot: calibrated.first_block(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("magcache", "cache", lambda slot: calibrated.magcache(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("dicache", "cache", lambda slot: calibrated.dicache(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("cg-taylor", "cache", lambda slot: calibrated.cg_taylor(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("zeus", "cache", lambda slot: calibrated.zeus(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("ertacache", "cache", lambda slot: calibrated.ertacache(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("channel-groups", "cache", lambda slot: calibrated.channel_groups(slot.held_out, slot.config)),
    FrontierMethod("tap", "tap", _tap(), (*SCHEDULES, SEARCHED)),
    FrontierMethod("region", "tap", _tap(granularity="region")),
    FrontierMethod("step", "tap", _tap(granularity="step"), (*SCHEDULES, SEARCHED)),
    FrontierMethod("global", "tap", _tap(granularity="global")),
    FrontierMethod("margin", "beyond", _margin, FURTHER),
    FrontierMethod("smoothed", "beyond", _policy(SmoothedPolicy), FURTHER),
    FrontierMethod("blended", "beyond", _policy(BlendedPolicy), FURTHER),
    FrontierMethod("ridge", "beyond", _policy(RidgePolicy), FURTHER),
    FrontierMethod("adaptive-tap", "beyond", _adaptive_tap, (OWN,)),
    FrontierMethod("drift", "beyond", _policy(DriftPolicy), FURTHER),
    FrontierMethod("two-depths", "beyond", _policy(SeveralDepthsPolicy), FURTHER),
    FrontierMethod("step-table", "beyond", _step_table),
    FrontierMethod("fitted", "beyond", _fitted, SCHEDULES),
    FrontierMethod("oracle", "control", _policy(OraclePolicy)),
    FrontierMethod("random", "control", _policy(RandomPolicy)),
    FrontierMethod("shuffled", "control", _policy(ShuffledPolicy)),
    FrontierMethod("peer-first-block", "peer", _peer_first_block, (OWN,)),
    FrontierMethod("peer-magcache", "peer", lambda slot: calibrated.peer_magcache(slot.held_out, slot.passes), (OWN,)),
    FrontierMethod("peer-taylorseer", "peer", _peer_taylorseer, (OWN,)),
    FrontierMethod("peer-dbcache", "peer", _dbcache(None), (OWN,)),
    FrontierMethod("peer-dbcache-taylor", "peer", _dbcache(1), (OWN,)),
)  # fmt: skip
