"""Rounded weights: by hand on a small matrix, and gone without a trace."""

import accelerate
import pytest
import torch
from torch import nn

import tapstudy
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.quantise import rounded_weight
from tests.conftest import make_tiny_pipe
from tests.instrument.tiny_models import make


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_by_hand():
    """3 bits: levels from -3 to 3 times a third of the largest magnitude of a row; zeros stay."""
    weight = torch.tensor([[3.0, -1.4, 0.4], [0.0, 0.0, 0.0]])
    assert rounded_weight(weight, 3).tolist() == [[3.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    assert rounded_weight(torch.tensor([[-6.0, 2.9, 3.1]]), 3).tolist() == [[-6.0, 2.0, 4.0]]
    assert rounded_weight(torch.tensor([[5.0, -2.4, 2.6]]), 2).tolist() == [[5.0, 0.0, 5.0]]


@pytest.mark.parametrize("name", ["DiT", "Flux2", "HiDream"])
def test_rounds_blocks_alone_and_leaves_no_trace(name):
    model = make(name).model
    before = weights(model)
    with tapstudy.quantise(model, 4) as handle:
        changed = {path for path, value in model.state_dict().items() if not torch.equal(value, before[path])}
        assert changed <= {f"{path}.weight" for path in handle.layers}
        assert {path.partition(".")[0] for path in handle.layers} == {*find_adapter(model).blocks}
        for path in handle.layers:
            rows = model.get_submodule(path).weight
            assert max(len(row.unique()) for row in rows) <= 15
            assert torch.allclose(rows.abs().amax(dim=1), before[f"{path}.weight"].abs().amax(dim=1))
    assert changed
    assert equal(model, before)
    assert not any("in_force" in name for module in model.modules() for name in vars(module))


def test_sixteen_bits_are_nearly_exact():
    pipe = make_tiny_pipe()
    call = {"num_inference_steps": 4, "output_type": "latent", "return_dict": False}

    def sample():
        return pipe([1, 2], generator=torch.Generator().manual_seed(0), **call)[0]

    exact = sample()
    errors = []
    for bits in (16, 8, 4):
        with tapstudy.quantise(pipe, bits), tapstudy.tap(pipe, interval=1):
            errors.append(float((sample() - exact).abs().max() / exact.abs().max()))
    assert errors[0] < 1e-3 < errors[2]
    assert errors == sorted(errors)
    assert torch.equal(sample(), exact)


def test_beside_a_low_pass_of_the_clock_in_any_order():
    model = make("DiT").model
    before = weights(model)
    smooth = tapstudy.smooth_time(model, 10)
    rounded = tapstudy.quantise(model, 6)
    assert not set(smooth.layers) & set(rounded.layers)
    smooth.remove()
    rounded.remove()
    assert equal(model, before)


def test_refusals():
    pipe = make_tiny_pipe()
    for bits in (1, 17, 4.0, True):
        with pytest.raises(ValueError, match="bits must be a whole number from 2 to 16"):
            tapstudy.quantise(pipe, bits)
    with pytest.raises(TypeError):
        tapstudy.quantise(nn.Linear(2, 2))
    before = weights(pipe.transformer)
    with tapstudy.quantise(pipe), pytest.raises(RuntimeError, match="quantised already, to 8 bits"):
        tapstudy.quantise(pipe, 4)
    assert equal(pipe.transformer, before)

    class Int8Linear(nn.Linear):
        """As of a library of quantisation."""

    block = pipe.transformer.transformer_blocks[1]
    held = block.attn1.to_q
    block.attn1.to_q = Int8Linear(held.in_features, held.out_features)
    with pytest.raises(ValueError, match=r"attn1\.to_q is a Int8Linear, not a plain"):
        tapstudy.quantise(pipe)
    assert not hasattr(pipe.transformer.transformer_blocks[0].attn1.to_q, "_quantise_in_force")
    block.attn1.to_q = nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"out of reach .* use quantise before offloading"):
        tapstudy.quantise(pipe)
    del pipe.transformer.transformer_blocks[:]
    with pytest.raises(ValueError, match="nothing to quantise: there is no linear layer in its blocks"):
        tapstudy.quantise(pipe)


def test_on_a_model_that_waits_on_the_cpu():
    model = make("Flux").model
    before = weights(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    with tapstudy.quantise(model, 4):
        pass
    accelerate.hooks.remove_hook_from_submodules(model)
    assert equal(model, before)
