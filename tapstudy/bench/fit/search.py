"""A mask improved step by step, judged by what it is for: closeness of the final images."""

from __future__ import annotations

from collections.abc import Callable

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
