"""Define the contract between a policy and the instrument that runs a model under it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.transfer import onto
from tapstudy.policies.decision import SKIP, Decision, Layout
from tapstudy.predictors.family import Label

ResidualSite = Literal["hidden", "tail", "latent", "output"]
ProbeKind = Literal["modulated", "stream", "latent"]
Losses = Tensor | Callable[[], Tensor]
# methods that run beside the model
APART = ("wants_full_given", "decision", "observe", "observe_part", "predict", "predict_part", "skipped", "ran")

_AUTOCAST = ("cpu", "cuda", "mps", "xpu", "hpu")


@contextmanager
def apart() -> Iterator[None]:
    """Compute without autocast and without gradients, on tensors that any later step may use. Also a decorator.

    Whatever mode the model is called in, what is computed here is the same, and a constant to the model: autocast would
    run products in half precision, a gradient would keep the model's activations alive, and what is made in inference
    mode could not be written to, or be part of a graph, outside of it.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which turns gradients on
        stack.enter_context(torch.no_grad())
        for device in filter(torch.is_autocast_enabled, _AUTOCAST):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@dataclass(frozen=True)
class RunInfo:
    """Tell a policy what is known when a trajectory starts.

    Attributes:
        num_steps: number of sampling steps that this context of this transformer sees, None when nobody could tell.
            Image-to-image runs begin in the middle; two transformers may share the steps.
        grid: frames, rows and columns of the tokens, None when unknown.
        first: number that the first of these steps has among those of the scheduler.
        total: number of those.
        layout: what the transformer can be cut into, None outside of one.
    """

    num_steps: int | None = None
    grid: tuple[int, int, int] | None = None
    first: int = 0
    total: int | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class Prediction:
    """Hold what a policy puts in place of a skipped pass.

    Attributes:
        residual: predicted residual, of the shape of the observed ones.
        choice: index into the policy's labels, (batch, token), or None.
        losses: loss of every predictor that was scored, (batch, token, scored), or what computes it, or None.
        inverse: for each labelled predictor its position among the scored ones, (predictor,); None if these are they.
        disposable: the policy made `residual` for this prediction and holds on to no view of it: whoever gets the
            prediction may overwrite it, and the instrument does so where nobody listens, to save the memory.

    Raises:
        TypeError: a residual that is no tensor, or choices that are no integers.
        ValueError: a residual, choices or losses of other shapes than these.
    """

    residual: Tensor
    choice: Tensor | None = None
    losses: Losses | None = None
    inverse: Tensor | None = None
    disposable: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.residual, Tensor):
            raise TypeError(f"Prediction: residual must be a tensor, got {type(self.residual).__name__}")
        if self.residual.ndim != 3:
            raise ValueError(
                f"Prediction: residual must be (batch, token, channel), got shape {tuple(self.residual.shape)}"
            )
        if self.choice is not None:
            if not isinstance(self.choice, Tensor) or self.choice.dtype not in (torch.int64, torch.int32, torch.int16):
                raise TypeError(f"Prediction: choice must be a tensor of integers, got {_kind(self.choice)}")
            if self.choice.shape != self.residual.shape[:2]:
                raise self._misshapen("choice", self.choice, 2)
        if isinstance(self.losses, Tensor) and self.losses.shape[:-1] != self.residual.shape[:2]:
            raise self._misshapen("losses", self.losses, 3)

    def _misshapen(self, name: str, values: Tensor, ndim: int) -> ValueError:
        return ValueError(
            f"Prediction: {name} must begin with the residual's (batch, token) = {tuple(self.residual.shape[:2])} "
            f"and have {ndim} dimensions, got shape {tuple(values.shape)}"
        )

    @property
    def proxy_loss(self) -> Tensor | None:
        """Loss of every labelled predictor, (batch, token, predictor), or None. Put together when read."""
        losses = self.losses
        if callable(losses):
            losses = losses()
            if losses.shape[:-1] != self.residual.shape[:2]:
                raise self._misshapen("losses", losses, 3)
        if losses is None or self.inverse is None:
            return losses
        # in memory a predictor's tokens are next to each other: copied as whole rows
        return losses.movedim(-1, 0)[onto(self.inverse, losses.device)].movedim(0, -1)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


class Policy(ABC):
    """Decide when to run in full and predict the rest. One object serves one context of one transformer.

    The loop is: `begin` once, then for every step `wants_full(step)`. If it does not, and the policy decides by probe,
    `wants_full_given(step, probe)` as soon as the probe is known. Then `make_room` and `observe` (a full step, before
    and after its blocks run), or `predict` and `skipped` (a skip step). Questions (`wants_full`, `wants_full_given`,
    `predict`) change nothing; the step is always passed in. A pass is one batch, so its samples (and the guidance
    branches in it) skip or run together.

    A pass that is not full runs what `decision` says: by default nothing. See `PartsPolicy` for blocks and modules; of
    tokens, `predict` predicts all, and `ran` is told what came of those that ran.

    What sees features runs apart from the model, in every subclass: without gradients, autocast or inference mode. So
    what a policy keeps is detached, and a prediction is a constant to the model around it.

    Attributes:
        labels: names of the predictors that `Prediction.choice` indexes.
        residual_site: what is predicted: `hidden` (input of the tail norm minus input of the first block), `tail`
            (the former alone), `latent` (model output minus model input) or `output` (the former alone).
        probe_depth: block that the probe is taken at; the blocks before it run at every step.
        probe_kind: `modulated`: modulated input of that block, (batch, token, channel). `stream`: hidden states that
            enter the first block and that block, (2, batch, token, channel); at depth 1 the second minus the first is
            the residual of the first block. `latent`: the model input in patches, (batch, token, latent channel); no
            block runs for it.
        needs_probe: whether the policy reads the probe; without it no block runs at a skip step.
        decides_by_probe: whether `wants_full_given` is asked. Needs the probe. A pass that it turns into a full one
            goes on from where the probe was taken: nothing runs twice.
        needs_truth: whether `predict` reads the true residual. The instrument then runs a shadow full pass at every
            skip step: such a policy saves nothing and serves as a yardstick.
        runs_tokens: whether decisions name tokens. The keys and values of all blocks are then kept.
    """

    labels: tuple[Label, ...] = ()
    residual_site: ResidualSite = "hidden"
    probe_depth: int = 0
    probe_kind: ProbeKind = "modulated"
    needs_probe: bool = False
    decides_by_probe: bool = False
    needs_truth: bool = False
    runs_tokens: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in APART:
            if name in vars(cls):
                setattr(cls, name, apart()(vars(cls)[name]))

    def fresh(self) -> Self:
        """Make a copy that has seen nothing, for another context. Call it on a policy that has itself seen nothing."""
        return copy.deepcopy(self)

    def begin(self, run: RunInfo) -> None:
        """Begin a trajectory: forget the last one."""
        del run

    @abstractmethod
    def wants_full(self, step: int) -> bool:
        """Tell whether the model must run in full at `step`, whatever its probe."""

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        """Tell whether `step`, which `wants_full` left to be skipped, must run in full after all, given its probe.

        The answer waits for the device, once a step: that is what `waits` counts.
        """
        del step, probe
        return False

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        """Say what runs at a step that is not full, given its probe if the policy decides by it."""
        del step, probe
        return SKIP

    def make_room(self) -> None:  # noqa: B027
        """Free what `observe` will replace: a full step begins, and nothing is predicted before it is observed."""

    @abstractmethod
    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        """Take in a full step: probe if `needs_probe`, and residual, (batch, token, channel)."""

    @abstractmethod
    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        """Predict the residual at a skip step from the probe, and from the true residual if `needs_truth`."""

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        """Take in what `predict` said, and the probe if `needs_probe`: copy what you keep of it.

        Called at skip steps, and, before `ran`, at those at which some tokens ran and the others were predicted.
        """
        del step, probe, prediction

    def ran(self, step: int, decision: Decision, residual: Tensor | None) -> None:
        """Take in a step of which some ran, and of tokens the residual: true for those, predicted for the others."""
        del step, decision, residual

    @property
    def cache_bytes(self) -> int:
        """Memory held by the history."""
        return 0

    @property
    def waits(self) -> int:
        """How often, at most, the host waits for the device at a step that is not full.

        Once for a decision by the probe, and once to check tokens that a decision names.
        """
        return int(self.decides_by_probe) + int(self.runs_tokens)


class CachePolicy(Policy):
    """Keep the last full steps as anchors.

    Args:
        anchors: an empty history.
    """

    def __init__(self, anchors: Anchors) -> None:
        self.anchors, self.run = anchors, RunInfo()

    def begin(self, run: RunInfo) -> None:
        self.run = run
        self.anchors.clear()
        self.restart()

    def restart(self) -> None:
        """Begin a window: a trajectory starts, or a full step is over."""

    def kept(self, probe: Tensor | None) -> Tensor | None:
        """Choose what of the probe is kept beside the residual, (batch, token, channel); nothing by default."""
        del probe
        return None

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self.anchors.push(step, self.kept(probe), residual)
        self.restart()

    def make_room(self) -> None:
        self.anchors.make_room()

    @property
    def cache_bytes(self) -> int:
        return self.anchors.nbytes


def check_policy(policy: Policy) -> None:
    """Check what a policy declares.

    Raises:
        ValueError: an unknown site of the residual or kind of probe, or a depth that is no whole number from 0.
    """
    name = type(policy).__name__
    for field, known in (("residual_site", get_args(ResidualSite)), ("probe_kind", get_args(ProbeKind))):
        if getattr(policy, field) not in known:
            raise ValueError(f"{name}: {field} must be one of {known}, got {getattr(policy, field)!r}")
    if not isinstance(policy.probe_depth, int) or policy.probe_depth < 0:
        raise ValueError(f"{name}: probe_depth must be an integer of at least 0, got {policy.probe_depth!r}")
