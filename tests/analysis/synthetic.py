"""Datasets with planted properties, so that an analysis must find what was put in."""

import numpy as np
import xarray as xr

SCORES = ("sample", "context", "step", "token", "predictor")
FEATURES = ("sample", "context", "step", "depth", "token", "channel")


def schedule(steps, *, interval=4, warmup=3):
    """Which steps run in full, and the distance of each step to the last anchor: (step,) each."""
    step = np.arange(steps)
    full = (step < warmup) | ((step - warmup + 1) % interval == 0)
    return full, step - np.maximum.accumulate(np.where(full, step, 0))


def score_dataset(proxy, truth, *, distinct=None, interval=4, warmup=3, side=4):
    """Scores (sample, context, step, token, predictor) as a recording stores them: NaN and -1 at full steps.

    `distinct` is (predictor,) or (sample, context, step, predictor); all are distinct by default.
    """
    proxy, truth = np.array(proxy, float), np.array(truth, float)
    samples, contexts, steps, tokens, predictors = proxy.shape
    full, distance = schedule(steps, interval=interval, warmup=warmup)
    lead = (samples, contexts, steps)
    distinct = np.broadcast_to(True if distinct is None else distinct, (*lead, predictors)).astype(np.int8)
    distinct[:, :, full] = -1
    choice = np.where(distinct[..., None, :] == 1, proxy, np.inf).argmin(-1).astype(np.int16)
    choice[:, :, full] = -1
    proxy[:, :, full] = truth[:, :, full] = np.nan
    return xr.Dataset(
        {
            "proxy_loss": (SCORES, proxy),
            "true_error": (SCORES, truth),
            "choice": (SCORES[:-1], choice),
            "is_distinct": ((*SCORES[:3], "predictor"), distinct),
            "is_full": (SCORES[:3], np.broadcast_to(full, lead).astype(np.int8)),
            "distance": (SCORES[:3], np.broadcast_to(distance, lead).astype(np.int16)),
        },
        coords={
            "context": ["cond", "uncond", "third"][:contexts],
            "step": np.arange(steps),
            "seed": ("sample", np.arange(samples)),
            "row": ("token", np.arange(tokens) // side),
            "col": ("token", np.arange(tokens) % side),
            "order": ("predictor", np.minimum(np.arange(predictors), 2)),
            "shift": ("predictor", np.maximum(np.arange(predictors) - 2.0, 0)),
        },
    )


def planted_scores(fidelity, *, samples=6, contexts=2, steps=12, tokens=16, predictors=9, seed=0):
    """Losses and errors whose logs are normal with correlation `fidelity`: 1 a perfect probe, 0 pure noise.

    Every token draws its own. `expected_kendall` and `expected_spearman` say what a rank correlation is on average.
    """
    rng = np.random.default_rng(seed)
    z, noise = rng.normal(size=(2, samples, contexts, steps, tokens, predictors))
    return score_dataset(np.exp(z), np.exp(fidelity * z + np.sqrt(1 - fidelity**2) * noise))


def expected_kendall(fidelity):
    """Mean of tau over lists of any length from a binormal law (Greiner, 1909)."""
    return 2 / np.pi * np.arcsin(fidelity)


def expected_spearman(fidelity, predictors):
    """Mean of rho over lists of `predictors` from a binormal law (Moran, 1948)."""
    return 6 / np.pi / (predictors + 1) * (np.arcsin(fidelity) + (predictors - 2) * np.arcsin(fidelity / 2))


def edge_tokens(rows=8, cols=8):
    """(token,): whether a token lies on the rim of the bright square in the middle of the image."""
    inside = np.pad(square_tokens(rows, cols).reshape(rows, cols), 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return (inside[1:-1, 1:-1] & ~core).ravel()


def square_tokens(rows=8, cols=8):
    """(token,): whether a token lies in the bright square."""
    row, col = np.indices((rows, cols))
    return ((row >= rows // 4) & (row < rows - rows // 4) & (col >= cols // 4) & (col < cols - cols // 4)).ravel()


def polynomial_features(
    degree=None, *, samples=2, contexts=1, steps=15, channels=5, rows=8, cols=8, patch=2, seed=0, interval=4, warmup=3
):
    """Trajectories in which probe and residual of token n are polynomials of degree `degree[n]` in the step.

    By default tokens on the edge of the bright square (`edge_tokens`) have degree 3 and all others 1. The image shows
    the square, `patch` pixels per token.
    """
    tokens = rows * cols
    degree = np.where(edge_tokens(rows, cols), 3, 1) if degree is None else np.broadcast_to(degree, tokens)
    rng = np.random.default_rng(seed)
    powers = np.arange(degree.max() + 1)
    x = np.arange(steps)[:, None] / steps  # (step, 1)
    used = powers <= degree[:, None]  # (token, power)
    coefficients = rng.normal(size=(2, samples, contexts, tokens, channels, len(powers))) * used[:, None]
    probe, residual = np.einsum("fbcndj,tj->fbctnd", coefficients, x**powers)
    full, distance = schedule(steps, interval=interval, warmup=warmup)
    lead = (samples, contexts, steps)
    square = square_tokens(rows, cols).reshape(rows, cols).repeat(patch, 0).repeat(patch, 1)
    return xr.Dataset(
        {
            "probe": (FEATURES, probe[:, :, :, None]),
            "residual": (tuple(dim for dim in FEATURES if dim != "depth"), residual),
            "is_full": (FEATURES[:3], np.broadcast_to(full, lead).astype(np.int8)),
            "distance": (FEATURES[:3], np.broadcast_to(distance, lead).astype(np.int16)),
            "image": (
                ("sample", "y", "x", "band"),
                np.broadcast_to(square[..., None], (samples, *square.shape, 1)) * 1.0,
            ),
        },
        coords={
            "context": ["cond", "uncond", "third"][:contexts],
            "step": np.arange(steps),
            "depth": [0],
            "sigma": ("step", np.linspace(1, 0.02, steps)),
            "seed": ("sample", np.arange(samples)),
            "row": ("token", np.arange(tokens) // cols),
            "col": ("token", np.arange(tokens) % cols),
            "degree": ("token", degree),
            "is_edge": ("token", edge_tokens(rows, cols)),
        },
    )
