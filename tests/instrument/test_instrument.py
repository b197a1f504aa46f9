"""The instrument on the tiny DiT: exactness, counting, state."""

import warnings

import pytest
import torch

import tapstudy
from tapstudy import TAPConfig, apply_policy, apply_tap
from tapstudy.instrument import hooks
from tapstudy.instrument.call import Call
from tapstudy.instrument.hooks import BlockHook
from tapstudy.instrument.instrument import Instrument
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.conftest import make_tiny_pipe
from tests.instrument.tiny_models import make
from tests.table import each_row


class ExactPolicy(Policy):
    """Skips every other step with the residual a full pass would have given (looked up by step)."""

    def __init__(self, truth, *, residual="hidden", scale=1.0):
        self.truth, self.residual_site, self.scale = truth, residual, scale

    def wants_full(self, step):
        return step % 2 == 0

    def observe(self, step, probe, residual):
        pass

    def predict(self, step, probe, truth=None):
        return Prediction(self.truth[step] * self.scale)


def record(pipe, sample, **kwargs):
    """Residual of every step along the exact trajectory."""
    residuals = {}
    with apply_policy(pipe, FullPolicy(**kwargs)) as handle:
        handle.listen(lambda event: residuals.update({event.step: event.residual}))
        sample()
    return residuals


def test_never_skipping_is_bit_equal(tiny_pipe, sample):
    plain = sample()
    for residual in ("hidden", "latent"):
        with apply_tap(tiny_pipe, TAPConfig(interval=1, residual=residual)) as handle:
            assert torch.equal(sample(), plain)
        assert handle.summary().contexts[0].mask == "F" * 20
    with apply_policy(tiny_pipe, FullPolicy()):
        assert torch.equal(sample(), plain)


@pytest.mark.parametrize("residual", ["hidden", "latent"])
def test_exact_residual_gives_the_full_output(tiny_pipe, sample, residual):
    plain = sample()
    truth = record(tiny_pipe, sample, residual=residual)
    with apply_policy(tiny_pipe, ExactPolicy(truth, residual=residual)) as handle:
        torch.testing.assert_close(sample(), plain, rtol=1e-5, atol=1e-5)
    assert handle.summary().contexts[0].mask == "F." * 10


def test_a_residual_off_by_a_thousandth_shows(tiny_pipe, sample):
    plain = sample()
    truth = record(tiny_pipe, sample)
    with apply_policy(tiny_pipe, ExactPolicy(truth, scale=1.001)):
        error = (sample() - plain).norm() / plain.norm()
    assert error > 2e-5


def test_removed_handle_leaves_no_trace(tiny_pipe, sample):
    plain = sample()
    modules = {name: set(vars(module)) for name, module in tiny_pipe.transformer.named_modules()}
    keys = list(tiny_pipe.transformer.state_dict())
    handle = apply_tap(tiny_pipe)
    assert not torch.equal(sample(), plain)
    handle.remove()
    handle.remove()
    assert torch.equal(sample(), plain)
    assert {name: set(vars(module)) for name, module in tiny_pipe.transformer.named_modules()} == modules
    assert list(tiny_pipe.transformer.state_dict()) == keys
    assert handle.summary().contexts[0].num_skipped == 15, "the summary stays readable"


@pytest.mark.parametrize(
    ("policy", "blocks_run"),
    [(TAPPolicy(TAPConfig(residual="latent")), 0), (TAPPolicy(TAPConfig(probe_depth=2)), 2)],
)
def test_no_attention_or_feed_forward_at_a_skip_step(tiny_pipe, sample, policy, blocks_run):
    completed = []
    for block in tiny_pipe.transformer.transformer_blocks:
        for module in (block.attn1, block.ff):
            module.register_forward_hook(lambda *_: completed.append(1))
    per_step = []
    with apply_policy(tiny_pipe, policy) as handle:
        handle.listen(lambda event: (per_step.append((event.kind, len(completed))), completed.clear()))
        sample()
    assert per_step.count(("full", 6)) == 5
    assert per_step.count(("skip", 2 * blocks_run)) == 15


def test_deeper_probe_changes_the_choice_but_not_the_start(tiny_pipe, sample):
    """The residual still starts at the first block, whatever the depth of the probe."""
    truth = {depth: record(tiny_pipe, sample, probe_depth=depth, needs_probe=True) for depth in (0, 2)}
    assert all(torch.equal(truth[0][step], truth[2][step]) for step in truth[0])


@pytest.mark.parametrize("policy", [TAPPolicy(), FixedPolicy(1, config=TAPConfig(residual="latent"))])
def test_batch_equals_singles(tiny_pipe, sample, policy):
    labels = (3, 1, 4)
    with apply_policy(tiny_pipe, policy.fresh()):
        together = sample(labels)
        singles = [sample((label,), seed=i) for i, label in enumerate(labels)]
    torch.testing.assert_close(together, torch.cat(singles), rtol=1e-4, atol=1e-4)


def test_runs_do_not_see_each_other(tiny_pipe, sample):
    with apply_tap(tiny_pipe) as handle:
        first = sample()
        assert torch.equal(sample(), first)
        bigger = sample((1, 2, 3))
        assert torch.equal(sample(), first)
        assert torch.equal(sample((1, 2, 3)), bigger)
        assert torch.equal(sample(guidance_scale=1.0, steps=12), sample(guidance_scale=1.0, steps=12))
        assert torch.equal(sample(), first)
        assert handle.summary().contexts[0].mask == "FFF.......F.......F."


@pytest.mark.parametrize("stop_at", [0, 4])
def test_exception_in_mid_run(tiny_pipe, sample, stop_at):
    def stop(_pipe, step, _timestep, _tensors):
        if step == stop_at:
            raise KeyboardInterrupt

    with apply_tap(tiny_pipe) as handle:
        first = sample()
        with pytest.raises(KeyboardInterrupt):
            sample(callback_on_step_end=stop)
        assert torch.equal(sample(), first)
        assert handle.summary().contexts[0].mask == "FFF.......F.......F."


def test_exception_inside_the_model(tiny_pipe, sample):
    with apply_tap(tiny_pipe) as handle:
        first = sample()
        hook = tiny_pipe.transformer.proj_out_2.register_forward_hook(lambda *_: (_ for _ in ()).throw(OSError("boom")))
        with pytest.raises(OSError, match="boom"):
            sample()
        hook.remove()
        assert torch.equal(sample(), first)
        assert len(handle.summary().contexts) == 1


def drive(model, timesteps, labels, *, batch=2, seed=0):
    """Call a bare transformer along the given timesteps, inputs drifting slowly."""
    generator = torch.Generator().manual_seed(seed)
    base, drift = (torch.randn(batch, 1, 8, 8, generator=generator) for _ in range(2))
    with torch.no_grad():
        return [
            model(
                base + drift * t / 1000, timestep=torch.full((batch,), float(t)), class_labels=labels, return_dict=False
            )[0]
            for t in timesteps
        ]


def test_bare_transformer_tells_runs_by_the_timestep(tiny_pipe):
    model, labels, times = tiny_pipe.transformer, torch.tensor([1, 2]), range(1000, 0, -100)
    with apply_tap(model, TAPConfig(interval=3, warmup_steps=1)) as handle:
        first = drive(model, times, labels)
        assert handle.summary().contexts[0].mask == "F..F..F..F"
        again = drive(model, times, labels)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        drive(model, list(times)[:4], labels)  # broken off
        handle.reset()
        again = drive(model, times, labels)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_ascending_timesteps_are_a_run_too(tiny_pipe):
    model, labels = tiny_pipe.transformer, torch.tensor([1, 2])
    with apply_tap(model, TAPConfig(interval=3, warmup_steps=1)) as handle:
        drive(model, range(0, 1000, 100), labels)
        drive(model, range(0, 1000, 100), labels)
        assert handle.summary().contexts[0].mask == "F..F..F..F"


def test_shape_change_in_mid_run_fails_open(tiny_pipe):
    model = tiny_pipe.transformer
    with apply_tap(model, TAPConfig(interval=4, warmup_steps=1)) as handle:
        labels = torch.tensor([1, 2, 3, 4])
        with torch.no_grad():
            for i, t in enumerate(range(1000, 0, -100)):
                batch = 4 if i < 6 else 2
                with handle.context("guided"):
                    x = torch.ones(batch, 1, 8, 8)
                    model(x, timestep=torch.full((batch,), float(t)), class_labels=labels[:batch])
    context = handle.summary().contexts[0]
    assert context.mask == "F...F.F.F."
    assert context.fail_opens == {"input shape changed": 1}
    assert "input shape changed" in str(handle.summary())


@pytest.mark.parametrize("order", [0, 2])
def test_a_full_step_that_shows_too_little_is_made_up_for(monkeypatch, tiny_pipe, order):
    """The history has made room for it, so the next step runs in full whatever the schedule says."""
    model, labels, incomplete = tiny_pipe.transformer, torch.tensor([1, 2]), Call.incomplete
    config = TAPConfig(interval=4, warmup_steps=3, orders=(order,))
    with apply_tap(model, config) as handle, torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i, t in enumerate(range(1000, 0, -100)):
            monkeypatch.setattr(Call, "incomplete", incomplete if i != 6 else lambda *_, **__: "looked away")
            model(torch.ones(2, 1, 8, 8) * i, timestep=torch.full((2,), float(t)), class_labels=labels)
    (context,) = handle.summary().contexts
    assert context.mask == "FFF...FF.."
    assert context.fail_opens == {"looked away": 1}
    assert ["looked away" in str(one.message) for one in caught] == [True]


def test_skip_keeps_the_output_class(tiny_pipe):
    model, labels = tiny_pipe.transformer, torch.tensor([1, 2])
    for residual in ("hidden", "latent"):
        with apply_tap(model, TAPConfig(interval=4, warmup_steps=1, residual=residual)), torch.no_grad():
            outputs = [
                model(torch.ones(2, 1, 8, 8), timestep=torch.full((2,), t), class_labels=labels) for t in (900.0, 800.0)
            ]
        assert type(outputs[0]) is type(outputs[1])
        assert outputs[0].sample.shape == outputs[1].sample.shape


def test_summary_counts(tiny_pipe, sample):
    with apply_tap(tiny_pipe) as handle:
        sample()
        context = handle.summary().contexts[0]
    assert (context.num_full, context.num_skipped) == (5, 15)
    assert sum(context.choices.values()) == 15 * 4 * 16  # skip steps x (2 images x 2 branches) x tokens
    assert {kind: len(values) for kind, values in context.seconds.items()} == {"full": 5, "skip": 15}
    # three anchors of probe and residual, (4, 16, 32) in float32 each
    assert context.cache_bytes == 3 * 2 * 4 * 16 * 32 * 4
    text = str(handle.summary())
    for part in ("5 full and 15 skipped of 20 steps", "FFF.......F.......F.", "MiB", "m=0"):
        assert part in text


def test_histories_are_freed_after_the_call(tiny_pipe, sample):
    with apply_tap(tiny_pipe) as handle:
        sample()
        tiny_pipe.transformer._reset_stateful_cache()
        runs = next(iter(handle._instruments.values())).runs
        assert runs["default"].policy.cache_bytes == 0
        assert handle.summary().contexts[0].num_skipped == 15


def test_shadow_pass_knows_the_truth(tiny_pipe, sample):
    """A shadowed run samples what the plain accelerated run does, and its truth is a full pass on its own state."""
    with apply_tap(tiny_pipe):
        expected = sample()
    errors = []
    with apply_policy(tiny_pipe, TAPPolicy(), shadow=True) as handle:
        handle.listen(
            lambda e: (
                errors.append((e.prediction.residual - e.residual).norm() / e.residual.norm())
                if e.kind == "shadow"
                else None
            )
        )
        torch.testing.assert_close(sample(), expected, rtol=1e-5, atol=1e-5)
    assert handle.summary().contexts[0].mask == "FFFsssssssFsssssssFs"
    assert len(errors) == 15
    assert all(0 < error < 1 for error in errors)


def test_oracle_is_best_at_every_token(tiny_pipe, sample):
    worst = []

    def check(event):
        if event.prediction is not None:
            error = (event.prediction.residual - event.residual).norm(dim=-1) / event.residual.norm(dim=-1)
            worst.append((error - event.prediction.proxy_loss.min(dim=-1).values).abs().max())

    with apply_policy(tiny_pipe, OraclePolicy()) as handle:
        handle.listen(check)
        sample()
    assert len(worst) == 15
    assert max(worst) < 1e-5


def test_random_policy_repeats_itself_and_uses_all(tiny_pipe, sample):
    with apply_policy(tiny_pipe, RandomPolicy(seed=1)) as handle:
        first = sample()
        assert torch.equal(sample(), first)
        assert len(handle.summary().contexts[0].choices) >= 9
    with apply_policy(tiny_pipe, RandomPolicy(seed=2)):
        assert not torch.equal(sample(), first)


def test_fixed_order_zero_reuses(tiny_pipe, sample):
    """FORA: the residual of the last full step, whatever the shift."""
    seen = {}

    def keep(event):
        if event.kind == "full":
            seen["residual"] = event.residual
        else:
            assert torch.equal(event.prediction.residual, seen["residual"])

    with apply_policy(tiny_pipe, FixedPolicy(0, shift=2)) as handle:
        handle.listen(keep)
        sample()


def test_cooldown_and_explicit_full_steps(tiny_pipe, sample):
    with apply_tap(tiny_pipe, TAPConfig(cooldown_steps=2)) as handle:
        sample()
        assert handle.summary().contexts[0].mask == "FFF.......F.......FF"
    with apply_tap(tiny_pipe, TAPConfig(full_steps=(0, 1, 9))) as handle:
        sample()
        assert handle.summary().contexts[0].mask == "FF.......F.........."
    with (
        apply_tap(tiny_pipe.transformer, TAPConfig(cooldown_steps=2)),
        pytest.raises(ValueError, match="number of sampling steps"),
    ):
        drive(tiny_pipe.transformer, [1000], torch.tensor([1, 2]))


@pytest.mark.parametrize("granularity", ["region", "step", "global"])
def test_granularities_choose_together(tiny_pipe, sample, granularity):
    choices = []
    with apply_tap(tiny_pipe, TAPConfig(granularity=granularity, region_size=2)) as handle:
        handle.listen(lambda e: choices.append(e.prediction.choice) if e.prediction else None)
        sample()
    for choice in choices:
        if granularity == "global":
            assert choice.unique().numel() == 1
        elif granularity == "step":
            assert (choice == choice[:, :1]).all()
        else:
            blocks = choice.view(-1, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1, 4)
            assert (blocks == blocks[:, :1]).all()


def test_bfloat16_model_and_history(sample):
    pipe = make_tiny_pipe(dtype=torch.bfloat16)
    plain = sample(pipe=pipe)
    with apply_tap(pipe, TAPConfig(interval=1)):
        assert torch.equal(sample(pipe=pipe), plain)
    with apply_tap(pipe, TAPConfig(history_dtype=torch.bfloat16)) as handle:
        result = sample(pipe=pipe)
    assert result.dtype == torch.bfloat16
    assert handle.summary().contexts[0].cache_bytes == 3 * 2 * 4 * 16 * 32 * 2
    truth = record(pipe, lambda: sample(pipe=pipe))
    assert truth[0].dtype == torch.float32
    with apply_policy(pipe, ExactPolicy(truth)):
        assert torch.equal(sample(pipe=pipe), plain), "start + float32 residual rounds back to the bf16 tail input"


# Mutations of the mechanism must be caught by the identities above


def test_mutation_tail_ignores_the_prediction(monkeypatch, tiny_pipe, sample):
    plain = sample()
    truth = record(tiny_pipe, sample)
    original = Instrument.at_tail
    monkeypatch.setattr(Instrument, "at_tail", lambda self, call, tail: (original(self, call, tail), tail)[1])
    with apply_policy(tiny_pipe, ExactPolicy(truth)), pytest.raises(AssertionError):
        torch.testing.assert_close(sample(), plain, rtol=1e-5, atol=1e-5)


def test_mutation_blocks_do_not_stop(monkeypatch, tiny_pipe, sample):
    run = BlockHook.run

    def run_anyway(self, inner, args, kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(hooks, "pass_through", lambda *_: inner(*args, **kwargs))
            return run(self, inner, args, kwargs)

    monkeypatch.setattr(BlockHook, "run", run_anyway)
    with pytest.raises(AssertionError):
        test_no_attention_or_feed_forward_at_a_skip_step(tiny_pipe, sample, FixedPolicy(1), 0)


# Bad input


def test_bad_targets(tiny_pipe):
    with pytest.raises(TypeError, match=r"no supported transformer in Linear: found Linear; supported are .*DiT"):
        apply_tap(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="TAPConfig"):
        apply_tap(tiny_pipe, {"interval": 4})
    with pytest.raises(TypeError, match="Policy object"):
        apply_policy(tiny_pipe, TAPPolicy)
    with pytest.raises(ValueError, match=r"probe_depth 3 is beyond the last block: .* has 3 blocks"):
        apply_tap(tiny_pipe, TAPConfig(probe_depth=3))
    handle = apply_tap(tiny_pipe)
    with pytest.raises(RuntimeError, match="already runs under a policy"):
        apply_tap(tiny_pipe)
    handle.remove()
    apply_tap(tiny_pipe).remove()


def test_failed_attach_leaves_no_trace(tiny_pipe, sample):
    plain = sample()
    with pytest.raises(ValueError, match="beyond"):
        apply_tap(tiny_pipe, TAPConfig(probe_depth=9))
    assert not any("forward" in vars(module) for module in tiny_pipe.transformer.modules())
    assert torch.equal(sample(), plain)


@pytest.mark.parametrize(("path", "step", "residual"), [("blocks.0", 1, "hidden"), ("blocks.1", 3, "latent")])
def test_a_policy_is_not_taken_off_inside_a_pass(residual, path, step):
    """Blocks are called at skip steps, too; whoever takes the policy off there is told, and may do it afterwards."""
    tiny = make("SD3")
    plain = tiny()
    handle = apply_tap(tiny.model, TAPConfig(interval=3, warmup_steps=1, residual=residual))
    look = tiny.model.get_submodule(f"transformer_{path}").register_forward_pre_hook(lambda *_: remove())

    def remove():
        if now == step:
            handle.remove()

    for now in range(9):
        if now == step:
            with pytest.raises(RuntimeError, match=r"^a pass of this SD3T.* is under way, .*: call remove\(\) when"):
                tiny(**tiny.at(now, 9))
            break
        tiny(**tiny.at(now, 9))
    look.remove()
    handle.remove()
    assert torch.equal(tiny(), plain)
    assert not any("forward" in vars(module) for module in tiny.model.modules())


@each_row(
    ("method", "call"),
    [("reset", lambda handle: handle.reset()), ("listen", lambda handle: handle.listen(print)),
     ("record", lambda handle: handle.record(print, depths=(1,)))],
)  # fmt: skip
def test_nothing_is_changed_inside_a_pass(method, call):
    """Neither at a full step nor at a skip step, whose first block begins, too; between passes all may be called."""
    tiny = make("SD3")
    with apply_tap(tiny.model, TAPConfig(interval=3, warmup_steps=1)) as handle:
        look = tiny.model.transformer_blocks[0].register_forward_pre_hook(lambda *_: call(handle))
        told = rf"^a pass of this SD3T.* is under way, .*: call {method}\(\) when"
        with pytest.raises(RuntimeError, match=told):
            tiny(**tiny.at(0, 6))
        look.remove()
        tiny(**tiny.at(0, 6))
        look = tiny.model.transformer_blocks[0].register_forward_pre_hook(lambda *_: call(handle))
        with pytest.raises(RuntimeError, match=told):
            tiny(**tiny.at(1, 6))
        look.remove()
        call(handle)


def test_two_recordings_at_once_see_what_each_asked_for():
    """The second takes nothing from the first, and a module that both name is looked at once."""
    tiny, first, second = make("SD3"), [], []
    layer = "transformer_blocks.0.attn"
    with apply_tap(tiny.model, TAPConfig(interval=3, warmup_steps=1)) as handle:
        handle.record(first.append, latent=True, modules={"layer": layer})
        handle.record(second.append, depths=(1,), modules={"layer": layer})
        with pytest.raises(ValueError, match=r"'layer' stands for 'transformer_blocks.0.attn' already: choose another"):
            handle.record(second.append, modules={"layer": "transformer_blocks.1.attn"})
        tiny(**tiny.at(0, 4))
    assert first[0].latent is not None
    assert first[0].modules["layer"].values.shape[:2] == (len(first[0].latent), tiny.tokens)
    assert 1 in second[0].probes


def test_a_listener_may_begin_anew():
    tiny = make("SD3")
    with apply_tap(tiny.model, TAPConfig(interval=3, warmup_steps=1)) as handle:
        handle.listen(lambda event: handle.reset() if event.step == 1 else None)
        for step in range(2):
            tiny(**tiny.at(step, 6))
        tiny(**tiny.at(2, 6))
        assert handle.summary().mask == "F"


def test_a_listener_may_take_the_policy_off():
    tiny = make("SD3")
    plain = tiny()
    handle = apply_tap(tiny.model, TAPConfig(interval=3, warmup_steps=1))
    handle.listen(lambda event: handle.remove() if event.step == 1 else None)
    for step in range(2):
        tiny(**tiny.at(step, 6))
    assert handle.summary().mask == "F."
    assert torch.equal(tiny(), plain)


def test_tap_context_manager(tiny_pipe, sample):
    plain = sample()
    with (
        pytest.raises(TypeError, match="no field 'intervall'; did you mean 'interval'"),
        tapstudy.tap(tiny_pipe, intervall=4),
    ):
        pass
    with tapstudy.tap(tiny_pipe, interval=4) as handle:
        sample()
        assert handle.summary().contexts[0].mask == "FFF...F...F...F...F."
    assert torch.equal(sample(), plain)
