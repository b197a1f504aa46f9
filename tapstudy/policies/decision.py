"""Name what of a model runs in a pass that is not full."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Site = Literal["block", "attention", "cross_attention", "feed_forward", "joint"]
# what a part adds: a tensor, or a tuple of tensors (and None), one for every stream of tokens
Value = Any


class Part(NamedTuple):
    """Name a part of a transformer whose output can be kept.

    Attributes:
        site: `block`: what blocks `first` to `end` - 1 together add to the streams of tokens that enter the first.
            Else the output, before its gate, of the modules of that kind in block `first`: `attention` (over the tokens
            of the image, or of image and text), `cross_attention`, `feed_forward` (of all streams), or `joint`, the
            projection behind attention and feed-forward layers that run side by side.
        first: number of the first block, over all lists in their running order.
        end: number behind the last block.
    """

    site: Site
    first: int
    end: int

    def meets(self, other: Part) -> bool:
        """Tell whether the two have a block in common."""
        return self.first < other.end and other.first < self.end


@dataclass(frozen=True)
class Layout:
    """Tell what a transformer can be cut into.

    Attributes:
        sites: of every block, in running order, the kinds of modules that it has.
        stacks: of every block, a number that those share through which the same streams of tokens pass.
    """

    sites: tuple[tuple[Site, ...], ...]
    stacks: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.stacks)

    def groups(self, first: int, end: int) -> tuple[Part, ...]:
        """Cut blocks `first` to `end` - 1 into as few groups as the streams of tokens allow.

        Raises:
            ValueError: no such blocks.
        """
        if not 0 <= first < end <= len(self):
            raise ValueError(f"blocks {first} to {end - 1} are no group of blocks: the model has {len(self)}")
        stacks = [[*group] for _, group in groupby(range(first, end), key=lambda index: self.stacks[index])]
        return tuple(Part("block", group[0], group[-1] + 1) for group in stacks)

    def modules(self, *sites: Site) -> tuple[Part, ...]:
        """List the modules of these kinds, block by block."""
        return tuple(
            Part(site, index, index + 1) for index, found in enumerate(self.sites) for site in found if site in sites
        )

    def branches(self) -> tuple[Part, ...]:
        """List what is added to the tokens in every block: of layers side by side, what they add together."""
        own: tuple[tuple[Site, ...], ...] = tuple(("joint",) if "joint" in found else found for found in self.sites)
        return Layout(own, self.stacks).modules(*get_args(Site))


@dataclass(frozen=True, eq=False)
class Decision:
    """Say what runs in a pass that is not full. Nothing named: none of the blocks, the policy predicts the residual.

    Attributes:
        parts: what does not run, and is answered by `predict_part`; all other parts do. Beside a part the only tokens
            of the image, (token,), that run there all the same, or None. Feed-forward layers alone can do so.
        tokens: (token,), sorted: the tokens of the image that run through all blocks, in every sample of the pass. They
            attend to the keys and values that the others had when they last ran. The policy predicts the residual of
            the others.
        model: number of another model, of the policy's `models`, that makes this pass.
    """

    parts: Mapping[Part, Tensor | None] = field(default_factory=dict)
    tokens: Tensor | None = None
    model: int | None = None


SKIP = Decision()


def leave_out(parts: Collection[Part]) -> Decision:
    """Leave these parts out."""
    return Decision(dict.fromkeys(parts))


def check_decision(
    decision: Decision, where: str, *, parts: Collection[Part], tokens: int, apart: bool, models: int
) -> None:
    """Check a decision that is not `SKIP` against what the policy has said it may name.

    Args:
        where: what gave it, for messages.
        parts: that the policy watches.
        tokens: of the image.
        apart: whether they may run through all blocks while the others do not.
        models: how many others there are.

    Raises:
        TypeError: no decision.
        ValueError: parts that nobody watches or that overlap, tokens or a model that are not there, or several kinds.
    """
    if not isinstance(decision, Decision):
        raise TypeError(f"{where} must return a Decision, got {type(decision).__name__}")
    kinds = [name for name in ("parts", "tokens", "model") if getattr(decision, name) not in (None, {})]
    if len(kinds) != 1:
        raise ValueError(f"{where} must name parts, tokens or a model, and one of these kinds, got {kinds or 'none'}")
    if unknown := [part for part in decision.parts if part not in parts]:
        raise ValueError(f"{where} leaves out {unknown[0]}, which the policy's `parts` does not list")
    groups = sorted(part[1:] for part in decision.parts if part.site == "block")
    if any(one[1] > other[0] for one, other in pairwise(groups)):
        raise ValueError(f"{where} leaves out groups of blocks that overlap: {groups}")
    if decision.model is not None and not 0 <= decision.model < models:
        raise ValueError(f"{where} names model {decision.model}, but the policy has {models} others")
    if decision.tokens is not None and not apart:
        raise ValueError(f"{where} names tokens, and the policy does not set runs_tokens")
    if wrong := [part for part, some in decision.parts.items() if some is not None and part.site != "feed_forward"]:
        raise ValueError(f"{where} lets some tokens run in {wrong[0]}: only feed-forward layers take them one by one")
    named = (("tokens", decision.tokens), *((str(part), some) for part, some in decision.parts.items()))
    _check_tokens({name: chosen for name, chosen in named if chosen is not None}, where, tokens)


def _check_tokens(named: Mapping[str, Tensor], where: str, count: int) -> None:
    """Check lists of tokens by what they are the tokens of; the host waits for their device once, for all of them."""
    for name, chosen in named.items():
        if chosen.ndim != 1 or chosen.dtype != torch.int64 or not 0 < len(chosen) <= count:
            raise ValueError(
                f"{where}: {name}: tokens must be int64, of shape (token,) and at least one of {count}, got "
                f"{chosen.dtype} of shape {tuple(chosen.shape)}"
            )
    named = {name: chosen for name, chosen in named.items() if not chosen.is_meta}  # without values, to count FLOPs
    wrong = [(chosen[0] < 0) | (chosen[-1] >= count) | (chosen.diff() <= 0).any() for chosen in named.values()]
    if wrong and bool(torch.stack(wrong).any()):
        name, chosen = next(item for item, is_wrong in zip(named.items(), wrong, strict=True) if is_wrong)
        raise ValueError(f"{where}: {name}: tokens must be sorted, different and below {count}, got {chosen.tolist()}")
