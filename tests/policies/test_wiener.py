"""The Wiener filter by hand and by what it is best at; TAP with a filtered probe against TAP on filtered features."""

import pytest
import torch

from tapstudy import TAPConfig
from tapstudy.policies.base import RunInfo
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.wiener import ShuffledWienerPolicy, WienerPolicy, clean_power, wiener_filtered
from tests.table import each_row

GRID, CHANNELS, STEPS = (4, 6), 3, 12
CONFIG = TAPConfig(interval=4, history_dtype=torch.float64)
SIGMAS = torch.linspace(1, 0.05, STEPS).tolist()


def images(count, *, seed=0):
    """Smooth ones: the power of a frequency falls with it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *GRID, CHANNELS, generator=generator, dtype=torch.float64)
    rows, columns = (torch.fft.fftfreq(n) * n for n in GRID)
    rows, columns = rows[:, None, None], columns[None, :, None]
    gain = 3 / (1 + rows**2 + columns**2)
    return torch.fft.ifft2(torch.fft.fft2(noise, dim=(1, 2)) * gain, dim=(1, 2)).real.flatten(1, 2)


def test_no_noise_is_no_filter_and_pure_noise_leaves_nothing():
    clean = images(5)
    power = clean_power(clean, GRID)
    torch.testing.assert_close(wiener_filtered(clean, power, 0.0), clean.float())
    assert wiener_filtered(clean, power, 1.0).abs().max() == 0


def test_the_power_adds_up_to_the_mean_square():
    """Parseval: the transform is unitary."""
    clean = images(7)
    torch.testing.assert_close(
        clean_power(clean, GRID).sum(dim=(0, 1)), clean.square().sum(dim=1).mean(dim=0).float(), rtol=1e-5, atol=1e-5
    )


@each_row("sigma", [0.2, 0.8])
def test_no_other_gain_comes_closer_to_the_clean_image(sigma):
    """On many images: closer than the noisy ones, than any constant gain, and than the filter of a wrong spectrum."""
    clean = images(3000)
    power = clean_power(clean, GRID)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy, wanted = (1 - sigma) * clean + sigma * noise, (1 - sigma) * clean

    def error(found):
        return float((found.double() - wanted).square().mean())

    best = error(wiener_filtered(noisy, power, sigma))
    assert best < 0.95 * min(error(gain * noisy) for gain in torch.linspace(0, 1, 21))
    assert best < error(wiener_filtered(noisy, power.flip(0, 1), sigma))
    signal = (1 - sigma) ** 2 * power.double()  # what is left at every frequency, in theory
    theory = float((signal * sigma**2 / (signal + sigma**2)).mean())
    assert best == pytest.approx(theory, rel=0.05)


@pytest.mark.parametrize(("filtered", "plain"), [(WienerPolicy, TAPPolicy), (ShuffledWienerPolicy, ShuffledPolicy)])
def test_it_is_its_plain_policy_on_filtered_features(filtered, plain):
    power = clean_power(images(50), GRID)
    latents, residuals = images(STEPS, seed=1), images(STEPS, seed=2)
    one, other = filtered(power, SIGMAS, CONFIG), plain(CONFIG)
    for policy in (one, other):
        policy.begin(RunInfo(STEPS, (1, *GRID)))
    for step in range(STEPS):
        latent, residual = latents[step : step + 1], residuals[step : step + 1]
        seen = wiener_filtered(latent, power, SIGMAS[step])
        assert one.wants_full(step) == other.wants_full(step)
        if one.wants_full(step):
            one.observe(step, latent, residual)
            other.observe(step, seen, residual)
            continue
        found, expected = one.predict(step, latent), other.predict(step, seen)
        assert torch.equal(found.choice, expected.choice)
        assert torch.equal(found.residual, expected.residual)


def test_another_grid_is_refused():
    policy = WienerPolicy(torch.ones(2, 2, 3), SIGMAS)
    for grid in ((1, 4, 6), (2, 2, 2)):
        with pytest.raises(ValueError, match="fitted to a token grid of 1 x 2 x 2, but that of this run is"):
            policy.begin(RunInfo(STEPS, grid))
