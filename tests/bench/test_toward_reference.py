"""The choice toward the reference, against every predictor of the family tried in turn."""

from dataclasses import replace

import pytest
import torch

import tapstudy
from tapstudy.bench.claims.solver_runs import sample_path, tokens_of
from tapstudy.bench.claims.toward_reference import TowardReferencePolicy, toward_reference
from tapstudy.bench.image_set import ImageSet
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.fixed import FixedPolicy
from tests.table import each_row
from tests.training.emoji import tiny_pipe as tiny_text_pipe

IMAGES = ImageSet("mnist-dit", ((7, 3), (8, 1)), steps=7)
CONFIG = tapstudy.TAPConfig(full_steps=(0, 1, 2, 5), residual="latent", orders=(0, 1, 2), shifts=(0, 1))
FIRST = 3  # the first skip step: up to it all runs are one


def tokens_after(pipe, images, policy):
    """States after the first skip step, (image, token, patch values), and the final ones."""
    noise = pipe.prepare_latents(len(images), images.generators())
    with apply_policy(pipe, policy):
        path = sample_path(pipe, images, noise)
    return tokens_of(pipe, noise)[0](path[FIRST + 1]), path[-1]


@each_row(("guidance", "granularity", "stop"), [(3.0, "token", 0.0), (1.0, "token", 0.0), (3.0, "step", 0.0),
                                                (3.0, "token", 0.9), (3.0, "token", 0.3)])  # fmt: skip
def test_every_token_takes_what_ends_the_step_nearest_to_the_reference(tiny_pipe, guidance, granularity, stop):
    tiny_pipe = LabelPipeline(tiny_pipe.transformer, tiny_pipe.scheduler, guidance_stop=stop)
    images = ImageSet(IMAGES.model, IMAGES.pairs, steps=7, guidance=guidance)
    noise = tiny_pipe.prepare_latents(2, images.generators())
    to_tokens, _ = tokens_of(tiny_pipe, noise)
    path = sample_path(tiny_pipe, images, noise)
    wanted = to_tokens(path[FIRST + 1]).double()
    tried = torch.stack([
        tokens_after(tiny_pipe, images, FixedPolicy(order, shift, config=CONFIG))[0]
        for order in CONFIG.orders for shift in CONFIG.shifts
    ])  # fmt: skip
    errors = (tried.double() - wanted).square().sum(-1)  # (predictor, image, token)
    if granularity == "step":
        errors = errors.sum(-1, keepdim=True).expand_as(errors)
    best = errors.argmin(0, keepdim=True).unsqueeze(-1).expand(-1, -1, -1, tried.shape[-1])
    seen = []
    policy = TowardReferencePolicy(replace(CONFIG, granularity=granularity), aim(tiny_pipe, images, path, seen))
    with apply_policy(tiny_pipe, policy):
        found = sample_path(tiny_pipe, images, noise, seen.append)
    torch.testing.assert_close(to_tokens(found[FIRST + 1]), tried.gather(0, best)[0])
    run = toward_reference(tiny_pipe, images, {"one": policy.config}, progress=False)["one"]
    assert run["mask"].values.tolist() == ["FFF..F."] * 2
    torch.testing.assert_close(torch.from_numpy(run["image"].values), (found[-1] / 2 + 0.5).clamp(0, 1))


def aim(pipe, images, path, seen):
    """The residual that would end a step at the reference's state, written down once more."""
    to_tokens, _ = tokens_of(pipe, path[0])
    sigmas = pipe.scheduler.sigmas

    def wanted(step):
        now = seen[-1]
        velocity = (path[step + 1] - now) / (sigmas[step + 1] - sigmas[step])
        acts = float(sigmas[step]) > pipe.config.guidance_stop  # the noise level before the step
        return to_tokens(velocity - now), images.guidance if acts else 1.0

    return wanted


def test_one_predictor_leaves_no_choice(tiny_pipe):
    config = replace(CONFIG, orders=(1,), shifts=(0,))
    run = toward_reference(tiny_pipe, IMAGES, {"one": config}, progress=False)["one"]
    _, last = tokens_after(tiny_pipe, IMAGES, FixedPolicy(1, config=CONFIG))
    torch.testing.assert_close(torch.from_numpy(run["image"].values), (last / 2 + 0.5).clamp(0, 1), rtol=0, atol=0)


def test_what_it_cannot_aim_is_refused(tiny_pipe):
    with pytest.raises(TypeError, match="both branches in one batch"):
        toward_reference(tiny_text_pipe(), IMAGES, {"one": CONFIG})
    with pytest.raises(ValueError, match="residual='latent'"):
        toward_reference(tiny_pipe, IMAGES, {"one": tapstudy.TAPConfig()}, progress=False)
