"""Runs one transformer under a policy."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter, Grid
from tapstudy.instrument.hooks import NAME, BlockHook, ProbeHook, RootHook, StopForward, TailHook
from tapstudy.instrument.latent import from_tokens, latent_residual, latent_sum, like_output, sample_of, to_tokens
from tapstudy.instrument.trajectory import ContextRun, TrajectoryWatch, same_key
from tapstudy.policies.base import Policy, Prediction, RunInfo


@dataclass
class Call:
    """One forward pass of the transformer in progress.

    Attributes:
        skips: no block beyond the probe runs.
        predicts: the residual is predicted; without `skips` this is a shadow pass, which also knows the truth.
        start: hidden state entering the first block, (batch, token, channel).
        probe: modulated input of the probed block.
        residual: the true one, where it was computed.
    """

    run: ContextRun
    step: int
    timestep: Tensor | float | None
    skips: bool
    predicts: bool
    wants_probe: bool
    probe_depth: int
    latent: bool
    grid: Grid
    start: Tensor | None = None
    probe: Tensor | None = None
    residual: Tensor | None = None
    prediction: Prediction | None = None

    @property
    def kind(self) -> str:
        return "skip" if self.skips else "shadow" if self.predicts else "full"


@dataclass(frozen=True)
class StepEvent:
    """What a listener is told after every pass. Tensors belong to the model: copy what you keep.

    Attributes:
        context: name of the guidance branch.
        kind: "full", "skip" or "shadow" (a skip step whose truth was computed beside it).
        probe: (batch, token, channel), None if nobody needed it.
        residual: the true residual, None at a skip step.
        prediction: the policy's, None at a full step.
    """

    context: str
    step: int
    timestep: Tensor | float | None
    kind: str
    grid: Grid
    probe: Tensor | None
    residual: Tensor | None
    prediction: Prediction | None


class Instrument:
    """Hooks on one transformer, and the state of its current trajectory.

    Args:
        model: a transformer with an adapter.
        policy: copied for every context; must not have seen anything.
        scheduler: returns the scheduler that drives the model, or None.
        shadow: run a full pass beside every prediction, as policies that need the truth do.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        policy: Policy,
        *,
        scheduler: Callable[[], Any] = lambda: None,
        shadow: bool = False,
    ) -> None:
        self.model, self.adapter, self.policy = model, adapter, policy
        self.scheduler, self.shadow = scheduler, shadow or policy.needs_truth
        self.listeners: list[Callable[[StepEvent], None]] = []
        self.runs: dict[str, ContextRun] = {}
        self.call: Call | None = None
        self.named_context: str | None = None
        self._ended = False
        self._watch = TrajectoryWatch()
        self._signature = inspect.signature(type(model).forward)
        self._hooked: list[nn.Module] = []

    # Attaching and detaching

    def attach(self) -> None:
        blocks, tail = self.adapter.modules(self.model)
        if self.policy.probe_depth >= len(blocks):
            raise ValueError(
                f"probe_depth {self.policy.probe_depth} is beyond the last block: {type(self.model).__name__} has "
                f"{len(blocks)} blocks"
            )
        if NAME in getattr(getattr(self.model, "_diffusers_hook", None), "hooks", {}):
            raise RuntimeError(
                f"this {type(self.model).__name__} already runs under a policy: call remove() on its handle first"
            )
        if getattr(self.model, "is_cache_enabled", False):
            raise RuntimeError(
                f"a diffusers cache is enabled on this {type(self.model).__name__}: call disable_cache() first; two "
                "caches would predict from each other's predictions"
            )
        for index, (block, stream) in enumerate(blocks):
            self._hook(block, BlockHook(self, index, stream))
        self._hook(blocks[self.policy.probe_depth][0].get_submodule(self.adapter.attention), ProbeHook(self))
        self._hook(tail, TailHook(self))
        self._hook(self.model, RootHook(self))

    def _hook(self, module: nn.Module, hook: Any) -> None:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
        self._hooked.append(module)

    def detach(self) -> None:
        """Take all hooks out and leave no trace on the modules."""
        for module in self._hooked:
            registry: Any = module._diffusers_hook
            registry.remove_hook(NAME, recurse=False)
            if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
                del module.__dict__["forward"]
            if not registry.hooks:
                del module._diffusers_hook
        if self._hooked and hasattr(self.model, "_diffusers_hook"):
            # other hooks stay on the transformer; its cached list of hooked children is out of date
            root: Any = self.model._diffusers_hook
            root._child_registries_cache = None
        self._hooked.clear()
        self.reset()

    # The trajectory

    def reset(self) -> None:
        """Forget the current trajectory, histories and all."""
        self.runs.clear()
        self._watch.forget()
        self._ended = False

    def end_trajectory(self) -> None:
        """The pipeline call is over: free the histories, keep the counts for the summary."""
        for run in self.runs.values():
            run.policy = self.policy.fresh()
            run.key = None
        self._ended = True

    def _find_run(self, name: str | None, arguments: dict[str, Any]) -> ContextRun:
        """The context of this call; starts a new trajectory when it is time."""
        key = None if name is not None else arguments.get(self.adapter.key)
        run = self._match(name, key)
        calls = run.step if run is not None else 0
        if self._watch.starts(arguments.get("timestep"), self.scheduler(), calls) or self._ended:
            self.runs.clear()
            self._ended = False
            run = None
        if run is None:
            if name is None:
                name = f"context-{len(self.runs)}" if self.runs else "default"
            run = self.runs[name] = ContextRun(name)
        run.key = key
        return run

    def _match(self, name: str | None, key: Any) -> ContextRun | None:
        if name is not None:
            return self.runs.get(name)
        for run in self.runs.values():
            if run.key is key:
                return run
        # Conditioning rebuilt at every step: compare values, but never with a context already served at this step.
        behind = min((run.step for run in self.runs.values()), default=0)
        return next((run for run in self.runs.values() if run.step == behind and same_key(run.key, key)), None)

    def _begin(self, run: ContextRun, grid: Grid) -> None:
        """Give `run` an empty history."""
        timesteps = getattr(self.scheduler(), "timesteps", None)
        run.policy = self.policy.fresh()
        run.policy.begin(RunInfo(len(timesteps) if isinstance(timesteps, Tensor) else None, grid))
        run.observed = False

    # One pass

    def forward(
        self, original: Callable[..., Any], name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The transformer's forward under the policy."""
        arguments = self._signature.bind(self.model, *args, **kwargs).arguments
        run = self._find_run(self.named_context if self.named_context is not None else name, arguments)
        self.call = call = self._open(run, arguments)
        try:
            with run.clock.measure(arguments[self.adapter.latent].device) as note:
                if call.latent:
                    output = self._latent_pass(call, lambda: original(*args, **kwargs), arguments)
                else:
                    output = original(*args, **kwargs)
                note["kind"] = call.kind
        except BaseException:
            self.reset()  # a half-done step has no place in a history
            raise
        finally:
            self.call = None
        run.finish(call.kind, type(output), call.prediction)
        event = StepEvent(
            run.name, call.step, call.timestep, call.kind, call.grid, call.probe, call.residual, call.prediction
        )
        for listener in self.listeners:
            listener(event)
        return output

    def _open(self, run: ContextRun, arguments: dict[str, Any]) -> Call:
        """Decide what this pass does, before any of the model runs."""
        shape = arguments[self.adapter.latent].shape
        grid = self.adapter.grid(self.model, arguments)
        changed = run.shape is not None and run.shape != shape
        if run.shape != shape:
            self._begin(run, grid)
            run.shape = shape
        policy = run.policy
        full = policy.wants_full(run.step)
        if not (full or run.observed):
            run.fail_opens["input shape changed" if changed else "no history yet"] += 1
            full = True
        return Call(
            run,
            run.step,
            arguments.get("timestep"),
            skips=not (full or self.shadow),
            predicts=not full,
            wants_probe=policy.needs_probe,
            probe_depth=policy.probe_depth,
            latent=policy.residual_site == "latent",
            grid=grid,
        )

    def at_tail(self, call: Call, tail: Tensor) -> Tensor:
        """Called with the input of the tail, (batch, token, channel); returns what the tail shall see."""
        assert call.start is not None
        if not call.skips:
            # float32 (or better) keeps start + residual equal to the tail input when the model runs in bf16
            wide = torch.promote_types(tail.dtype, torch.float32)
            call.residual = tail.detach().to(wide) - call.start.detach().to(wide)
        if not call.predicts:
            return self._observe(call, tail)
        return (call.start + self._predict(call)).to(call.start.dtype)

    def _latent_pass(self, call: Call, original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """The whole forward with the residual in latent space: nothing after the probe runs at a skip step."""
        latent: Tensor = arguments[self.adapter.latent]
        channels = self.adapter.channel_dim
        if call.skips:
            kind, shape = call.run.output_kind, call.run.output_shape
            if call.wants_probe:
                with contextlib.suppress(StopForward):
                    original()
        else:
            output = original()
            sample = sample_of(output)
            kind, shape = type(output), sample.shape
            call.run.output_shape = shape
            call.residual = to_tokens(latent_residual(latent, sample), call.grid, channels)
            if not call.predicts:
                return self._observe(call, output)
        residual = from_tokens(self._predict(call), call.grid, channels, shape)
        return like_output(kind, latent_sum(latent, residual, latent.dtype))

    def _observe(self, call: Call, unchanged: Any) -> Any:
        assert call.residual is not None
        call.run.policy.observe(call.step, call.probe, call.residual)
        call.run.observed = True
        return unchanged

    def _predict(self, call: Call) -> Tensor:
        call.prediction = call.run.policy.predict(call.step, call.probe, call.residual)
        return call.prediction.residual
