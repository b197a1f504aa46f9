"""Which images are compared: one model, and the same noise and labels for every method."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tapstudy.models.embedded import (
    EmbeddedPipeline,
    condition_key,
    conditions,
    load,
    model_folder,
    untrained_like,
    weight_files,
)

Condition = int | str  # a label or a prompt
Pair = tuple[int, Condition]  # seed and condition of an image

UNTRAINED = "-untrained"  # behind the name of a model: with random weights, of the seed that follows or 0
BATCH = 10  # larger ones leave the processor's cache: a fifth slower an image at 20


@dataclass(frozen=True)
class ImageSet:
    """Hold images of one model, each with noise of its own.

    Args:
        model: embedded model or model folder; with "-untrained" behind it: random weights, "-untrained3" those of
            seed 3.
        pairs: seed and label (or prompt) of every image.
        steps: T.
        guidance: scale of classifier-free guidance.
    """

    model: str
    pairs: tuple[Pair, ...]
    steps: int = 50
    guidance: float = 2.0

    @classmethod
    def of(
        cls, model: str, *, seeds: Sequence[int], labels: Sequence[Condition], steps: int = 50, guidance: float = 2.0
    ) -> ImageSet:
        """Return every seed with every label (or prompt)."""
        return cls(model, tuple((seed, label) for seed in seeds for label in labels), steps, guidance)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, part: slice) -> ImageSet:
        return replace(self, pairs=self.pairs[part])

    @property
    def seeds(self) -> list[int]:
        """List the seed of every image."""
        return [seed for seed, _ in self.pairs]

    @property
    def labels(self) -> list[Condition]:
        """List the label of every image, or its prompt."""
        return [label for _, label in self.pairs]

    @property
    def noise_seeds(self) -> list[int]:
        """Tell what the generator of every image is seeded with."""
        return [noise_seed(*pair) for pair in self.pairs]

    def by_seed(self) -> list[ImageSet]:
        """Return the images of every seed: what is computed and kept at a time."""
        return [
            replace(self, pairs=tuple(pair for pair in self.pairs if pair[0] == seed))
            for seed in dict.fromkeys(self.seeds)
        ]

    def batches(self, size: int = BATCH) -> list[ImageSet]:
        """Cut it, in order, into `size` images at a time."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def generators(self) -> list[torch.Generator]:
        """Return fresh ones, one per image."""
        return [torch.Generator().manual_seed(seed) for seed in self.noise_seeds]

    def call(self, pipe: EmbeddedPipeline) -> dict[str, Any]:
        """Return the arguments of one call of `tapstudy.record` that makes these images."""
        return {
            condition_key(pipe): self.labels,
            "seed": self.noise_seeds,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }

    def sample(self, pipe: EmbeddedPipeline, *, steps: int | None = None, batch_size: int = BATCH) -> Tensor:
        """Return images in about [0, 1], (batch, band, row, column).

        Args:
            steps: in place of `self.steps`.
            batch_size: images of one call.
        """
        found = []
        for batch in self.batches(batch_size):
            (latents,) = pipe(
                batch.labels,  # type: ignore[arg-type]
                steps or self.steps,
                self.guidance,
                generator=batch.generators(),
                output_type="latent",
                return_dict=False,
            )
            found.append(latents / 2 + 0.5)
        return torch.cat(found)


def noise_seed(seed: int, label: Condition) -> int:
    """Tell what an image's generator is seeded with: it differs from label to label, and from prompt to prompt."""
    return 1000 * seed + (label if isinstance(label, int) else zlib.crc32(label.encode()) % 1000)


def trained_model(model: str) -> tuple[str, int | None]:
    """Split the name of a set's model: the model that was trained, and the seed of random weights in its place."""
    found = re.fullmatch(rf"(.+){UNTRAINED}(\d*)", model, re.DOTALL)
    return (found[1], int(found[2] or 0)) if found else (model, None)


@lru_cache(maxsize=2)
def pipe_of(model: str) -> EmbeddedPipeline:
    """Return the pipeline of a set's model, quiet and warm; a process has one copy of it."""
    trained, seed = trained_model(model)
    pipe = load(trained)
    if seed is not None:
        pipe = untrained_like(pipe, seed=seed)
    pipe.set_progress_bar_config(disable=True)
    ImageSet.of(model, seeds=(0,), labels=conditions(pipe, 1)).sample(pipe, steps=2)
    return pipe


@lru_cache
def weights_fingerprint(model: str) -> str:
    """Tells whether a result was made with the weights, and the pipeline's settings, that there are now."""
    folder = model_folder(trained_model(model)[0])
    found = hashlib.sha256((folder / "model_index.json").read_bytes())
    for file in weight_files(folder):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]
