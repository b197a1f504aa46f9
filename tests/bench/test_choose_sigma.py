"""The width of a low-pass, chosen on held-out images."""

import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.bench.clock.choose_sigma import least_within_one_error
from tapstudy.instrument.smooth_time import smoothed_sigma
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.full import FullPolicy
from tests.conftest import make_tiny_pipe
from tests.pipelines.tiny import FACTORIES
from tests.training.emoji import tiny_pipe as tiny_text_pipe

CONFIG = tapstudy.TAPConfig(interval=4, warmup_steps=3)
CALLS = [
    {"class_labels": [1, 2], "seed": [0, 1], "num_inference_steps": 12, "output_type": "pt"},
    {"class_labels": [3], "seed": [2], "num_inference_steps": 12, "output_type": "pt"},
]


def rough_pipe():
    """A tiny model whose clock trembles: fast features weigh three times as much."""
    pipe = make_tiny_pipe()
    for block in pipe.transformer.transformer_blocks:
        weight = block.norm1.emb.timestep_embedder.linear_1.weight
        with torch.no_grad():
            weight[:, :40] *= 3  # cos and sin come one after the other
            weight[:, 128:168] *= 3
    return pipe


def run(pipe, call):
    generators = [torch.Generator().manual_seed(seed) for seed in call["seed"]]
    rest = {name: value for name, value in call.items() if name != "seed"}
    return pipe(**rest, generator=generators, return_dict=False)[0]


def test_errors_are_those_of_the_images():
    """Every number of the table against images sampled here."""
    pipe, policy = rough_pipe(), FixedPolicy(1, 0, config=CONFIG)
    sigma, table = tapstudy.choose_sigma(pipe, CALLS, policy=policy, sigmas=(30,))
    assert table["sigma"].values.tolist() == [0, 30]
    assert sigma in table["sigma"]
    assert smoothed_sigma(pipe) == 0
    original = [run(pipe, call) for call in CALLS]
    for width in (0, 30):
        with tapstudy.smooth_time(pipe, width):
            full = [run(pipe, call) for call in CALLS]
            with tapstudy.apply_policy(pipe, policy):
                fast = [run(pipe, call) for call in CALLS]
        for name, images, reference in (
            ("deviation", full, original), ("forecast_error", fast, full), ("error", fast, original),
        ):  # fmt: skip
            wanted = [
                (a.double() - b.double()).square().mean().sqrt().item()
                for x, y in zip(images, reference, strict=True)
                for a, b in zip(x, y, strict=True)
            ]
            np.testing.assert_allclose(table[name].sel(sigma=width), wanted, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(table["psnr"], -20 * np.log10(table["error"]))
    assert not table["deviation"].sel(sigma=0).any()
    assert table["seed"].values.tolist() == [0, 1, 2]


def test_a_clock_that_trembles_is_smoothed_and_no_model_for_nothing():
    policy = FixedPolicy(2, 0, config=CONFIG)
    assert tapstudy.choose_sigma(rough_pipe(), CALLS, policy=policy, sigmas=(0, 20)).sigma == 20
    # nothing is skipped: smoothing can only cost
    assert tapstudy.choose_sigma(rough_pipe(), CALLS, policy=FullPolicy(), sigmas=(0, 20)).sigma == 0


def test_least_within_one_standard_error():
    values = np.array([[1.0, 2.0, 3.0], [2.9, 2.0, 4.2], [3.0, 3.0, 3.9], [0.0, 0.0, 0.0]])
    # behind the best, the third: 2, 1, 0.9 (1.3 +- 0.35); 0.1, 1, -0.3 (0.27 +- 0.38)
    assert least_within_one_error(values) == 1
    assert least_within_one_error(values[[0, 2]]) == 1
    assert least_within_one_error(values[:, :1]) == 2


def test_other_pipelines():
    policy = FixedPolicy(0, 0, config=CONFIG)
    call = {"prompt": ["apple"], "seed": [0], "num_inference_steps": 6}
    assert np.isfinite(tapstudy.choose_sigma(tiny_text_pipe(), [call], policy=policy, sigmas=(30,)).table["psnr"]).all()
    pipe, call = FACTORIES["wan"]()
    table = tapstudy.choose_sigma(pipe, [{**call, "seed": 0}], policy=policy, sigmas=(30,)).table
    assert (table["deviation"].sel(sigma=30) > 0).all()


def test_refusals():
    pipe = make_tiny_pipe()
    with pytest.raises(ValueError, match="no calls to choose by"):
        tapstudy.choose_sigma(pipe, [])
    with pytest.raises(ValueError, match="needs 'seed'"):
        tapstudy.choose_sigma(pipe, [{"class_labels": [1]}])
    with tapstudy.smooth_time(pipe, 20), pytest.raises(RuntimeError, match="smoothed already"):
        tapstudy.choose_sigma(pipe, CALLS)
