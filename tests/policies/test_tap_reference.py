"""TAP against the independent float64 implementation, choices and images."""

import pytest
import torch

from tapstudy import TAPConfig, apply_tap
from tests.conftest import make_tiny_pipe
from tests.reference import tap as reference_tap


@pytest.mark.parametrize(
    ("interval", "warmup", "residual", "distance"),
    [(5, 1, "latent", "cosine"), (8, 3, "hidden", "l2"), (3, 1, "hidden", "l1")],
)
def test_choices_and_image(interval, warmup, residual, distance):
    pipe = make_tiny_pipe(seed=3, dtype=torch.float64)
    labels, steps = torch.tensor([4, 7]), 20
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    config = TAPConfig(
        interval=interval,
        warmup_steps=warmup,
        residual=residual,
        distance=distance,
        history_dtype=torch.float64,
    )
    taken = {}
    with apply_tap(pipe, config) as handle:
        handle.listen(lambda e: taken.update({e.step: e.prediction}) if e.prediction else None)
        image = pipe(labels, steps, 2.0, latents=noise, output_type="latent").images
    with torch.no_grad():
        expected, log = reference_tap(
            pipe.transformer,
            labels,
            noise,
            steps=steps,
            interval=interval,
            warmup=warmup,
            guidance=2.0,
            kind=distance,
            latent=residual == "latent",
        )
    assert sorted(taken) == sorted(log)
    family = [(label.order, label.shift) for label in config.family.labels]
    for step, prediction in taken.items():
        chosen, losses = log[step]
        mine = torch.tensor([family[index] for index in prediction.choice.flatten()]).view_as(chosen)
        assert torch.equal(mine, chosen), f"step {step}"
        for (order, shift), loss in losses.items():
            column = prediction.proxy_loss[..., family.index((order, shift))]
            torch.testing.assert_close(column, loss, rtol=1e-6, atol=1e-13)
    assert (image - expected).norm() / expected.norm() < 1e-5
    kinds = {tuple(pair) for chosen, _ in log.values() for pair in chosen.flatten(0, 1).tolist()}
    assert len(kinds) > 3, "the case must exercise several predictors"
