"""One forward pass of a transformer under a policy: what the hooks share, and what listeners are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from tapstudy.instrument.adapters import Adapter, Grid, Start
from tapstudy.instrument.driver import Span
from tapstudy.instrument.latent import to_tokens
from tapstudy.instrument.tokens import ImageTokens
from tapstudy.instrument.trajectory import ContextRun
from tapstudy.policies.base import Policy, Prediction, ProbeKind


@dataclass
class Call:
    """One forward pass of the transformer in progress.

    Attributes:
        skips: no block beyond the probe runs.
        predicts: the residual is predicted; without `skips` this is a shadow pass, which also knows the truth.
        latent: what is predicted lives in latent space.
        relative: it is a difference, to the model input or to the hidden state entering the first block.
        probe_kind: None if the policy reads no probe.
        undecided: the policy decides whether to skip once it has the probe.
        hidden_tokens: where the image tokens are in the input of the first block and of the tail.
        probe_tokens: where they are in what the probe is read from.
        model_input: the latent.
        return_dict: whether the caller wants an output object rather than a tuple.
        start: hidden state entering the first block, (batch, sequence, channel).
        attention_input: modulated input of the probed block, (batch, sequence, channel).
        stream: hidden state entering the probed block, (batch, sequence, channel), if the probe is of that kind.
        latent_tokens: the model input in patches, (batch, token, latent channel), likewise.
        probe: the image tokens of the first, of the start and the second, or the third.
        residual: the true one, of the image tokens, where it was computed.
        list_starts: where the image tokens start in the block lists of those other blocks.
        deeper_inputs: modulated inputs of other blocks, by depth, where a recording asked for them.
        latent_residual: the residual in latent space beside one in hidden space, likewise.
        described: description of the arguments, where some modules may idle or are constant.
        kept: arguments that constant modules depend on, by name.
        outputs: what all those modules gave in this pass, by path, call for call.
        blanks: what idle modules hand out instead of running; without those that run.
        constants: what constant modules hand out, likewise.
        repeated: arguments and output of modules that run once in a skip step, by path.
        spared: a module gave less than it gives at a full step, or the same in other rounding.
    """

    run: ContextRun
    step: int
    timestep: Tensor | float | None
    skips: bool
    predicts: bool
    probe_kind: ProbeKind | None
    undecided: bool
    latent: bool
    relative: bool
    grid: Grid
    hidden_tokens: ImageTokens
    probe_tokens: ImageTokens
    model_input: Tensor
    return_dict: bool
    start: Tensor | None = None
    attention_input: Tensor | None = None
    stream: Tensor | None = None
    latent_tokens: Tensor | None = None
    residual: Tensor | None = None
    prediction: Prediction | None = None
    list_starts: Mapping[int, Start] = field(default_factory=dict)
    deeper_inputs: dict[int, Tensor] = field(default_factory=dict)
    latent_residual: Tensor | None = None
    described: dict[str, Any] | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    blanks: dict[str, list[Any]] = field(default_factory=dict)
    constants: dict[str, list[Any]] = field(default_factory=dict)
    repeated: dict[str, tuple[tuple[Any, ...], Any]] = field(default_factory=dict)
    spared: bool = False

    @property
    def kind(self) -> str:
        return "skip" if self.skips else "shadow" if self.predicts else "full"

    @property
    def certain(self) -> bool:
        """Whether it skips, the policy will not change its mind, and nobody asks for a gradient."""
        return self.skips and not self.undecided and not torch.is_grad_enabled()

    @property
    def probe(self) -> Tensor | None:
        """(batch, token, channel), or (2, batch, token, channel) of the kind `stream`."""
        sequence = self.probed
        if sequence is None or self.probe_kind == "latent":
            return sequence
        tokens = self.probe_tokens.take(sequence)
        if self.probe_kind == "modulated":
            return tokens
        assert self.start is not None
        return torch.stack([self.hidden_tokens.take(self.start), tokens])

    @property
    def probed(self) -> Tensor | None:
        """What the probe is read from, (batch, sequence, channel)."""
        found = {"modulated": self.attention_input, "stream": self.stream, "latent": self.latent_tokens}
        return None if self.probe_kind is None else found[self.probe_kind]

    def give_up(self, reason: str) -> None:
        """Let this pass run in full although the policy wants to skip."""
        if self.predicts:
            self.run.fail_opens[reason] += 1
        self.skips = self.predicts = False

    def start_again(self) -> None:
        """Run the model once more, every module of it."""
        self.blanks, self.constants, self.outputs, self.spared = {}, {}, {}, False

    def incomplete(self, *sequences: Tensor | None) -> str | None:
        """Why a full pass that showed these hidden states cannot enter the history, or None."""
        if self.run.misfit is not None:
            return self.run.misfit
        if any(sequence is None for sequence in sequences):
            return "first block not reached"
        if self.probe_kind is not None and self.probed is None:
            return "probe not reached"
        fits = [self.hidden_tokens.fit(sequence) for sequence in sequences if sequence is not None]
        if self.probed is not None and self.probe_kind != "latent":
            fits.append(self.probe_tokens.fit(self.probed))
        return None if all(fits) else f"no room for a token grid of {self.grid}"


@dataclass(frozen=True)
class StepEvent:
    """What a listener is told after every pass. Tensors belong to the model, without its gradients: copy what you keep.

    Attributes:
        context: name of the guidance branch.
        kind: "full", "skip" or "shadow" (a skip step whose truth was computed beside it).
        probe: of the image tokens, of the kind that the policy asks for, None if nobody needed it.
        residual: the true residual of the image tokens, None at a skip step.
        prediction: the policy's, None at a full step.
        policy: of this context, with its history.
        probes: modulated inputs by depth, those a recording asked for included.
        latent: the model's input, (batch, token, patch values), if a recording asked for it.
        latent_residual: the true residual in latent space, likewise, at full steps.
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
    branches: tuple[str, ...]
    span: Span | None

    @classmethod
    def of(cls, call: Call, adapter: Adapter, *, lists: Mapping[int, int], latent: bool, span: Span | None) -> Self:
        """The event of a pass that is over.

        Args:
            lists: number of the block list of every depth that a recording asked for.
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
            call.run.name, call.step, call.timestep, call.kind, call.grid, probe, call.residual, call.prediction,
            call.run.policy, probes,
            to_tokens(call.model_input.detach(), call.grid, adapter.channel_dim) if latent else None,
            call.latent_residual, adapter.branches, span,
        )  # fmt: skip
