"""`tap_step` through `torch.compile`.

On accelerators this is a few launches in place of some tens, and no intermediate features go to memory. The first call
compiles, which takes seconds; later ones do not, whatever the weights: these are inputs of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from threading import Lock
from types import FunctionType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from tapstudy.core.resident import resident
from tapstudy.core.scoring import Distance, Granularity, History, tap_step


class _Read(NamedTuple):
    """A history that has been read."""

    residuals: Sequence[Tensor]


def _options() -> dict[str, Any]:
    """Processors with vectors of 512 bits use half of these: going to float64, which is most of the work, takes torch
    10 to 25 % longer by whole ones."""
    return {"cpp.simdlen": 256} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}


def _run(probes: Sequence[Tensor], probe: Tensor, *others: Any, **options: Any) -> Any:
    kind = (len(probes), probes[0].dtype, probe.dtype, probe.device)
    step = _compiled(options.get("distance"), options.get("granularity"), *kind)
    return step(probes, probe, *others, **options)


@cache
def _compiled(*kind: Any) -> Any:
    """Compile `tap_step` for one kind of input. Of one code torch keeps few graphs, so every kind has its own."""
    del kind
    own = FunctionType(tap_step.__code__.replace(), tap_step.__globals__)
    own.__kwdefaults__ = tap_step.__kwdefaults__
    return torch.compile(own, dynamic=True, fullgraph=True, options=_options())


class CompiledStep:
    """A compiled `tap_step`, shared by the copies of a policy; the plain one, with a warning, where that fails.

    Raises:
        ValueError: distance l1 or granularity region, which make no graph.
    """

    def __init__(self, *, distance: Distance = "cosine", granularity: Granularity = "token") -> None:
        if distance == "l1" or granularity == "region":
            raise ValueError(
                "compile=True works with distance cosine or l2 and granularity token, step or global, got "
                f"{distance!r} and {granularity!r}: leave compile out"
            )
        self._compiled: Any = _run
        self._lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(
        self, probes: Sequence[Tensor], probe: Tensor, history: History, weights: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run `tap_step`, compiled."""
        if self._compiled is not None:
            read, weights = _Read(history.residuals), resident(weights, probe.device)
            try:
                with self._lock:
                    found: tuple[Tensor, Tensor, Tensor] = self._compiled(probes, probe, read, weights, **options)
                    return found
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # depends on the machine: no compiler, no Triton, an unknown device
                self._compiled = None
                first = str(error).strip().split("\n")[0]
                warnings.warn(f"compile=True failed ({first}), going on without it", RuntimeWarning, stacklevel=2)
        return tap_step(probes, probe, history, weights, **options)
