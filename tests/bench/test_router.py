"""The learned router: gates cost what the policy's run costs, and gradients know which of them matter."""

import pytest
import torch

from tapstudy import apply_policy
from tapstudy.bench.fit import router
from tapstudy.bench.fit.router import Budget, learn_gates
from tapstudy.bench.flops import transformer_flops
from tapstudy.bench.frontier.comparison import frontier
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.plan import FrontierPlan
from tapstudy.policies.blocks.bac import ModuleTablePolicy
from tests.conftest import make_tiny_pipe
from tests.training.emoji import tiny_pipe

IMAGES = ImageSet("tiny", ((0, 1), (1, 2)), steps=6, guidance=2.0)


@pytest.fixture
def pipe():
    """With modulation that is not 0, so that all layers count."""
    pipe = make_tiny_pipe()
    generator = torch.Generator().manual_seed(0)
    for block in pipe.transformer.transformer_blocks:
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.3, generator=generator)
        torch.nn.init.normal_(block.norm1.linear.bias, std=0.3, generator=generator)
    return pipe


@pytest.fixture
def budget(pipe):
    return Budget(pipe, IMAGES[:1], 3.5)


def test_gates_cost_what_the_policy_runs(pipe, budget):
    """All of the budget is spent but for less than a layer."""
    table = budget.random(seed=1)
    one = IMAGES[:1]

    def run(steps):
        return transformer_flops(pipe, lambda: one.run_transformer(pipe, steps))

    with torch.no_grad():
        full = run(1)
        with apply_policy(pipe, ModuleTablePolicy(table)):
            spent = run(6) / full
    assert spent <= 3.5 + 1e-9
    assert spent > 3.5 - float(budget.costs.max())
    assert all(steps[0] == 0 for steps in table.values())
    assert budget.random(seed=1) == table != budget.random(seed=2)


def test_the_largest_scores_are_opened_as_far_as_they_fit(budget):
    budget.costs, budget.left = torch.tensor([1.0, 0.25], dtype=torch.float64), 1.6
    scores = torch.tensor([[0.0, 0.0], [3.0, 1.0], [4.0, 2.0], [0.0, 0.5]])
    assert budget.gates(scores).tolist() == [[1, 1], [0, 1], [1, 1], [0, 0]]  # 1.5 of 1.6


def test_a_gated_run_is_that_of_the_policy(pipe, budget):
    table = budget.gates(torch.rand((6, len(budget.parts)), generator=torch.Generator().manual_seed(3)))
    with torch.no_grad(), router._gated(pipe, budget.parts) as gates:
        full, gated = (router._sampled(pipe, gates, IMAGES, one) for one in (None, table))
    torch.testing.assert_close(full, 2 * IMAGES.sample(pipe) - 1, rtol=0, atol=1e-6)
    with apply_policy(pipe, ModuleTablePolicy(budget.table(table))):
        expected = 2 * IMAGES.sample(pipe) - 1
    torch.testing.assert_close(gated, expected, rtol=0, atol=1e-5)
    assert (gated - full).abs().max() > 1e-3


def test_gates_of_two_streams_and_of_layers_side_by_side():
    """Two passes a step, each with layers of its own that were kept."""
    pipe = tiny_pipe()
    images = ImageSet("tiny", ((0, "apple"), (1, "pear")), steps=4, guidance=3.0)
    budget = Budget(pipe, images[:1], 2.5)
    assert {part.site for part in budget.parts} == {"attention", "feed_forward", "joint"}
    table = budget.even(2)
    with torch.no_grad(), router._gated(pipe, budget.parts) as gates:
        full, gated = (router._sampled(pipe, gates, images, one) for one in (None, table))
    torch.testing.assert_close(full, 2 * images.sample(pipe) - 1, rtol=0, atol=1e-5)
    with apply_policy(pipe, ModuleTablePolicy(budget.table(table))):
        torch.testing.assert_close(gated, 2 * images.sample(pipe) - 1, rtol=0, atol=1e-5)
    assert (gated - full).abs().max() > 1e-4
    assert learn_gates(pipe, images, budget, table, rounds=1, progress=False).shape == table.shape


def test_rows_of_the_comparison(pipe, tmp_path):
    """They meet the FLOPs of five full passes; a second call learns nothing anew."""
    pipe.save_pretrained(tmp_path / "model")
    plan = FrontierPlan(
        model=str(tmp_path / "model"), seeds=(3,), held_out=(4,), labels=(1, 2, 3), passes=(5,), steps=12, tuning=1
    )
    names = ("hsa", "router", "router-random")
    found = frontier(plan, tmp_path / "work", methods=names, repeats=1, progress=False)
    share = found["flops"].mean("sample") / found["flops"].sel(cell="reference").mean()
    for name in names:
        assert float(share.sel(cell=f"{name} N=4")) == pytest.approx(5 / 12, rel=0.15), name
    assert (tmp_path / "work" / "chosen" / "router-tables-5.json").exists()
    again = frontier(plan, tmp_path / "work", methods=names, repeats=1, progress=False)
    assert again["setting"].values.tolist() == found["setting"].values.tolist()


def test_gradients_are_slopes(pipe, budget):
    """Of the error in one gate, by finite differences; and the model is as it was."""
    before = {name: weight.requires_grad for name, weight in pipe.transformer.named_parameters()}
    pipe.transformer.double()
    table = budget.even(3).double()
    with router._gated(pipe, budget.parts) as gates:
        with torch.no_grad():
            exact = router._sampled(pipe, gates, IMAGES, None)

        def error(opened):
            return (router._sampled(pipe, gates, IMAGES, opened) - exact).double().square().mean()

        opened = table.clone().requires_grad_()
        (slope,) = torch.autograd.grad(error(opened), opened)
        for step, part in ((1, 0), (2, 3), (5, 5)):
            moved = torch.zeros_like(table)
            moved[step, part] = 1e-3
            with torch.no_grad():
                found = (error(table + moved) - error(table - moved)) / 2e-3
            assert float(slope[step, part]) == pytest.approx(float(found), rel=0.02, abs=1e-9)
    assert {name: weight.requires_grad for name, weight in pipe.transformer.named_parameters()} == before
    assert not any(module._forward_hooks for module in pipe.transformer.modules())


def test_learning_brings_images_closer(pipe, budget):
    """From a random table; also others, and no gates are learned that the budget cannot pay."""
    start = budget.gates(torch.rand((6, len(budget.parts)), generator=torch.Generator().manual_seed(0)))
    learned = learn_gates(pipe, IMAGES, budget, start, rounds=3, progress=False)
    others = ImageSet("tiny", ((7, 5), (8, 6)), steps=6, guidance=2.0)

    def error(gates, images):
        exact = images.sample(pipe)
        with apply_policy(pipe, ModuleTablePolicy(budget.table(gates))):
            return float((images.sample(pipe) - exact).square().mean())

    assert error(learned, IMAGES) < 0.8 * error(start, IMAGES)
    assert error(learned, others) < 0.9 * error(start, others)
    assert float((learned[1:].double() @ budget.costs).sum()) <= budget.left + 1e-6


def test_what_a_gate_is_worth_is_what_the_error_says(pipe, budget):
    """Of gates by themselves: opened or closed, the squared error moves by that, about; noise averages to it."""
    table = budget.even(3)
    exact = IMAGES[:1].sample(pipe)
    generator = torch.Generator().manual_seed(0)
    found = [router._values(pipe, IMAGES[:1], budget, table, exact, generator) for _ in range(40)]
    values = torch.stack(found).mean(dim=0) * budget.costs.float()

    def error(gates):
        with torch.no_grad(), router._gated(pipe, budget.parts) as hooks:
            return float((router._sampled(pipe, hooks, IMAGES[:1], gates) / 2 + 0.5 - exact).square().sum())

    expected = torch.zeros_like(values)
    for step in range(1, 6):
        for part in range(len(budget.parts)):
            flipped = table.clone()
            flipped[step, part] = 1 - table[step, part]
            expected[step, part] = (error(table) - error(flipped)) * (1 if table[step, part] == 0 else -1)
    agree = torch.corrcoef(torch.stack([values[1:].flatten(), expected[1:].flatten()]))[0, 1]
    assert agree > 0.9


def test_a_budget_that_cannot_be_met(pipe):
    with pytest.raises(ValueError, match="a router cannot meet 1 full passes"):
        Budget(pipe, IMAGES[:1], 1)
