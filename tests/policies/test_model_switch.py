"""Another model that makes the passes that the policy gives it."""

import pytest
import torch

from tapstudy import apply_policy
from tapstudy.bench.engine import text_of
from tapstudy.instrument.flops import count_flops
from tapstudy.policies.model_switch import ModelSwitchPolicy
from tests.instrument.tiny_models import make
from tests.table import each_row


@pytest.mark.parametrize("name", ["DiT", "Flux"])
def test_the_other_model_makes_the_other_steps(name):
    tiny, other = make(name), make(name, seed=1)
    plain, others = tiny(), other(**tiny.inputs)
    with apply_policy(tiny.model, ModelSwitchPolicy(other.model, 2)) as handle:
        outputs = [tiny() for _ in range(4)]
        assert handle.summary().mask == "FFpp"
        assert handle._instruments[type(tiny.model).__name__].runs["default"].policy.models[0] is other.model
    assert all(torch.equal(output, plain) for output in outputs[:2])
    assert all(torch.equal(output, others) for output in outputs[2:])
    assert torch.equal(tiny(), plain)


def test_its_cost_is_its_own():
    tiny, other = make("SD3"), make("SD3", seed=1)
    del other.model.transformer_blocks[1]
    expected = count_flops(tiny), count_flops(other)
    assert expected[1] < expected[0]
    with apply_policy(tiny.model, ModelSwitchPolicy(other.model, 1)):
        assert (count_flops(tiny), count_flops(tiny)) == expected
    with apply_policy(tiny.model, ModelSwitchPolicy(other.model, 1)) as handle:
        for _ in range(4):
            tiny()
        summary = handle.summary()
    assert summary.flops_note is None
    assert summary.flops_ratio == 4 * expected[0] / (expected[0] + 3 * expected[1])
    with pytest.raises(TypeError, match="can be called"):
        ModelSwitchPolicy("small", 1)


@each_row(("own", "mask"), [(4, "FFFF"), (9, "FFFF"), (1, "Fppp"), (0, "pppp"), ((0, 2), "FpFp"), ({3}, "pppF")])
def test_which_steps_are_its_own(own, mask):
    policy = ModelSwitchPolicy(make("DiT").model, own)
    assert "".join("F" if policy.wants_full(step) else "p" for step in range(4)) == mask


@pytest.mark.parametrize(("own", "mask"), [((0, 2), "FpFp"), ((), "Fppp")])
def test_steps_of_its_own_are_the_model_s_to_the_last_bit(own, mask):
    """The first of all is full in any case."""
    tiny, other = make("DiT"), make("DiT", seed=1)
    plain, others = tiny(), other(**tiny.inputs)
    with apply_policy(tiny.model, ModelSwitchPolicy(other.model, own)) as handle:
        outputs = [tiny() for _ in range(4)]
        assert handle.summary().mask == mask
    for kind, output in zip(mask, outputs, strict=True):
        assert torch.equal(output, plain if kind == "F" else others)


@each_row("own", [-1, 1.5, (1, -2), ("1",), True])
def test_steps_that_are_none(own):
    with pytest.raises((TypeError, ValueError), match="ModelSwitchPolicy: large_steps must be"):
        ModelSwitchPolicy(make("DiT").model, own)


def test_settings_tell_the_other_models_apart():
    one, same, another = (text_of(ModelSwitchPolicy(make("DiT", seed=seed).model, 2)) for seed in (0, 0, 1))
    assert one == same != another
    assert "DiTTransformer2DModel" in one
