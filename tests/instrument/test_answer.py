"""What a policy of somebody's own says is refused where it would go wrong in silence."""

from __future__ import annotations

import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.policies.base import Policy, Prediction, RunInfo
from tapstudy.policies.blended import BlendedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.family import Label
from tests.instrument.tiny_models import make

SITES = ["hidden", "tail", "latent", "output"]


class Mine(Policy):
    """One full step; then whatever `answer` makes of the residual that was seen."""

    def __init__(self, answer, *, site="hidden", labels=()):
        self.answer, self.residual_site, self.labels = answer, site, labels

    def wants_full(self, step):
        return step == 0

    def observe(self, step, probe, residual):
        self.residual = residual.clone()

    def predict(self, step, probe, truth=None):
        return self.answer(self.residual)


def skip(answer, *, name="DiT", site="hidden", labels=()):
    tiny = make(name)
    with apply_policy(tiny.model, Mine(answer, site=site, labels=labels)):
        tiny(), tiny()


SHAPES = {
    "one sample": lambda r: r[:1],
    "one token": lambda r: r[:, :1],
    "one channel": lambda r: r[..., :1],
    "a token too many": lambda r: torch.cat([r, r[:, :1]], dim=1),
    "a sample too many": lambda r: torch.cat([r, r[:1]]),
    "tokens and channels mixed": lambda r: r.reshape(len(r), 2 * r.shape[1], -1),
}


def refuse_every_shape(name, site):
    for change, reshaped in SHAPES.items():
        try:
            with pytest.raises(
                ValueError, match=r"Mine.predict at step 1 gave a residual of shape .* one of the shape"
            ):
                skip(lambda residual, reshaped=reshaped: Prediction(reshaped(residual)), name=name, site=site)
        except BaseException as error:
            error.add_note(change)
            raise


@pytest.mark.parametrize(
    ("name", "site"),
    [("DiT", "hidden"), ("Lumina2", "tail"), ("CogVideoX", "output"), ("ZImage", "latent")],
)
def test_no_other_shape_enters(name, site):
    """A plain sequence, text in the sequence, frames before the channels, a list of samples."""
    refuse_every_shape(name, site)


@pytest.mark.parametrize("site", SITES)
def test_floats_enter_and_no_other_kind_of_number(site):
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match="must be a float of 16 bits or more"):
            skip(lambda residual, dtype=dtype: Prediction(residual.to(dtype)), site=site)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tiny = make("DiT")
        with apply_policy(tiny.model, Mine(lambda residual, dtype=dtype: Prediction(residual.to(dtype)), site=site)):
            full, predicted = tiny(), tiny()
        assert predicted.dtype == full.dtype
        torch.testing.assert_close(predicted, full, rtol=0.02, atol=0.05)


def test_no_other_device_enters():
    with pytest.raises(ValueError, match="gave a residual on meta, but the model computes on cpu: bring it there"):
        skip(lambda residual: Prediction(residual.to("meta")))


def test_only_predictions_enter():
    for wrong in (None, torch.zeros(2, 16, 16), (1, 2)):
        with pytest.raises(
            TypeError, match=r"Mine.predict at step 1 must return a Prediction, got .*Prediction\(...\)"
        ):
            skip(lambda residual, wrong=wrong: wrong)


LABELS = (Label(0, 0), Label(1, 0))


def test_choices_and_losses_fit_the_labels():
    for labels, extra, message in (
        ((), {"choice": torch.zeros(2, 16, dtype=torch.int64)}, "the policy has no labels"),
        (LABELS, {"losses": torch.zeros(2, 16, 3)}, "losses of 3 predictors, but the policy has 2 labels"),
        (LABELS, {"losses": torch.zeros(2, 16, 1)}, "losses of 1 predictors, but the policy has 2 labels"),
        (LABELS, {"losses": torch.zeros(2, 16, 1), "inverse": torch.tensor([0])}, "of 1 predictors, but .* 2 labels"),
    ):
        with pytest.raises(ValueError, match=message):
            skip(lambda residual, extra=extra: Prediction(residual, **extra), labels=labels)


RESIDUAL = torch.zeros(2, 6, 4)


def test_a_prediction_fits_itself():
    for values, error, message in (
        ((RESIDUAL[0],), ValueError, r"residual must be \(batch, token, channel\), got shape \(6, 4\)"),
        (([1.0],), TypeError, "residual must be a tensor, got list"),
        ((RESIDUAL, torch.zeros(2, 6)), TypeError, "choice must be a tensor of integers, got torch.float32"),
        ((RESIDUAL, 3), TypeError, "choice must be a tensor of integers, got int"),
        (
            (RESIDUAL, torch.zeros(1, 6, dtype=torch.int64)),
            ValueError,
            r"\(2, 6\) and have 2 dimensions, got .*\(1, 6\)",
        ),
        ((RESIDUAL, torch.zeros(6, dtype=torch.int64)), ValueError, "have 2 dimensions"),
        ((RESIDUAL, None, torch.zeros(2, 6)), ValueError, "losses must begin with .* and have 3 dimensions"),
        ((RESIDUAL, None, torch.zeros(2, 1, 5)), ValueError, "losses must begin with"),
    ):
        with pytest.raises(error, match=message):
            Prediction(*values)


def test_losses_put_together_later_are_looked_at_then():
    prediction = Prediction(RESIDUAL, losses=lambda: torch.zeros(2, 1, 5))
    with pytest.raises(ValueError, match="losses must begin with"):
        _ = prediction.proxy_loss


# What a policy had not asked for


class Undeclared(TAPPolicy):
    needs_probe = False


class ReadsWhenObserving(Mine):
    def observe(self, step, probe, residual):
        self.residual = residual * probe.mean()


class ReadsWhenPredicting(Mine):
    def predict(self, step, probe, truth=None):
        return Prediction(self.residual + probe.mean())


class ReadsWhenSkipping(Mine):
    def skipped(self, step, probe, prediction):
        self.before = torch.linalg.vector_norm(probe)


class ReadsTheTruth(Mine):
    def predict(self, step, probe, truth=None):
        return Prediction(truth.clone())


def test_what_is_read_must_be_asked_for():
    for cls, method, what in (
        (ReadsWhenObserving, "observe", "probe"),
        (ReadsWhenPredicting, "predict", "probe"),
        (ReadsWhenSkipping, "skipped", "probe"),
        (ReadsTheTruth, "predict", "truth"),
    ):
        tiny = make("DiT")
        with (
            apply_policy(tiny.model, cls(Prediction)),
            pytest.raises(
                TypeError, match=rf"{cls.__name__}.{method} failed .*NoneType.*set .*needs_{what}.* = True on it"
            ),
        ):
            tiny(), tiny()


def test_a_policy_that_scores_a_probe_it_did_not_ask_for():
    tiny = make("DiT")
    with apply_policy(tiny.model, Undeclared(TAPConfig(warmup_steps=1))), pytest.raises(TypeError, match="needs_probe"):
        tiny(), tiny()


def test_other_errors_of_a_policy_stay_as_they_are():
    class Broken(BlendedPolicy):
        def predict(self, step, probe, truth=None):
            raise IndexError("mine")

    tiny = make("DiT")
    with apply_policy(tiny.model, Broken(TAPConfig(warmup_steps=1))), pytest.raises(IndexError, match=r"^mine$"):
        tiny(), tiny()


def test_what_a_policy_declares_is_known():
    model = make("DiT").model
    for field, value in (
        ("residual_site", "middle"),
        ("probe_kind", "attention"),
        ("probe_depth", -1),
        ("probe_depth", 1.0),
    ):
        policy = Mine(Prediction)
        setattr(policy, field, value)
        with pytest.raises(ValueError, match=f"Mine: {field} must be .*{value}"):
            apply_policy(model, policy)


def test_an_error_leaves_no_half_step_behind():
    tiny, right = make("DiT"), []
    with apply_policy(tiny.model, Mine(lambda r: Prediction(r if right else r[:1]))) as handle:
        tiny()
        with pytest.raises(ValueError, match="gave a residual of shape"):
            tiny()
        right.append(True)
        tiny(), tiny()
        assert handle.summary().contexts[0].mask == "F."
    Mine(Prediction).begin(RunInfo())
