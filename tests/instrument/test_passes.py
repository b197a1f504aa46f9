"""Full passes that are kept, and run again at other times."""

import pytest
import torch

from tapstudy.instrument.passes import full_passes
from tests.instrument.tiny_models import make


def kept_pass(model, inputs, change=lambda: None):
    """One pass of a model; then `change` is called, and the pass run again half a unit later."""
    with full_passes(model) as passes:
        held = []
        passes.run(lambda: model(**inputs), lambda one: held.append(passes.kept(one)))
        change()
        return passes.again(held[0], 0.5)["output"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16])
def test_a_kept_pass_runs_again_at_another_time(dtype):
    """Fractions of a unit count, and what the sampling loop writes into its latent afterwards does not."""
    tiny = make("DiT")
    inputs = {**tiny.inputs, "timestep": torch.full((2,), 400, dtype=dtype)}
    latent = inputs[tiny.latent]
    expected = tiny(**{**inputs, "timestep": torch.full((2,), 400.5)})
    assert not torch.equal(expected, tiny(**{**inputs, "timestep": torch.full((2,), 400.0)}))
    with torch.no_grad():
        again = kept_pass(tiny.model, {**inputs, tiny.latent: latent}, change=latent.zero_)
    assert torch.equal(again, expected)


def test_tokens_at_time_zero_stay_there():
    """As those of a given picture do, beside noisy ones."""
    tiny = make("LTX")
    times = torch.zeros(2, tiny.tokens)
    times[:, tiny.tokens // 2 :] = 600.0
    moved = times + 0.5 * (times != 0)
    with torch.no_grad():
        again = kept_pass(tiny.model, {**tiny.inputs, "timestep": times})
    assert torch.equal(again, tiny(timestep=moved))
    assert not torch.equal(again, tiny(timestep=times + 0.5))
