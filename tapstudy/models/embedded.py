"""The models that come with the package: where they are, how they were made, how to load them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError

from tapstudy.models.classifier import Classifier
from tapstudy.models.pipeline import LabelPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


def data_folder() -> Path:
    """The folder with the embedded models: `TAPSTUDY_DATA`, the source tree's `data/`, or the installed package's."""
    if "TAPSTUDY_DATA" in os.environ:
        return Path(os.environ["TAPSTUDY_DATA"])
    package = Path(__file__).parents[1]
    source = package.parent / "data"
    return source if (source / "models").is_dir() else package / "_data"


def load(model: str | Path, *, dtype: torch.dtype = torch.float32) -> LabelPipeline:
    """An embedded model, ready to sample, from disk alone.

    Args:
        model: "mnist-dit", or the folder of a `LabelPipeline` saved with `save_pretrained`.
        dtype: of the weights in memory.

    Raises:
        FileNotFoundError: no such model, or its weights are missing.
        ValueError: the weights cannot be read or do not fit the configuration.

    >>> pipe = tapstudy.load("mnist-dit")  # doctest: +SKIP
    >>> pipe([3, 1, 4], guidance_scale=2.0).images[0].show()  # doctest: +SKIP
    """
    folder = _folder(model)
    for part in (
        "model_index.json",
        "transformer/config.json",
        f"transformer/{WEIGHTS}",
        "scheduler/scheduler_config.json",
    ):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{folder} is not a complete model: {part} is missing")
    try:
        transformer = DiTTransformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the weights in {folder / 'transformer' / WEIGHTS} cannot be used ({error}); restore the file"
        ) from error

    if transformer.dtype != dtype:
        transformer.to(dtype)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    return LabelPipeline(transformer.eval(), scheduler, guidance_stop=index.get("guidance_stop", 0.0))


def load_classifier(name: str = "mnist-classifier") -> Classifier:
    """The embedded judge of label accuracy."""
    return Classifier.load(data_folder() / "models" / name)


def untrained_like(pipe: LabelPipeline, *, seed: int = 0) -> LabelPipeline:
    """The same model with random weights: the control for what training contributes.

    Every weight is drawn anew from a normal distribution of variance 1 / fan-in (1 for the embedding of the labels),
    and every bias is 0. That keeps the activations of all layers near unit size and every gate open, so that a block
    changes the tokens about as much as a trained one does and the output depends on the noise level. With the weights
    a DiT is usually trained from, blocks change next to nothing: their output would be trivial to predict.
    """
    with torch.random.fork_rng():
        model = DiTTransformer2DModel.from_config(pipe.transformer.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.zero_()
            else:
                fan_in = 1 if "embedding_table" in name else weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
    model = model.to(pipe.transformer.dtype).eval()
    return LabelPipeline(model, pipe.scheduler, guidance_stop=pipe.config.guidance_stop)


def _folder(model: str | Path) -> Path:
    embedded = data_folder() / "models"
    if isinstance(model, str) and (embedded / model).is_dir():
        return embedded / model
    if Path(model).is_dir():
        return Path(model)
    known = sorted(path.parent.name for path in embedded.glob("*/model_index.json"))
    raise FileNotFoundError(f"no model {str(model)!r}: the embedded models are {', '.join(known) or 'none'}")
