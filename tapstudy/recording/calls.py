"""Read the calls of a pipeline: which samples they make, and from which noise."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tapstudy.recording.inputs import count_items

# arguments that tell how many samples there are, the first that is given: dimensions of one of them
PER_SAMPLE = {"prompt_embeds": 2, "image": 3, "video": 4, "latents": 2}


class Sample(NamedTuple):
    """Tell a sample from others. Those that agree in the first three have the same noise.

    A list of seeds gives every sample a generator of its own. One seed for several samples is one generator, which
    draws for all of them at once: their noise differs, and depends on how many there are.
    """

    seed: int
    draw: int
    draws: int
    label: str


def samples_of(index: int, call: Mapping[str, Any]) -> list[Sample]:
    """List the samples of a call.

    Labels or prompts tell how many there are; without them embeddings of prompts, images or videos do.

    Raises ValueError if its seeds are not one integer, or one for every sample, that torch takes.
    """
    labels = _labels(call)
    copies = call.get("num_images_per_prompt", call.get("num_videos_per_prompt", 1))
    labels = [str(label) for label in labels for _ in range(copies)] * call.get("batch_size", 1)
    seed = call.get("seed")
    seeds: list[Any] = list(seed) if isinstance(seed, list | tuple) else [seed] * len(labels)
    if len(seeds) != len(labels) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise ValueError(
            f"call {index}: needs 'seed', an integer or a list of {len(labels)} integers (one per sample), got {seed!r}"
        )
    if not all(-(2**63) <= s < 2**64 for s in seeds):
        raise ValueError(f"call {index}: torch takes seeds from -2**63 to 2**64 - 1, got {seed!r}")
    if isinstance(seed, list | tuple):
        return [Sample(one, 0, 1, label) for one, label in zip(seeds, labels, strict=True)]
    return [Sample(one, i, len(seeds), label) for i, (one, label) in enumerate(zip(seeds, labels, strict=True))]


def _labels(call: Mapping[str, Any]) -> list[Any]:
    """Take the label or prompt of every sample, "" where there is neither."""
    named = next((call[name] for name in ("class_labels", "prompt") if call.get(name) is not None), None)
    if named is not None:
        named = named.tolist() if isinstance(named, np.ndarray | torch.Tensor) else named
        return list(named) if isinstance(named, list | tuple) else [named]
    name = next((name for name in PER_SAMPLE if call.get(name) is not None), None)
    return [""] * (1 if name is None else count_items(call[name], PER_SAMPLE[name]))


def whole_numbers(values: Sequence[int]) -> NDArray[np.integer]:
    """Convert to 64-bit integers, exactly: unsigned only where they must be.

    Raises ValueError if there are both negative ones and ones from 2**63.
    """
    if max(values, default=0) < 2**63:
        return np.array(values, dtype=np.int64)
    if min(values) < 0:
        raise ValueError(
            f"seeds below 0 and from 2**63 do not fit into one recording, got {min(values)} and {max(values)}: write "
            "a seed s below 0 as 2**64 + s, which draws the same"
        )
    return np.array(values, dtype=np.uint64)


def pipeline_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Make the pipeline's arguments of a call: the seed becomes generators, the result an array."""
    arguments = {name: copy.deepcopy(value) for name, value in call.items() if name != "seed"}
    seed = call["seed"]
    many = isinstance(seed, list | tuple)
    generators = [torch.Generator().manual_seed(one) for one in (seed if many else [seed])]
    return {"output_type": "np", **arguments, "generator": generators if many else generators[0]}
