"""The loop of the contract, for policies without a model."""

from __future__ import annotations

from dataclasses import replace

import torch

from tapstudy.policies.base import RunInfo


def tokens(*values):
    """One sample, one token, one channel per value, float64: (1, 1, D)."""
    return torch.tensor([[values]], dtype=torch.float64)


def drive(policy, probes, residuals, *, num_steps=None):
    """The mask, and the predictions by step, of a run whose probes and true residuals are given."""
    policy.begin(RunInfo(num_steps))
    mask, predictions = "", {}
    for step, (probe, residual) in enumerate(zip(probes, residuals, strict=True)):
        full = policy.wants_full(step)
        if not full and policy.decides_by_probe:
            answers = {policy.wants_full_given(step, probe) for _ in range(2)}
            assert len(answers) == 1, "a question changes nothing"
            full = answers.pop()
        if full:
            policy.observe(step, probe, residual)
        else:
            prediction = policy.predict(step, probe)
            policy.skipped(step, probe, prediction)
            # histories reuse their buffers
            predictions[step] = replace(prediction, residual=prediction.residual.clone())
        mask += "F" if full else "."
    return mask, predictions
