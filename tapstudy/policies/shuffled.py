"""Let tokens choose by each other's probes: the control for locality."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig


class ShuffledPolicy(AnchoredPolicy):
    """Permute the proxy losses across the tokens of a sample, anew at every step, drawn from (seed, step).

    A sample's predictors are taken exactly as often as TAP would take them from the same state, but by other tokens:
    what TAP gains over this is what a token's own probe says about that token. `proxy_loss` stays in its place.
    """

    needs_probe = True

    def __init__(self, config: TAPConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(config)
        self.seed = seed

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found = self.candidates(step)  # weights (P, J)
        losses = self.losses(found, probe)  # (B, N, P)
        order = shuffled_tokens(losses[..., 0], self.seed, step)
        choice = self.select(losses.gather(1, order[..., None].expand_as(losses)))  # (B, N)
        return self.apply(found, choice, losses)


def shuffled_tokens(tokens: Tensor, seed: int, step: int) -> Tensor:
    """Draw a permutation of the tokens of every sample from (seed, step), for values (batch, token)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return onto(torch.rand(tokens.shape, generator=generator).argsort(dim=1), tokens.device)
