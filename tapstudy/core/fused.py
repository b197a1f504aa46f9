"""Run the fused kernels where they are at hand and cover what is asked; elsewhere say so, and PyTorch computes.

They are taken on CUDA (ROCm as well) where triton is. They do not cover: features or residuals in float64, more than 4
anchors, 8192 channels of a probe or 4096 predictors, and graphs of `torch.compile`, which fuses by itself. Their first
failure (no compiler for the launcher, an unknown device) gives a warning and ends it for the process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tapstudy.core.coordinates import coefficients_of
from tapstudy.core.products import Distance
from tapstudy.core.resident import resident
from tapstudy.extras import need

MOST_ANCHORS, MOST_CHANNELS, MOST_PREDICTORS = 4, 8192, 4096
_failed = False


def rank(
    anchors: Sequence[Tensor], actual: Tensor, weights: Tensor, *, distance: Distance, fused: bool | None
) -> tuple[Tensor, Tensor] | None:
    """Score predictors and choose, in one launch.

    Args:
        anchors, actual, weights, distance: as for `scoring.rank`.
        fused: as for `scoring.tap_step`.

    Returns:
        Ranking scores (batch, token, predictor) and choice (batch, token), or None if the kernel does not do it.
    """
    if not _wanted(fused, actual) or not _covered(anchors, weights, actual):
        return None
    if actual.shape[-1] > MOST_CHANNELS or len(weights) > MOST_PREDICTORS:
        return None
    coefficients = resident(weights, actual.device, coefficients_of(distance))
    rows = [_rows(features) for features in anchors]
    found = _run(fused, lambda kernels: kernels.rank(rows, _rows(actual), coefficients, distance))
    return found and (found[0].unflatten(0, actual.shape[:-1]), found[1].unflatten(0, actual.shape[:-1]))


def assemble(anchors: Sequence[Tensor], weights: Tensor, choice: Tensor, *, fused: bool | None) -> Tensor | None:
    """Apply to every token the predictor it chose, in one launch: see `scoring.assemble`; None as for `rank`."""
    if not _wanted(fused, choice) or not _covered(anchors, weights) or choice.shape != anchors[0].shape[:-1]:
        return None
    single = resident(weights, choice.device, Tensor.float).contiguous()
    rows = [_rows(residual) for residual in anchors]
    found = _run(fused, lambda kernels: kernels.assemble(rows, single, choice.flatten().contiguous()))
    return None if found is None else found.view(anchors[0].shape)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


def _wanted(fused: bool | None, features: Tensor) -> bool:
    if fused is None:
        on_cuda = features.device.type == "cuda" and not torch.compiler.is_compiling()
        return on_cuda and not _failed and _installed()
    if fused:
        need("fused=True (else leave it out)", "triton")
    if fused and features.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "fused=True needs an accelerator; on the CPU only Triton's interpreter runs kernels, slowly: set "
            "TRITON_INTERPRET=1 before triton is imported, or leave fused out"
        )
    return fused


def _covered(anchors: Sequence[Tensor], weights: Tensor, *actual: Tensor) -> bool:
    """Check what a kernel does not: it would read whatever memory comes after tensors that are too short."""
    first, *others = features = (*anchors, *actual)
    alike = all(other.shape == first.shape and other.device == first.device for other in others)
    narrow = all(tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) for tensor in features)
    return alike and narrow and len(anchors) == weights.shape[-1] <= MOST_ANCHORS and first.numel() > 0


def _rows(features: Tensor) -> Tensor:
    """View features as (T, D), channels next to each other in memory."""
    rows = features.flatten(0, -2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _run(fused: bool | None, launch: Callable[[Any], Any]) -> Any:
    global _failed
    try:
        from tapstudy.core import kernels

        return launch(kernels)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # depends on the machine
        if fused:
            raise
        _failed = True
        first = str(error).strip().split("\n")[0]
        warnings.warn(f"the fused kernels failed ({first}), going on without them", RuntimeWarning, stacklevel=2)
    return None
