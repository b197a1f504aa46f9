"""One forward pass of a transformer under a policy: what the hooks share, and what listeners are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.driver import Span
from tapstudy.instrument.latent import to_tokens
from tapstudy.instrument.layouts import Grid, Start
from tapstudy.instrument.module_outputs import ModuleOutput, Sequences, WatchedModule
from tapstudy.instrument.tokens import ImageTokens
from tapstudy.instrument.trajectories import Threads
from tapstudy.instrument.trajectory import ContextRun
from tapstudy.policies.base import Policy, Prediction, ProbeKind
from tapstudy.policies.decision import SKIP, Decision, Part, check_decision
from tapstudy.policies.parts import PartsPolicy

MISSING = AssertionError, AttributeError, IndexError, TypeError  # what comes of reading None
State = Literal["full", "skip", "partial", "shadow", "undecided"]


@dataclass
class Call:
    """One forward pass of the transformer in progress.

    Attributes:
        state: "full"; "skip", where no block beyond the probe runs and the residual is predicted; "partial", where some
            of the model runs; "shadow", a full pass beside a prediction; "undecided", until the policy has seen the
            probe.
        shadow: what is predicted has its truth computed beside it.
        latent: what is predicted lives in latent space.
        relative: it is a difference, to the model input or to the hidden state entering the first block.
        stops: the pass stops at the probe, as far as is known.
        home: device that the policy works on: of what is added to, should the model be split over several.
        probe_kind: None if the policy reads no probe.
        hidden_tokens: where the image tokens are in the input of the first block.
        tail_tokens: where they are in that of the tail.
        probe_tokens: where they are in what the probe is read from.
        model_input: the latent.
        return_dict: whether the caller wants an output object rather than a tuple.
        start: hidden state entering the first block, (batch, sequence, channel).
        probed: what the probe is read from: by its kind, modulated input of the probed block or hidden state entering
            it, (batch, sequence, channel), or the model input in patches, (batch, token, latent channel).
        residual: the true one, of the image tokens, where it was computed.
        list_starts: where the image tokens start, by the number of the block list of those other blocks.
        deeper_inputs: modulated inputs of other blocks, by depth, where a recording asked for them.
        latent_residual: the residual in latent space beside one in hidden space, likewise.
        conditioning: what the model is given beside its latent, such as the text.
        module_outputs: what modules gave in this pass, by the name in the recording, call for call, likewise.
        described: description of the arguments, where some modules may idle.
        outputs: what idle modules gave in this pass, by path, call for call.
        blanks: what idle modules hand out instead of running; without those that run.
        decision: what runs in a partial pass.
        entered: the streams of tokens that entered a group of blocks, image first.
        slots: how many modules of a part have had their turn.
        cuts: whether the pass has come to where tokens are cut out.
        cut: whether they have been.
        stream_length: of the stream that they were cut out of.
    """

    run: ContextRun
    step: int
    timestep: Tensor | float | None
    state: State
    shadow: bool
    stops: bool
    home: torch.device
    probe_kind: ProbeKind | None
    latent: bool
    relative: bool
    grid: Grid
    hidden_tokens: ImageTokens
    tail_tokens: ImageTokens
    probe_tokens: ImageTokens
    model_input: Tensor
    return_dict: bool
    start: Tensor | None = None
    probed: Tensor | None = None
    residual: Tensor | None = None
    prediction: Prediction | None = None
    list_starts: Mapping[int, Start] = field(default_factory=dict)
    deeper_inputs: dict[int, Tensor] = field(default_factory=dict)
    latent_residual: Tensor | None = None
    conditioning: Any = None
    module_outputs: dict[str, list[Any]] = field(default_factory=dict)
    described: dict[str, Any] | None = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    blanks: dict[str, list[Any]] = field(default_factory=dict)
    decision: Decision = SKIP
    entered: dict[Part, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    slots: Counter[Part] = field(default_factory=Counter)
    cuts: bool = False
    cut: bool = False
    stream_length: int = 0

    def decide(self, *, full: bool, probe: Tensor | None = None) -> None:
        """Settle what an undecided pass is."""
        self.state = "full" if full else "shadow" if self.shadow else "skip"
        if not full and (decision := self.run.policy.decision(self.step, probe)) is not SKIP:
            self.decision, self.state = checked(decision, self), "partial"
        self.stops = self.state == "skip"
        if self.state == "full":
            self.run.policy.make_room()

    @property
    def probe(self) -> Tensor | None:
        """(batch, token, channel), or (2, batch, token, channel) of the kind `stream`."""
        if self.probed is None:
            return None
        if self.probe_kind == "latent":
            return self.probed.to(self.home)
        tokens = self.probe_tokens.take(self.probed).to(self.home)
        if self.probe_kind == "modulated":
            return tokens
        assert self.start is not None
        return torch.stack([self.hidden_tokens.take(self.start).to(self.home), tokens])

    @property
    def text_tokens(self) -> int | None:
        """How many tokens of text, (batch, token, channel), the model is given; None for anything else."""
        text = self.conditioning
        return text.shape[1] if isinstance(text, Tensor) and text.ndim == 3 else None

    def let_go(self) -> None:
        """Drop the features that a pass still holds once the policy has seen them and nobody else will."""
        self.start = self.probed = self.residual = None

    def give_up(self, reason: str) -> None:
        """Let this pass run in full although the policy wants to skip."""
        if self.state != "full":
            self.run.fail_opens[reason] += 1
        self.state, self.stops = "full", False

    def incomplete(self, *sequences: Tensor | None, tail: Tensor | None = None) -> str | None:
        """Tell why a full pass that showed these hidden states, and the tail, cannot enter the history, or None."""
        if self.run.misfit is not None:
            return self.run.misfit
        if any(sequence is None for sequence in sequences):
            return "first block not reached"
        if self.probe_kind is not None and self.probed is None:
            return "probe not reached"
        fits = [self.hidden_tokens.fit(sequence) for sequence in sequences if sequence is not None]
        if tail is not None:
            fits.append(self.tail_tokens.fit(tail))
        if self.probed is not None and self.probe_kind != "latent":
            fits.append(self.probe_tokens.fit(self.probed))
        return None if all(fits) else f"no room for a token grid of {self.grid}"


class Host(Protocol):
    """Offer what the hooks need of the instrument that they belong to.

    Attributes:
        model, adapter, policy: as given.
        call: the pass in progress, None outside of one and in a pass that no history is about.
        threads: what every thread names its calls.
    """

    model: nn.Module
    adapter: Adapter
    policy: Policy
    call: Call | None
    threads: Threads

    @property
    def target_timesteps(self) -> Any:
        """Timesteps of the scheduler that belongs to what the policy was put on, None if it has none."""

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the transformer's forward under the policy."""

    def passed_by(self) -> None:
        """Take note that the first block runs outside a call that came to the policy."""

    def decide(self, call: Call) -> None:
        """Let the policy, which can see the probe now, settle an undecided pass."""

    def at_tail(self, call: Call, tail: Tensor) -> Tensor:
        """Take the input of the tail, (batch, sequence, channel), and return what the tail shall see."""

    def end_trajectory(self) -> None:
        """Free the histories, since the pipeline call is over."""


@dataclass(frozen=True)
class StepEvent:
    """What a listener is told after every pass. Tensors belong to the model, without its gradients: copy what you keep.

    Attributes:
        context: name of the guidance branch.
        kind: "full", "skip", "partial" (some of the model ran) or "shadow" (a skip step whose truth was computed
            beside it).
        probe: of the image tokens, of the kind that the policy asks for, None if nobody needed it.
        residual: the true residual of the image tokens, None at a skip step.
        prediction: the policy's, None at a full step.
        policy: of this context, with its history.
        probes: modulated inputs by depth, those a recording asked for included.
        latent: the model's input, (batch, token, patch values), if a recording asked for it.
        latent_residual: the true residual in latent space, likewise, at full steps.
        modules: outputs by name of modules that a recording asked for and that ran, but for skip steps.
        branches: names of the guidance branches, should the batch hold several.
        span: the steps that this transformer sees in the run, None if no scheduler tells.
    """

    context: str
    step: int
    timestep: Tensor | float | None
    kind: str
    grid: Grid
    probe: Tensor | None
    residual: Tensor | None
    prediction: Prediction | None
    policy: Policy
    probes: Mapping[int, Tensor]
    latent: Tensor | None
    latent_residual: Tensor | None
    modules: Mapping[str, ModuleOutput]
    branches: tuple[str, ...]
    span: Span | None

    @classmethod
    def of(
        cls,
        call: Call,
        adapter: Adapter,
        *,
        lists: Mapping[int, int],
        watched: Mapping[str, WatchedModule],
        latent: bool,
        span: Span | None,
    ) -> Self:
        """Return the event of a pass that is over.

        Args:
            lists: number of the block list of every depth that a recording asked for.
            watched: modules that one asked for, by name.
            latent: whether one asked for the latent.
            span: the steps that the transformer sees in the run.
        """
        probes = {
            depth: ImageTokens(prod(call.grid), call.list_starts[lists[depth]]).take(sequence.detach())
            for depth, sequence in call.deeper_inputs.items()
        }
        probe = None if call.probe is None else call.probe.detach()
        if probe is not None and call.probe_kind == "modulated":
            probes[call.run.policy.probe_depth] = probe
        return cls(
            call.run.name, call.step, call.timestep, call.state, call.grid, probe, call.residual, call.prediction,
            call.run.policy, probes,
            to_tokens(call.model_input.detach(), call.grid, adapter.channel_dim) if latent else None,
            call.latent_residual, _module_outputs(call, watched), adapter.branches, span,
        )  # fmt: skip


def checked(decision: Decision, call: Call) -> Decision:
    """Check a decision; raises as `check_decision`."""
    policy = call.run.policy
    check_decision(
        decision,
        f"{type(policy).__name__}.decision at step {call.step}",
        parts=policy.watched if isinstance(policy, PartsPolicy) else (),
        tokens=prod(call.grid),
        apart=policy.runs_tokens,
        models=len(getattr(policy, "models", ())),
    )
    return decision


def _module_outputs(call: Call, watched: Mapping[str, WatchedModule]) -> dict[str, ModuleOutput]:
    """Read what modules gave in a pass in which all of the model ran."""
    if call.state == "skip" or call.start is None:
        return {}
    sequences = Sequences(prod(call.grid), call.start.shape[1], call.text_tokens, call.list_starts)
    found = {
        name: sequences.read(one, call.module_outputs.get(name, []), len(call.start)) for name, one in watched.items()
    }
    return {name: output for name, output in found.items() if output is not None}


# Where what a policy says enters the model: refused if it would go wrong in silence


def observe(call: Call) -> None:
    """Show the policy a full step."""
    policy, residual = call.run.policy, call.residual
    assert residual is not None
    try:
        policy.observe(call.step, call.probe, residual)
    except MISSING as error:
        _explain(error, policy, "observe")
        raise
    call.run.observed = True


def predicted(call: Call, model: nn.Module, *, shape: torch.Size, device: torch.device | None) -> Tensor:
    """Return the residual that the policy predicts at a skip step of `model`, fit to take the place of a true one.

    Where gradients are recorded it is a leaf of their graph, and as trainable as what the model would have computed:
    one may call `backward` on whatever follows, and gradients end here.

    Args:
        shape: of the residuals that were observed, (batch, token, channel).
        device: of what it is added to, None if of nothing.

    Raises:
        TypeError: no prediction, or no floating residual of 16 bits or more.
        ValueError: a residual of another shape or on another device, or choices or losses that do not fit the labels.
    """
    policy, probe = call.run.policy, call.probe
    try:
        prediction = policy.predict(call.step, probe, call.residual)
    except MISSING as error:
        _explain(error, policy, "predict")
        raise
    _check(prediction, policy, step=call.step, shape=shape, device=device)
    call.prediction, residual = prediction, prediction.residual
    try:
        policy.skipped(call.step, probe, prediction)
    except MISSING as error:
        _explain(error, policy, "skipped")
        raise
    if torch.is_grad_enabled():  # a copy, since histories are overwritten before anybody calls backward
        return residual.detach().clone().requires_grad_(any(weight.requires_grad for weight in model.parameters()))
    # what was made in inference mode cannot be written to outside of it
    return residual.clone() if residual.is_inference() and not torch.is_inference_mode_enabled() else residual


def _explain(error: Exception, policy: Policy, method: str) -> None:
    """Raise a TypeError that says how a policy asks for more, in place of an error that comes of reading None."""
    asked = {"needs_probe": policy.needs_probe, "needs_truth": policy.needs_truth or method != "predict"}
    missing = [name for name, given in asked.items() if not given]
    # without a probe a history has none either: an assertion or an empty list speaks of that
    if not missing or (policy.needs_probe and "NoneType" not in str(error)):
        return
    names = " or ".join(missing)
    raise TypeError(
        f"{type(policy).__name__}.{method} failed without what it had not asked for ({type(error).__name__}: "
        f"{str(error) or 'no message'}): if it reads the {names.replace('needs_', '')}, set {names} = True on it"
    ) from error


def _check(
    prediction: Prediction, policy: Policy, *, step: int, shape: torch.Size, device: torch.device | None
) -> None:
    where = f"{type(policy).__name__}.predict at step {step}"
    if not isinstance(prediction, Prediction):
        raise TypeError(f"{where} must return a Prediction, got {type(prediction).__name__}: wrap it, Prediction(...)")
    residual = prediction.residual
    if not residual.is_floating_point() or residual.dtype.itemsize < 2:
        raise TypeError(f"{where} gave a residual of {residual.dtype}: it must be a float of 16 bits or more")
    if residual.shape != shape:
        raise ValueError(
            f"{where} gave a residual of shape {tuple(residual.shape)}, but (batch, token, channel) are "
            f"{tuple(shape)} here: return one of the shape that observe was given"
        )
    if device is not None and residual.device != device:
        raise ValueError(
            f"{where} gave a residual on {residual.device}, but the model computes on {device}: bring it there"
        )
    count, scored = len(policy.labels), prediction.inverse
    if prediction.choice is not None and count == 0:
        raise ValueError(f"{where} gave choices, but the policy has no labels that they could be indices of")
    if scored is None and isinstance(prediction.losses, Tensor):
        scored = prediction.losses[0, 0]
    if scored is not None and len(scored) != count:
        raise ValueError(f"{where} gave losses of {len(scored)} predictors, but the policy has {count} labels")
