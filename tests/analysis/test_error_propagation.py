import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import tapstudy
from tapstudy.analysis.error_propagation import (
    against,
    error_propagation,
    per_image,
    teacher_forced_error,
)
from tapstudy.analysis.stats import with_interval
from tests.table import each_row


def linear_runs(rate, errors, *, start=1.0):
    """Euler on x' = rate x from sigma 1 to 0, with `errors` (policy, step, token, channel) added to the velocity.

    `rate` is a number or a matrix over tokens; errors of exactly 0 count as full steps.
    """
    errors = np.concatenate([np.zeros((1, *errors.shape[1:])), errors])
    policies, steps, tokens, channels = errors.shape
    matrix = rate * np.eye(tokens) if np.isscalar(rate) else np.asarray(rate)
    gap = -1 / steps
    state = np.full((policies, steps + 1, tokens, channels), float(start))
    exact = np.empty_like(errors)
    for i in range(steps):
        exact[:, i] = np.einsum("nm,pmc->pnc", matrix, state[:, i])
        state[:, i + 1] = state[:, i] + gap * (exact[:, i] + errors[:, i])
    dims = ("policy", "sample", "step", "token", "latent_channel")
    return xr.Dataset(
        {
            "state": (("policy", "sample", "node", "token", "latent_channel"), state[:, None]),
            "velocity_exact": (dims, exact[:, None]),
            "velocity_used": (dims, (exact + errors)[:, None]),
            "is_full": (("policy", "sample", "step"), (errors == 0).all(axis=(2, 3))[:, None].astype("i1")),
        },
        coords={
            "policy": ["reference", *(f"p{i}" for i in range(1, policies))],
            "step": np.arange(steps),
            "sigma": ("step", 1 + gap * np.arange(steps)),
            "node_sigma": ("node", 1 + gap * np.arange(steps + 1)),
            "seed": ("sample", [0]),
            "label": ("sample", ["3"]),
        },
    )


def test_two_steps_by_hand():
    """Rate 2, gap -1/2, so a step multiplies the deviation by 0. Errors 3 and 4: contributions -1.5 and -2."""
    found = error_propagation(linear_runs(2.0, np.array([3.0, 4.0]).reshape(1, 2, 1, 1))).squeeze()
    assert found.contribution.values.tolist() == [1.5, 2.0]
    assert found.deviation.values.tolist() == [1.5, 2.0]
    assert found.propagated.values.tolist() == [0.0, 1.5]
    assert found.net_error.values.tolist() == [1.5, 3.5]
    assert found.path_length.values.tolist() == [1.5, 3.5]
    assert found.amplification[-1] == pytest.approx(2 / 3.5)
    assert found.net_propagated.values.tolist() == [0.0, 1.5]
    assert found.feedback.values.tolist() == [0.0, -3.5 * 1.5]
    assert found.successive_cosine[1] == pytest.approx(1)
    # exact velocity 2 at the start, then 2 * (1 - 1/2 * 5) = -3, against which the error 4 points
    assert found.relative_local_error.values == pytest.approx([3 / 2, 4 / 3])
    assert found.along_velocity.values == pytest.approx([3 / 2, -4 / 3])
    assert found.bias.values == pytest.approx([1, 1])


def test_constant_and_alternating_errors():
    """Same size, same rate: what adds up ends far away, what alternates does not."""
    steps = 40
    constant = np.tile([0.3, 0.4], (steps, 2, 1))
    alternating = constant * np.where(np.arange(steps) % 2, -1, 1)[:, None, None]
    found = error_propagation(linear_runs(0.0, np.stack([constant, alternating])))
    table = per_image(found).squeeze()
    np.testing.assert_allclose(table.coherence, [1, 0], atol=1e-12)
    np.testing.assert_allclose(table.path_length, 0.5)
    np.testing.assert_allclose(table.successive_cosine, [1, -1])
    np.testing.assert_allclose(table.deviation, [0.5, 0], atol=1e-12)
    assert table.amplification[0] == pytest.approx(1)
    odd = found.coherence.isel(sample=0, token=0, step=2).values  # after three steps one of three is left
    np.testing.assert_allclose(odd, [1, 1 / 3])


def test_amplification_of_a_growing_mode():
    """One early error under rate -1 (time runs backwards): it grows by (1 + 1/T) a step."""
    steps = 10
    errors = np.zeros((1, steps, 1, 1))
    errors[0, 0] = 1.0
    found = error_propagation(linear_runs(-1.0, errors)).squeeze()
    np.testing.assert_allclose(found.amplification, (1 + 1 / steps) ** np.arange(steps))
    np.testing.assert_allclose(found.propagated[1:], found.deviation[:-1] / steps)
    late = np.roll(errors, steps - 1, axis=1)
    assert float(error_propagation(linear_runs(-1.0, late)).amplification[..., -1, 0].squeeze()) == pytest.approx(1)
    assert error_propagation(linear_runs(-1.0, late)).amplification[..., :-1, :].isnull().all()


@given(seed=st.integers(0, 10_000), steps=st.integers(2, 12), tokens=st.integers(1, 4))
def test_identities(seed, steps, tokens):
    """Random errors under random coupling of the tokens: the recursion, the factors, and their ranges."""
    rng = np.random.default_rng(seed)
    runs = linear_runs(rng.normal(size=(tokens, tokens)), rng.normal(size=(2, steps, tokens, 3)), start=2)
    found = error_propagation(runs)
    assert float(found.identity_gap.max()) < 1e-12 * float(abs(runs.state).max() + abs(runs.velocity_used).max())
    assert ((found.coherence >= 0) & (found.coherence <= 1 + 1e-12)).all()
    assert ((found.bias >= 0) & (found.bias <= 1 + 1e-12)).all()
    table = per_image(found)
    np.testing.assert_allclose(table.deviation, table.path_length * table.coherence * table.amplification)
    cross = 2 * table.feedback_cosine * table.net_error * table.net_propagated
    np.testing.assert_allclose(table.deviation**2, table.net_error**2 + table.net_propagated**2 + cross, rtol=1e-7)
    assert (abs(table.feedback_cosine) <= 1 + 1e-12).all()
    rms = np.sqrt(3 * ((runs.state - runs.state[0])[1:, :, -1] ** 2).mean(["token", "latent_channel"]))
    np.testing.assert_allclose(table.deviation, rms)
    logs = against(table, "p1")
    assert logs.policy.values.tolist() == ["p2"]
    np.testing.assert_allclose(logs.deviation, logs.path_length + logs.coherence + logs.amplification, atol=1e-9)


def test_smaller_errors_that_add_up_end_farther():
    """The case the analysis is for: half the local error, a third of the way more to go."""
    steps = 30
    sizes = np.where(np.arange(steps) % 2, -1.0, 1.0)[:, None, None] * np.ones((steps, 1, 1))
    sizes[0] *= 2
    found = per_image(error_propagation(linear_runs(0.0, np.stack([sizes, 0.5 * np.ones_like(sizes)])))).squeeze()
    assert found.path_length[1] < 0.5 * found.path_length[0]
    assert found.deviation[1] > found.deviation[0]
    assert found.coherence[1] > 10 * found.coherence[0]


def test_lazy_and_interval():
    rng = np.random.default_rng(0)
    runs = [linear_runs(0.5, rng.normal(size=(2, 6, 5, 3))) for _ in range(4)]
    joined = xr.concat(runs, dim="sample")
    eager = error_propagation(joined)
    lazy = error_propagation(joined.chunk(sample=1))
    assert all(values.chunks is not None for values in lazy.values())
    xr.testing.assert_allclose(eager, lazy.compute())
    assert all({"long_name", "units"} <= values.attrs.keys() for values in lazy.values())
    table = with_interval(per_image(lazy).coherence.compute())
    assert (table.sel(bound="low") <= table.sel(bound="high")).all()


@each_row(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("velocity_exact"), r"\['velocity_exact'\] are missing"),
        (lambda d: d.drop_vars("node_sigma"), r"\['node_sigma'\] are missing"),
        (lambda d: d.isel(policy=[1]), "needs the policy 'reference'"),
        (lambda d: d.isel(policy=[0]), "and at least one other"),
        (lambda d: d.isel(node=slice(2)), "one node more than steps, got 2 and 3"),
    ],
)
def test_bad_runs(change, message):
    with pytest.raises(ValueError, match=message):
        error_propagation(change(linear_runs(1.0, np.ones((1, 3, 2, 2)))))


# Teacher-forced against closed loop


def test_teacher_forced_members():
    scores = tapstudy.open_recording("data/recordings/scores.zarr")
    found = teacher_forced_error(scores, {"Taylor": (1, 0.0), "TAP": "choice", "oracle": "oracle"})
    assert found.chunks is not None
    assert found.dims == ("policy", "sample", "context", "step", "token")
    true = scores.true_error.isel(sample=2, context=1).values
    choice = scores.choice.isel(sample=2, context=1).values
    full = choice < 0
    at = found.isel(sample=2, context=1).values
    taylor = next(i for i in range(15) if (scores.order[i], scores["shift"][i]) == (1, 0))
    np.testing.assert_array_equal(at[0][~full], true[~full][:, taylor])
    np.testing.assert_array_equal(at[1][~full], true[~full][np.arange((~full).sum()), choice[~full]])
    np.testing.assert_array_equal(at[2][~full], true[~full].min(-1))
    assert np.isnan(at[:, full]).all()
    with pytest.raises(ValueError, match=r"no predictor \(7, 0\) in the recorded family"):
        teacher_forced_error(scores, {"x": (7, 0)})
    with pytest.raises(ValueError, match=r"\['choice'\] are missing"):
        teacher_forced_error(scores.drop_vars("choice"), {"x": "choice"})
