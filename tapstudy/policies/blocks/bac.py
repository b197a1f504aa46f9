"""Run block-wise adaptive caching: every module has refresh steps of its own, found beforehand (arXiv 2506.13456)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from statistics import mean
from typing import Any, Self

import torch
from torch import Tensor

from tapstudy.core.checks import check_integer
from tapstudy.policies.decision import Layout, Part, Value
from tapstudy.policies.parts import PartsPolicy, each

Table = Mapping[Part, tuple[int, ...]]


class ModuleTablePolicy(PartsPolicy):
    """Run every attention and feed-forward layer at the steps of a table, and reuse its output in between.

    Cost of a step: the layers that run. Memory: an output of all these layers per context.

    Args:
        table: steps at which a module runs, step 0 among them; modules that it does not name run at all steps.

    Raises:
        ValueError: a module that does not run at step 0; at the beginning of a run, one that the model does not have.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        if late := [part for part, steps in table.items() if 0 not in steps]:
            raise ValueError(f"ModuleTablePolicy: every module must run at step 0 (nothing is kept before), {late[0]}")
        self.table = tuple(sorted((part, tuple(sorted(steps))) for part, steps in table.items()))

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        known, parts = layout.branches(), tuple(part for part, _ in self.table)
        if unknown := [part for part in parts if part not in known]:
            raise ValueError(f"ModuleTablePolicy: this model has no {unknown[0]}: make the table for it")
        return parts

    def left_out(self, step: int) -> Collection[Part]:
        return [part for part, steps in self.table if step not in steps]


def table_of(
    similarities: Mapping[Part, Sequence[float]],
    *,
    refreshes: int,
    errors: Mapping[int, float] | None = None,
    upstream: int = 0,
) -> dict[Part, tuple[int, ...]]:
    """Make a table of refresh steps, as many for every module, and more for some blocks in front.

    Errors of a block that is reused run through those behind it, and meet what their feed-forward layers keep. So the
    `upstream` blocks of the largest errors also refresh whenever a feed-forward layer behind them does.

    Args:
        similarities: of what each module gives at steps 1, 2, ... with the step before.
        refreshes: steps at which a module runs.
        errors: of every block, when it is reused, on the same scale; needed for `upstream`.

    Raises:
        ValueError: fewer steps than refreshes.
    """
    table = {part: refresh_steps(values, refreshes) for part, values in similarities.items()}
    first = sorted(errors or {}, key=lambda block: -(errors or {})[block])[:upstream]
    united = dict(table)
    for part, steps in table.items():
        if part.first in first:
            behind = [
                found for other, found in table.items()
                if other.site in ("feed_forward", "joint") and other.first > part.first
            ]  # fmt: skip
            united[part] = tuple(sorted({*steps, *(step for found in behind for step in found)}))
    return united


def refresh_steps(similarities: Sequence[float], refreshes: int) -> tuple[int, ...]:
    """Choose the steps whose segments have the most similarity between neighbours inside them.

    The published dynamic program maximises the sum over segments of the similarities of neighbours. A refresh loses the
    one with the step before it, so the best refreshes are at the least of all, and the program is a sort.

    Args:
        similarities: of steps 1, 2, ... with the one before.
        refreshes: how many, with step 0, which comes first.

    Raises:
        ValueError: fewer steps than refreshes, or none of them.
    """
    check_integer("refreshes", refreshes, 1)
    if refreshes > len(similarities) + 1:
        raise ValueError(f"{refreshes} refreshes do not fit into {len(similarities) + 1} steps")
    order = sorted(range(len(similarities)), key=lambda index: (similarities[index], index))
    return tuple(sorted([0, *(index + 1 for index in order[: refreshes - 1])]))


class _Log:
    """Shared by the copies of a policy, one for every context."""

    def __init__(self) -> None:
        self.alike: dict[tuple[Part, int], list[Tensor]] = defaultdict(list)
        self.apart: dict[int, list[Tensor]] = defaultdict(list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class SimilarityPolicy(PartsPolicy):
    """Run in full, and measure how much each attention and feed-forward layer changes from step to step.

    Attributes are shared by all contexts of all runs, so that whoever applied it can read them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = _Log()

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return layout.branches()

    def left_out(self, step: int) -> Collection[Part]:
        return ()

    def observe_part(self, step: int, part: Part, slot: int, value: Value) -> None:
        if slot == 0 and self._kept.get((part, slot)):
            now, before = _first(value), _first(self.kept(part, slot)[0][1])
            self.log.alike[part, step].append(torch.cosine_similarity(now, before, dim=-1).mean())
            self.log.apart[part.first].append((now - before).abs().mean())
        super().observe_part(step, part, slot, value)

    def similarities(self) -> dict[Part, list[float]]:
        """Average the cosine of neighbouring steps over tokens, contexts and runs, for steps 1, 2, ..."""
        found: dict[Part, list[float]] = defaultdict(list)
        for part, step in sorted(self.log.alike, key=lambda key: (key[0].first, key[0].site, key[1])):
            found[part].append(mean(torch.stack(self.log.alike[part, step]).tolist()))
        return dict(found)

    def errors(self) -> dict[int, float]:
        """Average the absolute change between neighbouring steps, block by block."""
        return {block: mean(torch.stack(values).tolist()) for block, values in self.log.apart.items()}


def _first(value: Value) -> Tensor:
    """Take the first stream of tokens, that of the image."""
    found: list[Tensor] = []
    each(found.append, value)
    return found[0].to(torch.promote_types(found[0].dtype, torch.float32))
