"""How good a class-conditional model is: label accuracy, and Frechet distance in a classifier's features."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigvals
from torch import Tensor
from tqdm.auto import trange

from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import ImageSet
from tapstudy.models.pipeline import LabelPipeline


@dataclass(frozen=True)
class Quality:
    """Of `count` guided samples: share classified as their label, and Frechet distance to the test images."""

    count: int
    steps: int
    guidance_scale: float
    label_accuracy: float
    frechet_distance: float
    classifier_accuracy: float


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two feature sets, (n, d) each.

    Raises ValueError when a set has too few rows for a covariance of full rank.
    """
    for name, features in (("first", a), ("second", b)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"the {name} set has {len(features)} rows of {features.shape[1]} features: more rows than features "
                "are needed"
            )
    x, y = a.double().numpy(), b.double().numpy()
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # the trace of the root is the sum of the roots of the eigenvalues, which singular covariances have too
    roots = np.sqrt(np.clip(np.real(eigvals(cx @ cy)), 0, None))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy) - 2 * roots.sum())


def sample_images(
    pipe: LabelPipeline,
    count: int,
    *,
    steps: int = 50,
    guidance_scale: float = 2.0,
    seed: int = 10_000,
    batch_size: int = 50,
    half: bool = True,
) -> tuple[Tensor, Tensor]:
    """`count` guided samples in [-1, 1] and their labels, which go round all classes.

    `half` computes matrix products in bf16: several times faster, and of no consequence to these measures.
    """
    classes = pipe.transformer.config.num_embeds_ada_norm
    labels = torch.arange(count) % classes
    images = []
    for start in trange(0, count, batch_size, desc="sample", unit="batch"):
        batch = labels[start : start + batch_size]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        with torch.autocast(pipe.device.type, dtype=torch.bfloat16) if half else nullcontext():
            (found,) = pipe(batch, steps, guidance_scale, generator=generators, output_type="latent", return_dict=False)
        images.append(found.float().clamp(-1, 1).cpu())
    return torch.cat(images), labels


class Judge:
    """A classifier and what it makes of the test images, to hold samples against."""

    def __init__(self, classifier: Classifier, test: ImageSet) -> None:
        self.classifier = classifier
        images, labels = test.batch(torch.arange(len(test)))
        found, self.features = classify(classifier, images)
        self.accuracy = float((found == labels).float().mean())

    def __call__(self, images: Tensor, labels: Tensor, *, steps: int, guidance_scale: float) -> Quality:
        """The measures of samples (n, bands, H, W) in [-1, 1] made with the given steps and guidance."""
        found, features = classify(self.classifier, images)
        return Quality(
            len(images),
            steps,
            guidance_scale,
            float((found == labels).float().mean()),
            frechet_distance(features, self.features),
            self.accuracy,
        )


def measure_quality(
    pipe: LabelPipeline,
    judge: Judge,
    *,
    count: int = 1000,
    steps: int = 50,
    guidance_scale: float = 2.0,
    seed: int = 10_000,
    batch_size: int = 50,
) -> tuple[Quality, Tensor]:
    """Sample, classify, compare with the test images; also returns the samples (count, bands, H, W) in [-1, 1]."""
    images, labels = sample_images(
        pipe, count, steps=steps, guidance_scale=guidance_scale, seed=seed, batch_size=batch_size
    )
    return judge(images, labels, steps=steps, guidance_scale=guidance_scale), images
