"""Whether a fitted schedule belongs to a pipeline."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import torch
from torch import nn

from tapstudy.instrument.handle import find_transformers
from tapstudy.policies.fitted_schedule import FittedSchedule

VALUES = 16  # of a weight that are read


def weights_digits(target: Any) -> str:
    """Tell the weights of a pipeline's transformers apart from others by sixteen digits, the same in any precision.

    Reads shapes, and some values of every weight in bfloat16: enough to notice another training, or a LoRA that was
    merged, not a flipped bit. "" where weights are away from their modules, as offloading keeps them, and of a bare
    transformer.
    """
    if isinstance(target, nn.Module):
        return ""
    found = hashlib.sha256()
    for name, (model, _) in sorted(find_transformers(target).items()):
        weights = [(key, one) for key, one in model.named_parameters() if one.is_floating_point()]
        found.update(f"{name} {[(key, *one.shape) for key, one in weights]}".encode())
        for _, weight in weights:
            if weight.is_meta:
                return ""
            flat = weight.detach().reshape(-1)
            values = flat[:: max(1, len(flat) // VALUES)][:VALUES].to(torch.bfloat16).float().cpu().numpy()
            found.update(values.tobytes())
    return found.hexdigest()[:16]


def check_class(kind: type, schedule: FittedSchedule) -> None:
    """Raise ValueError for a schedule that was fitted to a pipeline of another class than `kind`."""
    if kind.__name__ != schedule.pipeline:
        raise ValueError(
            f"the schedule was fitted to a {schedule.pipeline}, and this is a {kind.__name__}: fit one to this "
            "pipeline with tapstudy.fit_schedule"
        )


def check_schedule(target: Any, schedule: FittedSchedule) -> None:
    """Refuse a schedule that was fitted to a pipeline of another class, and warn of one that was to other weights.

    Of a bare transformer nothing is known.

    Raises:
        ValueError: another class.
    """
    if isinstance(target, nn.Module):
        return
    check_class(type(target), schedule)
    now = weights_digits(target) if schedule.weights else ""
    if now and now != schedule.weights:
        warnings.warn(
            f"the schedule was fitted to other weights than this {type(target).__name__} has: what is best for one "
            "need not be for the other; fit another with tapstudy.fit_schedule",
            UserWarning,
            stacklevel=4,
        )
