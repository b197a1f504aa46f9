"""A policy computes the same in every mode of torch, and what it keeps is no part of the model's graph."""

from __future__ import annotations

import pkgutil
import warnings
from importlib import import_module

import pytest
import torch

import tapstudy.policies
from tapstudy import apply_policy
from tapstudy.policies.base import Policy, RunInfo, apart
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make
from tests.policies.every import CONFIG, STEPS, every_policy

WIDTH = 16  # of the tiny SD3
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def test_the_list_is_complete():
    for module in pkgutil.iter_modules(tapstudy.policies.__path__):
        import_module(f"tapstudy.policies.{module.name}")

    def below(cls):
        return {cls}.union(*map(below, cls.__subclasses__())) if cls.__subclasses__() else {cls}

    known = {
        cls for cls in below(Policy) if cls.__module__.startswith("tapstudy.policies.") and not cls.__abstractmethods__
        and not cls.__name__.startswith("_")
    }  # fmt: skip
    assert {type(policy) for policy in every_policy(WIDTH).values()} == known


# In a model


def run(policy, modes):
    """Outputs and mask of a run in which step i is made in mode `modes[i % len(modes)]`."""
    tiny, outputs = make("SD3"), []
    with warnings.catch_warnings(), apply_policy(tiny.model, policy) as handle:
        warnings.simplefilter("ignore", UserWarning)  # some policies have no schedule for so few steps
        for step in range(STEPS):
            mode = modes[step % len(modes)]
            with MODES[mode]():
                output = tiny.model(**tiny.at(step, STEPS), return_dict=False)[0]
            assert output.requires_grad == (mode == "grad")
            assert output.is_inference() == (mode == "inference")
            if mode == "grad":
                output.square().sum().backward()  # the history has nothing that this could need
            outputs.append(output.detach().clone())
        return torch.stack(outputs), handle.summary().contexts[0].mask


# those that run some of the model, one for every way to keep what ran; and one for every way to ask the instrument
IN_A_MODEL = ["dbcache", "delta dit", "modules", "similarity", "temporal delta", "hsa", "model switch", "ras",
              "tap tokens", "toca", "full", "tap", "tap latent", "tap deep", "diffusers taylor", "first block",
              "oracle"]  # fmt: skip
PLANS = [
    ["grad"],
    ["inference"] * 3 + ["no_grad"],
    ["inference"] * 3 + ["grad"] * 7,
    ["grad", "no_grad", "inference", "grad", "inference"],
]


@pytest.mark.parametrize("name", IN_A_MODEL)
def test_any_mode_at_any_step(name):
    """Up to rounding: where gradients are recorded no module is spared, and patches come of another product."""
    expected, mask = run(every_policy(WIDTH)[name], ["no_grad"])
    assert (name in ("full", "similarity")) == (not {*".ps"} & {*mask})
    for plan in PLANS[:1] + PLANS[-1:]:
        outputs, found = run(every_policy(WIDTH)[name], plan)
        assert found == mask, plan
        assert relative_error(outputs, expected) < 1e-4, plan


# On its own


def path(step):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 24, WIDTH, generator=generator), torch.randn(2, 24, WIDTH, generator=generator)
    return a + torch.sin(torch.tensor(0.2 * step)) * b + 0.05 * step * a.roll(1, -1)


def drive(policy, modes):
    """Residuals predicted when the policy is called directly, on features that require a gradient where they can."""
    found = []
    policy.begin(RunInfo(STEPS, (1, 4, 6)))
    for step in range(STEPS):
        with MODES[modes[step % len(modes)]]():
            probe = path(step) if policy.probe_kind != "stream" else torch.stack([path(step), path(step + 20)])
            residual = path(step + 40)
            if modes[step % len(modes)] == "grad":
                probe.requires_grad_(), residual.requires_grad_()
            full = policy.wants_full(step) or (policy.decides_by_probe and policy.wants_full_given(step, probe))
            if full:
                policy.observe(step, probe, residual)
                continue
            prediction = policy.predict(step, probe, residual)
            policy.skipped(step, probe, prediction)
            assert not prediction.residual.requires_grad
            found.append(prediction.residual.clone())
    return found


def assert_same(found, expected):
    """But for rounding, which in products depends on where in memory the buffers lie."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# those that decide or take in a step in a way of their own, and of the others one for every kind of prediction: rows
# chosen or given, solved for, mixed, of many candidates or of the truth
ALONE = ["adaptive", "class rows", "cg taylor", "dicache", "drift", "easycache", "first block", "full", "seacache",
         "smoothed", "teacache", "wiener", "tap", "calibrated", "ridge", "blended", "nonlinear dmd", "nonlinear tap",
         "oracle"]  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_called_directly(name):
    """In any mode, and under autocast."""
    expected = drive(every_policy(WIDTH)[name], ["no_grad"])
    for plan in PLANS:
        assert_same(drive(every_policy(WIDTH)[name], plan), expected)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found = drive(every_policy(WIDTH)[name], ["no_grad"])
        assert_same(found, expected)


# what is given features of the model, or makes some
SEEING = ("decision", "observe", "observe_part", "predict", "predict_part", "ran", "skipped", "wants_full_given")


def test_a_policy_of_ones_own_is_apart_too():
    def see(self, tensor):
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return modes, tensor @ tensor.mT

    mine = type("Mine", (FullPolicy,), dict.fromkeys(SEEING, see))()
    for mode in MODES.values():
        for method in SEEING:
            with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                modes, product = getattr(mine, method)(torch.ones(1, 2, 3))
            assert modes == (False, False, False), method
            assert product.dtype == torch.float32
            assert not product.is_inference()


def test_apart_leaves_the_mode_as_it_was():
    for mode in MODES.values():
        with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            with pytest.raises(ZeroDivisionError), apart():
                1 // 0 if not torch.is_autocast_enabled("cpu") else None
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
            assert torch.is_autocast_enabled("cpu")


@pytest.mark.slow  # compiling takes seconds
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_the_compiled_step_in_every_mode_and_under_autocast():
    torch.compiler.reset()
    expected = drive(TAPPolicy(CONFIG), ["no_grad"])
    policy = TAPPolicy(CONFIG, compile=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = drive(policy, ["inference", "grad", "no_grad"])
    assert policy.compiled._compiled is not None
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
