"""Methods that the comparison sets to the FLOPs of full passes: a small model of the family, and profiled blocks."""

from math import prod

import numpy as np
import pytest
import torch

from tapstudy.bench.fit import attention
from tapstudy.bench.fit.attention import foreground, foreground_attention, groups_of
from tapstudy.bench.frontier import comparison
from tapstudy.bench.frontier.comparison import frontier
from tapstudy.bench.methods import METHODS
from tapstudy.bench.plan import FrontierPlan
from tests.conftest import make_tiny_pipe

PLAN = {"seeds": (3,), "held_out": (4,), "labels": (1, 2, 3), "passes": (5,), "steps": 12, "tuning": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and the same with one of its three blocks beside it."""
    folder = tmp_path_factory.mktemp("models")
    pipe = make_tiny_pipe()
    pipe.save_pretrained(folder / "model")
    pipe.save_pretrained(folder / "lonely")
    pipe.transformer.transformer_blocks = pipe.transformer.transformer_blocks[:1]
    pipe.transformer.register_to_config(num_layers=1)
    pipe.save_pretrained(folder / "model-small")
    return folder


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    methods = ["model-switch", "profiling", "profiling-foreground"]
    plan = FrontierPlan(model=str(folder / "model"), **PLAN)
    return frontier(plan, tmp_path_factory.mktemp("work"), methods=methods, repeats=1, progress=False)


def test_the_switch_is_as_expensive_as_the_full_passes(found):
    """A step of the small model costs about a third; so the model makes one or two of twelve for five."""
    switched, full = found.sel(cell="model-switch N=4"), found.sel(cell="reference")
    mask = switched["mask"].item(0)
    own = mask.count("F")
    assert set(mask) == {"F", "p"}
    assert mask[0] == "F"
    small = (float(switched["flops"][0]) / float(full["flops"][0]) * 12 - own) / (12 - own)
    assert 0.3 < small < 0.4
    costs = [1 + (12 - 1) * small, 2 + (12 - 2) * small]
    assert own == 1 + int(abs(costs[1] - 5) < abs(costs[0] - 5))
    assert "DiTTransformer2DModel" in switched["setting"].item()


def test_a_model_without_a_small_one(folder, tmp_path, monkeypatch):
    plan = FrontierPlan(model=str(folder / "lonely"), **PLAN)
    reason = "lonely has no small model of its family to switch to: it would be called .*lonely-small"
    with pytest.raises(ValueError, match=rf"model-switch: .*{reason}"):
        frontier(plan, tmp_path, methods=["fewer", "model-switch"], progress=False)
    assert not list(tmp_path.rglob("*.nc"))
    monkeypatch.setattr(comparison, "compared_methods", lambda names: [METHODS["fewer"], METHODS["model-switch"]])
    row = frontier(plan, tmp_path, repeats=1, progress=False).sel(cell="model-switch N=4")
    assert "lonely-small" in row["error"].item()
    assert np.isnan(row["psnr"]).all()


def test_profiled_groups_are_as_expensive_and_their_control_leaves_out_the_others(found):
    """Five passes are out of reach where one of three blocks runs at all steps: both go as far as they can."""
    rows = [found.sel(cell=f"{name} N=4") for name in ("profiling", "profiling-foreground")]
    costs = [float(row["flops"][0]) / float(found["flops"].sel(cell="reference")[0]) for row in rows]
    assert costs[0] == pytest.approx(costs[1])
    assert 5 / 12 < costs[0] < 0.6
    texts = [row["setting"].item() for row in rows]
    assert all(text.startswith("GroupsPolicy") for text in texts)
    assert texts[0] != texts[1]


def test_neighbours_are_one_group():
    assert groups_of([5, 0, 1, 7, 6, 3]) == ((0, 2), (3, 4), (5, 8))
    assert groups_of([]) == ()


def test_the_foreground_by_hand():
    """Tokens of 2 x 2 pixels; three pixels of one differ by 1, one of another by 0.5, which is below the average."""
    image = torch.full((1, 1, 4, 4), 0.2)
    image[0, 0, :2, :2] = torch.tensor([[1.2, 1.2], [1.2, 0.2]])
    image[0, 0, 3, 3] = 0.7
    assert foreground(image, (2, 2)).tolist() == [[True, False, False, False]]
    assert not foreground(torch.ones(1, 3, 4, 4), (2, 2)).any()


def test_attention_by_hand(monkeypatch):
    """Even attention gives 1, also in the one block whose queries are zero; keys that shine draw all of it."""
    pipe = make_tiny_pipe()
    blocks = pipe.transformer.transformer_blocks
    plan = FrontierPlan(model="tiny", **{**PLAN, "tuning": 2})
    masks = torch.zeros(1, 16, dtype=torch.bool)
    masks[0, :4] = True
    monkeypatch.setattr(attention, "foreground", lambda images, grid: masks.expand(len(images), prod(grid)))
    with torch.no_grad():
        blocks[1].attn1.to_q.weight.zero_()
        blocks[1].attn1.to_q.bias.zero_()
        plain = pipe.transformer.state_dict()
        found = foreground_attention(pipe, plan.fitted_to)
    assert found[1] == pytest.approx(1)
    assert found[0] != pytest.approx(1)
    assert len(found) == 3
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in [*blocks, pipe.transformer])
    assert plain.keys() == pipe.transformer.state_dict().keys()
    queries, keys = torch.zeros(2, 1, 16, 4), torch.zeros(2, 1, 16, 4)
    queries[..., 0], keys[:, :, :4, 0] = 100, 100
    watch = attention._Attention(1)
    watch.block, watch.grid = 0, (4, 4)
    with watch:
        torch.nn.functional.scaled_dot_product_attention(queries, keys, keys)
    expected = torch.zeros(1, 16, dtype=torch.float64)
    expected[0, :4] = 2 / 4  # of either sample of the pass
    torch.testing.assert_close(watch.sums[0], expected, atol=1e-6, rtol=0)


def test_images_of_one_colour(monkeypatch):
    monkeypatch.setattr(attention, "foreground", lambda images, grid: torch.zeros(len(images), prod(grid)).bool())
    with pytest.raises(ValueError, match="no image has a foreground"):
        foreground_attention(make_tiny_pipe(), FrontierPlan(model="tiny", **PLAN).fitted_to)
