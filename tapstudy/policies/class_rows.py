"""Predict by what a token shows: at every skip step a row over the anchors for each class of tokens. Beyond the paper.

Tokens are told apart by the clean image that the last full step expects, x - sigma v for flow matching, not by a probe
of the step itself: the noise is gone from it. Classes and rows are fitted to other images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from tapstudy.core.clusters import k_means, nearest_centre
from tapstudy.core.scoring import assemble
from tapstudy.core.transfer import onto
from tapstudy.core.weights import Row
from tapstudy.policies.base import CachePolicy, Prediction
from tapstudy.policies.calibrated import skipped_steps
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.shuffled import shuffled_tokens
from tapstudy.predictors.family import Label
from tapstudy.predictors.regression import fitted_row

POOLED = 0.01  # weight of a token of another class where a class is fitted


class ClassRowsPolicy(CachePolicy):
    """Take the row `rows[i][c]` at step i for a token of class c, on the residual of the model's output.

    Cost of a skip step: no block, one pass over the anchors; a full step sorts the tokens into classes. Memory: as many
    latent residuals as the longest row has weights.

    Args:
        rows: weights over the newest anchors, newest first, for every class, for every step that is skipped; the others
            run in full.
        centres: of the classes, in the clean image in patches, (class, latent channel).
        sigmas: noise level of every step.
        config: history; its schedule, family and residual are not used.
        shuffled: the seed by which classes are permuted across tokens at every full step, the control; None: they are
            not.

    Raises:
        ValueError: not a row for every class, or a row with more weights than there are full steps before it.
    """

    needs_probe = True
    probe_kind = "latent"
    residual_site = "latent"

    def __init__(
        self,
        rows: Mapping[int, Sequence[Row]],
        centres: Tensor,
        sigmas: Sequence[float],
        config: TAPConfig | None = None,
        *,
        shuffled: int | None = None,
    ) -> None:
        for step, of_classes in rows.items():
            before = step - sum(other < step for other in rows)
            if len(of_classes) != len(centres) or not all(1 <= len(row) <= before for row in of_classes):
                raise ValueError(
                    f"ClassRowsPolicy: step {step} needs {len(centres)} rows of 1 to {before} weights, got {of_classes}"
                )
        self.rows = {step: tuple(map(tuple, rows[step])) for step in sorted(rows)}
        longest = max((len(row) for of_classes in self.rows.values() for row in of_classes), default=1)
        super().__init__((config or TAPConfig()).history.anchors(longest))
        self.centres, self.sigmas, self.shuffled = centres, tuple(sigmas), shuffled
        self.labels = tuple(Label(longest - 1, 0, f"class {index}") for index in range(len(centres)))
        self.classes: Tensor | None = None  # (B, N)

    def wants_full(self, step: int) -> bool:
        return step not in self.rows

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        super().observe(step, None, residual)
        clean = clean_tokens(probe, residual, self.sigmas[step])
        self.classes = nearest_centre(clean, onto(self.centres, clean.device, clean.dtype))
        if self.shuffled is not None:
            self.classes = self.classes.gather(1, shuffled_tokens(self.classes, self.shuffled, step))

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert self.classes is not None
        held = self.anchors.residuals
        weights = [(*row, *(0.0 for _ in range(len(held) - len(row)))) for row in self.rows[step]]
        found = torch.tensor(weights, dtype=torch.float64)  # (C, J)
        return Prediction(assemble(held, found, self.classes), self.classes, disposable=True)

    @property
    def cache_bytes(self) -> int:
        return super().cache_bytes + (0 if self.classes is None else self.classes.nbytes)


def clean_tokens(latent: Tensor, residual: Tensor, sigma: float) -> Tensor:
    """Expect the clean image, x - sigma v, from the model's input x and its output minus x, in patches, float32."""
    latent = latent.float()
    return latent - sigma * (residual.float() + latent)


def fit_class_rows(
    latents: Sequence[Tensor],
    residuals: Sequence[Tensor],
    sigmas: Sequence[float],
    full_steps: Collection[int],
    *,
    classes: int = 4,
    num_anchors: int = 3,
    ridge: float = 1e-6,
    seed: int = 0,
) -> tuple[dict[int, tuple[Row, ...]], Tensor]:
    """Fit classes and rows on exact trajectories of other images, teacher-forced.

    Classes are clusters (k-means) of the clean images that the full steps expect. A row minimises the squared error
    over the tokens of its class, where others weigh a hundredth, so that a class without tokens has the row of all.
    Every trajectory counts as its mean square.

    Args:
        latents, residuals: model input, and output minus input, of every step, (trajectory, token, latent channel).
        sigmas: noise level of every step.
        full_steps: the schedule; must hold step 0.
        classes: number of clusters; 1 fits one row for all tokens.
        num_anchors, ridge: as for `LearnedLinear.fit`.

    Returns:
        Rows for every class and skip step, and the centres: the arguments of `ClassRowsPolicy`.

    Raises:
        ValueError: no such schedule, or more classes than tokens.
    """
    path = torch.stack([residual.double() for residual in residuals])  # (T, B, N, D)
    tokens = path.shape[1] * path.shape[2]
    if not 1 <= classes <= tokens:
        raise ValueError(f"fit_class_rows: needs between 1 and {tokens} classes, got {classes}")
    flat = path.flatten(1)
    skipped = skipped_steps("fit_class_rows", flat @ flat.T, full_steps, num_anchors, ridge)
    path = path / path.square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    clean = {step: clean_tokens(latents[step], residuals[step], sigmas[step]) for step in sorted(full_steps)}
    centres = k_means(torch.cat([values.flatten(0, 1) for values in clean.values()]), classes, seed=seed)
    rows = {}
    for step, anchors in skipped.items():
        values = path[[*anchors, step]]  # (J + 1, B, N, D)
        member = torch.nn.functional.one_hot(nearest_centre(clean[anchors[0]], centres), classes)  # (B, N, C)
        weights = member + POOLED
        products = torch.einsum("jbnd,kbnd,bnc->cjk", values, values, weights.double())
        rows[step] = tuple(fitted_row(one, ridge) for one in products)
    return rows, centres
