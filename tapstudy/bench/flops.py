"""FLOPs of a pipeline's run, counted while it runs; convention as in `instrument/flops.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tapstudy.instrument.flops import flop_counter
from tapstudy.instrument.handle import find_transformers


class StepFlops(NamedTuple):
    """Hold FLOPs of one full and one skip step, means over those of a run."""

    full: float
    skip: float

    def of(self, mask: str) -> float:
        """Return the FLOPs of a run with this mask; whatever is no full step counts as a skip step."""
        return self.full * mask.count("F") + self.skip * (len(mask) - mask.count("F"))


def transformer_flops(pipe: Any, run: Callable[[], object]) -> int:
    """Count the FLOPs of what `run` computes within the transformers of a pipeline, what is put on them included."""
    with flop_counter() as counter:
        run()
    found = counter.get_flop_counts()
    names = {type(model).__name__ for model, _ in find_transformers(pipe).values()}
    return sum(sum(found[name].values()) for name in names if name in found)
