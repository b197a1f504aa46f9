"""Correct what rounded weights and skipped steps do to every step and channel, by what they do to held-out images.

Approximate: the papers on quantised and cached diffusion put every channel at every step on a line, f~ = a f + b, but
how they find its constants was not found in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tapstudy.bench.engine import Setting
from tapstudy.bench.image_set import ImageSet
from tapstudy.instrument.handle import find_transformers

Kind = Literal["variance", "affine", "cumulative"]
Place = tuple[int, int]  # step, and which of its calls of the transformer: guidance branches may have one each
Change = Callable[[Place, Tensor], Tensor | None]  # of (..., channel); None leaves it as it is


class Correction:
    """Fit corrections to held-out images of an embedded model, along whose exact trajectories it runs once.

    - variance: f~ = m + K (f - m), with m the mean of f, and K such that f~ varies as the exact features do. Shape as
      of Q&C, arXiv 2503.02508, whose closed form of K was not found.
    - affine: least squares. As the decoupled correction of CacheQuant, arXiv 2503.01323, in one for both errors.
    - cumulative: least squares for the state after the step, to that of the exact trajectory, along the trajectory that
      the corrected steps before have led to. After TCEC, arXiv 2508.12094, whose final form was not found.

    f is what the first layer behind the blocks gives, of all tokens and of both guidance branches if these are one
    batch, so that full and skipped steps are corrected alike; the first two are fitted along exact trajectories.

    Args:
        held_out: images that are fitted to, in one batch.
    """

    def __init__(self, held_out: ImageSet) -> None:
        self.held_out = held_out
        self._exact: tuple[dict[Place, Tensor], dict[Place, Tensor]] | None = None

    def of(self, setting: Setting, kind: Kind) -> Setting:
        """Return a setting that skips steps, runs on rounded weights, or both, with a correction fitted to it.

        Costs a run of the held-out images.
        """

        @contextmanager
        def correct(pipe: Any) -> Iterator[None]:
            lines = self.fit(pipe, setting, kind)
            with _place(pipe, kind, lambda place, values: _on(lines[place], values)):
                yield

        return setting.within(correct, f"{kind} correction fitted to {self.held_out.pairs}")

    def fit(self, pipe: Any, setting: Setting, kind: Kind) -> dict[Place, Tensor]:
        """Fit slopes and shifts, (2, channel) each."""
        features, states = self._exact = self._exact or self._run_exactly(pipe)
        targets = states if kind == "cumulative" else features
        lines: dict[Place, Tensor] = {}

        def fit(place: Place, values: Tensor) -> Tensor:
            lines[place] = line(values, targets[place], match_variance=kind == "variance")
            return _on(lines[place], values)

        with _place(pipe, kind, fit), setting.attach(pipe):
            _sample(pipe, self.held_out, follow=None if kind == "cumulative" else states)
        return lines

    def _run_exactly(self, pipe: Any) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
        """Return the features at every step, and the states after it, channels last."""
        features: dict[Place, Tensor] = {}
        states: dict[Place, Tensor] = {}
        with _at_tail(pipe, features.__setitem__), _after_step(pipe, states.__setitem__):
            _sample(pipe, self.held_out)
        return features, states


def line(features: Tensor, exact: Tensor, *, match_variance: bool = False) -> Tensor:
    """Fit slope and shift of every channel, (2, channel); channels that do not vary keep the slope 1.

    Args:
        features, exact: (..., channel), equal shapes.
        match_variance: the slope matches the standard deviation and the mean stays; else least squares.
    """
    x, y = (values.flatten(0, -2).double() for values in (features, exact))
    centre, target = x.mean(dim=0), y.mean(dim=0)
    variance, spread = (x - centre).square().mean(dim=0), (y - target).square().mean(dim=0)
    slope = (spread / variance).sqrt() if match_variance else ((x - centre) * (y - target)).mean(dim=0) / variance
    slope = torch.where(variance > 0, slope, 1)
    return torch.stack([slope, (centre if match_variance else target) - slope * centre])


def _on(line: Tensor, features: Tensor) -> Tensor:
    slope, shift = line.to(features)
    return slope * features + shift


def _place(pipe: Any, kind: Kind, change: Change) -> Any:
    return (_after_step if kind == "cumulative" else _at_tail)(pipe, change)


@contextmanager
def _at_tail(pipe: Any, change: Change) -> Iterator[None]:
    """Give `change` what the first layer behind the blocks returns at every call; go on with what it returns."""
    ((model, adapter),) = find_transformers(pipe).values()
    place = (-1, 0)

    def hook(_: nn.Module, __: Any, features: Tensor) -> Tensor | None:
        nonlocal place
        step = pipe.scheduler.step_index or 0  # None before the first step
        place = step, place[1] + 1 if step == place[0] else 0
        return change(place, features)

    hooks = [tail.register_forward_hook(hook) for tail in adapter.modules(model)[1]]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


@contextmanager
def _after_step(pipe: Any, change: Change) -> Iterator[None]:
    """Give `change` the state after every step of the sampler; go on with what it returns."""
    scheduler, step = pipe.scheduler, pipe.scheduler.step

    def changed(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        at, state = scheduler.step_index or 0, step(*args, **kwargs)[0]
        axis = _channels(state)
        found = change((at, 0), state.movedim(axis, -1))
        return (state if found is None else found.movedim(-1, axis),)

    scheduler.step = changed
    try:
        yield
    finally:
        del scheduler.step


def _channels(state: Tensor) -> int:
    """Find the axis of the channels: of (batch, channel, row, column), or of (batch, token, channel)."""
    return 1 if state.ndim == 4 else -1


def _sample(pipe: Any, images: ImageSet, follow: Mapping[Place, Tensor] | None = None) -> None:
    """Sample a batch; `follow`: states, channels last, that the steps go on from in place of those they led to."""

    def lead(_: Any, step: int, *__: Any) -> dict[str, Tensor]:
        return {} if follow is None else {"latents": follow[step, 0].movedim(-1, _channels(follow[step, 0]))}

    call = images.call
    del call["seed"]
    pipe(**call, generator=images.generators(), output_type="latent", callback_on_step_end=lead)
