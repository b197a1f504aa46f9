"""The models that come with the package: where they are, what they learned, how to load them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors import SafetensorError

from tapstudy.extras import need
from tapstudy.models.classifier import Classifier
from tapstudy.models.data import DATA_SETS
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.models.text_pipeline import TextPipeline

EmbeddedPipeline = LabelPipeline | TextPipeline
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


# the embedded models and the data sets that they learned
EMBEDDED = {
    "mnist-dit": "mnist",
    "mnist-dit-small": "mnist",
    "mnist-dit-rough": "mnist",
    "cifar10-dit": "cifar10",
    "emoji-flux": "emoji",
}


# of those without a command of their own name, the one that makes them
MADE_BY = {
    "mnist-dit-rough": "tapstudy train mnist-dit --smooth-sigma 0 --learning-rate 6e-4 --steps 6000 "
    "--work runs/mnist-dit-rough --out data/models/mnist-dit-rough"
}


KINDS: tuple[type[EmbeddedPipeline], ...] = (LabelPipeline, TextPipeline)


# what they keep in model_index.json beside the parts
SETTINGS = ("guidance_stop", "image_size", "smooth_sigma")


PROMPTS = (
    "woman firefighter medium-dark skin tone noto on a teal background",
    "woman artist dark skin tone noto on a orange background",
    "man construction worker light skin tone noto on a blue background",
    "man pilot medium-light skin tone twemoji on a grey background",
    "woman with headscarf medium skin tone noto on a white background",
    "bride with veil dark skin tone noto on a purple background",
    "woman police officer medium skin tone noto on a yellow background",
    "grinning face noto on a purple background",
    "red apple on a teal background",
    "octopus on a yellow background",
)


def small_sibling(model: str | Path) -> str | None:
    """Name the small model of a model's family: "mnist-dit-small" of "mnist-dit", or the folder of that name beside.

    Returns None where there is none.
    """
    name = f"{model}".rstrip("/") + "-small"
    embedded = (data_folder() / "models" / name).is_dir()
    return name if embedded or Path(name).is_dir() else None


def conditions(pipe: EmbeddedPipeline, count: int) -> list[int] | list[str]:
    """`count` labels or prompts for an embedded pipeline's first argument, going round what it knows."""
    if isinstance(pipe, TextPipeline):
        return [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    labels = pipe.transformer.config.num_embeds_ada_norm
    return [i % labels for i in range(count)]


def condition_key(pipe: EmbeddedPipeline) -> str:
    """Return the name of an embedded pipeline's first argument."""
    return "prompt" if isinstance(pipe, TextPipeline) else "class_labels"


def data_folder() -> Path:
    """Find the embedded models' folder: `TAPSTUDY_DATA`, the source tree's `data/`, or the installed package's."""
    if "TAPSTUDY_DATA" in os.environ:
        return Path(os.environ["TAPSTUDY_DATA"])
    package = Path(__file__).parents[1]
    source = package.parent / "data"
    return source if (source / "models").is_dir() else package / "_data"


def load(model: str | Path, *, dtype: torch.dtype = torch.float32) -> EmbeddedPipeline:
    """Return an embedded model, ready to sample, from disk alone.

    Args:
        model: "mnist-dit", "mnist-dit-small", "mnist-dit-rough", "emoji-flux", "cifar10-dit", or the folder of such a
            pipeline saved with `save_pretrained`.
        dtype: of the weights in memory.

    Raises:
        FileNotFoundError: no such model, or its weights are missing.
        ValueError: the weights cannot be read or do not fit the configuration, or the folder holds a pipeline of
            another kind.
        ModuleNotFoundError: "emoji-flux" without transformers.

    Examples:
        >>> pipe = tapstudy.load("mnist-dit")  # doctest: +SKIP
        >>> pipe([3, 1, 4], guidance_scale=2.0).images[0].show()  # doctest: +SKIP
        >>> tapstudy.load("emoji-flux")("red apple on a teal background").images[0].show()  # doctest: +SKIP
    """
    folder = model_folder(model)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is not a complete model: model_index.json is missing")
    index = json.loads((folder / "model_index.json").read_text())
    kind = next((kind for kind in KINDS if kind.__name__ == index.get("_class_name")), None)
    if kind is None:
        raise ValueError(
            f"{folder} holds a {index.get('_class_name')}, not an embedded model: load it with diffusers; "
            "tapstudy.tap and tapstudy.record take any supported pipeline"
        )
    classes = _parts(kind)
    for name in classes:
        part = {"scheduler": "scheduler/scheduler_config.json", "tokenizer": "tokenizer/tokenizer.json"}.get(name)
        if not (folder / (part or f"{name}/config.json")).is_file():
            raise FileNotFoundError(f"{folder} is not a complete model: {part or f'{name}/config.json'} is missing")
    files = weight_files(folder)
    parts: dict[str, Any] = {}
    try:
        for name, part_class in classes.items():
            weighty = name in ("transformer", "text_encoder")
            parts[name] = part_class.from_pretrained(folder / name, **({"use_safetensors": True} if weighty else {}))
            if weighty and parts[name].dtype != dtype:
                parts[name].to(dtype)
            if weighty:
                parts[name].eval()
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the weights in {', '.join(map(str, files))} cannot be used ({error}); restore the file"
        ) from error
    settings = {name: index[name] for name in SETTINGS if name in index}
    return kind(**parts, **settings)


def _parts(kind: type[EmbeddedPipeline]) -> dict[str, Any]:
    """Tell the classes that pipelines of a kind are made of."""
    if kind is LabelPipeline:
        return {"transformer": DiTTransformer2DModel, "scheduler": FlowMatchEulerDiscreteScheduler}
    need(f"a {kind.__name__}", "transformers")
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    return {
        "transformer": FluxTransformer2DModel,
        "text_encoder": T5EncoderModel,
        "tokenizer": PreTrainedTokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of the model in `folder`: one per module, or the shards that its index lists.

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
    files = [f"transformer/{name}" for name in names]
    if (folder / "text_encoder").is_dir():
        files.append("text_encoder/model.safetensors")
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is not a complete model: {file} is missing")
    return [folder / file for file in files]


def load_classifier(model: str | Path | EmbeddedPipeline = "mnist-dit", *, folder: Path | None = None) -> Classifier:
    """Return the judge of label accuracy of a model's data set.

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


def data_set_of(model: str | Path | EmbeddedPipeline) -> str:
    """Return the name of the data set whose images have the shape of the model's.

    Raises FileNotFoundError when there is no such model, ValueError when there is no such data set.
    """
    if isinstance(model, TextPipeline):
        return "emoji"
    if isinstance(model, LabelPipeline):
        config = dict(model.transformer.config)
    elif isinstance(model, str) and model in EMBEDDED:
        return EMBEDDED[model]
    else:
        config = json.loads((model_folder(model) / "transformer" / "config.json").read_text())
    if "joint_attention_dim" in config:
        return "emoji"
    bands, size = config["in_channels"], config["sample_size"]
    labelled = {name: data_set for name, data_set in DATA_SETS.items() if data_set.labelled}
    for name, data_set in labelled.items():
        if (data_set.bands, data_set.size) == (bands, size):
            return name
    raise ValueError(
        f"no data set has images of {size} x {size} x {bands}: there are classifiers for {', '.join(labelled)}"
    )


def untrained_like(pipe: EmbeddedPipeline, *, seed: int = 0) -> EmbeddedPipeline:
    """Return the same model with random weights: the control for what training contributes. The text encoder stays.

    Every weight is drawn anew from a normal distribution of variance 1 / fan-in (1 for the embedding of the labels, and
    for the scales of norms, which stay 1), and every bias is 0. That keeps the activations of all layers near unit size
    and every gate open, so that a block changes the tokens about as much as a trained one does and the output depends
    on the noise level. With the weights a DiT is usually trained from, blocks change next to nothing: their output
    would be trivial to predict.
    """
    with torch.random.fork_rng():
        model = type(pipe.transformer).from_config(pipe.transformer.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if name.rpartition(".")[0].rpartition(".")[2].startswith("norm_") else 0.0)
            else:
                fan_in = 1 if "embedding_table" in name else weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
    model = model.to(pipe.transformer.dtype).eval()
    return with_transformer(pipe, model)


def with_transformer(pipe: EmbeddedPipeline, transformer: Any) -> EmbeddedPipeline:
    """Return a pipeline that samples as `pipe` does, with another transformer."""
    settings = {name: value for name, value in pipe.config.items() if name in SETTINGS}
    return type(pipe)(**{**pipe.components, "transformer": transformer}, **settings)


def model_folder(model: str | Path) -> Path:
    """Tell where an embedded model is, or the folder itself. Raises FileNotFoundError when there is none."""
    embedded = data_folder() / "models"
    if isinstance(model, str) and (embedded / model).is_dir():
        return embedded / model
    if Path(model).is_dir():
        return Path(model)
    if str(model) in EMBEDDED:
        command = MADE_BY.get(str(model), f"tapstudy train {model}")
        raise FileNotFoundError(
            f"the weights of {model} are not in {embedded}: make them with `{command}` (docs/training.md)"
        )
    known = sorted(path.parent.name for path in embedded.glob("*/model_index.json"))
    raise FileNotFoundError(f"no model {str(model)!r}: the embedded models are {', '.join(known) or 'none'}")
