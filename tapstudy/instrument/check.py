"""Does TAP work on this model? A few forward passes tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.examine import misplaced, stray_streams, unknown_names
from tapstudy.instrument.handle import find_transformers
from tapstudy.instrument.idle import blank, idle_modules
from tapstudy.instrument.instrument import Instrument
from tapstudy.instrument.latent import Form, made
from tapstudy.instrument.layouts import Grid
from tapstudy.policies.base import Policy, Prediction, ResidualSite

TOLERANCE = 1e-5
_COMPUTES = re.compile(r"attn\d*|(self_|cross_)?attention|ffn?|ff_\w+|feed_forward|(gate|up|down)_proj|(img_|txt_)?mlp")
_HEAVY = re.compile(r"Attention|FeedForward|TransformerBlock")


@dataclass(frozen=True)
class SiteReport:
    """A full step, then a skip step that was given the true residual, with the residual at one site.

    Attributes:
        full_error: largest difference between the outputs of the plain model and of the full step; must be 0.
        skip_error: the same for the skip step, over the image tokens, relative to the largest output. Modules that
            the adapter lets idle hand out NaN, so it is NaN if the tail reads one.
        probe_error: the same between the probes of the two steps.
        kinds: what the two steps turned out to be; must be full, skip.
        reasons: why the second step was not skipped.
        computed: attention and feed-forward modules that ran inside blocks, at the full and at the skip step.
        stray: modules in or behind the probed block that should not have run at the skip step, but did.
        probe_shape: (batch, token, channel), None if it was not reached.
        grid: frames, rows and columns of the image tokens.
    """

    site: ResidualSite
    full_error: float
    skip_error: float
    probe_error: float
    kinds: tuple[str, ...]
    reasons: tuple[str, ...]
    computed: tuple[int, int]
    stray: tuple[str, ...]
    probe_shape: tuple[int, ...] | None
    grid: Grid

    @property
    def problems(self) -> list[str]:
        found = []
        if self.full_error != 0:  # also when it is not a number
            found.append(f"the hooks change the output of a full step, by {self.full_error:.1e}")
        if self.kinds != ("full", "skip"):
            found.append(f"nothing was skipped ({', '.join(self.reasons) or 'for no known reason'})")
        if not self.skip_error <= TOLERANCE:  # also when it is not a number
            found.append(f"the skip step, given the true residual, is off by {self.skip_error:.1e}")
        if not self.probe_error <= TOLERANCE:
            found.append(
                f"the probe of the skip step is off by {self.probe_error:.1e}: if not a number, it reads a module that "
                "the adapter names as idle"
            )
        if self.stray:
            found.append(f"these should not have run at the skip step: {', '.join(self.stray)}")
        if self.probe_shape is not None and self.probe_shape[1] != prod(self.grid):
            found.append(f"the token grid {self.grid} does not fit a probe of shape {self.probe_shape}")
        return [f"residual in {self.site} space: {problem}" for problem in found]


@dataclass(frozen=True)
class Report:
    """What `check` found. `print` it.

    Attributes:
        model: class of the transformer.
        adapter: its row.
        blocks: number of blocks in each list.
        probe: path of the attention module whose input is the probe.
        contexts: how guidance branches are told apart.
        sites: the steps run with the residual in hidden and in latent space.
        faults: what is wrong with the row itself, or kept a site from being tried.
    """

    model: str
    adapter: Adapter
    blocks: dict[str, int]
    probe: str
    contexts: str
    sites: tuple[SiteReport, ...]
    faults: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong; empty if TAP works."""
        return [*self.faults, *(problem for site in self.sites for problem in site.problems)]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.model}: TAP {'works' if self.ok else 'does NOT work'}",
            "  blocks     " + " + ".join(f"{count} {name}" for name, count in self.blocks.items()),
            f"  probe      input of {self.probe}",
            f"  residual   input of {self.adapter.tail} minus input of {self.adapter.blocks[0]}.0",
            f"  contexts   {self.contexts}",
        ]
        lines += [
            f"  {site.site:<10} {site.grid} tokens (frames, rows, columns), probe {site.probe_shape or 'not reached'}, "
            f"full step off by {site.full_error:.1e}, skip step with the true residual by {site.skip_error:.1e}; "
            f"attention and feed-forward modules that ran: {site.computed[0]} and {site.computed[1]}"
            for site in self.sites
        ]
        notices = {notice for site in self.sites if (notice := self.adapter.notice(site.grid)) is not None}
        lines += [f"  NOTICE     {notice}" for notice in notices]
        return "\n".join([*lines, *(f"  PROBLEM    {problem}" for problem in self.problems)])


def check(model: nn.Module, inputs: Mapping[str, Any], *, probe_depth: int = 0) -> Report:
    """Tell whether the instrument reads and replaces the right tensors of a transformer.

    First the adapter's row itself: modules and arguments that it names must exist and be what it says they are; tokens
    of the latent must be found where grid, channel_dim and image_start say; blocks must return the image stream where
    streams says. Then, with the residual in hidden and in latent space, a full step under the instrument, which must
    give the output of the plain model to the last bit; and a skip step that is given the true residual, which must give
    it up to rounding. At the skip step no attention and no feed-forward layer may run but in the refiners that the row
    names, and nothing between blocks and tail.

    What no run can tell: the names of the guidance branches; and whether `key`, if it is conditioning, always differs
    from branch to branch.

    Args:
        model: a transformer with an adapter, in eval mode (dropout would look like a problem), under no policy.
        inputs: keyword arguments for one call of its forward, of any size, with conditioning.
        probe_depth: block whose modulated input is the probe.

    Raises:
        TypeError, RuntimeError, ValueError: as `apply_policy`.

    Examples:
        >>> print(tapstudy.check(pipe.transformer, inputs))  # doctest: +SKIP
    """
    ((model, adapter),) = find_transformers(model).values()
    modules = dict(model.named_modules())
    faults, probe = unknown_names(model, adapter, inputs), ""
    sites: list[SiteReport] = []
    if not faults:
        trial = Instrument(model, adapter, _Replay("hidden", probe_depth))
        try:
            trial.attach()  # what this refuses is no fault of the row
        finally:
            trial.detach()
        probed, _ = adapter.modules(model)[0][probe_depth]
        probe = next(path for path, module in modules.items() if module is probed.get_submodule(adapter.attention))
        with torch.no_grad():
            faults, sites = _run(model, adapter, inputs, probe_depth)
    named = "the name of cache_context, else " if hasattr(model, "cache_context") else ""
    return Report(
        model=type(model).__name__,
        adapter=adapter,
        blocks={name: len([*modules[name].children()]) for name in adapter.blocks if name in modules},
        probe=probe,
        contexts=f"told apart by {named}{adapter.key}",
        sites=tuple(sites),
        faults=tuple(faults),
    )


def _run(
    model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any], probe_depth: int
) -> tuple[list[str], list[SiteReport]]:
    plain, _ = Form.read(model(**inputs))
    faults = stray_streams(model, adapter, inputs)
    if faults:  # such a model would stumble at the first skip step
        return faults, []
    faults = misplaced(model, adapter, inputs)
    sites = []
    site: ResidualSite
    for site in ("hidden", "latent"):
        try:
            sites.append(_check_site(model, adapter, inputs, plain=plain, policy=_Replay(site, probe_depth)))
        except Exception as error:  # the plain model runs, so it is the row that does not fit
            faults.append(f"residual in {site} space: {type(error).__name__}: {error}")
    return faults, sites


class _Replay(Policy):
    """One full step; then the residual it saw, again and again."""

    needs_probe = True

    def __init__(self, site: Any, probe_depth: int) -> None:
        self.residual_site, self.probe_depth = site, probe_depth

    def wants_full(self, step: int) -> bool:
        return step == 0

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self.residual = residual.clone()

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        return Prediction(self.residual)


def _check_site(
    model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any], *, plain: Tensor, policy: Policy
) -> SiteReport:
    events: list[StepEvent] = []
    blocks, tails = adapter.modules(model)
    instrument = Instrument(model, adapter, policy)
    instrument.listeners.append(events.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report tells what was not skipped, and why
        try:
            instrument.attach()
            with Trace(model, [blocks[0][0], *tails]) as at_full:
                full, _ = Form.read(model(**inputs))
            for run in instrument.runs.values():  # whoever reads the output of an idle module shall be found out
                run.blanks = blank(run.blanks, fill=float("nan"))
            with Trace(model, [blocks[0][0], *tails]) as at_skip:
                skip, _ = Form.read(model(**inputs))
            reasons = {reason for run in instrument.runs.values() for reason in run.fail_opens}
        finally:
            instrument.detach()
    if not events:
        raise RuntimeError(f"such calls stay out of the history: {', '.join(reasons)}")
    first, last = events[0], events[-1]
    paths = {module: path for path, module in model.named_modules()}
    inside = {module for block, _ in blocks for module in block.modules()}
    computing = {module for module in inside if _COMPUTES.fullmatch(paths[module].rpartition(".")[2])}
    image = [made(sample, last.grid) for sample in (skip, plain)]
    stray = (
        _stray(model, adapter, policy.probe_depth, at_full=at_full, at_skip=at_skip) if last.kind == "skip" else set()
    )
    return SiteReport(
        site=policy.residual_site,
        full_error=_difference(full, plain),
        skip_error=_difference(*image) / max(float(plain.abs().max()), torch.finfo(torch.float32).tiny),
        probe_error=_probe_error(first.probe, last.probe),
        kinds=tuple(event.kind for event in events),
        reasons=tuple(sorted(reasons)),
        computed=(len(computing & {*at_full.ended}), len(computing & {*at_skip.ended})),
        stray=tuple(sorted(paths[module] for module in stray)),
        probe_shape=None if first.probe is None else tuple(first.probe.shape),
        grid=last.grid,
    )


def _stray(model: nn.Module, adapter: Adapter, depth: int, *, at_full: Trace, at_skip: Trace) -> set[nn.Module]:
    """Find modules that ran though a skip step has no use for them, and those between blocks and tail."""
    blocks, tails = adapter.modules(model)
    probed, behind = blocks[depth][0], [part for block, _ in blocks[depth + 1 :] for part in block.modules()]
    attention = {*probed.get_submodule(adapter.attention).modules()}
    named = {module for path, module in model.named_modules() if _COMPUTES.fullmatch(path.rpartition(".")[2])}
    heavy = {part for module in named & {*probed.modules()} for part in module.modules()} | attention
    stopped = (heavy | {*behind}) - {block for block, _ in blocks}
    found = stopped & {*at_skip.ended}
    # in front of the blocks attention runs in refiners alone (modules that idle did so, or are read by a deeper probe)
    spared = {*adapter.refiners, *adapter.idle}
    excused = {part for path in spared for root in idle_modules(model, [path]).values() for part in root.modules()}
    front = at_skip.ended[: at_skip.began.get(blocks[0][0], len(at_skip.ended))]
    found |= {module for module in front if _HEAVY.search(type(module).__name__)} - excused
    # behind them nothing runs before the tail, but for modulation in some models
    passed_through = {block for block, _ in blocks}
    for trace, block in ((at_full, blocks[-1][0]), (at_skip, probed)):
        entered = [trace.began[tail] for tail in tails if tail in trace.began]
        if block in trace.ended and entered:
            between = trace.ended[trace.ended.index(block) + 1 : max(entered)]
            found |= trace.streams & {*between} - excused - passed_through
    return found


class Trace:
    """Which modules came to the end of their forward, in their order, and when the marked ones began."""

    def __init__(self, model: nn.Module, begins: Iterable[nn.Module]) -> None:
        self.ended: list[nn.Module] = []
        self.streams: set[nn.Module] = set()  # those that gave something per token
        self.began: dict[nn.Module, int] = {}  # after so many ends, the last time
        self._handles = [module.register_forward_hook(self._end) for module in model.modules()]
        self._handles += [module.register_forward_pre_hook(self._begin) for module in begins]

    def _end(self, module: nn.Module, _: Any, output: Any) -> None:
        self.ended.append(module)
        if isinstance(output, Tensor) and output.ndim > 2:
            self.streams.add(module)

    def _begin(self, module: nn.Module, *_: Any) -> None:
        self.began[module] = len(self.ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()


def _probe_error(full: Tensor | None, skip: Tensor | None) -> float:
    if full is None or skip is None:
        return 0.0
    return _difference(skip, full) / max(float(full.abs().max()), torch.finfo(torch.float32).tiny)


def _difference(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max())
