"""What `bench speed` times: plain sampling, TAP, order 0, and other people's caches through their own packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from tapstudy.bench.speed import third_party as peers
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
        threshold: of First-Block Cache, which has no schedule.

    Raises:
        ValueError: no step would be skipped.
    """

    steps: int = 50
    interval: int = 8
    warmup_steps: int = 3
    threshold: float = 0.05

    def __post_init__(self) -> None:
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


@dataclass(frozen=True)
class TAPVariant:
    """TAP in a form of its own.

    Attributes:
        kind: what its skip steps are called.
        shifts: in place of the default ones.
        compile: scoring and assembly are compiled.
    """

    kind: str
    shifts: tuple[float, ...] | None = None
    compile: bool = False

    def config(self, plan: Plan) -> TAPConfig:
        return plan.config if self.shifts is None else replace(plan.config, shifts=self.shifts)


TAP_VARIANTS = {
    "tap": TAPVariant("skip"),
    "tap-compiled": TAPVariant("skip, compiled", compile=True),
    "tap-150": TAPVariant("skip, 150 candidates", MANY_SHIFTS),
}


@lru_cache
def _tap(name: str, plan: Plan) -> Policy:
    """One for all loops of a plan (they use copies): what is compiled stays so."""
    variant = TAP_VARIANTS[name]
    return TAPPolicy(variant.config(plan), compile=variant.compile)


@lru_cache
def why_not_compiled(device: torch.device) -> str:
    """Why `torch.compile` does not work on this machine, or nothing."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, no Triton, an unknown device
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


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
    "tap": SpeedMethod("TAP, 15 candidates", _policy(partial(_tap, "tap"))),
    "tap-compiled": SpeedMethod("TAP, 15 candidates, compiled", _policy(partial(_tap, "tap-compiled"))),
    "tap-150": SpeedMethod("TAP, 150 candidates", _policy(partial(_tap, "tap-150"))),
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
