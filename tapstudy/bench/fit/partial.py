"""Methods that run some of the model at the steps between: their settings at the FLOPs of so many full passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar, get_args

import torch

from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.attention import foreground_attention, groups_of
from tapstudy.bench.fit.held_out import Slot
from tapstudy.bench.fit.router import ROUNDS, Budget, Table, learn_gates
from tapstudy.bench.fit.tuning import Tuner
from tapstudy.bench.flops import transformer_flops
from tapstudy.bench.image_set import pipe_of
from tapstudy.bench.plan import WARMUP
from tapstudy.instrument.handle import apply_policy, find_transformers
from tapstudy.models.embedded import small_sibling
from tapstudy.policies.blocks.bac import ModuleTablePolicy, SimilarityPolicy, table_of
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.delta_dit import DeltaDiTPolicy
from tapstudy.policies.blocks.groups import GroupsPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.blocks.temporal_delta import TemporalDeltaPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import Part, Site
from tapstudy.policies.model_switch import ModelSwitchPolicy
from tapstudy.policies.tokens.hsa import HSAPolicy
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import Names, TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy

T = TypeVar("T")
NEAR = 0.05  # share of the target by which options may be off that are chosen among by quality
TRIALS = 9
Rows = list[tuple[str, int, list[int]]]  # a table of refresh steps, as plain values
LEARNED_FROM = 4  # images
_SITES: dict[str, Site] = {site: site for site in get_args(Site)}
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


def affordable(slot: Slot, name: str, makes: Mapping[str, Callable[[T], Setting]], values: Sequence[T]) -> Setting:
    """Return the best on tuning images of the settings about as expensive as the slot's full passes.

    Args:
        name: under which costs are kept.
        makes: by name, what makes a setting of a value.
        values: from the most expensive to the cheapest. Of every maker the one that comes closest is a candidate.
    """
    held, target = slot.held_out, float(slot.passes)

    def search(make: Callable[[T], Setting]) -> list[float]:
        """Return the index of the value that comes closest, and by how much it misses."""
        low, high = 0, len(values) - 1
        known: dict[int, float] = {}

        def cost_at(index: int) -> float:
            if index not in known:
                known[index] = cost(slot, make(values[index]))
            return known[index]

        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if cost_at(middle) > target else (low, middle)
        for index in (low - 1, low):
            if index >= 0:
                cost_at(index)
        found = min(known, key=lambda index: abs(known[index] - target))
        return [found, abs(known[found] - target)]

    places = held.value(f"costs-{name}-{slot.passes}", lambda: {key: search(make) for key, make in makes.items()})
    least = min(off for _, off in places.values())
    found = {
        key: makes[key](values[int(index)]) for key, (index, off) in places.items() if off <= max(NEAR * target, least)
    }
    return found[held.choose(f"{name}-{slot.passes}", lambda: found) if len(found) > 1 else next(iter(found))]


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

    def maker(group: int, detail: float) -> Callable[[int], Setting]:
        return lambda interval: Setting.of(DeltaDiTPolicy(TAPConfig(interval=interval), group=group, detail=detail))

    makes = {
        f"{group} {detail:g}": maker(group, detail)
        for group in sorted({max(1, blocks // 2), max(1, 3 * blocks // 4), blocks - 1})
        for detail in (0.0, 0.5)
    }
    return affordable(slot, "delta-dit", makes, intervals(slot))


def pab(slot: Slot) -> Setting:
    return affordable(slot, "pab", {"pab": lambda pace: Setting.of(PABPolicy(pace, 2 * pace))}, intervals(slot))


def intervals(slot: Slot) -> range:
    """Return intervals of a schedule, from the most expensive."""
    return range(2, max(3, slot.steps // 2))


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
    alike = {Part(_SITES[site], first, first + 1): values for site, first, values in found["alike"]}
    errors = {int(block): float(value) for block, value in found["errors"]}

    def maker(upstream: int) -> Callable[[int], Setting]:
        return lambda refreshes: Setting.of(
            ModuleTablePolicy(table_of(alike, refreshes=refreshes, errors=errors, upstream=upstream))
        )

    makes = {f"{upstream}": maker(upstream) for upstream in sorted({0, blocks_of(slot) // 4})}
    return affordable(slot, "bac", makes, range(slot.passes, 0, -1))


def router(slot: Slot) -> Setting:
    """Learn on fitted images, from even steps on; the table is taken unless those are better on tuning images."""
    held = slot.held_out

    def learn() -> dict[str, Rows]:
        budget = Budget(held.pipe, held.plan.tuned_on[:1], slot.passes)
        even = budget.even(slot.passes)
        learned = learn_gates(
            held.pipe, held.plan.fitted_to[:LEARNED_FROM], budget, even, rounds=ROUNDS, progress=held.progress
        )
        return {"learned": _rows(budget.table(learned)), "even": _rows(budget.table(even))}

    tables = held.value(f"router-tables-{slot.passes}", learn)
    found = {name: Setting.of(ModuleTablePolicy(_table(rows))) for name, rows in tables.items()}
    return found[held.choose(f"router-{slot.passes}", lambda: found)]


def router_random(slot: Slot) -> Setting:
    held = slot.held_out
    rows = held.value(
        f"router-random-{slot.passes}",
        lambda: _rows(Budget(held.pipe, held.plan.tuned_on[:1], slot.passes).random()),
    )
    return Setting.of(ModuleTablePolicy(_table(rows)))


def _rows(table: Table) -> Rows:
    return [(part.site, part.first, list(steps)) for part, steps in table.items()]


def _table(rows: Rows) -> Table:
    return {Part(_SITES[site], first, first + 1): tuple(steps) for site, first, steps in rows}


def toca(slot: Slot, *, every: int = 1) -> Setting:
    def maker(share: float) -> Callable[[int], Setting]:
        return lambda interval: Setting.of(ToCaPolicy(share, TAPConfig(interval=interval), every=every))

    return affordable(slot, f"toca-{every}", {f"{share:g}": maker(share) for share in SHARES}, intervals(slot))


def ras(slot: Slot) -> Setting:
    def maker(dense: int, resets: tuple[float, ...]) -> Callable[[float], Setting]:
        return lambda share: Setting.of(RASPolicy(share, dense=dense, resets=resets))

    makes = {
        f"{dense} {len(resets)}": maker(dense, resets)
        for dense in (WARMUP, WARMUP + 1)
        for resets in ((), (0.5,), (0.4, 0.75))
    }
    return affordable(slot, "ras", makes, (0.75, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02))


def hsa(slot: Slot) -> Setting:
    """Take two groups of tokens or three, and divisors in fixed proportions."""

    def maker(ratios: tuple[int, ...], shares: tuple[float, ...]) -> Callable[[int], Setting]:
        return lambda pace: Setting.of(HSAPolicy([pace * ratio for ratio in ratios], shares, dense=WARMUP))

    groups = (((1, 2), (0.5, 0.5)), ((1, 4), (0.25, 0.75)), ((1, 2, 4), (0.25, 0.25, 0.5)))
    makes = {" ".join(map(str, ratios)): maker(ratios, shares) for ratios, shares in groups}
    return affordable(slot, "hsa", makes, range(1, max(3, slot.steps // 2)))


def tap_tokens(slot: Slot, *, names: Names) -> Setting:
    """Take longer windows than TAP's, and tokens at all steps of them or at every other."""

    def maker(share: float, every: int) -> Callable[[int], Setting]:
        return lambda interval: Setting.of(
            TAPTokensPolicy(share, TAPConfig(interval=interval), names=names, every=every)
        )

    makes = {f"{share:g} {every}": maker(share, every) for share in SHARES for every in (1, 2)}
    return affordable(slot, f"tap-tokens-{names}", makes, intervals(slot))


def no_small_model(model: str) -> str:
    """Tell why a model cannot be switched for a small one of its family; nothing where it can."""
    if small_sibling(model) is not None:
        return ""
    return f"{model} has no small model of its family to switch to: it would be called {model.rstrip('/')}-small"


def model_switch(slot: Slot) -> Setting:
    """Leave the last steps to the small model of the family, as published, or all but the last ones.

    The first step is the model's own in any case. With all others left to the small model it goes as far as it can.

    Raises:
        ValueError: the model has no small one.
    """
    plan = slot.held_out.plan
    if missing := no_small_model(plan.model):
        raise ValueError(missing)
    small = pipe_of(f"{small_sibling(plan.model)}").transformer
    makes: dict[str, Callable[[int], Setting]] = {
        "first": lambda count: Setting.of(ModelSwitchPolicy(small, count)),
        "last": lambda count: Setting.of(ModelSwitchPolicy(small, range(slot.steps - count, slot.steps))),
    }
    return affordable(slot, "model-switch", makes, range(slot.steps, -1, -1))


def profiling(slot: Slot, *, foreground: bool = False) -> Setting:
    """Leave out the blocks that attend most to the background: half of them, three quarters, or all but one.

    Args:
        foreground: leave out those that attend most to the foreground instead: the control.
    """
    held = slot.held_out
    found = held.value("attention", lambda: foreground_attention(held.pipe, held.plan.fitted_to))
    order = sorted(range(len(found)), key=lambda block: -found[block] if foreground else found[block])

    def maker(count: int) -> Callable[[int], Setting]:
        return lambda interval: Setting.of(GroupsPolicy(groups_of(order[:count]), TAPConfig(interval=interval)))

    blocks = len(order)
    counts = sorted({max(1, blocks // 2), max(1, 3 * blocks // 4), max(1, blocks - 1)})
    makes = {f"{count}": maker(count) for count in counts}
    return affordable(slot, "profiling-foreground" if foreground else "profiling", makes, intervals(slot))


PARTIAL: dict[str, Callable[[Slot], Setting]] = {
    "delta-dit": delta_dit,
    "pab": pab,
    "dbcache": dbcache,
    "temporal-delta": temporal_delta,
    "bac": bac,
    "toca": toca,
    "duca": partial(toca, every=2),
    "ras": ras,
    "hsa": hsa,
    "tap+tokens": partial(tap_tokens, names="probe"),
    "tap+tokens-error": partial(tap_tokens, names="error"),
    "tap+tokens-random": partial(tap_tokens, names="random"),
}
