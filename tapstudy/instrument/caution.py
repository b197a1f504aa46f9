"""Situations in which a policy cannot do what its user hopes for. The instrument warns of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from tapstudy.instrument.call import MISSING
from tapstudy.instrument.trajectory import ContextRun
from tapstudy.policies.base import Policy, RunInfo

_NOISY_NAMES = ("Ancestral", "DDPM", "LCM", "TCD", "SCM", "SDE", "SdeVe", "CMStochastic", "CogVideoXDPM", "RePaint")


def draws_noise(scheduler: Any) -> bool:
    """Tell whether the scheduler adds fresh noise at every step, which no predictor can foresee."""
    config = getattr(scheduler, "config", None)
    config = config if isinstance(config, Mapping) else {}
    return (
        any(name in type(scheduler).__name__ for name in _NOISY_NAMES)
        or bool(config.get("stochastic_sampling"))
        or "sde" in str(config.get("algorithm_type"))
    )


def too_short(policy: Policy, run: RunInfo) -> bool:
    """Tell whether a run ends before the first step that `policy` would skip in a longer one."""
    assert run.num_steps is not None
    begun, longer = policy.fresh(), policy.fresh()  # one that knows no run yet has none that ends
    begun.begin(run)
    if not all(begun.wants_full(step) for step in range(run.num_steps)):
        return False
    try:
        return not all(longer.wants_full(step) for step in range(run.num_steps + 1000))
    except MISSING:  # a policy that has to begin before it can answer
        return False


class Cautions:
    """The warnings about one transformer, each given once."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._given: set[str] = set()

    def warn(self, message: str) -> None:
        if message not in self._given:
            self._given.add(message)
            warnings.warn(message, UserWarning, stacklevel=2)

    def about_sampling(self, policy: Policy, scheduler: Any, run: RunInfo) -> None:
        """Warn at the start of a trajectory."""
        if draws_noise(scheduler):
            self.warn(
                f"{type(scheduler).__name__} adds fresh noise at every step, which no predictor can foresee: expect "
                "worse images from skipped steps than with a deterministic scheduler"
            )
        if run.num_steps is not None and too_short(policy, run):
            self.warn(
                f"{run.num_steps} sampling steps are too few: the policy's schedule skips none of them; use a smaller "
                "warmup_steps or interval, or more steps"
            )

    def about_repeats(self) -> None:
        """When calls that had been taken for steps turn out to have been contexts."""
        self.warn(
            f"{self.model} was called several times in the very same way at its first timestep, which was taken for "
            "steps of one context; now that the timestep moves, each such call has a context, with an empty history: "
            'name them with handle.context("perturbed"), or apply the policy to the pipeline, whose scheduler tells '
            "the steps"
        )

    def about_skips(self, runs: Mapping[str, ContextRun]) -> None:
        """Warn at the end of a trajectory."""
        kinds = {kind for run in runs.values() for kind in run.kinds}
        reasons = {reason for run in runs.values() for reason in run.fail_opens}
        if reasons and kinds == {"full"}:
            advice = (
                "; if the conditioning changes from call to call, name the guidance branches with "
                'handle.context("cond")'
            )
            self.warn(
                f"no step of {self.model} was skipped although the policy wanted to: {', '.join(sorted(reasons))}"
                + (advice if "no history yet" in reasons else "")
            )
