"""Synthetic recordings of features, and naive scores of them."""

import numpy as np
import xarray as xr

from tests.reference import predictions


def make_features(*, samples=2, steps=14, tokens=6, channels=5, contexts=2, depths=None, seed=0, dtype=np.float32):
    """Smooth trajectories with noise; without contexts when `contexts` is 0."""
    rng = np.random.default_rng(seed)
    leading = {"sample": samples, **({"context": contexts} if contexts else {})}
    time = np.linspace(0, 1, steps)

    def feature(*trailing):
        shape = (*leading.values(), *trailing)
        a, b, c = rng.normal(size=(3, *shape))
        values = np.stack([a + b * np.sin(3 * t) + c * t**2 for t in time], axis=len(leading))
        return (values + 0.02 * rng.normal(size=values.shape)).astype(dtype)

    dims = (*leading, "step")
    probe = feature(*([depths] if depths else []), tokens, channels)
    side = int(tokens**0.5)
    columns = tokens // side
    token = np.arange(tokens)
    return xr.Dataset(
        {
            "probe": ((*dims, *(["depth"] if depths else []), "token", "channel"), probe),
            "residual": ((*dims, "token", "channel"), feature(tokens, channels)),
            "latent_residual": ((*dims, "token", "latent_channel"), feature(tokens, 3)),
        },
        coords={
            "step": np.arange(steps),
            "sigma": ("step", np.linspace(1, 0.05, steps)),
            "row": ("token", token // columns),
            "col": ("token", token % columns),
            "seed": ("sample", np.arange(samples)),
            **({"depth": np.arange(depths)} if depths else {}),
        },
    )


def predicted(values, step, full, order, horizon):
    """The Taylor prediction at `step` from (step, ...) values, with the order that the anchors allow."""
    history = [(a, values[a].astype(np.float64)) for a in reversed([a for a in full if a < step][-(order + 1) :])]
    return predictions(history, min(order, len(history) - 1), horizon)
