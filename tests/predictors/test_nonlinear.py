"""Predictors that are no rows of weights: against numpy on one token at a time, and where they must be exact."""

import numpy as np
import pytest
import scipy.fft
import torch

from tapstudy.predictors.dmd import DynamicModes, evenly_spaced
from tapstudy.predictors.frequency import FrequencySplit
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.nonlinear import combine_values, token_gram
from tapstudy.predictors.pade import Pade, TCPade
from tapstudy.predictors.reuse import Reuse
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.token_least_squares import TokenLeastSquares
from tests.table import each_row

ALL = [DynamicModes(), TokenLeastSquares(), FrequencySplit(), Pade(), TCPade(num_steps=20, alpha=1.5, beta=0.1)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@each_row("predictor", ALL)
def test_a_single_anchor_is_reused(predictor):
    value = noise(2, 6, 5)
    close(predictor.predict((3,), [value], 5, grid=(1, 2, 3)), value)


@each_row("predictor", ALL[:4])
def test_constants_stay(predictor):
    value = noise(2, 6, 5)
    for anchors in ((8, 4, 0), (20, 12, 4, 2, 1, 0), (16, 12, 8, 4, 0)):
        anchors = anchors[: predictor.num_anchors]
        close(predictor.predict(anchors, [value] * len(anchors), anchors[0] + 3, grid=(1, 2, 3)), value)


@each_row("predictor", ALL)
def test_zeros_and_half_precision_stay_finite(predictor):
    anchors = (16, 12, 8, 4, 0)[: predictor.num_anchors]
    for value in (torch.zeros(1, 6, 5), noise(1, 6, 5).bfloat16()):
        predicted = predictor.predict(anchors, [value] * len(anchors), anchors[0] + 3, grid=(1, 2, 3))
        assert predicted.isfinite().all()
        assert predicted.dtype == torch.float32


def test_gram_and_combination():
    values = [noise(2, 3, 4, seed=s) for s in range(3)]
    gram = token_gram([value.float() for value in values])
    assert gram.dtype == torch.float64
    assert float(gram[1, 2, 0, 2]) == pytest.approx(float(values[0][1, 2] @ values[2][1, 2]), rel=1e-6)
    close(combine_values(values, (2.0, 0.0, -1.0)), 2 * values[0] - values[2])
    weights = noise(2, 3, 3, seed=9)
    close(combine_values(values, weights), torch.einsum("bnj,jbnd->bnd", weights, torch.stack(values)))


# Dynamic modes


def exponentials(tokens=4, channels=7, seed=3):
    """t -> (1, token, channel): a decaying mode and a decaying oscillation, other ones in every token."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(-0.05, 0.0, (tokens, 2))
    frequency = rng.uniform(0.05, 0.3, tokens)
    modes = rng.normal(size=(3, tokens, channels))

    def at(t):
        swing = np.exp(rates[:, 1] * t)[:, None]
        angle = (frequency * t)[:, None]
        value = modes[0] * np.exp(rates[:, 0] * t)[:, None]
        value = value + swing * (modes[1] * np.cos(angle) + modes[2] * np.sin(angle))
        return torch.from_numpy(value)[None]

    return at


@each_row("distance", [1, 3, 4])
def test_dmd_is_exact_for_sums_of_exponentials(distance):
    """Three modes are fixed by four snapshots, and by more; a part of the spacing takes roots of the map."""
    at = exponentials()
    for anchors in ((16, 12, 8, 4), (20, 16, 12, 8, 4, 0)):
        predicted = DynamicModes(tolerance=1e-7).predict(anchors, [at(a) for a in anchors], anchors[0] + distance)
        close(predicted, at(anchors[0] + distance), 1e-5)


def test_dmd_against_the_textbook_algorithm():
    anchors = (15, 12, 9, 6)
    values = [noise(1, 3, 9, seed=s) for s in range(4)]
    predicted = DynamicModes(tolerance=0).predict(anchors, values, 17)
    for n in range(3):
        snapshots = np.stack([value[0, n].numpy() for value in reversed(values)], axis=1)  # oldest first
        x, y = snapshots[:, :-1], snapshots[:, 1:]
        u, s, vh = np.linalg.svd(x, full_matrices=False)
        roots, w = np.linalg.eig(u.T @ y @ vh.T / s)
        phi = (y @ vh.T / s) @ w
        amplitudes = np.linalg.lstsq(phi, snapshots[:, -1].astype(complex), rcond=None)[0]
        close(predicted[0, n], (phi @ (roots ** (2 / 3) * amplitudes)).real, 1e-6)


def test_dmd_takes_evenly_spaced_anchors_or_a_line():
    assert [evenly_spaced(a) for a in ((5,), (5, 2), (26, 18, 10, 2, 1, 0), (10, 2, 1, 0))] == [1, 2, 4, 2]
    values = [noise(1, 2, 6, seed=s) for s in range(6)]
    few = DynamicModes().predict((10, 2, 1, 0), values[:4], 14)
    close(few, values[0] + (values[0] - values[1]) * 4 / 8)
    run = DynamicModes().predict((26, 18, 10, 2, 1, 0), values, 30)
    close(run, DynamicModes().predict((26, 18, 10, 2), values[:4], 30))


# Least squares per token


def test_gains_against_plain_least_squares():
    anchors, step = (20, 12, 7, 2), 24
    values = [noise(2, 3, 6, seed=s) for s in range(4)]
    predicted = TokenLeastSquares(order=2, ridge=0).predict(anchors, values, step)
    ridged = TokenLeastSquares(order=2, ridge=0.5).predict(anchors, values, step)
    for b in range(2):
        for n in range(3):
            f = [value[b, n].numpy() for value in values]

            def slopes(i, at, f=f):
                """First and second term of Newton's polynomial from anchor i on."""
                first = (f[i] - f[i + 1]) / (anchors[i] - anchors[i + 1])
                second = (f[i + 1] - f[i + 2]) / (anchors[i + 1] - anchors[i + 2])
                bend = (first - second) / (anchors[i] - anchors[i + 2])
                return np.stack([first * (at - anchors[i]), bend * (at - anchors[i]) * (at - anchors[i + 1])], axis=1)

            past, future = slopes(1, anchors[0]), slopes(0, step)
            gains = np.linalg.lstsq(past, f[0] - f[1], rcond=None)[0]
            close(predicted[b, n], f[0] + future @ gains, 1e-7)
            penalty = 0.5 * np.trace(past.T @ past) / 2 * np.eye(2)
            gains = np.linalg.solve(past.T @ past + penalty, past.T @ (f[0] - f[1]) + penalty @ np.ones(2))
            close(ridged[b, n], f[0] + future @ gains, 1e-7)


def test_gains_are_one_for_polynomials_and_for_a_large_ridge():
    a, b, c = (noise(1, 4, 8, seed=s) for s in range(3))
    anchors = (20, 12, 7, 2)
    values = [a + b * t / 10 + c * t**2 / 100 for t in anchors]
    close(TokenLeastSquares(order=2).predict(anchors, values, 25), a + b * 2.5 + c * 6.25, 1e-6)
    values = [noise(1, 4, 8, seed=s) for s in range(3)]
    line = TaylorFamily(orders=(1,), shifts=(0,)).rows(anchors[:3], 25)[0]
    close(TokenLeastSquares(ridge=1e9).predict(anchors[:3], values, 25), combine_values(values, line), 1e-6)


def test_gains_meet_a_geometric_approach_one_gap_on():
    """F = limit + u q^t, another q in every token: the gain is q^gap, exact at the distance of one gap."""
    limit, u = noise(1, 5, 6, seed=1), noise(1, 5, 6, seed=2)
    q = torch.linspace(0.7, 1.1, 5, dtype=torch.float64)[None, :, None]
    anchors = (12, 8, 4)
    values = [limit + u * q**t for t in anchors]
    close(TokenLeastSquares(ridge=0).predict(anchors, values, 16), limit + u * q**16, 1e-8)


# Frequencies


def test_frequency_split_against_scipy():
    anchors, step, (height, width) = (18, 10, 2), 22, (6, 9)
    values = [noise(2, height * width, 3, seed=s) for s in range(3)]
    predicted = FrequencySplit(cutoff=0.3).predict(anchors, values, step, grid=(1, height, width))
    high = np.asarray(combine_values(values, HermiteFamily(sigma=0.71).rows(anchors, step)[0]))
    spectra = [
        scipy.fft.dctn(np.asarray(x).reshape(2, height, width, 3), axes=(1, 2), norm="ortho") for x in (values[0], high)
    ]
    v, u = np.indices((height, width))
    low = np.sqrt(v**2 + u**2) <= 0.3 * np.sqrt((height - 1) ** 2 + (width - 1) ** 2)
    mixed = np.where(low[None, :, :, None], *spectra)
    close(predicted, scipy.fft.idctn(mixed, axes=(1, 2), norm="ortho").reshape(2, -1, 3))
    assert 2 < low.sum() < 20


def test_fourier_split_against_numpy():
    values = [noise(1, 30, 2, seed=s) for s in range(2)]
    split = FrequencySplit(high=TaylorFamily(orders=(1,), shifts=(0,)), cutoff=0.37, transform="fft")
    predicted = split.predict((4, 2), values, 5)
    new, line = (np.fft.rfft(np.asarray(x), axis=1) for x in (values[0], 1.5 * values[0] - 0.5 * values[1]))
    low = np.arange(16) <= 0.37 * 15
    close(predicted, np.fft.irfft(np.where(low[None, :, None], new, line), n=30, axis=1))


def test_bands_at_their_limits():
    values = [noise(1, 24, 2, seed=s) for s in range(3)]
    anchors, grid = (18, 10, 2), (2, 3, 4)
    for transform in ("dct", "fft"):
        everything = FrequencySplit(cutoff=1, transform=transform).predict(anchors, values, 20, grid=grid)
        close(everything, values[0])
        same = FrequencySplit(low=Reuse(), high=Reuse(), transform=transform)
        close(same.predict(anchors, values, 20, grid=grid), values[0])
    low = FrequencySplit(cutoff=0).low_band(values[0], grid=grid)
    close(low.unflatten(1, grid), values[0].unflatten(1, grid).mean(dim=(2, 3), keepdim=True).expand(1, 2, 3, 4, 2))


# Rational


def test_pade_by_hand():
    # F = 1/(t) at 1, 2, 3 from newest: D_1 = -1/6, D_2 = 1/3 in one channel; a line where the pole is near
    values = [torch.tensor([[[x]]], dtype=torch.float64) for x in (1 / 3, 1 / 2, 1.0)]
    predicted = Pade().predict((3, 2, 1), values, 4)
    close(predicted, [[[1 / 3 - 1 / 6 / (1 + 1.0)]]])  # q = 1/3 / 2 / (-1/6) = -1
    growing = [torch.tensor([[[x]]], dtype=torch.float64) for x in (4.0, 1.0, 0.0)]  # D_1 = 3, D_2 = 2
    close(Pade().predict((2, 1, 0), growing, 3), [[[4 + 3 / (1 - 1 / 3)]]])
    close(Pade().predict((2, 1, 0), growing, 4), [[[4 + 2 * 3.0]]])  # q = 2/3 is beyond the limit


def test_pade_agrees_with_taylor_to_second_order():
    values = [noise(1, 3, 4, seed=s) * 1e-4 + 1 + slope for s, slope in ((0, 3.0), (1, 2.0), (2, 1.0))]
    taylor = TaylorFamily(orders=(2,), shifts=(0,)).rows((3, 2, 1), 4)[0]
    gap = (Pade().predict((3, 2, 1), values, 4) - combine_values(values, taylor)).abs().max()
    assert 0 < gap < 1e-6  # D_1 q^2 with q about 1e-4


@each_row("order", ["printed", "newest-first"])
def test_tc_pade_as_printed(order):
    predictor = TCPade(num_steps=20, alpha=1.4, beta=0.3, order=order)
    r1, r2, r3 = (noise(2, 3, 4, seed=s) * 0.2 + 1 for s in range(3))
    early, middle, late = (predictor.predict((4, 2, 0), [r1, r2, r3], step) for step in (5, 10, 17))
    close(early, 1.4 * r1 - 0.4 * r2)
    for b in range(2):
        s = np.exp(-10 * np.linalg.norm(r1[b] - r2[b]) / np.linalg.norm(r1[b] + r2[b]))
        top, bottom = (r3[b], r1[b]) if order == "printed" else (r1[b], r3[b])
        expected = (2 * s * top - s * r2[b]) / (1 + s / 10 * bottom)
        close(middle[b], expected)
        close(late[b], expected + 0.3 * (r1[b] - r2[b]))


@each_row(
    ("make", "message"),
    [
        (lambda: DynamicModes(least=1), "2 <= least <= window"),
        (lambda: DynamicModes(window=3), "2 <= least <= window"),
        (lambda: DynamicModes(tolerance=1), "tolerance must lie in"),
        (lambda: TokenLeastSquares(order=0), "order must be at least 1"),
        (lambda: TokenLeastSquares(ridge=-1), "ridge at least 0"),
        (lambda: FrequencySplit(low=TaylorFamily()), "low must have one member, got 15"),
        (lambda: FrequencySplit(cutoff=-1), "cutoff must lie in"),
        (lambda: FrequencySplit(transform="wavelet"), "transform must be"),
        (lambda: FrequencySplit().predict((0,), [torch.zeros(1, 4, 2)], 1), "got grid None for 4 tokens"),
        (lambda: Pade(limit=1), "limit must be below 1"),
        (lambda: TCPade(num_steps=20, alpha=1, beta=0, sharpness=0), "sharpness must be positive"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
