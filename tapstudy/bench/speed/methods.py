"""What `bench speed` times: plain sampling, TAP, order 0, and other people's caches through their own packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from tapstudy.bench.engine import Setting
from tapstudy.bench.methods import find_method
from tapstudy.bench.speed import third_party
from tapstudy.bench.speed.third_party import ThirdPartyCache
from tapstudy.core.schedule import Schedule, mask_text
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy

REFERENCE = "reference"
TUNED = "peer-first-block"  # its threshold makes its number of full passes
EXTRA = ("peer-taylorseer",)  # only when asked for
MANY_SHIFTS = tuple(i / 10 for i in range(50))


@dataclass(frozen=True)
class Plan:
    """Tell how long a loop is, and where it runs in full.

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
        """Return the full steps of S(N, w)."""
        return Schedule(self.interval, self.warmup_steps).steps(self.steps)

    @property
    def mask(self) -> str:
        return mask_text(self.full, self.steps)


@dataclass(frozen=True)
class TAPVariant:
    """Hold TAP in a form of its own.

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
    """Return one for all loops of a plan (they use copies): what is compiled stays so."""
    variant = TAP_VARIANTS[name]
    return TAPPolicy(variant.config(plan), compile=variant.compile)


@lru_cache
def why_not_compiled(device: torch.device) -> str:
    """Tell why `torch.compile` does not work on this machine, or nothing."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, no Triton, an unknown device
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def _taylorseer(target: Any, plan: Plan, *, lite: bool) -> AbstractContextManager[ThirdPartyCache]:
    return third_party.taylorseer_cache(target, lite=lite, interval=plan.interval, before=plan.warmup_steps)


def _magcache(target: Any, plan: Plan) -> AbstractContextManager[ThirdPartyCache]:
    # magnitudes that never change: then the limits alone say when it runs in full
    return third_party.mag_cache(
        target, (1.0,) * plan.steps, num_steps=plan.steps, max_skips=plan.interval - 1,
        retention=plan.warmup_steps / plan.steps,
    )  # fmt: skip


def _dbcache(target: Any, plan: Plan) -> AbstractContextManager[ThirdPartyCache]:
    return third_party.dbcache(
        target, Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=plan.warmup_steps,
        max_continuous_cached_steps=plan.interval - 1,
        residual_diff_threshold=1e6,  # the limit alone says when it runs in full
    )  # fmt: skip


THIRD_PARTY: dict[str, Callable[[Any, Plan], AbstractContextManager[ThirdPartyCache]]] = {
    TUNED: lambda target, plan: third_party.first_block_cache(target, plan.threshold),
    "peer-taylorseer-lite": partial(_taylorseer, lite=True),
    "peer-taylorseer": partial(_taylorseer, lite=False),
    "peer-magcache": _magcache,
    "peer-dbcache": _dbcache,
}
TEXTS = {
    REFERENCE: "no acceleration",
    "tap": "TAP, 15 candidates",
    "tap-compiled": "TAP, 15 candidates, compiled",
    "tap-150": "TAP, 150 candidates",
    "order0": "order 0 (FORA)",
    TUNED: "diffusers FirstBlockCache",
    "peer-taylorseer-lite": "diffusers TaylorSeerCache, lite",
    "peer-taylorseer": "diffusers TaylorSeerCache",
    "peer-magcache": "diffusers MagCache",
    "peer-dbcache": "cache-dit DBCache, one block ahead",
}


def setting_of(name: str, plan: Plan) -> Setting:
    """Make a method of `TEXTS` a way to sample."""
    if name in TAP_VARIANTS:
        return Setting.of(_tap(name, plan))
    if name in THIRD_PARTY:
        return Setting.third_party(lambda target: THIRD_PARTY[name](target, plan), name)
    return find_method(name).setting(plan.config, steps=plan.steps)


def find_methods(names: Sequence[str]) -> list[str]:
    """Check names of methods, and put the reference first; all but `EXTRA` when there are none.

    Raises:
        ValueError: an unknown one.
    """
    names = list(names) or [name for name in TEXTS if name not in EXTRA]
    if unknown := [name for name in names if name not in TEXTS]:
        raise ValueError(f"no method {', '.join(map(repr, unknown))}: there are {', '.join(TEXTS)}")
    return [REFERENCE, *dict.fromkeys(name for name in names if name != REFERENCE)]
