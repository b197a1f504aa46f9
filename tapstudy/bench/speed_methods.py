"""What `bench speed` times: plain sampling, TAP, order 0, and other people's caches through their own packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tapstudy.bench import peers
from tapstudy.bench.speed_steps import check_compile
from tapstudy.core.schedule import full_steps, mask_text
from tapstudy.instrument.handle import Handle, apply_policy
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy

REFERENCE = "reference"
TUNED = "peer-first-block"  # its threshold makes its number of full passes
EXTRA = ("peer-taylorseer",)  # only when asked for
MANY_SHIFTS = tuple(i / 10 for i in range(50))


@dataclass(frozen=True)
class Plan:
    """How long a loop is, and where it runs in full.

    Attributes:
        steps: T.
        interval: N.
        warmup_steps: w.
        compile: scoring and assembly are compiled.
        threshold: of First-Block Cache, which has no schedule.

    Raises:
        ValueError: no step would be skipped.
    """

    steps: int = 50
    interval: int = 8
    warmup_steps: int = 3
    compile: bool = False
    threshold: float = 0.05

    def __post_init__(self) -> None:
        check_compile(self.compile)
        if len(self.full) == self.steps:
            raise ValueError(
                f"{self.steps} steps at interval {self.interval} all run in full: there is nothing to skip. Take more "
                f"than {self.warmup_steps} steps and an interval of at least 2"
            )

    @property
    def config(self) -> TAPConfig:
        return TAPConfig(interval=self.interval, warmup_steps=self.warmup_steps)

    @property
    def full(self) -> tuple[int, ...]:
        """The full steps of S(N, w)."""
        return tuple(full_steps(self.steps, interval=self.interval, warmup_steps=self.warmup_steps))

    @property
    def mask(self) -> str:
        return mask_text(self.full, self.steps)


@dataclass(frozen=True)
class SpeedMethod:
    """A row.

    Attributes:
        text: what it is.
        apply: puts it on a pipeline for the length of a `with` block.
    """

    text: str
    apply: Callable[[Any, Plan], AbstractContextManager[Any]]


def _policy(make: Callable[[Plan], Policy]) -> Callable[[Any, Plan], AbstractContextManager[Any]]:
    return lambda target, plan: apply_policy(target, make(plan))


@lru_cache
def _tap(plan: Plan, shifts: tuple[float, ...] | None = None) -> Policy:
    """One for all loops of a plan (they use copies): what is compiled stays so."""
    config = plan.config if shifts is None else replace(plan.config, shifts=shifts)
    return TAPPolicy(config, **check_compile(plan.compile))


def _magcache(target: Any, plan: Plan) -> AbstractContextManager[Any]:
    # magnitudes that never change: then the limits alone say when it runs in full
    return peers.mag_cache(
        target,
        (1.0,) * plan.steps,
        num_steps=plan.steps,
        max_skips=plan.interval - 1,
        retention=plan.warmup_steps / plan.steps,
    )


def _dbcache(target: Any, plan: Plan) -> AbstractContextManager[Any]:
    return peers.dbcache(
        target,
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=plan.warmup_steps,
        max_continuous_cached_steps=plan.interval - 1,
        residual_diff_threshold=1e6,  # the limit alone says when it runs in full
    )


def _taylorseer(*, lite: bool) -> Callable[[Any, Plan], AbstractContextManager[Any]]:
    return lambda target, plan: peers.taylorseer_cache(
        target, lite=lite, interval=plan.interval, before=plan.warmup_steps
    )


SPEED_METHODS = {
    REFERENCE: SpeedMethod("no acceleration", lambda target, plan: nullcontext()),
    "tap": SpeedMethod("TAP, 15 candidates", _policy(_tap)),
    "tap-150": SpeedMethod("TAP, 150 candidates", _policy(lambda plan: _tap(plan, MANY_SHIFTS))),
    "order0": SpeedMethod("order 0 (FORA)", _policy(lambda plan: FixedPolicy(0, config=plan.config))),
    TUNED: SpeedMethod(
        "diffusers FirstBlockCache", lambda target, plan: peers.first_block_cache(target, plan.threshold)
    ),
    "peer-taylorseer-lite": SpeedMethod("diffusers TaylorSeerCache, lite", _taylorseer(lite=True)),
    "peer-taylorseer": SpeedMethod("diffusers TaylorSeerCache", _taylorseer(lite=False)),
    "peer-magcache": SpeedMethod("diffusers MagCache", _magcache),
    "peer-dbcache": SpeedMethod("cache-dit DBCache, one block ahead", _dbcache),
}


def find_methods(names: Sequence[str]) -> list[str]:
    """The methods of these names, the reference first; all but `EXTRA` when there are none.

    Raises:
        ValueError: an unknown one.
    """
    names = list(names) or [name for name in SPEED_METHODS if name not in EXTRA]
    if unknown := [name for name in names if name not in SPEED_METHODS]:
        raise ValueError(f"no method {', '.join(map(repr, unknown))}: there are {', '.join(SPEED_METHODS)}")
    return [REFERENCE, *dict.fromkeys(name for name in names if name != REFERENCE)]


def mask_of(applied: Any, steps: int) -> str:
    """What the last run did, one letter per step: F full, . skipped.

    Args:
        applied: what the method's `with` block gave.
        steps: of that run.

    Raises:
        ValueError: the model was called several times a step.
    """
    if applied is None:
        return "F" * steps
    mask = applied.summary().contexts[0].mask if isinstance(applied, Handle) else applied.mask
    if len(mask) != steps:
        raise ValueError(f"{steps} steps called the model {len(mask)} times: one call a step is expected")
    return mask
