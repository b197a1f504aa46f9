"""What `tapstudy bench frontier` runs: images, numbers of full passes, and how a method is put on the pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch

from tapstudy.core.schedule import full_steps, mask_text
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.base import Policy

Pair = tuple[int, int]  # seed and label of an image
Told = tuple[str, float]  # the mask of the last run, and the bytes its history took (NaN: not told)
WARMUP = 3


@dataclass(frozen=True, kw_only=True)
class FrontierPlan:
    """Images and costs.

    Args:
        model: embedded model or model folder.
        seeds: test seeds; every label is sampled with each.
        held_out: seeds on which everything is fitted and chosen.
        labels: sampled with every seed.
        passes: numbers of full passes to compare at; each must be that of a schedule S(N, 3).
        steps: T.
        guidance: scale of classifier-free guidance.
        tuning: so many of the held-out images, the last ones, serve for choosing between settings; the others for
            fitting, so that nothing is chosen on what it was fitted to.

    Raises:
        ValueError: seeds both tested and held out, too few images, a number of passes that no interval gives.
    """

    model: str = "mnist-dit"
    seeds: tuple[int, ...] = (11, 12)
    held_out: tuple[int, ...] = (21,)
    labels: tuple[int, ...] = tuple(range(10))
    passes: tuple[int, ...] = (14, 10, 8)
    steps: int = 50
    guidance: float = 2.0
    tuning: int = 3

    def __post_init__(self) -> None:
        if both := sorted(set(self.seeds) & set(self.held_out)):
            raise ValueError(f"the seeds {both} are both tested and held out: choose others")
        if len(self.test_pairs) < 2 or not 1 <= self.tuning < len(self.held_out_pairs):
            raise ValueError(
                f"needs at least two test images and more held-out images than are used for tuning, got "
                f"{len(self.test_pairs)}, {len(self.held_out_pairs)} and {self.tuning}"
            )
        for passes in self.passes:
            self.interval(passes)

    def interval(self, passes: int) -> int:
        """The N of S(N, 3) with so many full steps; of several, the least.

        Raises:
            ValueError: there is none, with the numbers there are.
        """
        counts = {n: len(self.usual_mask(n)) for n in range(self.steps - 1, 0, -1)}
        found = {count: n for n, count in counts.items()}
        if passes not in found:
            raise ValueError(
                f"no S(N, {WARMUP}) of {self.steps} steps makes {passes} full passes; there are {sorted(found)}"
            )
        return found[passes]

    def usual_mask(self, interval: int) -> tuple[int, ...]:
        return full_steps(self.steps, interval=interval, warmup_steps=WARMUP)

    @property
    def test_pairs(self) -> list[Pair]:
        return [(seed, label) for seed in self.seeds for label in self.labels]

    @property
    def held_out_pairs(self) -> list[Pair]:
        return [(seed, label) for seed in self.held_out for label in self.labels]

    @property
    def tuning_pairs(self) -> list[Pair]:
        return self.held_out_pairs[-self.tuning :]


@dataclass(frozen=True)
class Setting:
    """A method with all it needs.

    Attributes:
        attach: puts it on a pipeline for the length of a `with` block, which is given a function that tells mask and
            history of the last run.
        text: what it is, in full: equal texts give equal images.
        steps: of the sampler, if not the plan's.
        alone: it decides for a batch as a whole, so every image is sampled by itself.
    """

    attach: Callable[[LabelPipeline], AbstractContextManager[Callable[[], Told]]]
    text: str
    steps: int | None = None
    alone: bool = False

    @classmethod
    def of(cls, policy: Policy, *, alone: bool = False) -> Setting:
        """Of a policy that has seen nothing."""

        @contextmanager
        def attach(pipe: LabelPipeline) -> Iterator[Callable[[], Told]]:
            with apply_policy(pipe, policy) as handle:

                def told() -> Told:
                    contexts = handle.summary().contexts
                    return contexts[0].mask, float(sum(context.cache_bytes for context in contexts))

                yield told

        return cls(attach, text_of(policy), alone=alone or policy.decides_by_probe)

    @classmethod
    def plain(cls, steps: int) -> Setting:
        """Sampling without acceleration."""

        @contextmanager
        def attach(pipe: LabelPipeline) -> Iterator[Callable[[], Told]]:
            yield lambda: (mask_text(range(steps), steps), 0.0)

        return cls(attach, f"plain sampling, {steps} steps", steps=steps)

    @classmethod
    def peer(cls, make: Callable[[LabelPipeline], Any], text: str) -> Setting:
        """Of a cache of `bench.peers`. How much memory it holds is not told."""

        @contextmanager
        def attach(pipe: LabelPipeline) -> Iterator[Callable[[], Told]]:
            with make(pipe) as peer:
                yield lambda: (peer.mask, float("nan"))

        return cls(attach, rounded(text), alone=True)


def text_of(policy: Policy) -> str:
    """Class and settings of a policy that has seen nothing, in six digits."""
    plain = {name: _plain(value) for name, value in vars(policy).items()}
    settings = ", ".join(f"{name}={value}" for name, value in plain.items() if value is not None)
    return rounded(f"{type(policy).__name__}({settings})")


def rounded(text: str) -> str:
    """With six digits of every number that has a point: fitted ones differ in the last bits from run to run."""
    return re.sub(r"\d+\.\d+(e[+-]?\d+)?", lambda found: f"{float(found[0]):.6g}", text)


def _plain(value: Any) -> str | None:
    if isinstance(value, torch.Tensor):
        return repr(value.tolist())
    if isinstance(value, frozenset | set):
        return repr(sorted(value))
    if isinstance(value, bool | int | float | str | tuple | dict) or is_dataclass(value):
        return repr(value)
    return None


def batches(pairs: Sequence[Pair], *, size: int) -> list[list[Pair]]:
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]
