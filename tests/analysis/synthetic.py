"""Datasets with planted properties, so that an analysis must find what was put in."""

import numpy as np
import xarray as xr

SCORES = ("sample", "context", "step", "token", "predictor")


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
