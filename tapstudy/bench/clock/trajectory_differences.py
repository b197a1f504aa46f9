"""How features change from step to step along a trajectory, and how well the steps before foretell them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.core.schedule import Schedule
from tapstudy.core.weights import extrapolation_row
from tapstudy.instrument.passes import QUANTITIES, FullPass

Array = NDArray[np.float64]
ORDERS = (0, 1, 2)
RESIDUAL = QUANTITIES.index("residual")


def powers(features: Sequence[Tensor], samples: int) -> Array:
    """Sum of squares of every feature (batch, ...) over the rows of each sample, (feature, sample).

    A batch holds the samples once for every guidance branch, one branch after the other.

    Raises ValueError if the batch is no multiple of the samples.
    """
    found = []
    for feature in features:
        if len(feature) % samples:
            raise ValueError(
                f"the transformer got a batch of {len(feature)} for {samples} samples: cannot tell whose row is whose"
            )
        rows = feature.flatten(1).square().sum(dim=1, dtype=torch.float64)  # (batch,)
        found.append(rows.view(-1, samples).sum(dim=0))
    return torch.stack(found).cpu().numpy()


def relative(difference: Array, of: Array) -> Array:
    """Return the root of the share of two powers, 0 where nothing differs, be it of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, np.sqrt(difference / of))


def wide(features: dict[str, Tensor]) -> list[Tensor]:
    """Return the features in the order of `QUANTITIES`, in single precision at least."""
    return [features[name].to(torch.promote_types(features[name].dtype, torch.float32)) for name in QUANTITIES]


@dataclass
class _Branch:
    """Remember of one guidance branch the last three passes and the last three anchors, newest first."""

    transformer: str = ""
    steps: int = 0
    last: deque[list[Tensor]] = field(default_factory=lambda: deque(maxlen=3))
    anchors: deque[tuple[int, Tensor]] = field(default_factory=lambda: deque(maxlen=max(ORDERS) + 1))


class TrajectoryDifferences:
    """Takes the passes of a run one by one and sums powers over guidance branches, tokens and channels.

    Args:
        samples: images of the run.
        interval: N of the schedule S(N, 3) of the forecasts.
        keep: steps whose passes are kept, by `copy`, in `kept`.
    """

    def __init__(
        self, samples: int, *, interval: int, keep: Collection[int], copy: Callable[[FullPass], FullPass]
    ) -> None:
        self.samples = samples
        self.kept: dict[int, list[FullPass]] = defaultdict(list)
        self._interval, self._keep, self._copy = interval, keep, copy
        self._branches: dict[str, _Branch] = defaultdict(_Branch)
        self._times: dict[int, float] = {}
        zeros = lambda: np.zeros((2, len(QUANTITIES), samples))  # noqa: E731
        # by step: powers of a difference and of the feature it is relative to
        self._changes: dict[int, Array] = defaultdict(zeros)
        self._seconds: dict[int, Array] = defaultdict(zeros)
        self._errors = np.zeros((len(ORDERS), samples))
        self._forecast = np.zeros(samples)
        self._skipped = False

    def add(self, one: FullPass) -> None:
        """Take one more pass, in the order they ran. Differences across a change of the transformer mean nothing."""
        branch = self._branches[one.context]
        step, features = branch.steps, wide(one.features)
        if one.transformer != branch.transformer:
            branch.transformer = one.transformer
            branch.last.clear()
            branch.anchors.clear()
        self._times.setdefault(step, one.timestep)
        if step in self._keep:
            self.kept[step].append(self._copy(one))
        branch.last.appendleft(features)
        if len(branch.last) > 1:
            before = branch.last[1]
            self._add(self._changes[step], [a - b for a, b in zip(features, before, strict=True)], before)
        if len(branch.last) == 3:
            now, middle, before = branch.last
            second = [a + b - 2 * c for a, b, c in zip(now, before, middle, strict=True)]
            self._add(self._seconds[step - 1], second, middle)
        self._foretell(branch, step, features[RESIDUAL])
        branch.steps += 1

    def _add(self, sums: Array, difference: list[Tensor], of: list[Tensor]) -> None:
        sums += np.stack([powers(difference, self.samples), powers(of, self.samples)])

    def _foretell(self, branch: _Branch, step: int, residual: Tensor) -> None:
        if not branch.anchors or Schedule(self._interval, 3).is_full(step):
            branch.anchors.appendleft((step, residual))
            return
        self._skipped = True
        at = [anchor for anchor, _ in branch.anchors]
        for index, order in enumerate(ORDERS):
            row = extrapolation_row(at, min(order, len(at) - 1), step - at[0])
            error = residual.clone()
            for weight, (_, anchor) in zip(row, branch.anchors, strict=True):
                error -= weight * anchor
            self._errors[index] += powers([error], self.samples)[0]
        self._forecast += powers([residual], self.samples)[0]

    @property
    def timesteps(self) -> Array:
        """Return (step,), as the model was told them."""
        return np.array([self._times[step] for step in sorted(self._times)])

    def changes(self) -> Array:
        """Return |f(i) - f(i-1)| / |f(i-1)|, (quantity, step, sample), NaN at the first step."""
        return self._relative(self._changes)

    def second_differences(self) -> Array:
        """Return |f(i+1) - 2 f(i) + f(i-1)| / |f(i)|, (quantity, step, sample), NaN at the first and the last step."""
        return self._relative(self._seconds)

    def _relative(self, sums: dict[int, Array]) -> Array:
        found = np.full((len(QUANTITIES), len(self._times), self.samples), np.nan)
        for step, (difference, of) in sums.items():
            found[:, step] = relative(difference, of)
        return found

    def forecast_errors(self) -> Array:
        """Return errors of Taylor forecasts of the residual, over all skip steps, (order, sample); NaN without any."""
        return relative(self._errors, self._forecast) if self._skipped else np.full_like(self._errors, np.nan)
