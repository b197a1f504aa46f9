"""Caching on rounded weights: the error of either alone, of both, and of both with corrections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import xarray as xr

from tapstudy.bench.engine import Job, Setting, kept, run_all
from tapstudy.bench.fit.correction import Correction, Kind
from tapstudy.bench.image_error import unit_images
from tapstudy.bench.methods import find_method
from tapstudy.bench.plan import StudyPlan
from tapstudy.bench.results import Results
from tapstudy.instrument.quantise import check_bits, quantise
from tapstudy.policies.config import TAPConfig

METHODS = ("order0", "order1", "tap")
CORRECTIONS: tuple[Kind, ...] = ("variance", "affine", "cumulative")


def quantised(
    plan: StudyPlan,
    work: str | Path,
    *,
    bits: Sequence[int] = (8, 6, 4, 3),
    intervals: Sequence[int] = (8, 4),
    progress: bool = True,
) -> xr.Dataset:
    """Measure the squared error of final images, to those of the same noise in full precision and without caching.

    Args:
        plan: of an embedded model; corrections are fitted to all its held-out images.
        work: folder of the results; the same call resumes.
        bits: of a weight, see `tapstudy.quantise`.
        intervals: N of the schedules S(N, 3).
        progress: show a bar.

    Returns:
        Means over the pixels, in [0, 1], of squared errors: `caching` (method, interval, sample), `rounding` (bits,
        sample), and `both` (method, interval, bits, correction, sample), with correction "none" first. `cosine`
        (method, interval, bits, sample): of the errors of caching and of rounding, each alone.

    Raises:
        ValueError: bits out of range, a number twice.
        RuntimeError: a run failed; what is finished is kept.
    """
    for count in bits:
        check_bits(count)
    if len(set(bits)) < len(bits) or len(set(intervals)) < len(intervals):
        raise ValueError(f"a number stands twice among the bits {list(bits)} or intervals {list(intervals)}")
    exact = Setting.plain(plan.steps)
    caches = [
        method.setting(method.config(TAPConfig(interval=interval)), steps=plan.steps)
        for method in map(find_method, METHODS)
        for interval in intervals
    ]
    rounded = [_rounded(exact, count) for count in bits]
    correction = Correction(plan.images(plan.held_out))
    both: list[Setting] = []
    for cache in caches:
        for count in bits:
            both.append(_rounded(cache, count))
            both += [correction.of(both[-1], kind) for kind in CORRECTIONS]
    results = Results(Path(work))
    settings = [exact, *caches, *rounded, *both]
    jobs: list[Job] = [(plan.test, setting) for setting in settings]
    for (_, setting), reason in run_all(jobs, results, progress=progress).items():
        raise RuntimeError(f"{setting.text}: {reason}")

    reference = kept(jobs[0], results)
    target = unit_images(reference)

    def error(setting: Setting) -> torch.Tensor:
        return (unit_images(kept((plan.test, setting), results)) - target).double().flatten(1)  # (sample, pixel)

    cached = [error(setting) for setting in caches]
    coarse = [error(setting) for setting in rounded]
    sizes = (len(METHODS), len(intervals), len(bits))

    def squares(errors: Sequence[torch.Tensor], *shape: int) -> torch.Tensor:
        return torch.stack([one.square().mean(dim=1) for one in errors]).unflatten(0, shape)

    cosines = [torch.nn.functional.cosine_similarity(one, other) for one in cached for other in coarse]
    found = xr.Dataset(
        {
            "caching": (("method", "interval", "sample"), squares(cached, *sizes[:2])),
            "rounding": (("bits", "sample"), squares(coarse, *sizes[2:])),
            "both": (
                ("method", "interval", "bits", "correction", "sample"),
                squares([error(setting) for setting in both], *sizes, 1 + len(CORRECTIONS)),
            ),
            "cosine": (("method", "interval", "bits", "sample"), torch.stack(cosines).unflatten(0, sizes)),
        },
        {
            "method": list(METHODS),
            "interval": list(intervals),
            "bits": list(bits),
            "correction": ["none", *CORRECTIONS],
            "seed": reference["seed"],
            "label": reference["label"],
        },
        {"model": plan.model, "steps": plan.steps, "guidance": plan.guidance, "held_out": len(correction.held_out)},
    )
    for name, text in LONG_NAMES.items():
        found[name].attrs = {"long_name": text, "units": "1"}
    return found


LONG_NAMES = {
    "caching": "mean squared error of caching alone",
    "rounding": "mean squared error of rounded weights alone",
    "both": "mean squared error of caching on rounded weights",
    "cosine": "cosine of the errors of caching and of rounding",
}


def _rounded(setting: Setting, bits: int) -> Setting:
    return setting.within(lambda pipe: quantise(pipe, bits), f"weights of {bits} bits")
