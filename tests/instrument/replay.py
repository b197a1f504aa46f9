"""A policy and a loop for tests: run in full, then feed the true residual back."""

from __future__ import annotations

from tapstudy.instrument.handle import apply_policy
from tapstudy.policies.base import Policy, Prediction


class Replay(Policy):
    """Full steps where `full` says so; in between, `factor` times the last residual that was seen."""

    needs_probe = True

    def __init__(self, *, full=(0,), site="hidden", probe_depth=0, factor=1.0, needs_probe=True):
        self.full, self.factor = full, factor
        self.residual_site, self.probe_depth, self.needs_probe = site, probe_depth, needs_probe

    def wants_full(self, step):
        return step in self.full

    def observe(self, step, probe, residual):
        self.residual = residual.clone()

    def predict(self, step, probe, truth=None):
        return Prediction(self.factor * self.residual)


def steps(tiny, policy, *, calls=2):
    """Outputs and events of the same call made `calls` times under `policy`."""
    events = []
    with apply_policy(tiny.model, policy) as handle:
        handle.listen(events.append)
        outputs = [tiny() for _ in range(calls)]
    return outputs, events


def relative_error(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())
