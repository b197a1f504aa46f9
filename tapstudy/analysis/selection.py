"""What TAP chooses at the skip steps of a window, and what every predictor costs on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.analysis.window_scores import WindowScores, compiled_loops
from tapstudy.core.scoring import Distance, least, quadratic_form


@dataclass(frozen=True)
class Selection:
    """Of S steps, T tokens and P predictors, which count by their positions.

    Attributes:
        chosen_proxy: proxy loss of the chosen predictor, (S, T).
        choice: that predictor, (S, T), int64.
        chosen_error: its true error, (S, T).
        best_error: the least true error, (S, T).
        best: its predictor, (S, T), int64.
        mean_proxy: proxy losses, mean over the tokens of a row, (S, P, row).
        mean_error: true errors likewise.
    """

    chosen_proxy: Tensor
    choice: Tensor
    chosen_error: Tensor
    best_error: Tensor
    best: Tensor
    mean_proxy: Tensor
    mean_error: Tensor

    @classmethod
    def of(cls, proxy: Tensor, error: Tensor, choice: Tensor, *, rows: int) -> Selection:
        """From the losses of all predictors, (S, P, T), and choices (S, T)."""
        chosen_proxy, chosen_error = (losses.gather(1, choice[:, None])[:, 0] for losses in (proxy, error))
        means = (losses.unflatten(-1, (rows, -1)).mean(dim=-1) for losses in (proxy, error))
        return cls(chosen_proxy, choice, chosen_error, *least(error), *means)


@dataclass(frozen=True)
class ErrorForms:
    """Squares of errors as sums of products, for `fused_selection`.

    Attributes:
        weights: of the differences in the error, (S, P, J), float32.
        beside: of the products in the square of the error beside F, (S, P, pairs of differences), float64.
        whole: in that of the error, as `beside` where all weights of predictors sum to 1, else (S, P, K).
    """

    weights: Tensor
    beside: Tensor
    whole: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> ErrorForms:
        """Of predictors, (S, P, J), float64."""
        sums = weights.sum(dim=-1, keepdim=True)
        error = torch.cat([weights[..., 1:], sums], dim=-1)
        beside = quadratic_form(error)
        # what rounding leaves of 1 - 1 is no part of an error
        one = ((sums - 1).abs() <= 1e-15 * weights.abs().sum(dim=-1, keepdim=True)).all()
        return cls(error.float(), beside, beside if one else quadratic_form(torch.cat([sums - 1, error], dim=-1)))


def fused_selection(
    probe: WindowScores, residual: WindowScores, forms: ErrorForms, *, distance: Distance
) -> Selection | None:
    """The choices of single tokens at all steps of the windows, without losses in memory.

    Args:
        probe: what the proxy losses are found from.
        residual: what the true errors are found from.
        forms: of the predictors.
        distance: of the proxy losses.

    Returns:
        Losses in float32 to about 1e-6 relative, means in float64. None for distance l1, or without numba.
    """
    loops = compiled_loops()
    if loops is None or distance == "l1":
        return None
    cosine, tokens = distance == "cosine", probe.tokens // probe.rows
    sums_are_one = forms.whole.shape == forms.beside.shape
    select = loops.selection(forms.weights.shape[-1], cosine, sums_are_one)
    *found, sum_proxy, sum_error = select(
        probe.products.numpy(), residual.products.numpy(), loops.blocks_of(tokens, probe.rows),
        forms.weights.numpy(), (forms.beside if cosine else forms.whole).numpy(), forms.whole.numpy(),
    )  # fmt: skip
    proxy, choice, chosen_error, best_error, best = map(torch.from_numpy, found)
    means = (torch.from_numpy(total) / tokens for total in (sum_proxy, sum_error))
    return Selection(proxy, choice.long(), chosen_error, best_error, best.long(), *means)
