from itertools import pairwise

import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.models.pipeline import LabelPipeline
from tests.table import each_row


def test_output_types(tiny_pipe):
    run = lambda kind: tiny_pipe([1, 2, 3], 2, generator=torch.Generator().manual_seed(0), output_type=kind).images  # noqa: E731
    latent, pt, array, pil = (run(kind) for kind in ("latent", "pt", "np", "pil"))
    assert latent.shape == (3, 1, 8, 8)
    torch.testing.assert_close(pt, (latent / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert len(pil) == 3
    assert pil[0].size == (8, 8)
    assert pil[0].mode == "L"


def test_guidance_combines_the_branches(tiny_pipe):
    """One step by hand: sigma goes from 1 to 0, so x = noise - v."""
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 4])
    with torch.no_grad():
        velocity = lambda y: tiny_pipe.transformer(noise, timestep=torch.full((2,), 1000.0), class_labels=y).sample  # noqa: E731
        labelled, free = velocity(labels), velocity(torch.tensor([10, 10]))
    result = tiny_pipe(labels, 1, 3.0, latents=noise, output_type="latent").images
    torch.testing.assert_close(result, noise - (free + 3 * (labelled - free)))
    unguided = tiny_pipe(labels, 1, 1.0, latents=noise, output_type="latent").images
    torch.testing.assert_close(unguided, noise - labelled)
    unlabelled = tiny_pipe(None, 1, 1.0, batch_size=2, latents=noise, output_type="latent").images
    torch.testing.assert_close(unlabelled, noise - free)


@each_row(("stop", "scales"), [(0.6, (3, 1, 1)), (0.4, (3, 3, 1)), (0.0, (3, 3, 3))])
def test_guidance_stops_at_a_noise_level(tiny_pipe, stop, scales):
    """Three steps by hand, from noise levels 1, 0.5005 and 0.001."""
    model, levels = tiny_pipe.transformer, (1.0, 0.5005, 0.001, 0.0)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = noise
    for (level, after), scale in zip(pairwise(levels), scales, strict=True):
        with torch.no_grad():
            labelled, free = (
                model(x, timestep=torch.full((1,), 1000 * level), class_labels=torch.tensor([y])).sample
                for y in (3, 10)
            )
        x = x + (after - level) * (free + scale * (labelled - free))
    pipe = LabelPipeline(model, tiny_pipe.scheduler, guidance_stop=stop)
    for idle_branch in (True, False):
        passes = []
        hook = model.register_forward_hook(lambda _model, _args, output: passes.append(len(output[0])))  # noqa: B023
        found = pipe([3], 3, 3.0, latents=noise, output_type="latent", idle_branch=idle_branch).images
        hook.remove()
        torch.testing.assert_close(found, x)
        assert passes == [2 if idle_branch or scale > 1 else 1 for scale in scales]


def test_guidance_stop_is_kept_with_the_model(tiny_pipe, tmp_path):
    LabelPipeline(tiny_pipe.transformer, tiny_pipe.scheduler, guidance_stop=0.25).save_pretrained(tmp_path)
    assert tapstudy.load(tmp_path).config.guidance_stop == 0.25
    with pytest.raises(ValueError, match="guidance_stop is a noise level of at least 0 and below 1, got 1"):
        LabelPipeline(tiny_pipe.transformer, tiny_pipe.scheduler, guidance_stop=1.0)


def test_one_generator_per_image(tiny_pipe):
    generators = lambda: [torch.Generator().manual_seed(i) for i in (5, 6)]  # noqa: E731
    both = tiny_pipe([1, 2], 3, generator=generators(), output_type="latent").images
    second = tiny_pipe([2], 3, generator=generators()[1:], output_type="latent").images
    torch.testing.assert_close(both[1:], second)


def test_callback_sees_and_changes_the_state(tiny_pipe):
    seen = []

    def zero(_pipe, step, timestep, tensors):
        seen.append((step, float(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else None

    result = tiny_pipe(7, 3, output_type="latent", callback_on_step_end=zero).images
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000
    assert not result.any()


@each_row(
    ("arguments", "message"),
    [
        ({"class_labels": None}, "guidance_scale 2.0 needs class_labels"),
        ({"class_labels": 10}, r"integers in 0..9, got \[10\]"),
        ({"class_labels": [1, -1]}, r"integers in 0..9"),
        ({"class_labels": [0.5]}, r"integers in 0..9"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": 1, "num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"class_labels": 1, "latents": torch.zeros(2, 1, 8, 8)}, r"latents must have shape \(1, 1, 8, 8\)"),
    ],
)
def test_bad_calls(tiny_pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipe(**arguments)
