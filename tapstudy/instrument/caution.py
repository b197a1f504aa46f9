"""Situations in which a policy cannot do what its user hopes for. The instrument warns of them."""

from __future__ import annotations

from typing import Any

from tapstudy.policies.base import Policy, RunInfo

_NOISY_NAMES = ("Ancestral", "DDPM", "LCM", "TCD", "SCM", "SDE", "SdeVe", "CMStochastic", "CogVideoXDPM", "RePaint")


def draws_noise(scheduler: Any) -> bool:
    """Whether the scheduler adds fresh noise at every step, which no predictor can foresee."""
    config = getattr(scheduler, "config", {})
    return (
        any(name in type(scheduler).__name__ for name in _NOISY_NAMES)
        or bool(config.get("stochastic_sampling"))
        or "sde" in str(config.get("algorithm_type"))
    )


def too_short(policy: Policy, num_steps: int) -> bool:
    """Whether a run of `num_steps` ends before the first step that `policy` would skip in a longer one."""
    run, longer = policy.fresh(), policy.fresh()
    run.begin(RunInfo(num_steps))
    longer.begin(RunInfo(num_steps + 1000))
    return all(run.wants_full(step) for step in range(num_steps)) and not all(
        longer.wants_full(step) for step in range(num_steps + 1000)
    )
