"""Does TAP work on this model? A few forward passes tell."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter, Grid
from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.handle import find_transformers
from tapstudy.instrument.hooks import StopForward
from tapstudy.instrument.idle import constant_modules
from tapstudy.instrument.instrument import Instrument
from tapstudy.instrument.latent import Form
from tapstudy.instrument.trajectory import alike, same_value
from tapstudy.policies.base import Policy, Prediction, ResidualSite

TOLERANCE = 1e-5
_COMPUTES = re.compile(r"attn\d*|attention|ff(n|_context)?|feed_forward|(img_|txt_)?mlp")


@dataclass(frozen=True)
class SiteReport:
    """A full step, then a skip step that was given the true residual, with the residual at one site.

    Attributes:
        full_error: largest difference between the outputs of the plain model and of the full step; must be 0.
        skip_error: the same for the skip step, over the image tokens, relative to the largest output. Modules that
            the adapter lets idle hand out NaN, and so do the parts of the modulation that it says nobody reads, so it
            is NaN if the tail reads one. Patches and modulation are computed as at a full step, to the last bit.
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
        if self.full_error > 0:
            found.append(f"the hooks change the output of a full step, by {self.full_error:.1e}")
        if self.kinds != ("full", "skip"):
            found.append(f"nothing was skipped ({', '.join(self.reasons) or 'for no known reason'})")
        if not self.skip_error <= TOLERANCE:  # also when it is not a number
            found.append(f"the skip step, given the true residual, is off by {self.skip_error:.1e}")
        if not self.probe_error <= TOLERANCE:
            found.append(
                f"the probe of the skip step is off by {self.probe_error:.1e}: if not a number, it reads a module that "
                "the adapter names as idle, or parts of the modulation beyond those it names"
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
        stray_streams: block lists whose blocks do not return the image stream where `adapter.streams` says.
        moving: modules that the adapter names as constant, and which give something else though their argument is the
            same.
    """

    model: str
    adapter: Adapter
    blocks: dict[str, int]
    probe: str
    contexts: str
    sites: tuple[SiteReport, ...]
    stray_streams: tuple[str, ...]
    moving: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong; empty if TAP works."""
        streams = [
            f"blocks of {name} do not return the image stream where the adapter's streams {self.adapter.streams} say"
            for name in self.stray_streams
        ]
        constants = [
            f"{path} is not constant: it depends on more than {name!r}"
            for path, name in self.adapter.constant
            if path in self.moving
        ]
        return streams + constants + [problem for site in self.sites for problem in site.problems]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.model}: TAP {'works' if self.ok else 'does NOT work'}",
            "  blocks     " + " + ".join(f"{count} {name}" for name, count in self.blocks.items()),
            f"  probe      input of {self.probe}",
            f"  residual   input of {self.adapter.tail} minus input of {next(iter(self.blocks))}.0",
            f"  contexts   {self.contexts}",
        ]
        lines += [
            f"  {site.site:<10} {site.grid} tokens (frames, rows, columns), probe {site.probe_shape or 'not reached'}, "
            f"full step off by {site.full_error:.1e}, skip step with the true residual by {site.skip_error:.1e}; "
            f"attention and feed-forward modules that ran: {site.computed[0]} and {site.computed[1]}"
            for site in self.sites
        ]
        return "\n".join([*lines, *(f"  PROBLEM    {problem}" for problem in self.problems)])


def check(model: nn.Module, inputs: Mapping[str, Any], *, probe_depth: int = 0) -> Report:
    """Whether the instrument reads and replaces the right tensors of a transformer.

    Runs the model plainly; then a full step under the instrument, which must give the same output to the last bit;
    then a skip step that is given the true residual, which must give it up to rounding. Before that, it looks whether
    modules that the adapter names as constant change with another argument than theirs.

    Args:
        model: a transformer with an adapter, in eval mode (dropout would look like a problem), under no policy.
        inputs: keyword arguments for one call of its forward, of any size.
        probe_depth: block whose modulated input is the probe.

    Raises:
        TypeError, RuntimeError, ValueError: as `apply_policy`.

    >>> print(tapstudy.check(pipe.transformer, inputs))  # doctest: +SKIP
    """
    ((model, adapter),) = find_transformers(model).values()
    paths = {module: path for path, module in model.named_modules()}
    with torch.no_grad():
        with _finished(model) as shapes:
            plain, _ = Form.read(model(**inputs))
        stray = _stray_streams(model, adapter, shapes)
        moving = _moving_constants(model, adapter, inputs)
        sites = tuple(
            _check_site(model, adapter, inputs, plain=plain, policy=_Replay(site, probe_depth))
            for site in (() if stray else ("hidden", "latent"))  # such a model would stumble at the first skip step
        )
    blocks, _ = adapter.modules(model)
    named = "the name of cache_context, else " if hasattr(model, "cache_context") else ""
    return Report(
        model=type(model).__name__,
        adapter=adapter,
        blocks={name: len(list(model.get_submodule(name).children())) for name in adapter.blocks},
        probe=paths[blocks[probe_depth][0].get_submodule(adapter.attention)],
        contexts=f"told apart by {named}{adapter.key}",
        sites=sites,
        stray_streams=stray,
        moving=moving,
    )


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
    instrument = Instrument(model, adapter, policy)
    instrument.blank_value = float("nan")
    instrument.rounds_alike = True
    instrument.listeners.append(events.append)
    instrument.attach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report tells what was not skipped, and why
        try:
            with _finished(model) as at_full:
                full, _ = Form.read(model(**inputs))
            with _finished(model) as at_skip:
                skip, _ = Form.read(model(**inputs))
            reasons = {reason for run in instrument.runs.values() for reason in run.fail_opens}
        finally:
            instrument.detach()
    blocks, _ = adapter.modules(model)
    paths = {module: path for path, module in model.named_modules()}
    inside = {module for block, _ in blocks for module in block.modules()}
    computing = {module for module in inside if _COMPUTES.fullmatch(paths[module].rpartition(".")[2])}
    late = [block for block, _ in blocks[policy.probe_depth :]]
    stopped = {module for block in late[1:] for module in block.modules() if module is not block}
    stopped |= {part for module in computing & set(late[0].modules()) for part in module.modules()}
    first, last = events[0], events[-1]
    image = [sample[:, : prod(last.grid)] if sample.ndim == 3 else sample for sample in (skip, plain)]
    return SiteReport(
        site=policy.residual_site,
        full_error=_difference(full, plain),
        skip_error=_difference(*image) / max(float(plain.abs().max()), torch.finfo(torch.float32).tiny),
        probe_error=_probe_error(first.probe, last.probe),
        kinds=tuple(event.kind for event in events),
        reasons=tuple(sorted(reasons)),
        computed=(len(computing & at_full.keys()), len(computing & at_skip.keys())),
        stray=tuple(sorted(paths[module] for module in stopped & at_skip.keys())),
        probe_shape=None if first.probe is None else tuple(first.probe.shape),
        grid=last.grid,
    )


def _stray_streams(model: nn.Module, adapter: Adapter, shapes: Mapping[nn.Module, tuple[Any, Any]]) -> tuple[str, ...]:
    blocks, _ = adapter.modules(model)
    stray = set()
    for block, block_list in blocks:
        entered, left = shapes[block]
        stream = adapter.streams[block_list]
        # a block that returns several streams has a tuple of shapes here, one that returns a tensor has its shape
        several = isinstance(left, tuple) and not isinstance(left, torch.Size)
        if several != (stream is not None) or entered != (left[stream] if several else left):
            stray.add(block_list)
    return tuple(adapter.blocks[index] for index in sorted(stray))


def _moving_constants(model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Constant modules that give something else when every argument but theirs changes."""
    modules = constant_modules(model, adapter.constant)
    names = dict(adapter.constant)
    before = _outputs(model, adapter, modules, inputs) if modules else {}
    moving: list[str] = []
    for kept in dict.fromkeys(names[path] for path in modules):
        changed = {name: value if name == kept else _another(value) for name, value in inputs.items()}
        timestep = changed.get(adapter.timestep)
        if isinstance(timestep, Tensor) and not timestep.is_floating_point() and kept != adapter.timestep:
            changed[adapter.timestep] = timestep // 2
        after = _outputs(model, adapter, modules, changed)
        moving += [path for path in modules if names[path] == kept and not alike(before[path], after[path], same_value)]
    return tuple(moving)


def _another(value: Any) -> Any:
    """Half of every number; integers stay, for they may be shapes or masks."""
    if isinstance(value, Tensor):
        return value / 2 if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _another(part) for name, part in value.items()}
    return type(value)(map(_another, value)) if type(value) in (list, tuple) else value


def _outputs(
    model: nn.Module, adapter: Adapter, modules: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """What these modules give in a call of the model that ends at the attention of its first block."""
    found: dict[str, list[Any]] = {path: [] for path in modules}

    def stop(*_: Any) -> None:
        raise StopForward

    handles = [
        module.register_forward_hook(lambda _module, _args, output, path=path: found[path].append(output))
        for path, module in modules.items()
    ]
    (first, _), *_ = adapter.modules(model)[0]
    handles.append(first.get_submodule(adapter.attention).register_forward_pre_hook(stop))
    try:
        with contextlib.suppress(StopForward):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def _finished(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Any, Any]]]:
    """Collects the modules whose forward comes to its end, with the shapes of first argument and output."""
    finished: dict[nn.Module, tuple[Any, Any]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        finished[module] = _shape(args[0] if args else kwargs.get("hidden_states")), _shape(output)

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        yield finished
    finally:
        for handle in handles:
            handle.remove()


def _shape(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_shape, value))
    return getattr(value, "shape", None)


def _probe_error(full: Tensor | None, skip: Tensor | None) -> float:
    if full is None or skip is None:
        return 0.0
    return _difference(skip, full) / max(float(full.abs().max()), torch.finfo(torch.float32).tiny)


def _difference(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max())
