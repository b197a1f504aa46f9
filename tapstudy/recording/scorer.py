"""Turn what the instrument tells of a step into the arrays that a recording stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.driver import run_info
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.recording.damage import RecordingError
from tapstudy.recording.schema import Variable, module_variable

Reduce = Callable[[Tensor], Tensor]
Array = NDArray[Any]


class Scorer:
    """Score all predictors at every step of a trajectory, and collect the features that are asked for.

    Args:
        judge: scores predictors and knows the schedule. Teacher-forced, copies of it are shown the exact features;
            closed-loop, the events bring the policy that ran.
        fields: of `schema.VARIABLES`.
        modules: name -> path, of those whose outputs are fields too.
        depths: of the probe.
        reduce: feature name -> function (batch, token, channel) -> (batch, token, fewer).

    Attributes:
        variables: of the modules that have run, by name.
    """

    def __init__(
        self,
        judge: AnchoredPolicy,
        *,
        teacher_forced: bool,
        fields: tuple[str, ...],
        modules: Mapping[str, str],
        depths: tuple[int, ...],
        reduce: Mapping[str, Reduce],
    ) -> None:
        self.judge, self.teacher_forced = judge, teacher_forced
        self.fields, self.modules, self.depths, self.reduce = (*fields, *modules), modules, depths, reduce
        self.variables: dict[str, Variable] = {}
        self._judges: dict[str, AnchoredPolicy] = {}

    def begin(self) -> None:
        """Forget the last trajectory."""
        self._judges.clear()

    def __call__(self, event: StepEvent, samples: int) -> dict[str, dict[str, Array]]:
        """Compute the fields of a step: context -> field -> (sample, ...).

        Args:
            samples: how many the batch holds; with several guidance branches it has that many rows for each.

        Raises:
            RecordingError: the event has no residual.
            ValueError: a batch that does not divide into samples and branches.
        """
        if event.residual is None:
            raise RecordingError(f"step {event.step} of context {event.context!r} showed no residual to record")
        names = _branches(event, len(event.residual), samples)
        values = self._values(event, event.residual)
        return {
            name: {field: rows[i * samples : (i + 1) * samples] for field, rows in values.items()}
            for i, name in enumerate(names)
        }

    def _values(self, event: StepEvent, residual: Tensor) -> dict[str, Array]:
        policy, batch = self._policy(event), len(residual)
        full = policy.wants_full(event.step) if self.teacher_forced else event.kind == "full"
        found: dict[str, Tensor | None] = {
            "is_full": torch.full((batch,), int(full)),
            "distance": torch.full((batch,), 0 if full else event.step - policy.anchors.steps[0]),
        }
        if not full:
            prediction = policy.predict(event.step, event.probe) if self.teacher_forced else event.prediction
            assert prediction is not None
            found["choice"] = prediction.choice
            if "proxy_loss" in self.fields:
                found["proxy_loss"] = prediction.proxy_loss
            if "is_distinct" in self.fields:
                found["true_error"], distinct = policy.errors(event.step, residual)
                found["is_distinct"] = distinct.expand(batch, -1)
        for name in ("residual", "latent", "latent_residual"):
            tensor = getattr(event, name)
            if name in self.fields and tensor is not None:
                found[name] = self._reduced(name, tensor)
        if "probe" in self.fields:
            parts = [self._reduced("probe", event.probes[depth]) for depth in self.depths]
            found["probe"] = torch.stack(parts, dim=1)  # (B, depth, N, D)
        for name, output in event.modules.items():
            found[name] = values = self._reduced(name, output.values)
            path, ndim = self.modules[name], values.ndim
            self.variables[name] = module_variable(path, ndim, name, of_tokens=output.of_tokens)
        if self.teacher_forced and full:
            policy.observe(event.step, event.probe, residual)
        return {name: _numpy(one) for name, one in found.items() if name in self.fields and one is not None}

    def _policy(self, event: StepEvent) -> AnchoredPolicy:
        if not self.teacher_forced:
            assert isinstance(event.policy, AnchoredPolicy)
            return event.policy
        if event.step == 0:
            self._judges[event.context] = self.judge.fresh()
            self._judges[event.context].begin(run_info(event.span, event.grid))
        return self._judges[event.context]

    def _reduced(self, name: str, tensor: Tensor) -> Tensor:
        return self.reduce[name](tensor) if name in self.reduce else tensor


def _branches(event: StepEvent, batch: int, samples: int) -> list[str]:
    """List the contexts that a batch holds, one after the other."""
    if batch % samples:
        raise ValueError(
            f"the transformer got a batch of {batch} for {samples} samples: cannot tell whose row is whose"
        )
    count = batch // samples
    names = [event.context] if count == 1 else list(event.branches)
    if len(names) != count:
        raise ValueError(f"the transformer got {count} rows per sample, but its branches are {names}")
    return names


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
