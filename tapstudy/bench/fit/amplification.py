"""By how much an error of the sampler's state grows until the end, for errors of the kind that skipping makes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tapstudy.bench.image_set import ImageSet
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy

Array = NDArray[np.float64]
WINDOW = 5  # skip steps whose errors are followed
POINTS = 7  # places along the trajectory


def measure_amplification(pipe: EmbeddedPipeline, images: ImageSet, velocities: Array, *, lengths: Array) -> Array:
    """Skip one window, at several places: the distance from the exact run at the end over that after the window.

    The window takes order 1 of the latent residual. Up to it the trajectory is exact, so the error it adds to the state
    is known from the recording: the sum of the errors of the predicted residuals times the lengths of the steps.

    Args:
        images: that are recorded.
        velocities: their guided latent residuals, (image, step, value).
        lengths: of the solver's steps, (step,).

    Returns:
        (step,), root mean square over images, linear between the places.
    """

    def sample() -> torch.Tensor:
        with torch.no_grad():
            return 2 * images.sample(pipe)

    exact = sample()
    window = min(WINDOW, images.steps - 3)
    places = np.unique(np.linspace(1, images.steps - 1 - window, POINTS).astype(int))
    found = []
    for start in places.tolist():
        skipped = range(start + 1, start + window + 1)
        added = np.zeros_like(velocities[:, 0])  # (image, value)
        slope = velocities[:, start] - velocities[:, start - 1]
        for step in skipped:
            added += lengths[step] * (velocities[:, start] + (step - start) * slope - velocities[:, step])
        full = tuple(step for step in range(images.steps) if step not in skipped)
        with apply_policy(pipe, FixedPolicy(1, config=TAPConfig(full_steps=full, residual="latent"))):
            moved = float((sample() - exact).double().square().sum())
        found.append((moved / float((added**2).sum())) ** 0.5)
    return np.asarray(np.interp(np.arange(images.steps), places, found))
