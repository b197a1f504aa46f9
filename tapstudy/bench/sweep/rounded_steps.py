"""Rounded weights at some steps only: does it matter which?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from tapstudy.bench.engine import Job, Setting, Told, kept, run_all
from tapstudy.bench.image_error import unit_images
from tapstudy.bench.plan import StudyPlan
from tapstudy.bench.results import Results
from tapstudy.core.schedule import mask_text
from tapstudy.instrument.quantise import check_bits, quantise
from tapstudy.policies.model_switch import ModelSwitchPolicy

WHEN = ("all", "early", "late", "spread")


def steps_of(when: str, steps: int) -> tuple[int, ...]:
    """Return the steps with rounded weights: all but the first, or half of those: in front, behind or spread."""
    rest = range(1, steps)
    half = len(rest) // 2
    chosen = {"all": rest, "early": rest[:half], "late": rest[len(rest) - half :], "spread": rest[1::2]}
    return tuple(chosen[when])


def rounded_steps(
    plan: StudyPlan, work: str | Path, *, bits: Sequence[int] = (6, 4, 3), progress: bool = True
) -> xr.Dataset:
    """Measure the squared error of final images whose weights are rounded at some steps and exact at the others.

    Args:
        plan: of an embedded model, of at least 3 steps; its held-out images are not used.
        work: folder of the results; the same call resumes.
        bits: of a rounded weight, see `tapstudy.quantise`.
        progress: show a bar.

    Returns:
        `error` (bits, when, sample), means over the pixels, in [0, 1], to those of the same noise with exact weights.
        `when`: the weights are rounded at "all" steps but the first, at the "early" or the "late" half of these, or at
        every other one, "spread"; `rounded` (when) counts them.

    Raises:
        ValueError: bits out of range, a number twice, too few steps.
        RuntimeError: a run failed; what is finished is kept.
    """
    for count in bits:
        check_bits(count)
    if len(set(bits)) < len(bits) or plan.steps < 3:
        raise ValueError(f"needs different numbers of bits and at least 3 steps, got {list(bits)} and {plan.steps}")
    exact = Setting.plain(plan.steps)
    settings = {
        (count, when): _rounded(count, steps_of(when, plan.steps), plan.steps) for count in bits for when in WHEN
    }
    results = Results(Path(work))
    jobs: list[Job] = [(plan.test, setting) for setting in (exact, *settings.values())]
    for (_, setting), reason in run_all(jobs, results, progress=progress).items():
        raise RuntimeError(f"{setting.text}: {reason}")
    reference = kept(jobs[0], results)
    target = unit_images(reference)
    errors = [
        (unit_images(kept((plan.test, setting), results)) - target).double().square().flatten(1).mean(dim=1)
        for setting in settings.values()
    ]
    text = {"long_name": "mean squared error with rounded weights at some steps", "units": "1"}
    return xr.Dataset(
        {"error": (("bits", "when", "sample"), torch.stack(errors).unflatten(0, (len(bits), len(WHEN))), text)},
        {
            "bits": list(bits),
            "when": list(WHEN),
            "rounded": ("when", [len(steps_of(when, plan.steps)) for when in WHEN]),
            "seed": reference["seed"],
            "label": reference["label"],
        },
        {"model": plan.model, "steps": plan.steps, "guidance": plan.guidance},
    )


def _rounded(bits: int, steps: Collection[int], total: int) -> Setting:
    """Make these of the steps with a copy of the model whose weights are rounded."""
    own = [step for step in range(total) if step not in steps]

    @contextmanager
    def attach(pipe: Any) -> Iterator[Callable[[], Told]]:
        other = copy.deepcopy(pipe.transformer)
        with quantise(other, bits), Setting.of(ModelSwitchPolicy(other, own)).attach(pipe) as told:
            yield told

    return Setting(attach, f"weights of {bits} bits, exact at {mask_text(own, total)}")
