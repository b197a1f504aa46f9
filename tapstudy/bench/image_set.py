"""Which images are compared: one model, and the same noise and labels or prompts for every method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from tapstudy.bench.conditions import (
    Call,
    Condition,
    arguments_of,
    check_conditions,
    check_one_size,
    file_digits,
    files_in,
    noise_seed,
    with_negative,
)
from tapstudy.models.embedded import EmbeddedPipeline, untrained_like
from tapstudy.models.sources import fingerprint, free_memory, given, is_embedded, name_of, open_pipeline

Pair = tuple[int, Condition]  # seed and condition of an image

UNTRAINED = "-untrained"  # behind the name of a model: with random weights, of the seed that follows or 0
BATCH = 10  # larger ones leave the processor's cache: a fifth slower an image at 20


@dataclass(frozen=True)
class ImageSet:
    """Hold images of one model, each with noise of its own.

    Args:
        model: what `models.sources.Source` writes, or the name of a loaded pipeline; of embedded models with
            "-untrained" behind it: random weights, "-untrained3" those of seed 3.
        pairs: seed and label (or prompt) of every image.
        steps: T.
        guidance: scale of guidance; None is the pipeline's usual one.
    """

    model: str
    pairs: tuple[Pair, ...]
    steps: int = 50
    guidance: float | None = 2.0

    @classmethod
    def of(
        cls,
        model: str,
        *,
        seeds: Sequence[int],
        labels: Sequence[Condition],
        steps: int = 50,
        guidance: float | None = 2.0,
    ) -> ImageSet:
        """Return every seed with every label (or prompt)."""
        return cls(model, tuple((seed, label) for seed in seeds for label in labels), steps, guidance)

    @classmethod
    def asked(
        cls,
        pipe: Any,
        prompts: Sequence[Condition | Mapping[str, Any]],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float | None,
    ) -> ImageSet:
        """Return every seed with every prompt, checked as far as can be before anything runs.

        Args:
            pipe: a loaded pipeline, or what `model` takes.
            prompts: prompts, labels, or mappings of arguments of the pipeline's call.

        Raises:
            ValueError: no prompts, one twice, a seed twice, several sizes, arguments that are not up to a prompt.
            FileNotFoundError: no image or video at a path.
        """
        labels = with_negative([Call.of(one) if isinstance(one, Mapping) else one for one in prompts], "", "prompts")
        model = pipe if isinstance(pipe, str) else name_of(pipe)
        return cls.of(model, seeds=seeds, labels=labels, steps=steps, guidance=guidance).checked()

    def checked(self) -> ImageSet:
        """Return the set; raises as `asked` does."""
        check_conditions(self.labels, "prompts")
        check_one_size(self.labels, "prompts")
        if len(set(self.pairs)) < len(self):
            raise ValueError("a seed or a prompt stands there twice, which makes the same image: leave one out")
        return self

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
    def texts(self) -> list[int] | list[str]:
        """Say what every image is of: its label, or its prompt."""
        if all(isinstance(label, int) for label in self.labels):
            return [label for label in self.labels if isinstance(label, int)]
        return [str(label) for label in self.labels]

    @property
    def prompts(self) -> list[int] | list[str]:
        """Return the label of every image, or the prompt alone, as a metric reads it."""
        return [label.to_dict().get("prompt", "") if isinstance(label, Call) else label for label in self.labels]  # type: ignore[return-value]

    @property
    def key(self) -> dict[str, Any]:
        """Return what the images depend on, beside the weights, as plain values: of files, what they hold now."""
        pairs = [(seed, label.to_dict() if isinstance(label, Call) else label) for seed, label in self.pairs]
        given = {path: file_digits(path) for label in self.labels for path in files_in(label)}
        # images that were made before noise was told apart by 32 bits are others
        prompts = not all(isinstance(label, int) for label in self.labels)
        noise = {"noise": 32} if prompts and not self.embedded else {}
        return {**vars(self), "pairs": pairs, **({"files": given} if given else {}), **noise}

    @property
    def noise_seeds(self) -> list[int]:
        """Tell what the generator of every image is seeded with."""
        return [noise_seed(*pair, few=self.embedded) for pair in self.pairs]

    def by_seed(self) -> list[ImageSet]:
        """Return the images of every seed."""
        return [
            replace(self, pairs=tuple(pair for pair in self.pairs if pair[0] == seed))
            for seed in dict.fromkeys(self.seeds)
        ]

    def units(self) -> list[ImageSet]:
        """Return what is computed and kept at a time: of embedded models the images of a seed, else every image."""
        return self.by_seed() if self.embedded else self.batches(1)

    @property
    def embedded(self) -> bool:
        """Whether the model is of the kind of the embedded ones; so is one that is not there, as its user will say."""
        try:
            return is_embedded(trained_model(self.model)[0])
        except (OSError, ValueError):
            return True

    def batches(self, size: int = BATCH) -> list[ImageSet]:
        """Cut it, in order, into `size` images at a time."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def generators(self) -> list[torch.Generator]:
        """Return fresh ones, one per image."""
        return [torch.Generator().manual_seed(seed) for seed in self.noise_seeds]

    @property
    def call(self) -> dict[str, Any]:
        """Return the arguments of one call of `tapstudy.record` that makes these images.

        Raises:
            ValueError: they differ in more than their labels or prompts, so that one call cannot make them.
        """
        named = {} if self.guidance is None else {"guidance_scale": self.guidance}  # unless an image has its own
        return {**named, **arguments_of(self.labels), "seed": self.noise_seeds, "num_inference_steps": self.steps}

    def sample(self, pipe: Any, *, steps: int | None = None, batch_size: int = BATCH) -> Tensor:
        """Return images in about [0, 1], (batch, [frame,] band, row, column).

        Those of embedded models are not clipped and float32; those of other pipelines, one by one, are what they save:
        values of 8 bits, uint8.

        Args:
            steps: in place of `self.steps`.
            batch_size: images of one call, of embedded models.
        """
        plain = isinstance(pipe, EmbeddedPipeline) and not any(isinstance(label, Call) for label in self.labels)
        found = []
        for batch in self.batches(batch_size if plain else 1):
            made = batch._run(pipe, steps or batch.steps, "latent" if plain else "np")
            found.append(made / 2 + 0.5 if plain else _saved(made))
        return torch.cat(found)

    def run_transformer(self, pipe: Any, steps: int) -> None:
        """Sample for a number of steps and decode nothing."""
        self._run(pipe, steps, "latent")

    def _run(self, pipe: Any, steps: int, output_type: str) -> Any:
        call = self.call | {"num_inference_steps": steps, "output_type": output_type, "return_dict": False}
        del call["seed"]
        return pipe(**call, generator=self.generators())[0]


def _saved(made: Any) -> Tensor:
    """Return images, or frames, in [0, 1] with the band last, as they would be saved."""
    values = torch.as_tensor(made)  # (batch, [frame,] row, column, band)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-1, -3)


def trained_model(model: str) -> tuple[str, int | None]:
    """Split the name of a set's model: the model that was trained, and the seed of random weights in its place."""
    found = re.fullmatch(rf"(.+){UNTRAINED}(\d*)", model, re.DOTALL)
    return (found[1], int(found[2] or 0)) if found else (model, None)


def pipe_of(model: str) -> Any:
    """Return the pipeline of a set's model, quiet; a process has one copy of it."""
    loaded = given(model)
    return _opened(model, weights_fingerprint(model)) if loaded is None else loaded


def forget_pipelines() -> None:
    """Let go of the pipelines that `pipe_of` loaded, and give their memory back if nobody else holds them."""
    _opened.cache_clear()
    free_memory()


@lru_cache(maxsize=2)
def _opened(model: str, weights: str) -> EmbeddedPipeline | DiffusionPipeline:
    trained, seed = trained_model(model)
    pipe = open_pipeline(trained)
    if isinstance(pipe, EmbeddedPipeline):
        if seed is not None:
            pipe = untrained_like(pipe, seed=seed)
            pipe.set_progress_bar_config(disable=True)
    elif seed is not None:
        raise ValueError(f"{model}: only embedded models have an untrained twin")
    return pipe


def weights_fingerprint(model: str) -> str:
    """Tells whether a result was made with the weights, and the pipeline's settings, that there are now."""
    return fingerprint(trained_model(model)[0])
