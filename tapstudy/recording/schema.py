"""What a recording holds: variables, dimensions, units. One table; everything else reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCHEMA_VERSION = 1

# float features may be kept in half precision; everything else has one dtype
FEATURE_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Variable:
    """One variable of a recording.

    Attributes:
        dims: after `sample`, which comes first always.
        dtype: on disk; "feature" is what the user chose.
        fill: value of what was never written.
    """

    dims: tuple[str, ...]
    dtype: str
    long_name: str
    units: str = "1"
    fill: float = float("nan")


STEP = ("context", "step")

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
}

# what `fields` may name; the small ones are always written
ALWAYS = ("is_full", "distance")
SCORES = ("proxy_loss", "true_error", "choice")
FEATURES = ("probe", "residual", "latent", "latent_residual")
DEFAULT_FIELDS = (*SCORES, "image")


@dataclass(frozen=True)
class Layout:
    """The arrays of one recording: variables with their sizes and dtypes.

    Attributes:
        sizes: length of every dimension, `sample` included.
        fields: names from `VARIABLES`.
        feature_dtype: dtype of float features and scores.
    """

    sizes: Mapping[str, int]
    fields: tuple[str, ...]
    feature_dtype: str = "float32"

    def dtype(self, name: str) -> np.dtype[np.generic]:
        kind = VARIABLES[name].dtype
        return np.dtype(self.feature_dtype if kind == "feature" else kind)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one sample, without the sample dimension."""
        return tuple(self.sizes[dim] for dim in VARIABLES[name].dims)

    def sample_bytes(self) -> int:
        """Of one sample, before compression."""
        return sum(int(np.prod(self.shape(name))) * self.dtype(name).itemsize for name in self.fields)


def asked_fields(fields: tuple[str, ...]) -> list[str]:
    """Those of the fields that a user names, without what comes by itself."""
    return [name for name in fields if name not in (*ALWAYS, "is_distinct", "video")]


def check_fields(fields: tuple[str, ...]) -> tuple[str, ...]:
    """The fields in the order of the table, with those that are always there.

    Raises ValueError naming unknown fields.
    """
    known = [*SCORES, *FEATURES, "image"]
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise ValueError(f"unknown fields {unknown}: choose from {known}")
    wanted = {*ALWAYS, *fields, *(("is_distinct",) if {"proxy_loss", "true_error"} & set(fields) else ())}
    return tuple(name for name in VARIABLES if name in wanted)
