"""Scoring, choice and assembly of a skip step as one compiled graph.

On accelerators this is a few launches in place of some tens, and no intermediate features go to memory. The first
calls compile, which takes seconds; later ones do not, whatever the weights: these are inputs of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor

from tapstudy.core.losses import Distance, Forms, forms_of, remoteness_from_products
from tapstudy.core.products import AnchorWorkspace, join_products, much_smaller
from tapstudy.core.scoring import Granularity, assemble, choose

Step = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]


def whole_step(
    probes: Sequence[Tensor],
    probe: Tensor,
    residuals: Sequence[Tensor],
    *,
    weights: Tensor,
    forms: Forms,
    known: Tensor | None = None,
    distance: Distance = "cosine",
    granularity: Granularity = "token",
) -> Step:
    """What a skip step predicts, chooses and chooses by, in operations that make one graph.

    Args:
        probes: those of J anchors, (batch, token, channel) each.
        probe: the actual one.
        residuals: those of the anchors.
        weights: (predictor, J), float64, on their device.
        forms: of the weights.
        known: products of the anchors, as an `AnchorWorkspace` knows them; computed here if None.
        distance: not l1.
        granularity: not region.

    Returns:
        Residual (batch, token, channel); choice (batch, token); remoteness (batch, token, predictor), float32; all
        products, (K, batch * token), None with `known`; and whether the choice is to be trusted: with `known`, it is
        not where an actual probe is much smaller than before.
    """
    wide = forms.across.dtype
    # by way of float32, since processors are slow to go from half precision to float64 at once
    single = torch.promote_types(probe.dtype, torch.float32)
    actual, newest, *others = (feature.flatten(0, -2).to(single).to(wide) for feature in (probe, *probes))  # (T, D)
    vectors = [other - newest for other in others]
    trusted = torch.ones((), dtype=torch.bool, device=probe.device)
    if known is None:
        vectors = [actual, *vectors, newest - actual]
        pairs = [(i, j) for i in range(len(vectors)) for j in range(i, len(vectors))]
        products = torch.stack([(vectors[i] * vectors[j]).sum(dim=-1) for i, j in pairs])  # (K, T)
    else:
        g = newest - actual
        products = join_products(known, [(g * vector).sum(dim=-1) for vector in (newest, *vectors, g)])
        trusted = ~much_smaller(products, known)
    remoteness = remoteness_from_products(products, forms)  # (P, T)
    remoteness = remoteness.T.unflatten(0, probe.shape[:-1])  # (B, N, P)
    choice = choose(remoteness, distance=distance, granularity=granularity)
    residual = assemble(residuals, weights, choice)
    return residual, choice, remoteness, products if known is None else None, trusted


def _options() -> dict[str, Any]:
    """Processors with vectors of 512 bits use half of these: going to float64, which is most of the work, takes torch
    10 to 25 % longer by whole ones."""
    return {"cpp.simdlen": 256} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}


class CompiledStep:
    """`whole_step` through `torch.compile`, shared by the copies of a policy.

    Raises:
        ValueError: distance l1 or granularity region, which make no such graph.
    """

    def __init__(self, *, distance: Distance = "cosine", granularity: Granularity = "token") -> None:
        if distance == "l1" or granularity == "region":
            raise ValueError(
                "compile=True works with distance cosine or l2 and granularity token, step or global, got "
                f"{distance!r} and {granularity!r}: leave compile out"
            )
        self.distance, self.granularity = distance, granularity
        self._compiled: Any = torch.compile(whole_step, dynamic=True, fullgraph=True, options=_options())
        self._lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(
        self,
        probes: Sequence[Tensor],
        probe: Tensor,
        residuals: Sequence[Tensor],
        *,
        weights: Tensor,
        workspace: AnchorWorkspace,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `whole_step`; None where it cannot be compiled, with one warning, or the choice is not to be trusted."""
        if self._compiled is None:
            return None
        forms = forms_of(weights, distance=self.distance, device=probe.device)
        known = workspace.known
        try:
            with self._lock:
                residual, choice, remoteness, products, trusted = self._compiled(
                    list(probes), probe, list(residuals), weights=weights.to(probe.device), forms=forms, known=known,
                    distance=self.distance, granularity=self.granularity,
                )  # fmt: skip
        except Exception as error:  # what fails depends on the machine: no compiler, no Triton, an unknown device
            self._compiled = None
            first = str(error).strip().split("\n")[0]
            warnings.warn(f"compile=True failed ({first}), going on without it", RuntimeWarning, stacklevel=2)
            return None
        if known is None:
            workspace.learn(products, probe)
        elif not trusted:  # nothing is known on accelerators: nobody waits for one
            return None
        return residual, choice, remoteness
