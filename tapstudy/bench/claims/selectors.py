"""What would be chosen if method, full steps and clock were chosen together, on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tapstudy.bench.claims.runs import MASKS, Plan, Run
from tapstudy.bench.fit.held_out import FIXED, HeldOut

Option = tuple[str, Mapping[str, str]]  # a method, and settings of TAPConfig

OUTPUT = {"residual": "latent"}
TOKENS: tuple[Option, ...] = (("tap", {}), ("tap", OUTPUT), ("class-rows", {}), ("wiener", {}))
SHUFFLED = {"tap": "shuffled", "class-rows": "class-rows-shuffled", "wiener": "wiener-shuffled"}
OTHERS: tuple[Option, ...] = (
    ("drift", {}), ("order1", {}), ("order1", OUTPUT), ("fitted", {}), ("step-table-output", {}),
)  # fmt: skip


def selector_runs(held: HeldOut, plan: Plan) -> dict[str, Run]:
    """Return what was chosen, and its controls, by the names that the claims know them by.

    "selected" is the best of all; "token selector" the best of those that choose for every token, "token selector
    shuffled" the same with the losses, or classes, of other tokens, "token selector fixed" the one predictor of TAP's
    family that is best on the same full steps, residual and clock.
    """
    tokens = best_of_runs(held, plan, TOKENS)
    return {
        "selected": _best(held, plan, [tokens, best_of_runs(held, plan, OTHERS)]),
        "token selector": tokens,
        "token selector shuffled": replace(tokens, method=SHUFFLED[tokens.method]),
        "token selector fixed": best_fixed_like(held, plan, tokens),
    }


def best_of_runs(held: HeldOut, plan: Plan, options: Sequence[Option]) -> Run:
    """Return the run that is best on the tuning images: an option, on one of `MASKS`, on either clock."""
    return _best(held, plan, [
        Run(method, on, changes, smooth=smooth) for method, changes in options for on in MASKS
        for smooth in (False, True)
    ])  # fmt: skip


def best_fixed_like(held: HeldOut, plan: Plan, run: Run) -> Run:
    """Return the fixed predictor that is best on the tuning images with the full steps, residual and clock of a run."""
    changes = OUTPUT if run.method == "class-rows" else run.changes
    return _best(held, plan, [replace(run, method=f"fixed{order}-{shift}", changes=changes) for order, shift in FIXED])


def _best(held: HeldOut, plan: Plan, runs: Sequence[Run]) -> Run:
    settings = {run: run.setting(held, plan) for run in runs}
    first = {setting.text: run for run, setting in reversed(settings.items())}  # masks may be the same
    found = {run: held.kept_quality(run.name.replace(" ", "-"), settings[run]) for run in reversed(first.values())}
    return max(found, key=lambda run: found[run])
