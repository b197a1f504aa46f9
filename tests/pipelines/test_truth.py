"""Skipping every step but the first with the true residuals gives the image that no skipping gives."""

from __future__ import annotations

import copy
from collections import deque
from typing import Literal, Self

import pytest
import torch
from torch import Tensor

import tapstudy
from tapstudy.instrument.adapters import find_adapter
from tests.pipelines.tiny import Built, sample

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class Record(tapstudy.Policy):
    """Runs in full and puts the residuals on a tape that all contexts share, in the order of the calls."""

    needs_probe = True

    def __init__(self, tape: deque[Tensor], *, site: Literal["hidden", "latent"], probe_depth: int) -> None:
        self.tape, self.residual_site, self.probe_depth = tape, site, probe_depth

    def fresh(self) -> Self:
        return copy.copy(self)

    def wants_full(self, step: int) -> bool:
        return True

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self.tape.append(residual.clone())

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> tapstudy.Prediction:
        raise AssertionError("every step is full")


class Replay(Record):
    """Reads the tape back: one full step in each context, then none."""

    def wants_full(self, step: int) -> bool:
        return step == 0

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self.tape.popleft()

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> tapstudy.Prediction:
        return tapstudy.Prediction(self.tape.popleft())


WAYS = [("hidden", 0), ("latent", 2), ("hidden", 2), ("latent", 0)]
# one of every way in which pipelines call their transformers: guidance in a batch, in two calls, in calls that end
# early, with layers left out; tokens beside those of the image; a solver that calls twice; two transformers
NAMES = [
    "dit", "stable_diffusion_3_skip_layer_guidance", "stable_diffusion_3_heun", "flux_true_cfg", "flux_kontext",
    "wan22", "cogvideox", "lumina2", "z_image_truncated",
]  # fmt: skip


@pytest.mark.parametrize(
    ("built", "site", "probe_depth"),
    [(name, *WAYS[number % len(WAYS)]) for number, name in enumerate(NAMES)],
    indirect=["built"],
)
def test_true_residuals_give_the_reference(built: Built, site: Literal["hidden", "latent"], probe_depth: int) -> None:
    pipe, call = built
    if find_adapter(pipe.transformer) is None:
        pytest.skip(f"no adapter for {type(pipe.transformer).__name__}")
    tape: deque[Tensor] = deque()
    with tapstudy.apply_policy(pipe, Record(tape, site=site, probe_depth=probe_depth)):
        reference = sample(pipe, call)
    assert torch.equal(reference, sample(pipe, call))

    with tapstudy.apply_policy(pipe, Replay(tape, site=site, probe_depth=probe_depth)) as handle:
        replayed = sample(pipe, call)
    assert not tape
    for entry in handle.summary().contexts:
        skipped = "F" * len(entry.mask) if entry.context == "skip_layers" else "F" + "." * (len(entry.mask) - 1)
        assert entry.mask == skipped
    torch.testing.assert_close(replayed, reference, rtol=0, atol=1e-4 * float(reference.std()))
