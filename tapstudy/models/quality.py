"""How good a class-conditional model is: label accuracy, and Frechet distance in a classifier's features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import trange

from tapstudy.extras import need
from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import LabelledImages
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.models.precision import bf16_products

SEED = 50_000  # of the first sample; no other part of the package draws noise from these


@dataclass(frozen=True)
class Quality:
    """Of `count` samples: share classified as their label, and Frechet distance to the test images.

    `guidance_scale` is 0 for images that no model made.
    """

    count: int
    steps: int
    guidance_scale: float
    guidance_stop: float
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
    need("the Frechet distance", "scipy")
    from scipy.linalg import eigvals

    roots = np.sqrt(np.clip(np.real(eigvals(cx @ cy)), 0, None))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy) - 2 * roots.sum())


def sample_images(
    pipe: LabelPipeline,
    count: int,
    *,
    steps: int = 50,
    guidance_scale: float = 2.0,
    seed: int = SEED,
    batch_size: int = 50,
    half: bool = True,
    folder: Path | None = None,
) -> tuple[Tensor, Tensor]:
    """`count` guided samples in [-1, 1] and their labels, which go round all classes.

    Args:
        half: matrix products in bf16: faster, and of no consequence to these measures.
        folder: keeps the batches, for a killed run to go on; of these weights and settings alone.
    """
    labels = torch.arange(count) % pipe.transformer.config.num_embeds_ada_norm
    images = sample_batches(
        partial(pipe, num_inference_steps=steps, guidance_scale=guidance_scale, idle_branch=False),
        labels,
        device=pipe.device.type,
        seed=seed,
        batch_size=batch_size,
        half=half,
        folder=folder,
    )
    return images, labels


def sample_batches(
    sample: Callable[..., Any],
    conditions: Sequence[Any] | Tensor,
    *,
    device: str,
    seed: int,
    batch_size: int,
    half: bool = True,
    folder: Path | None = None,
) -> Tensor:
    """Images (n, bands, H, W) in [-1, 1], one per label or prompt; image i has the noise of `seed` + i.

    Args:
        sample: an embedded pipeline, with settings.
        device: type of the device it is on.
        half: matrix products in bf16.
        folder: keeps the batches, for a killed run to go on; of the same weights and settings alone.
    """
    images = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for start in trange(0, len(conditions), batch_size, desc="sample", unit="batch"):
        batch = conditions[start : start + batch_size]
        asked = batch.tolist() if isinstance(batch, Tensor) else list(batch)
        told = hashlib.sha256(repr((seed, half, asked)).encode()).hexdigest()[:12]
        kept = folder / f"{start}-{told}.safetensors" if folder is not None else None
        if kept is not None and kept.exists():
            images.append(load_file(kept)["images"])
            continue
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        with bf16_products(device, enabled=half):
            (found,) = sample(batch, generator=generators, output_type="latent", return_dict=False)
        images.append(found.float().clamp(-1, 1).cpu())
        if kept is not None:
            save_file({"images": images[-1]}, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
    return torch.cat(images)


def weights_digest(*models: nn.Module) -> str:
    """Twelve digits that tell these weights from any others."""
    weights = (parameter.detach().cpu().numpy().tobytes() for model in models for parameter in model.parameters())
    return hashlib.sha256(b"".join(weights)).hexdigest()[:12]


class Judge:
    """A classifier and what it makes of the test images, to hold samples against."""

    def __init__(self, classifier: Classifier, test: LabelledImages) -> None:
        self.classifier = classifier
        images, labels = test.batch(torch.arange(len(test)))
        found, self.features = classify(classifier, images)
        self.accuracy = float((found == labels).float().mean())

    def __call__(
        self, images: Tensor, labels: Tensor, *, steps: int = 0, guidance_scale: float = 0.0, guidance_stop: float = 0.0
    ) -> Quality:
        """Return the measures of images (n, bands, H, W) in [-1, 1], with what is to be noted of how they were made."""
        found, features = classify(self.classifier, images)
        return Quality(
            len(images),
            steps,
            guidance_scale,
            guidance_stop,
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
    seed: int = SEED,
    batch_size: int = 50,
    folder: Path | None = None,
) -> tuple[Quality, Tensor]:
    """Sample, classify, compare with the test images; also returns the samples (count, bands, H, W) in [-1, 1].

    With a `folder` a killed run goes on.
    """
    stop = pipe.config.guidance_stop
    if folder is not None:
        folder = folder / f"{weights_digest(pipe.transformer)}-{seed}-{steps}-{guidance_scale:g}-{stop:g}"
    images, labels = sample_images(
        pipe,
        count,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        batch_size=batch_size,
        folder=folder,
    )
    return judge(images, labels, steps=steps, guidance_scale=guidance_scale, guidance_stop=stop), images
