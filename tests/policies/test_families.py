"""TAP and fixed policies with other families, against naive loops over tokens and candidates."""

import pytest
import torch

from tapstudy import TAPConfig, apply_policy, open_recording, record
from tapstudy.policies.base import RunInfo
from tapstudy.policies.nonlinear import NonlinearPolicy, NonlinearTAPPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.adams_bashforth import AdamsBashforth
from tapstudy.predictors.chebyshev import Chebyshev
from tapstudy.predictors.dmd import DynamicModes
from tapstudy.predictors.foca import FoCa
from tapstudy.predictors.frequency import FrequencySplit
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.learned import LearnedLinear, step_gram
from tapstudy.predictors.least_squares import LeastSquares
from tapstudy.predictors.pade import Pade
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.token_least_squares import TokenLeastSquares
from tapstudy.predictors.union import Union

STEPS, GRID = 14, (1, 2, 4)
CONFIG = TAPConfig(interval=4, history_dtype=torch.float64)
NONLINEAR = (DynamicModes(least=3), TokenLeastSquares(), FrequencySplit(cutoff=0.3), Pade())


def curves(seed):
    """(step, batch, token, channel): smooth, of another kind in every token."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 8, 6)
    a, b, c, phase = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    t = torch.arange(STEPS, dtype=torch.float64)[:, None, None, None] / STEPS
    wiggle = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
    return a + b * t + c * torch.sin((1 + 6 * wiggle) * t + phase)


PROBES, RESIDUALS = curves(1), curves(2)


def big_union():
    learned = LearnedLinear.fit(step_gram(RESIDUALS.unbind(1)), (0, 1, 2, 6, 10))
    return Union(
        TaylorFamily(shifts=(0, 2)), HermiteFamily(), AdamsBashforth(), FoCa(), LeastSquares(),
        Chebyshev(num_steps=STEPS), learned,
    )  # fmt: skip


def predictions(policy):
    """Step -> prediction along the true curves."""
    policy.begin(RunInfo(STEPS, GRID))
    found = {}
    for step in range(STEPS):
        if policy.wants_full(step):
            policy.observe(step, PROBES[step], RESIDUALS[step])
        else:
            found[step] = policy.predict(step, PROBES[step])
    return found


def anchors_at(step):
    return [at for at in (10, 6, 2, 1, 0) if at < step]


def naive(candidates, step):
    """Choice, prediction and losses, token by token; a candidate makes (steps, values) into a tensor."""
    anchors = anchors_at(step)
    guesses = [c(anchors, [PROBES[a] for a in anchors], step) for c in candidates]
    outcomes = [c(anchors, [RESIDUALS[a] for a in anchors], step) for c in candidates]
    losses = torch.stack([1 - torch.cosine_similarity(g, PROBES[step], dim=-1, eps=0) for g in guesses], dim=-1)
    choice, residual = torch.zeros(2, 8, dtype=torch.int64), torch.zeros_like(RESIDUALS[0])
    for b in range(2):
        for n in range(8):
            for p in range(len(candidates)):
                if losses[b, n, p] < losses[b, n, choice[b, n]] - 1e-12:
                    choice[b, n] = p
            residual[b, n] = outcomes[choice[b, n]][b, n]
    return choice, residual, losses


def member(family, index):
    def candidate(anchors, values, step):
        count = family.num_anchors
        row = family.rows(anchors[:count], step)[index]
        return sum(w * value for w, value in zip(row, values, strict=False))

    return candidate


def alone(predictor):
    def candidate(anchors, values, step):
        count = predictor.num_anchors
        return predictor.predict(anchors[:count], values[:count], step, grid=GRID)

    return candidate


def compare(policy, candidates):
    taken = set()
    for step, prediction in predictions(policy).items():
        choice, residual, losses = naive(candidates, step)
        torch.testing.assert_close(prediction.proxy_loss, losses, rtol=1e-6, atol=1e-12)
        assert torch.equal(prediction.choice, choice), f"step {step}"
        torch.testing.assert_close(prediction.residual, residual)
        taken.update(policy.labels[index].family for index in choice.flatten().tolist())
    return taken


def test_tap_with_a_union_of_all_linear_families():
    family = big_union()
    taken = compare(TAPPolicy(CONFIG, family=family), [member(family, i) for i in range(len(family.labels))])
    assert len(taken) >= 4, "the case must exercise several families"


def test_tap_with_nonlinear_candidates():
    family = Union(TaylorFamily(shifts=(0, 2)), LeastSquares())
    policy = NonlinearTAPPolicy(NONLINEAR, CONFIG, family=family)
    assert [label.family for label in policy.labels[-4:]] == ["dmd", "token-least-squares", "frequency", "pade"]
    linear = [member(family, i) for i in range(len(family.labels))]
    taken = compare(policy, linear + [alone(predictor) for predictor in NONLINEAR])
    assert {"taylor", "dmd", "frequency"} <= taken


# with anchors of its own number, and with the grid
@pytest.mark.parametrize("predictor", [DynamicModes(least=3), FrequencySplit(cutoff=0.3)], ids=lambda p: p.label.family)
def test_a_nonlinear_predictor_alone(predictor):
    policy = NonlinearPolicy(predictor, CONFIG)
    for step, prediction in predictions(policy).items():
        anchors = anchors_at(step)
        expected = alone(predictor)(anchors, [RESIDUALS[a] for a in anchors], step)
        torch.testing.assert_close(prediction.residual, expected)
        assert prediction.choice.unique().tolist() == [0]


def test_true_errors_of_all_candidates():
    policy = NonlinearTAPPolicy(NONLINEAR, CONFIG)
    predictions(policy)  # ends at step 13 with anchors 10, 6, 2, ..
    errors, distinct = policy.errors(13, RESIDUALS[13])
    assert errors.shape == (2, 8, 19)
    reuse = [True, False, False, False, False]  # horizons 3, 2, 1, 0, -1: at 0 orders 1 and 2 are reuse as well
    assert distinct.tolist() == reuse + 2 * [True, True, True, False, True] + 4 * [True]
    anchors = anchors_at(13)
    expected = alone(NONLINEAR[0])(anchors, [RESIDUALS[a] for a in anchors], 13)
    relative = (expected - RESIDUALS[13]).norm(dim=-1) / RESIDUALS[13].norm(dim=-1)
    torch.testing.assert_close(errors[..., 15], relative)


def test_needs_a_nonlinear_predictor():
    with pytest.raises(ValueError, match="at least one nonlinear predictor"):
        NonlinearTAPPolicy(())


@pytest.mark.parametrize(
    "policy",
    [
        TAPPolicy(TAPConfig(interval=4), family=Union(TaylorFamily(), HermiteFamily(), FoCa(), Chebyshev())),
        NonlinearPolicy(DynamicModes(), TAPConfig(interval=4)),
    ],
    ids=["union", "alone"],
)
def test_sampling_and_recording(policy, tiny_pipe, sample, tmp_path):
    """On a real pipeline: the mask is the schedule, and a recording has scores for every label."""
    with apply_policy(tiny_pipe, policy) as handle:
        assert sample(steps=12).isfinite().all()
        assert all(context.mask == "FFF...F...F." for context in handle.summary().contexts)
    fields = ("proxy_loss", "true_error", "choice") if policy.needs_probe else ("true_error", "choice")
    calls = [{"class_labels": [3], "num_inference_steps": 12, "seed": 0}]
    record(tiny_pipe, calls, tmp_path / "r.zarr", policy=policy, fields=fields, progress=False)
    data = open_recording(tmp_path / "r.zarr").isel(step=11).load()
    assert data.order.values.tolist() == [label.order for label in policy.labels]
    families = [label.family for label in policy.labels]
    assert ("family" in data) == any(families)
    assert not any(families) or data.family.values.tolist() == families
    assert data.true_error.notnull().all()
    assert int(data.choice.max()) < len(policy.labels)
    if policy.needs_probe:  # the choice is the least loss there is
        chosen = data.proxy_loss.isel(predictor=data.choice.astype(int))
        assert (chosen <= data.proxy_loss.min("predictor")).all()
