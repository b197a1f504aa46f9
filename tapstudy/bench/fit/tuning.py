"""Thresholds that make adaptive methods as expensive as the others, and choices by quality, on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Tuner:
    """Finds thresholds for several numbers of full passes, by bisection of the logarithm; every trial serves them all.

    Args:
        passes_of: threshold -> mean number of full passes, which falls (but for some noise) as the threshold grows.
        low, high: thresholds between which it is sought.
        trials: at most, for one target.
        tolerance: passes that do not matter.
    """

    def __init__(
        self,
        passes_of: Callable[[float], float],
        *,
        low: float = 1e-4,
        high: float = 10.0,
        trials: int = 9,
        tolerance: float = 0.25,
    ) -> None:
        self.passes_of, self.low, self.high = passes_of, low, high
        self.trials, self.tolerance = trials, tolerance
        self.known: dict[float, float] = {}

    def threshold(self, target: float) -> float:
        """Of all thresholds tried the one whose passes are closest to the target, the more expensive of equals."""
        for _ in range(self.trials):
            if self.known and self._distance(self._closest(target), target) <= self.tolerance:
                break
            low = max((t for t, passes in self.known.items() if passes > target), default=self.low)
            high = min((t for t, passes in self.known.items() if passes <= target and t > low), default=self.high)
            middle = (low * high) ** 0.5
            if middle in self.known or not low < middle < high:
                break
            self.known[middle] = self.passes_of(middle)
        return self._closest(target)

    def _closest(self, target: float) -> float:
        return min(self.known, key=lambda t: (self._distance(t, target), -self.known[t]))

    def _distance(self, threshold: float, target: float) -> float:
        return abs(self.known[threshold] - target)


def best_of(quality: Mapping[str, float]) -> str:
    """The name of the highest value, the first one on a tie."""
    return max(quality, key=lambda name: quality[name])


Mask = tuple[int, ...]
MOVES = (-1, 1, -2, 2)


def improve_mask(mask: Mask, num_steps: int, quality: Callable[[Mask], float], *, trials: int) -> Mask:
    """Move one full step after the other by one or two, and keep every move that helps.

    Ends when no move of any step helps, or after so many trials. Step 0 stays. The masks of the dynamic programs are
    best for errors along exact trajectories; this one sees the accelerated trajectories themselves.

    Args:
        mask: to start from.
        num_steps: T.
        quality: higher is better.
    """
    known = {mask: quality(mask)}
    improved = True
    while improved:
        improved = False
        for place in range(1, len(mask)):
            for move in MOVES:
                moved = mask[place] + move
                limit = mask[place + 1] if place + 1 < len(mask) else num_steps
                trial = (*mask[:place], moved, *mask[place + 1 :])
                if not mask[place - 1] < moved < limit or trial in known:
                    continue
                if len(known) > trials:
                    return mask
                known[trial] = quality(trial)
                if known[trial] > known[mask]:
                    mask, improved = trial, True
                    break
    return mask
