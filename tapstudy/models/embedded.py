"""The models that come with the package: where they are, how they were made, how to load them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError

from tapstudy.models.classifier import Classifier
from tapstudy.models.data import DATA_SETS
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.models.recipes import MODELS

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


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
        model: "mnist-dit", "cifar10-dit", or the folder of a `LabelPipeline` saved with `save_pretrained`.
        dtype: of the weights in memory.

    Raises:
        FileNotFoundError: no such model, or its weights are missing.
        ValueError: the weights cannot be read or do not fit the configuration.

    >>> pipe = tapstudy.load("mnist-dit")  # doctest: +SKIP
    >>> pipe([3, 1, 4], guidance_scale=2.0).images[0].show()  # doctest: +SKIP
    """
    folder = _folder(model)
    for part in ("model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{folder} is not a complete model: {part} is missing")
    files = weight_files(folder)
    try:
        transformer = DiTTransformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the weights in {', '.join(map(str, files))} cannot be used ({error}); restore the file"
        ) from error

    if transformer.dtype != dtype:
        transformer.to(dtype)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    return LabelPipeline(transformer.eval(), scheduler, guidance_stop=index.get("guidance_stop", 0.0))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of the model in `folder`: one, or the shards that its index lists.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the index cannot be read.
    """
    inside = folder / "transformer"
    names = [WEIGHTS]
    if not (inside / WEIGHTS).is_file() and (inside / INDEX).is_file():
        try:
            names = sorted(set(json.loads((inside / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"the index {inside / INDEX} cannot be used ({error}); restore the file") from error
    for name in names:
        if not (inside / name).is_file():
            raise FileNotFoundError(f"{folder} is not a complete model: transformer/{name} is missing")
    return [inside / name for name in names]


def load_classifier(model: str | Path | LabelPipeline = "mnist-dit", *, folder: Path | None = None) -> Classifier:
    """The judge of label accuracy of a model's data set.

    Args:
        model: an embedded model's name, a model's folder or a loaded pipeline. The shape of its images tells the data
            set.
        folder: with the classifier; None takes the embedded one.

    Raises:
        FileNotFoundError: no such model, or the classifier is missing.
        ValueError: no data set has images of this shape.
    """
    name = f"{data_set_of(model)}-classifier"
    folder = folder or data_folder() / "models" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no classifier at {folder}: train it with `tapstudy train {name}`")
    return Classifier.load(folder)


def data_set_of(model: str | Path | LabelPipeline) -> str:
    """Name of the data set whose images have the shape of the model's.

    Raises FileNotFoundError when there is no such model, ValueError when there is no such data set.
    """
    if isinstance(model, LabelPipeline):
        config = dict(model.transformer.config)
    elif isinstance(model, str) and model in MODELS:
        return MODELS[model].data_set
    else:
        config = json.loads((_folder(model) / "transformer" / "config.json").read_text())
    bands, size = config["in_channels"], config["sample_size"]
    for name, data_set in DATA_SETS.items():
        if (data_set.bands, data_set.size) == (bands, size):
            return name
    raise ValueError(
        f"no data set has images of {size} x {size} x {bands}: there are classifiers for {', '.join(DATA_SETS)}"
    )


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
    if str(model) in MODELS:
        raise FileNotFoundError(
            f"the weights of {model} are not in {embedded}: make them with `tapstudy train {model}` (docs/training.md)"
        )
    known = sorted(path.parent.name for path in embedded.glob("*/model_index.json"))
    raise FileNotFoundError(f"no model {str(model)!r}: the embedded models are {', '.join(known) or 'none'}")
