"""List what a recording holds: variables and coordinates. Everything else reads these tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SCHEMA_VERSION = 1

# float features may be kept in half precision; everything else has one dtype
FEATURE_DTYPES = ("float32", "float16")
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Variable:
    """Describe one variable of a recording.

    Attributes:
        dims: after `sample`, which comes first always.
        dtype: on disk; "feature" is what the user chose.
        fill: value of what was never written.
        module: path of the module whose output it is, of those that a recording names.
        units: of the values.
    """

    dims: tuple[str, ...]
    dtype: str
    long_name: str
    fill: float = float("nan")
    module: str | None = None
    units: str = "1"


STEP = ("context", "step")
PREVIEW = ("preview_step", "preview_y", "preview_x", "band")

VARIABLES: dict[str, Variable] = {
    "is_full": Variable(STEP, "int8", "the model ran in full (1) or was skipped (0)", fill=-1),
    "distance": Variable(STEP, "int16", "steps since the last anchor, 0 at a full step", fill=-1),
    "is_distinct": Variable((*STEP, "predictor"), "int8", "first of the predictors that are identical here", fill=-1),
    "choice": Variable((*STEP, "token"), "int16", "chosen predictor (-1 at full steps)", fill=-1),
    "proxy_loss": Variable((*STEP, "token", "predictor"), "feature", "distance of predicted and actual probe"),
    "true_error": Variable((*STEP, "token", "predictor"), "feature", "relative error of the predicted residual"),
    "probe": Variable((*STEP, "depth", "token", "channel"), "feature", "modulated input of a block"),
    "residual": Variable((*STEP, "token", "channel"), "feature", "what the blocks add, or the model if so configured"),
    "latent": Variable((*STEP, "token", "latent_channel"), "feature", "model input: the noisy latent"),
    "latent_residual": Variable((*STEP, "token", "latent_channel"), "feature", "model output minus model input"),
    "image": Variable(("y", "x", "band"), "float32", "final image"),
    "video": Variable(("time", "y", "x", "band"), "float32", "final video"),
    "preview": Variable(PREVIEW, "uint8", "clean image that the step expects", fill=0, units="1/255"),
    "preview_video": Variable(
        (PREVIEW[0], "time", *PREVIEW[1:]), "uint8", "clean video that the step expects", fill=0, units="1/255"
    ),
}

# name -> dimension, long name; in the order in which they are written
COORDINATES: dict[str, tuple[str, str]] = {
    "seed": ("sample", "seed of the noise"),
    "draw": ("sample", "position in what the seed draws"),
    "draws": ("sample", "samples that share the draws"),
    "label": ("sample", "label or prompt"),
    "context": ("context", "guidance branch"),
    "step": ("step", "sampling step, noise first"),
    "row": ("token", "row of the token"),
    "col": ("token", "column of the token"),
    "order": ("predictor", "order m"),
    "shift": ("predictor", "shift s of the horizon k - s"),
    "frame": ("token", "frame of the token"),
    "family": ("predictor", "family of the predictor"),
    "depth": ("depth", "block whose modulated input it is"),
    "timestep": ("step", "timestep given to the model"),
    "sigma": ("step", "noise level"),
    "preview_step": ("preview_step", "step whose expected clean image it is"),
}

# what `fields` may name; the small ones are always written
ALWAYS = ("is_full", "distance")
SCORES = ("proxy_loss", "true_error", "choice")
FEATURES = ("probe", "residual", "latent", "latent_residual")
DEFAULT_FIELDS = (*SCORES, "image")


@dataclass(frozen=True)
class Layout:
    """Describe the arrays of one recording: variables with their sizes and dtypes.

    Attributes:
        sizes: length of every dimension, `sample` included.
        variables: by name.
        feature_dtype: dtype of float features and scores.
    """

    sizes: Mapping[str, int]
    variables: Mapping[str, Variable]
    feature_dtype: str = "float32"

    def dtype(self, name: str) -> np.dtype[np.generic]:
        kind = self.variables[name].dtype
        return np.dtype(self.feature_dtype if kind == "feature" else kind)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of one sample, without the sample dimension."""
        return tuple(self.sizes[dim] for dim in self.variables[name].dims)

    def chunks(self, name: str) -> tuple[int, ...]:
        """Give the shape of a chunk, with the sample dimension."""
        return chunk_shape({dim: self.sizes[dim] for dim in ("sample", *self.variables[name].dims)}, self.dtype(name))

    def sample_bytes(self) -> int:
        """Count the bytes of one sample, before compression."""
        return sum(int(np.prod(self.shape(name))) * self.dtype(name).itemsize for name in self.variables)


def chunk_shape(sizes: Mapping[str, int], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Cut into one sample, context and preview, and as many steps as fit `CHUNK_BYTES`; leave everything else whole."""
    chunk = {dim: 1 if dim in ("sample", "context", "step", "preview_step") else size for dim, size in sizes.items()}
    if "step" in sizes:
        per_step = int(np.prod(list(chunk.values()))) * dtype.itemsize
        chunk["step"] = max(1, min(sizes["step"], CHUNK_BYTES // per_step))
    return tuple(chunk.values())


def module_variable(path: str, ndim: int, name: str, *, of_tokens: bool) -> Variable:
    """Describe the output of a module, (batch, ...) of `ndim` dimensions, under a name.

    The image's tokens have their dimension `token`; others are the module's own: `NAME_axis1`, ..., `NAME_channel`.
    """
    own = [f"{name}_axis{i}" for i in range(1, ndim - 1)]
    dims = ("token",) if of_tokens else tuple(own)
    return Variable((*STEP, *dims, f"{name}_channel"), "feature", f"output of {path}", module=path)


def check_modules(modules: Mapping[str, str]) -> dict[str, str]:
    """Return name -> path of modules to record; raises ValueError on names that are no names, or taken."""
    dims = {dim for variable in VARIABLES.values() for dim in variable.dims}
    taken = {"sample", "finished", "inputs", *dims, *VARIABLES, *COORDINATES}
    for name, path in modules.items():
        if not (isinstance(name, str) and name.isidentifier()) or name in taken:
            raise ValueError(
                f"modules: {name!r} cannot be the name of a variable of a recording: choose a word that is not one of "
                f"{', '.join(sorted(taken))}"
            )
        if not isinstance(path, str):
            raise TypeError(f"modules: the path of {name!r} must be a text, got {path!r}")
    return dict(modules)


def asked_fields(fields: tuple[str, ...]) -> list[str]:
    """Keep the fields that a user names, without those that come by themselves."""
    return [name for name in fields if name not in (*ALWAYS, "is_distinct", "video", "preview_video")]


def check_fields(fields: tuple[str, ...]) -> tuple[str, ...]:
    """Order the fields as the table does, and add those that are always there.

    Raises ValueError naming unknown fields.
    """
    known = [*SCORES, *FEATURES, "image", "preview"]
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise ValueError(f"unknown fields {unknown}: choose from {known}")
    wanted = {*ALWAYS, *fields, *(("is_distinct",) if {"proxy_loss", "true_error"} & set(fields) else ())}
    return tuple(name for name in VARIABLES if name in wanted)
