"""How far `bench speed` has come with a model: what a call that was cut short leaves to the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Progress:
    """What is measured of a model; NaN where it is not yet.

    Attributes:
        loops: seconds of a loop, (method, repeat).
        timed: of how many loops that is the mean, (method, repeat).
        kinds: seconds of a step, (kind, repeat).
        parts: seconds of the parts of a skip step, (skip, part, repeat).
        masks, failures: of every method.
    """

    loops: Values
    timed: Values
    kinds: Values
    parts: Values
    masks: list[str]
    failures: list[str]

    @classmethod
    def none(cls, methods: int, repeats: int) -> Self:
        """Return that of a model without steps that were timed: how many kinds there are is not known yet."""
        empty = np.zeros((methods, repeats))
        return cls(empty + np.nan, empty, empty[:0], empty[:0, None], [""] * methods, [""] * methods)

    @classmethod
    def of(cls, table: xr.Dataset) -> Self:
        """Read it from a table of one model, as `time_subject` makes them."""
        return cls(
            loops=table["loop_seconds"].values.copy(),
            timed=table["timed_loops"].values.copy(),
            kinds=table["step_seconds"].values.copy(),
            parts=table["part_seconds"].values.copy(),
            masks=table["mask"].values.tolist(),
            failures=table["failure"].values.tolist(),
        )

    def rows(self, repeat: int) -> list[int]:
        """Return the methods that are yet to be timed: the first, the reference, once, the others twice."""
        done = self.timed[:, repeat]
        return [row for row, failure in enumerate(self.failures) if not failure and done[row] < (2 if row else 1)]

    def has_steps(self, repeat: int) -> bool:
        """Tell whether the steps of a repeat are timed."""
        return len(self.kinds) > 0 and not np.isnan(self.kinds[:, repeat]).any()

    @property
    def finished(self) -> bool:
        return all(not self.rows(repeat) and self.has_steps(repeat) for repeat in range(self.loops.shape[1]))

    def add(self, row: int, repeat: int, seconds: float) -> None:
        """Take a loop into the mean of its method."""
        count = self.timed[row, repeat]
        self.loops[row, repeat] = seconds if not count else (self.loops[row, repeat] * count + seconds) / (count + 1)
        self.timed[row, repeat] = count + 1


def to_go_on_from(table: xr.Dataset, names: Sequence[str], *, repeats: int, **about: Any) -> xr.Dataset | None:
    """Return what a call that was cut short has measured; None of one that was not, to be measured anew.

    Args:
        names: the models of the call that goes on, as the table names them.
        about: its methods and its other attributes of a table.

    Raises:
        ValueError: what was cut short was another measurement.
    """
    if "timed_loops" not in table:
        return None
    models = table["model"].values.tolist()
    each = [Progress.of(table.sel(model=name)) for name in models]
    if len(models) == len(names) and all(one.finished for one in each):
        return None
    there = {**table.attrs, "methods": table["method"].values.tolist(), "repeats": table.sizes["repeat"]}
    wanted = {**about, "repeats": repeats}
    other = [f"{key} {there.get(key)} (now {value})" for key, value in wanted.items() if there.get(key) != value]
    if models != [*names][: len(models)]:
        other.insert(0, f"models {models} (now {[*names]})")
    if other:
        raise ValueError(
            f"the file holds a measurement that was cut short, with {'; '.join(other)}: ask for the same to go on with "
            "it, or write to another file"
        )
    return table
