"""Rows for classes of tokens: fits by hand, identities with older policies, the shuffled control."""

import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.core.clusters import k_means, nearest_centre
from tapstudy.policies.calibrated import CalibratedPolicy
from tapstudy.policies.class_rows import ClassRowsPolicy, clean_tokens, fit_class_rows
from tests.policies.loop import drive

STEPS, TOKENS, WIDTH = 9, 10, 3
FULL = (0, 2, 5)
SIGMAS = torch.linspace(1, 0.1, STEPS).tolist()
CONFIG = TAPConfig(history_dtype=torch.float64)


def trajectories(*, batch=2, seed=0):
    """Latents and residuals of tokens whose clean image is -1 or 1; of the latter the residual falls, else it rises."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(TOKENS) % 2  # (N,)
    clean = (2.0 * kind - 1)[None, :, None].expand(batch, TOKENS, WIDTH).double()
    noise = torch.randn(batch, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    latents, residuals = [], []
    for step, sigma in enumerate(SIGMAS):
        # the model's output is any v for which x - sigma v is the clean image: x is chosen, v follows
        slope = torch.where(kind == 1, -1.0, 2.0)[None, :, None]
        velocity = noise + slope * step / STEPS
        latent = clean + sigma * velocity
        latents.append(latent)
        residuals.append(velocity - latent)
    return latents, residuals, kind


def test_the_clean_image_is_what_flow_matching_expects():
    latents, residuals, kind = trajectories()
    for step in range(STEPS):
        found = clean_tokens(latents[step], residuals[step], SIGMAS[step])
        torch.testing.assert_close(found, (2.0 * kind - 1)[None, :, None].expand_as(found), atol=1e-5, rtol=0)


def test_classes_and_their_rows_are_found():
    """Two clusters, and rows that are best for their own tokens: by least squares over these alone."""
    latents, residuals, kind = trajectories()
    rows, centres = fit_class_rows(latents, residuals, SIGMAS, FULL, classes=2, num_anchors=2)
    torch.testing.assert_close(centres.sort(dim=0).values, torch.tensor([[-1.0] * WIDTH, [1.0] * WIDTH]))
    assert set(rows) == {1, 3, 4, 6, 7, 8}
    path = torch.stack(residuals)
    path = path / path.square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    for step, anchors in ((4, (2, 0)), (7, (5, 2))):
        for index, centre in enumerate(centres):
            mine = kind == (centre[0] > 0)
            past = path[list(anchors)][:, :, mine].flatten(1)
            now = path[step][:, mine].flatten()

            def error(row, past=past, now=now):
                return float((torch.tensor(row, dtype=torch.float64) @ past - now).square().sum())

            best = float(torch.linalg.lstsq(past.T, now[:, None]).solution.T.__matmul__(past).sub(now).square().sum())
            other = rows[step][1 - index]
            assert error(rows[step][index]) < error(other)
            assert error(rows[step][index]) < best + 0.1 * (error(other) - best)


def test_predictions_against_a_loop():
    latents, residuals, kind = trajectories(seed=3)
    rows, centres = fit_class_rows(*trajectories()[:2], SIGMAS, FULL, classes=2, num_anchors=2)
    mask, found = drive(ClassRowsPolicy(rows, centres, SIGMAS, CONFIG), latents, residuals)
    assert mask == "F.F..F..."
    bright = int(centres[1, 0] > 0)
    for step, prediction in found.items():
        anchors = [anchor for anchor in reversed(FULL) if anchor < step]
        for token in range(TOKENS):
            row = rows[step][bright if kind[token] == 1 else 1 - bright]
            expected = sum(w * residuals[a][:, token] for w, a in zip(row, anchors, strict=False))
            torch.testing.assert_close(prediction.residual[:, token], expected)


def test_one_class_is_one_row_for_all():
    latents, residuals, _ = trajectories()
    rows, centres = fit_class_rows(latents, residuals, SIGMAS, FULL, classes=1)
    _, found = drive(ClassRowsPolicy(rows, centres, SIGMAS, CONFIG), latents, residuals)
    table = CalibratedPolicy({step: of_classes[0] for step, of_classes in rows.items()}, CONFIG)
    _, expected = drive(table, [None] * STEPS, residuals)
    assert found.keys() == expected.keys()
    for step, prediction in found.items():
        torch.testing.assert_close(prediction.residual, expected[step].residual)


def test_shuffled_classes_are_the_same_in_number():
    latents, residuals, _ = trajectories()
    rows, centres = fit_class_rows(latents, residuals, SIGMAS, FULL, classes=2)
    own, shuffled = (
        drive(ClassRowsPolicy(rows, centres, SIGMAS, CONFIG, shuffled=seed), latents, residuals)[1]
        for seed in (None, 0)
    )
    again = drive(ClassRowsPolicy(rows, centres, SIGMAS, CONFIG, shuffled=0), latents, residuals)[1]
    for step, prediction in own.items():
        other = shuffled[step].choice
        assert torch.equal(prediction.choice.sort(dim=1).values, other.sort(dim=1).values)
        assert torch.equal(other, again[step].choice)
    assert any(not torch.equal(own[step].choice, shuffled[step].choice) for step in own)


def test_a_class_without_tokens_has_the_row_of_all():
    latents, residuals, _ = trajectories()
    _, centres = fit_class_rows(latents, residuals, SIGMAS, FULL, classes=2)
    far = torch.cat([centres, torch.full((1, WIDTH), 50.0)])
    assert not (nearest_centre(latents[0].float(), far) == 2).any()
    whole, _ = fit_class_rows(latents, residuals, SIGMAS, FULL, classes=1)
    many, _ = fit_class_rows(latents, residuals, SIGMAS, FULL, classes=TOKENS * 2)  # more than there are kinds
    for step, of_classes in many.items():
        assert all(torch.tensor(row).isfinite().all() for row in of_classes)
        assert any(torch.allclose(torch.tensor(row), torch.tensor(whole[step][0]), atol=1e-6) for row in of_classes)


def test_what_cannot_be_meant():
    latents, residuals, _ = trajectories()
    for changes, message in (
        ({"classes": 0}, "between 1 and 20 classes"),
        ({"classes": 21}, "between 1 and 20 classes"),
        ({"full_steps": (1, 3)}, "must hold 0"),
        ({"num_anchors": 0}, "num_anchors of at least 1"),
    ):
        settings = {"full_steps": FULL, **changes}
        with pytest.raises(ValueError, match=message):
            fit_class_rows(latents, residuals, SIGMAS, settings.pop("full_steps"), **settings)
    for rows, message in (({1: ((1.0,),)}, "needs 2 rows"), ({1: ((1.0,), (1.0, 0.0))}, "1 to 1 weights")):
        with pytest.raises(ValueError, match=message):
            ClassRowsPolicy(rows, torch.zeros(2, WIDTH), SIGMAS)


def test_it_runs_on_a_model(tiny_pipe, sample):
    """With rows of pure reuse the images of plain reuse in output space."""
    rows = dict.fromkeys((1, 2, 4), ((1.0,), (1.0,)))
    channels = tiny_pipe.transformer.config.in_channels * tiny_pipe.transformer.config.patch_size**2
    with apply_policy(tiny_pipe, ClassRowsPolicy(rows, torch.randn(2, channels), [0.5] * 6)) as handle:
        images = sample(steps=6)
    assert handle.summary().contexts[0].mask == "F..F.F"
    with apply_policy(tiny_pipe, CalibratedPolicy(dict.fromkeys((1, 2, 4), (1.0,)), TAPConfig(residual="latent"))):
        torch.testing.assert_close(sample(steps=6), images)


def test_k_means_finds_what_is_apart():
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 20, 2, generator=generator)).flatten(0, 1)
    centres = k_means(points, 3)
    assert torch.cdist(centres, middles).min(dim=1).values.max() < 0.2
    assert nearest_centre(points, centres).unique().tolist() == [0, 1, 2]
    assert torch.equal(k_means(torch.ones(4, 2), 2), torch.ones(2, 2))  # all points alike
