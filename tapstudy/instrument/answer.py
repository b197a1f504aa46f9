"""Where what a policy says enters the model: refused if it would go wrong in silence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tapstudy.instrument.call import Call
from tapstudy.policies.base import Policy, Prediction

MISSING = AssertionError, AttributeError, IndexError, TypeError  # what comes of reading None


def observe(call: Call) -> None:
    """Show the policy a full step."""
    policy, residual = call.run.policy, call.residual
    assert residual is not None
    try:
        policy.observe(call.step, call.probe, residual)
    except MISSING as error:
        _explain(error, policy, "observe")
        raise
    call.run.observed = True


def predicted(call: Call, model: nn.Module, *, shape: torch.Size, device: torch.device | None) -> Tensor:
    """Return the residual that the policy predicts at a skip step of `model`, fit to take the place of a true one.

    Where gradients are recorded it is a leaf of their graph, and as trainable as what the model would have computed:
    one may call `backward` on whatever follows, and gradients end here.

    Args:
        shape: of the residuals that were observed, (batch, token, channel).
        device: of what it is added to, None if of nothing.

    Raises:
        TypeError: no prediction, or no floating residual of 16 bits or more.
        ValueError: a residual of another shape or on another device, or choices or losses that do not fit the labels.
    """
    policy, probe = call.run.policy, call.probe
    try:
        prediction = policy.predict(call.step, probe, call.residual)
    except MISSING as error:
        _explain(error, policy, "predict")
        raise
    _check(prediction, policy, step=call.step, shape=shape, device=device)
    call.prediction, residual = prediction, prediction.residual
    try:
        policy.skipped(call.step, probe, prediction)
    except MISSING as error:
        _explain(error, policy, "skipped")
        raise
    if torch.is_grad_enabled():  # a copy, since histories are overwritten before anybody calls backward
        return residual.detach().clone().requires_grad_(any(weight.requires_grad for weight in model.parameters()))
    # what was made in inference mode cannot be written to outside of it
    return residual.clone() if residual.is_inference() and not torch.is_inference_mode_enabled() else residual


def _explain(error: Exception, policy: Policy, method: str) -> None:
    """Raise a TypeError that says how a policy asks for more, in place of an error that comes of reading None."""
    asked = {"needs_probe": policy.needs_probe, "needs_truth": policy.needs_truth or method != "predict"}
    missing = [name for name, given in asked.items() if not given]
    # without a probe a history has none either: an assertion or an empty list speaks of that
    if not missing or (policy.needs_probe and "NoneType" not in str(error)):
        return
    names = " or ".join(missing)
    raise TypeError(
        f"{type(policy).__name__}.{method} failed without what it had not asked for ({type(error).__name__}: "
        f"{str(error) or 'no message'}): if it reads the {names.replace('needs_', '')}, set {names} = True on it"
    ) from error


def _check(
    prediction: Prediction, policy: Policy, *, step: int, shape: torch.Size, device: torch.device | None
) -> None:
    where = f"{type(policy).__name__}.predict at step {step}"
    if not isinstance(prediction, Prediction):
        raise TypeError(f"{where} must return a Prediction, got {type(prediction).__name__}: wrap it, Prediction(...)")
    residual = prediction.residual
    if not residual.is_floating_point() or residual.dtype.itemsize < 2:
        raise TypeError(f"{where} gave a residual of {residual.dtype}: it must be a float of 16 bits or more")
    if residual.shape != shape:
        raise ValueError(
            f"{where} gave a residual of shape {tuple(residual.shape)}, but (batch, token, channel) are "
            f"{tuple(shape)} here: return one of the shape that observe was given"
        )
    if device is not None and residual.device != device:
        raise ValueError(
            f"{where} gave a residual on {residual.device}, but the model computes on {device}: bring it there"
        )
    count, scored = len(policy.labels), prediction.inverse
    if prediction.choice is not None and count == 0:
        raise ValueError(f"{where} gave choices, but the policy has no labels that they could be indices of")
    if scored is None and isinstance(prediction.losses, Tensor):
        scored = prediction.losses[0, 0]
    if scored is not None and len(scored) != count:
        raise ValueError(f"{where} gave losses of {len(scored)} predictors, but the policy has {count} labels")
