"""Methods that run some of the model at the steps between: their settings at the FLOPs of so many full passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

import torch

from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.held_out import Slot
from tapstudy.bench.fit.tuning import Tuner
from tapstudy.bench.flops import transformer_flops
from tapstudy.bench.plan import WARMUP
from tapstudy.instrument.handle import apply_policy, find_transformers
from tapstudy.policies.blocks.bac import ModuleTablePolicy, SimilarityPolicy, table_of
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.delta_dit import DeltaDiTPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.blocks.temporal_delta import TemporalDeltaPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import Part, Site
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import Names, TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy

NEAR = 0.05  # share of the target by which options may be off that are chosen among by quality
TRIALS = 9
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)


def cost(slot: Slot, setting: Setting) -> float:
    """Count the FLOPs of one tuning image under a setting, in full passes of the model."""
    held = slot.held_out
    image, pipe = held.plan.tuned_on[:1], held.pipe

    def run(steps: int) -> int:
        return transformer_flops(pipe, lambda: image.run_transformer(pipe, steps))

    with torch.no_grad():
        full = run(1)
        with setting.attach(pipe):
            return run(image.steps) / full


def affordable(slot: Slot, name: str, options: Callable[[], Mapping[str, Setting]]) -> Setting:
    """Return the best on tuning images of the options that are about as expensive as the slot's full passes."""
    held, found = slot.held_out, options()
    costs: Mapping[str, float] = held.value(
        f"costs-{name}", lambda: {key: cost(slot, setting) for key, setting in found.items()}
    )
    off = {key: abs(value - slot.passes) for key, value in costs.items()}
    near = [key for key in off if off[key] <= NEAR * slot.passes] or [min(off, key=lambda key: off[key])]
    if len(near) == 1:
        return found[near[0]]
    return found[held.choose(f"{name}-{slot.passes}", lambda: {key: found[key] for key in near})]


def tuned(slot: Slot, name: str, make: Callable[[float], Setting]) -> Setting:
    """Return the setting with the threshold at which it is about as expensive as the slot's full passes."""
    tuner = Tuner(lambda threshold: cost(slot, make(threshold)), trials=TRIALS)
    return make(float(slot.held_out.value(f"{name}-{slot.passes}", lambda: tuner.threshold(slot.passes))))


def blocks_of(slot: Slot) -> int:
    """Count the blocks of the model."""
    ((model, adapter),) = find_transformers(slot.held_out.pipe).values()
    return len(adapter.modules(model)[0])


def delta_dit(slot: Slot) -> Setting:
    """Take groups of half of the blocks, of three quarters, and of all but one, the same at all times or not."""
    blocks = blocks_of(slot)

    def options() -> dict[str, Setting]:
        return {
            f"{interval} {group} {detail:g}": Setting.of(
                DeltaDiTPolicy(TAPConfig(interval=interval), group=group, detail=detail)
            )
            for group in sorted({blocks // 2, 3 * blocks // 4, blocks - 1})
            for interval in range(2, slot.steps // 2)
            for detail in (0.0, 0.5)
        }

    return affordable(slot, "delta-dit", options)


def pab(slot: Slot) -> Setting:
    def options() -> dict[str, Setting]:
        return {
            f"{attention} {2 * attention}": Setting.of(PABPolicy(attention, 2 * attention))
            for attention in range(2, slot.steps // 2)
        }

    return affordable(slot, "pab", options)


def dbcache(slot: Slot, *, order: int = 0) -> Setting:
    """Run one block in front and none behind, as First-Block Cache does, and one more behind where that is better."""

    def setting(last: int) -> Setting:
        def make(threshold: float) -> Setting:
            return Setting.of(DBCachePolicy(threshold, first=1, last=last, warmup_steps=WARMUP, order=order))

        return tuned(slot, f"dbcache-{order}-{last}", make)

    found = {str(last): setting(last) for last in (0, 1)}
    return found[slot.held_out.choose(f"dbcache-{order}-{slot.passes}", lambda: found)]


def temporal_delta(slot: Slot) -> Setting:
    """Let blocks be left out for as long as the budget takes; two steps in a row are published."""

    def make(threshold: float) -> Setting:
        skips = max(2, slot.steps // slot.passes)
        return Setting.of(TemporalDeltaPolicy(threshold, max_skips=skips, warmup_steps=WARMUP))

    return tuned(slot, "temporal-delta", make)


def bac(slot: Slot) -> Setting:
    """Measure similarities on held-out images; no blocks in front refresh more often, or the first quarter."""
    held = slot.held_out

    def measure() -> dict[str, list[object]]:
        policy = SimilarityPolicy()
        with torch.no_grad(), apply_policy(held.pipe, policy):
            for batch in held.plan.fitted_to.batches():
                batch.sample(held.pipe)
        alike = [[part.site, part.first, values] for part, values in policy.similarities().items()]
        return {"alike": [*alike], "errors": [[block, value] for block, value in policy.errors().items()]}

    found = held.value("similarities", measure)
    sites: dict[str, Site] = {site: site for site in get_args(Site)}
    alike = {Part(sites[site], first, first + 1): values for site, first, values in found["alike"]}
    errors = {int(block): float(value) for block, value in found["errors"]}

    def options() -> dict[str, Setting]:
        return {
            f"{refreshes} {upstream}": Setting.of(
                ModuleTablePolicy(table_of(alike, refreshes=refreshes, errors=errors, upstream=upstream))
            )
            for refreshes in range(2, slot.passes + 1)
            for upstream in sorted({0, blocks_of(slot) // 4})
        }

    return affordable(slot, f"bac-{slot.passes}", options)


def toca(slot: Slot, *, every: int = 1) -> Setting:
    def options() -> dict[str, Setting]:
        return {
            f"{interval} {share:g}": Setting.of(ToCaPolicy(share, TAPConfig(interval=interval), every=every))
            for interval in range(2, slot.steps // 2)
            for share in SHARES
        }

    return affordable(slot, f"toca-{every}", options)


def ras(slot: Slot) -> Setting:
    def options() -> dict[str, Setting]:
        return {
            f"{share:g} {dense} {len(resets)}": Setting.of(RASPolicy(share, dense=dense, resets=resets))
            for share in (*SHARES, 0.75)
            for dense in (WARMUP, 4, 6)
            for resets in ((), (0.5,), (0.4, 0.75))
        }

    return affordable(slot, "ras", options)


def tap_tokens(slot: Slot, *, names: Names) -> Setting:
    """Take longer windows than TAP's, and tokens at all steps of them or at every other."""

    def options() -> dict[str, Setting]:
        return {
            f"{interval} {share:g} {every}": Setting.of(
                TAPTokensPolicy(share, TAPConfig(interval=interval), names=names, every=every)
            )
            for interval in range(2, slot.steps // 2)
            for share in SHARES
            for every in (1, 2)
        }

    return affordable(slot, f"tap-tokens-{names}", options)


PARTIAL: dict[str, Callable[[Slot], Setting]] = {
    "delta-dit": delta_dit,
    "pab": pab,
    "dbcache": dbcache,
    "temporal-delta": temporal_delta,
    "bac": bac,
    "toca": toca,
    "duca": partial(toca, every=2),
    "ras": ras,
    "tap+tokens": partial(tap_tokens, names="probe"),
    "tap+tokens-error": partial(tap_tokens, names="error"),
    "tap+tokens-random": partial(tap_tokens, names="random"),
}
