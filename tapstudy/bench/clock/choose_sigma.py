"""Choose the width of a low-pass of the clock on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from tapstudy.instrument.handle import apply_policy
from tapstudy.instrument.smooth_time import smooth_time
from tapstudy.policies.base import Policy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.calls import pipeline_arguments, samples_of


class SigmaChoice(NamedTuple):
    """Hold a width in units of time, and the errors it was chosen by."""

    sigma: float
    table: xr.Dataset


def choose_sigma(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    *,
    policy: Policy | None = None,
    sigmas: Sequence[float] = (0, 10, 20, 30, 40, 60),
    data_range: float = 1.0,
) -> SigmaChoice:
    """Weigh what a low-pass changes in the image against what it spares the forecasts.

    A wider one makes steps easier to foretell and the full image another one. What counts is the accelerated image of
    the smoothed model against the full one of the model as it was. Chosen is the least sigma whose PSNR is within one
    standard error (of the paired differences over images) of the best. Choose on images that nothing is judged on.

    Args:
        pipe: a pipeline with a supported transformer.
        calls: keyword arguments of the pipeline with `seed`, as for `record`; images come as `output_type` says.
        policy: how sampling is accelerated, TAP on S(8, 3) by default.
        sigmas: widths to try, in units of time; 0 is always tried.
        data_range: of the images, for PSNR: 1 for images in [0, 1].

    Returns:
        The width and, for every `sigma` and `sample`, as root mean squares in units of the image: `deviation`
        (smoothed in full against unsmoothed in full), `forecast_error` (smoothed and accelerated against smoothed in
        full) and `error` (smoothed and accelerated against unsmoothed in full), and `psnr` of the last, in dB.

    Raises:
        RuntimeError: the pipeline is smoothed already.
        ValueError, TypeError: no calls, no usable `seed`, and as `smooth_time` and `apply_policy` do.

    Cost: for every image and sigma one run in full and one accelerated.
    """
    if not calls:
        raise ValueError("there are no calls to choose by: pass held-out images")
    policy = policy if policy is not None else TAPPolicy()
    samples = [sample for index, call in enumerate(calls) for sample in samples_of(index, call)]
    widths = sorted({0.0, *map(float, sigmas)})
    errors = np.zeros((3, len(widths), len(samples)))
    originals: list[torch.Tensor] = []
    for index, sigma in enumerate(widths):
        with smooth_time(pipe, sigma):
            full = [_sampled(pipe, call) for call in calls]
            with apply_policy(pipe, policy):
                fast = [_sampled(pipe, call) for call in calls]
        originals = originals or full
        for kind, (images, reference) in enumerate(((full, originals), (fast, full), (fast, originals))):
            errors[kind, index] = np.concatenate([_rms(a, b) for a, b in zip(images, reference, strict=True)])
    psnr = 20 * np.log10(data_range / np.maximum(errors[2], np.finfo(np.float32).tiny))
    table = xr.Dataset(
        {
            name: (("sigma", "sample"), values, {"long_name": text, "units": "units of the image"})
            for name, values, text in zip(
                ("deviation", "forecast_error", "error"),
                errors,
                ("smoothed, in full, against unsmoothed", "accelerated against full, both smoothed",
                 "smoothed and accelerated against unsmoothed, in full"),
                strict=True,
            )
        },
        {
            "sigma": ("sigma", widths, {"units": "1/1000 of the training times"}),
            "seed": ("sample", [sample.seed for sample in samples]),
            "label": ("sample", [sample.label for sample in samples]),
        },
    )  # fmt: skip
    table["psnr"] = (("sigma", "sample"), psnr, {"long_name": "PSNR of the last", "units": "dB"})
    return SigmaChoice(widths[least_within_one_error(psnr)], table)


def least_within_one_error(values: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    """Find the first row of (row, sample) whose mean is within one standard error, paired, of the best."""
    best = values[values.mean(axis=1).argmax()]
    for row, behind in enumerate(best - values):
        error = behind.std(ddof=1) / len(behind) ** 0.5 if len(behind) > 1 else 0.0
        if behind.mean() <= error:
            return row
    raise AssertionError("the best is no worse than itself")


def _sampled(pipe: Any, call: Mapping[str, Any]) -> torch.Tensor:
    """Return the images (batch, ...) of one call."""
    (images, *_) = pipe(**pipeline_arguments(call), return_dict=False)
    return torch.as_tensor(np.asarray(images) if isinstance(images, list) else images).double().cpu()


def _rms(images: torch.Tensor, reference: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the root mean square of the differences, (batch,)."""
    return (images - reference).flatten(1).square().mean(dim=1).sqrt().numpy()
