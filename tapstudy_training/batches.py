"""Batches of flow matching: images, what they are conditioned on, noise and times."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from tapstudy.models.data import LabelledImages
from tapstudy_training.recipes import Recipe


class Batch(NamedTuple):
    """Images (B, bands, H, W) in [-1, 1], their condition (B, ...), noise like the images, times (B,) in (0, 1)."""

    x: Tensor
    condition: Tensor
    noise: Tensor
    t: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch in the memory of `device`."""
        return Batch(*(tensor.to(device) for tensor in self))


def label_batch(images: LabelledImages, recipe: Recipe, *, step: int, null_label: int) -> Batch:
    """The labelled batch of a step, with labels (B,), drawn from its own seed where the images are."""
    count, device = recipe.batch_size, images.images.device
    generator = torch.Generator(device).manual_seed(recipe.seed * 1_000_003 + step)
    x, labels = images.batch(torch.randint(len(images), (count,), generator=generator, device=device))
    # diffusers' own dropout would draw anew in every block: the label is dropped once, here, for all of them.
    dropped = torch.rand(count, generator=generator, device=device) < recipe.label_dropout
    labels = torch.where(dropped, null_label, labels)
    noise = torch.randn(x.shape, generator=generator, device=device)
    t = compute_density_for_timestep_sampling(
        "logit_normal", count, logit_mean=recipe.time_mean, logit_std=1.0, generator=generator, device=device
    )
    if recipe.flip:
        x = randomly_flipped(x, generator)
    return Batch(x, labels, noise, t)


def randomly_flipped(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images (B, bands, H, W), each mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5  # (B,)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
