"""Teacher-forced scores against explicit predictions."""

import numpy as np
import torch

from tapstudy import TAPConfig, apply_policy, apply_tap
from tapstudy.policies.full import FullPolicy
from tapstudy.recording.scores import teacher_forced_scores

CONFIG = TAPConfig(interval=4, warmup_steps=3)
CALL = {"class_labels": [1, 2, 3], "num_inference_steps": 12, "output_type": "latent"}


def trajectory(pipe):
    events = {}
    with apply_policy(pipe, FullPolicy(needs_probe=True)) as handle:
        handle.listen(lambda e: events.update({e.step: (e.probe.clone().double(), e.residual.double())}))
        pipe(**CALL, generator=torch.Generator().manual_seed(0))
    return events


def test_scores_equal_explicit_predictions(tiny_pipe):
    scores = teacher_forced_scores(tiny_pipe, CALL, config=CONFIG)
    events = trajectory(tiny_pipe)
    assert scores["step"].values.tolist() == [3, 4, 5, 7, 8, 9, 11]
    assert scores["distance"].values.tolist() == [1, 2, 3, 1, 2, 3, 1]
    # order 1 from anchors 6 and 2, at step 8 with shift 1: horizon 1
    weight = 1 / 4
    for which, name in ((0, "proxy_loss"), (1, "true_error")):
        actual, new, old = (events[step][which] for step in (8, 6, 2))
        predicted = new + weight * (new - old)
        if name == "proxy_loss":
            expected = 1 - torch.nn.functional.cosine_similarity(predicted, actual, dim=-1)
        else:
            expected = (predicted - actual).norm(dim=-1) / actual.norm(dim=-1)
        found = scores[name].sel(step=8).isel(predictor=(scores.order == 1) & (scores["shift"] == 1))
        stacked = np.concatenate([found.sel(context="cond"), found.sel(context="uncond")])[..., 0]
        np.testing.assert_allclose(stacked, expected.numpy(), rtol=1e-4)


def test_choice_is_the_least_proxy_loss(tiny_pipe):
    scores = teacher_forced_scores(tiny_pipe, CALL, config=CONFIG)
    taken = scores["proxy_loss"].isel(predictor=scores["choice"].astype(int))
    np.testing.assert_array_equal(taken, scores["proxy_loss"].min("predictor"))


def test_first_window_equals_the_accelerated_run(tiny_pipe):
    """Until the first prediction the exact and the accelerated trajectory are one."""
    scores = teacher_forced_scores(tiny_pipe, CALL, config=CONFIG)
    choices = {}
    with apply_tap(tiny_pipe, CONFIG) as handle:
        handle.listen(lambda e: choices.update({e.step: e.prediction.choice}) if e.prediction else None)
        tiny_pipe(**CALL, generator=torch.Generator().manual_seed(0))
    both = np.concatenate([scores["choice"].sel(step=3, context=context) for context in ("cond", "uncond")])
    np.testing.assert_array_equal(both, choices[3].numpy())


def test_labels_and_clean_images(tiny_pipe):
    scores = teacher_forced_scores(tiny_pipe, CALL, config=CONFIG)
    assert scores.sizes == {
        "sample": 3, "context": 2, "step": 7, "token": 16, "predictor": 15, "anchor": 4, "y": 8, "x": 8,
    }  # fmt: skip
    assert scores["row"].values.reshape(4, 4)[2].tolist() == [2] * 4
    assert scores["anchor"].values.tolist() == [1, 2, 6, 10]
    assert all("units" in variable.attrs for variable in scores.data_vars.values())
    assert scores["is_distinct"].sel(step=3).sum() == 9
