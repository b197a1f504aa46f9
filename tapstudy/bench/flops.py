"""FLOPs of a pipeline call. Convention: one multiply-add is two FLOPs; matrix products, convolutions and attention
count, element-wise work does not (torch's own counter, to which attention on CPUs is added)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tapstudy.instrument.handle import apply_policy, find_transformers
from tapstudy.policies.base import Policy
from tapstudy.policies.full import FullPolicy


def flop_counter() -> FlopCounterMode:
    """Return torch's counter with the operator that it lacks: attention on CPUs."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    on_cpus = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpus: attention})


class StepFlops(NamedTuple):
    """Hold FLOPs of one full step, and of one skip step or the mean of all that are not full."""

    full: int
    skip: int

    def of(self, mask: str) -> int:
        """Return the FLOPs of a run with this mask; whatever is no full step counts as a skip step."""
        return self.full * mask.count("F") + self.skip * (len(mask) - mask.count("F"))


def count_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of everything `run` computes."""
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


def transformer_flops(pipe: Any, run: Callable[[], object]) -> int:
    """Count the FLOPs of what `run` computes within the transformers of a pipeline, what is put on them included."""
    with flop_counter() as counter:
        run()
    found = counter.get_flop_counts()
    names = {type(model).__name__ for model, _ in find_transformers(pipe).values()}
    return sum(sum(found[name].values()) for name in names if name in found)


def step_flops(pipe: Any, policy: Policy | None, sample: Callable[[int], object], *, steps: int = 1) -> StepFlops:
    """Count the FLOPs of one full and of one skip step of `policy` on `pipe`; None never skips.

    Args:
        policy: fills its history at its first steps and then skips.
        sample: runs `pipe` for a number of steps, or of those, as image-to-image does, the last ones.
        steps: at least so many.
    """
    full, mask = _counted(pipe, FullPolicy(), sample, steps)
    full //= len(mask)
    if policy is None:
        return StepFlops(full, full)
    first = next(step for step in count() if not policy.wants_full(step))
    total, mask = _counted(pipe, policy, sample, max(steps, first + 1))
    skipped = len(mask) - mask.count("F")
    return StepFlops(full, (total - mask.count("F") * full) // skipped if skipped else 0)


def run_flops(pipe: Any, policy: Policy, sample: Callable[[int], object], *, steps: int, few: int = 1) -> StepFlops:
    """Count the FLOPs of a full step, and the mean of all others of a run, some of which may run more than others.

    Args:
        policy, sample: as for `step_flops`.
        steps: of the run.
        few: steps that are enough to count a full one.
    """
    full, mask = _counted(pipe, FullPolicy(), sample, few)
    full //= len(mask)
    total, mask = _counted(pipe, policy, sample, steps)
    others = len(mask) - mask.count("F")
    return StepFlops(full, (total - mask.count("F") * full) // others if others else 0)


def _counted(pipe: Any, policy: Policy, sample: Callable[[int], object], steps: int) -> tuple[int, str]:
    with apply_policy(pipe, policy) as handle:
        return transformer_flops(pipe, lambda: sample(steps)), handle.summary().mask
