"""A learned router: which attention and feed-forward layers run at which step, from gradients of the image's error.

Sources: HarmoniCa (arXiv 2410.01723), which learns a gate for every step and module, and DiffSparse (arXiv 2604.03674),
whose table meets a budget. Approximate: HarmoniCa compares velocities step by step, weighs them by what a step does to
the image, and pays for compute with a penalty; DiffSparse routes tokens by LPIPS, in two stages. Here gradients run
through the whole trajectory to the squared error of the image, and the gates are always as many as the
budget affords.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from tapstudy.analysis.schedules import even_mask
from tapstudy.bench.flops import transformer_flops
from tapstudy.bench.image_set import ImageSet
from tapstudy.instrument.handle import apply_policy, find_transformers
from tapstudy.instrument.parts import layout_of, modules_of
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.policies.blocks.bac import ModuleTablePolicy
from tapstudy.policies.decision import Part

Table = dict[Part, tuple[int, ...]]
ROUNDS = 10
MOMENTUM = 0.5
LENGTHS = (1.0, 0.3, 0.1)  # of a move, in units of the root mean square over gates


class Budget:
    """Tell what gates cost, in FLOPs of full passes, and which of them a budget affords.

    Args:
        pipe: without a policy.
        image: one image.
        passes: the FLOPs of so many full passes are there to spend.

    Raises:
        ValueError: what always runs (embeddings, modulation, tail) costs more, with all layers at the first step.
    """

    def __init__(self, pipe: EmbeddedPipeline, image: ImageSet, passes: float) -> None:
        ((model, adapter),) = find_transformers(pipe).values()
        self.parts, self.steps = layout_of(model, adapter).branches(), image.steps

        def run(steps: int) -> int:
            return transformer_flops(pipe, lambda: replace(image, steps=steps).run_transformer(pipe, steps))

        with torch.no_grad():
            full = run(1)
            found = []
            for part in self.parts:
                with apply_policy(pipe, ModuleTablePolicy({part: (0,)})):
                    found.append(2 - run(2) / full)
        self.costs = torch.tensor(found, dtype=torch.float64)  # shares of a full pass, (part,)
        self.left = passes - 1 - (self.steps - 1) * (1 - float(self.costs.sum()))
        if self.left < 0:
            raise ValueError(
                f"a router cannot meet {passes:g} full passes: what always runs, and the first step, cost "
                f"{passes - self.left:.2f}"
            )

    def gates(self, scores: Tensor) -> Tensor:
        """Open the gates of the largest scores, as long as they fit, and all at step 0: 0 or 1, (step, part)."""
        found, left = torch.zeros(scores.shape), self.left
        found[0] = 1
        costs = self.costs.tolist()
        for index in scores[1:].flatten().argsort(descending=True, stable=True).tolist():
            step, part = divmod(index, len(costs))
            if costs[part] <= left:
                found[step + 1, part] = 1
                left -= costs[part]
        return found

    def table(self, gates: Tensor) -> Table:
        """Return the steps at which every part runs."""
        return {part: tuple(gates[:, i].nonzero()[:, 0].tolist()) for i, part in enumerate(self.parts)}

    def random(self, seed: int = 0) -> Table:
        """Draw a table, a control."""
        generator = torch.Generator().manual_seed(seed)
        return self.table(self.gates(torch.rand((self.steps, len(self.parts)), generator=generator)))

    def even(self, passes: int) -> Tensor:
        """Open all gates at so many even steps, as far as they fit: where learning begins."""
        scores = torch.zeros(self.steps, len(self.parts))
        scores[list(even_mask(self.steps, passes))] = 1
        return self.gates(scores)


class _Gates:
    """What the gated layers read while a step runs: their gates and what they gave, in the order of their calls."""

    def __init__(self) -> None:
        self.row: Tensor | None = None
        self.before: Sequence[Tensor] = ()
        self.given: list[Tensor] = []

    def mix(self, part: int, output: Any) -> Any:
        """Answer for a layer: what it gives where its gate is 1, and what it gave where that is 0."""
        if self.row is None or output is None:
            return output
        if isinstance(output, tuple):
            return tuple(self.mix(part, one) for one in output)
        if self.before:
            gate = self.row[part]
            output = gate * output + (1 - gate) * self.before[len(self.given)]
        self.given.append(output)
        return output


@contextmanager
def _gated(pipe: EmbeddedPipeline, parts: Sequence[Part]) -> Iterator[_Gates]:
    """Put gates on the layers of the model, whose weights take no gradients meanwhile."""
    ((model, adapter),) = find_transformers(pipe).values()
    blocks, gates = [block for block, _ in adapter.modules(model)[0]], _Gates()
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [
        module.register_forward_hook(lambda _module, _given, output, index=index: gates.mix(index, output))
        for index, part in enumerate(parts)
        for module in modules_of(blocks[part.first], adapter)[part.site].answering
    ]
    try:
        for weight in trainable:
            weight.requires_grad_(False)
        yield gates
    finally:
        for hook in hooks:
            hook.remove()
        for weight in trainable:
            weight.requires_grad_(True)


def _sampled(pipe: EmbeddedPipeline, gates: _Gates, image: ImageSet, table: Tensor | None) -> Tensor:
    """Sample with gates, (step, part), or in full: images in about [-1, 1]. Gradients keep one state a step."""
    velocity = inspect.unwrap(type(pipe).guided_velocity)  # itself takes no gradients
    x = pipe.prepare_latents(len(image), image.generators())
    pipe.scheduler.set_timesteps(image.steps, device=x.device)
    pipe.scheduler.set_begin_index(0)
    kept: Sequence[Tensor] = ()

    def step(x: Tensor, t: Tensor, row: Tensor | None, *before: Tensor) -> tuple[Tensor, ...]:
        gates.row, gates.before, gates.given = row, before, []
        try:
            found = velocity(pipe, x, t, image.labels, guidance_scale=image.guidance)
            return found, *gates.given
        finally:
            gates.row = None

    for i, t in enumerate(pipe.scheduler.timesteps):
        row = None if table is None else table[i]
        found, *kept = checkpoint(step, x, t, row, *kept, use_reentrant=False)
        x = pipe.scheduler.step(found, t, x, return_dict=False)[0]
    return x


def learn_gates(
    pipe: EmbeddedPipeline, images: ImageSet, budget: Budget, gates: Tensor, *, rounds: int, progress: bool = True
) -> Tensor:
    """Return gates that bring images closer to those of full sampling, by projected gradients.

    Every round takes one image. What an open gate is worth is the rise of the image's squared error that closing it
    promises: by the slope in the gate, and for the curvature by the square of what the gate does to the image, of which
    a backward pass from noise is an estimate without bias. Per FLOP, with momentum over the rounds, that moves the
    gates, and the budget projects them back to 0 and 1. Of some lengths of that move, what brings all images closest is
    taken, if it is closer than before. Cost of a round: about five full trajectories, and for each length one an image
    by the budget.

    Args:
        images: to learn from.
        gates: to begin with, (step, part), 0 or 1.
    """

    def sample(table: Tensor) -> Tensor:
        with torch.no_grad(), apply_policy(pipe, ModuleTablePolicy(budget.table(table))):
            return images.sample(pipe)

    def error(table: Tensor) -> float:
        return float((sample(table) - exact).double().square().flatten(1).mean(dim=1).log().mean())

    exact, noise = images.sample(pipe), torch.Generator().manual_seed(0)
    best, speed = error(gates), torch.zeros(gates.shape)
    for turn in tqdm(range(rounds), desc="router", unit="round", disable=not progress):
        place = turn % len(images)
        value = _values(pipe, images[place : place + 1], budget, gates, exact[place : place + 1], noise)
        speed = MOMENTUM * speed + value / value[1:].square().mean().sqrt().clamp_min(1e-12)
        trials = [budget.gates(gates + length * speed) for length in LENGTHS]
        errors = [error(trial) for trial in trials]
        if min(errors) < best:
            best, gates = min(errors), trials[errors.index(min(errors))]
    return gates


def _values(
    pipe: EmbeddedPipeline, image: ImageSet, budget: Budget, table: Tensor, exact: Tensor, noise: torch.Generator
) -> Tensor:
    """Return what it is worth that every gate is open, per FLOP, (step, part)."""
    with _gated(pipe, budget.parts) as gates, torch.enable_grad():
        opened = table.clone().requires_grad_()
        made = _sampled(pipe, gates, image, opened) / 2 + 0.5
        (slope,) = torch.autograd.grad((made - exact).square().sum(), opened, retain_graph=True)
        direction = torch.randn(made.shape, generator=noise).to(made)
        (effect,) = torch.autograd.grad((direction * made).sum(), opened)
    return ((2 * table - 1) * effect**2 - slope) / budget.costs.float()
