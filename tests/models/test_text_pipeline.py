import pytest
import torch

import tapstudy
from tapstudy.analysis.clean_image import clean_images
from tapstudy.models.embedded import conditions, untrained_like
from tapstudy.models.text_pipeline import TextPipeline, pack, position_ids, unpack
from tests.table import each_row
from tests.training.emoji import quiet, tiny_pipe

PROMPTS = ["apple on a teal background", "dark nurse on a red background"]


@pytest.fixture
def pipe():
    return tiny_pipe()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(pipe, *arguments, **named):
    return pipe(*arguments, **{"num_inference_steps": 3, "output_type": "latent", **named}).images


def test_packing_and_positions_by_hand():
    """Row by row; pixel by pixel in a token; unpacking undoes it. Positions of a coarser grid lie between."""
    image = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    tokens = pack(image, 2)
    assert tokens.shape == (1, 4, 8)
    assert tokens[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]
    assert torch.equal(unpack(tokens, 2, 4, 4), image)
    assert position_ids(2, 2, frame=2).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert position_ids(2, 2, frame=4)[:, 1:].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]


def test_guidance_by_hand(pipe):
    """One Euler step from noise: x minus the guided velocity, branch by branch."""
    noise = torch.randn(2, 3, 32, 32)
    plain = sample(pipe, PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=1.0)
    empty = sample(pipe, ["", ""], latents=noise, num_inference_steps=1, guidance_scale=1.0)
    guided = sample(pipe, PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=3.0)
    assert torch.allclose(guided, empty + 3 * (plain - empty), atol=1e-5)
    assert not torch.allclose(plain, empty, atol=1e-5)
    towards = sample(pipe, PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=3.0, negative_prompt="plum")
    away = sample(pipe, ["plum"] * 2, latents=noise, num_inference_steps=1, guidance_scale=1.0)
    assert torch.allclose(towards, away + 3 * (plain - away), atol=1e-5)


def test_images_of_a_prompt_stand_together_and_have_noise_of_their_own(pipe):
    four = sample(pipe, PROMPTS, num_images_per_prompt=2, generator=generators(0, 1, 2, 3))
    alone = sample(pipe, PROMPTS[1], generator=generators(2))
    assert torch.allclose(four[2:3], alone, atol=1e-5)
    assert not torch.allclose(four[2], four[3], atol=1e-3)


def test_embeddings_in_place_of_prompts(pipe):
    words, pooled = pipe.encode_prompt(PROMPTS)
    given = sample(pipe, prompt_embeds=words, pooled_prompt_embeds=pooled, generator=generators(0, 1))
    assert torch.equal(given, sample(pipe, PROMPTS, generator=generators(0, 1)))
    assert not words[0, 6:].any()  # padding


def test_output_types_and_callback(pipe):
    seen = []
    pipe(PROMPTS, 2, generator=generators(0, 1), callback_on_step_end=lambda p, i, t, given: seen.append(i) or {})
    assert seen == [0, 1]
    assert pipe(PROMPTS[0], 1).images[0].size == (32, 32)
    assert pipe(PROMPTS[0], 1, output_type="np").images.shape == (1, 32, 32, 3)
    assert pipe(PROMPTS[0], 1, output_type="pt", return_dict=False)[0].shape == (1, 3, 32, 32)
    zeros = pipe(
        PROMPTS[0], 2, output_type="latent", callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 3, 32, 32)}
    )
    assert not zeros.images.any()


@each_row(
    ("arguments", "message"),
    [
        ({"prompt": None}, "pass either prompt or prompt_embeds, got neither"),
        ({"prompt": "x", "prompt_embeds": torch.zeros(1, 16, 16)}, "got both"),
        ({"prompt": [1]}, "prompt must be a text"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"prompt": "x", "num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1"),
        ({"prompt": ["x", "y"], "negative_prompt": ["a", "b", "c"]}, "one negative_prompt per prompt, got 3 for 2"),
        ({"prompt": "x", "generator": generators(0, 1)}, "one generator per image, got 2 for 1"),
        ({"prompt": "x", "latents": torch.zeros(1, 3, 8, 8)}, r"latents must have shape \(1, 3, 32, 32\)"),
        ({"prompt_embeds": torch.zeros(1, 16, 16)}, "needs the pooled embeddings"),
    ],
)
def test_bad_arguments(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_saved_and_loaded_both_ways(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    reference = sample(pipe, PROMPTS, generator=generators(0, 1))
    for again in (tapstudy.load(tmp_path), TextPipeline.from_pretrained(tmp_path, use_safetensors=True)):
        assert torch.equal(sample(quiet(again), PROMPTS, generator=generators(0, 1)), reference)
        assert again.config.smooth_sigma == 30
        assert again.unknown_words("Apple zebra on a teal background") == ["zebra"]
    captions = conditions(pipe, 12)
    assert captions[0] == captions[10] == "woman firefighter medium-dark skin tone noto on a teal background"
    assert tapstudy.load(tmp_path, dtype=torch.bfloat16).text_encoder.dtype == torch.bfloat16
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"text_encoder/model\.safetensors is missing"):
        tapstudy.load(tmp_path)
    index = (tmp_path / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace("TextPipeline", "FluxPipeline"))
    with pytest.raises(ValueError, match="holds a FluxPipeline, not an embedded model"):
        tapstudy.load(tmp_path)


def test_interval_one_is_the_plain_pipeline_and_branches_have_names(pipe):
    plain = sample(pipe, PROMPTS, generator=generators(0, 1), num_inference_steps=8)
    with tapstudy.tap(pipe, interval=1):
        assert torch.equal(sample(pipe, PROMPTS, generator=generators(0, 1), num_inference_steps=8), plain)
    with tapstudy.tap(pipe, interval=4) as handle:
        skipped = sample(pipe, PROMPTS, generator=generators(0, 1), num_inference_steps=8)
    assert [one.context for one in handle.summary().contexts] == ["cond", "uncond"]
    assert not torch.equal(skipped, plain)


def test_untrained_control_is_not_trivial(pipe):
    """Blocks that matter, and an output that depends on image, time and text."""
    control = quiet(untrained_like(pipe, seed=1))
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = [
        sample(control, prompt, latents=latents, num_inference_steps=1, guidance_scale=1.0) - latents
        for prompt, latents in ((PROMPTS[0], noise), (PROMPTS[0], noise.flip(-1)), (PROMPTS[1], noise))
    ]
    assert 0.2 < found[0].std() < 5
    assert (found[1] - found[0]).std() > 0.1 * found[0].std()
    assert (found[2] - found[0]).std() > 0.01 * found[0].std()


def test_recorded_latents_are_read_as_pixels(pipe, tmp_path):
    """What is expected at the last step but one, moved on by the last Euler step, is the recorded image."""
    calls = [{"prompt": PROMPTS, "seed": [0, 1], "num_inference_steps": 6}]
    fields = ("choice", "proxy_loss", "true_error", "latent", "image")
    config = tapstudy.TAPConfig(interval=2, warmup_steps=2)
    run = tapstudy.record(pipe, calls, tmp_path / "run.zarr", config=config, fields=fields, progress=False)
    assert run["context"].values.tolist() == ["cond", "uncond"]
    assert run["label"].values.tolist() == PROMPTS
    clean = clean_images(run).isel(step=-1)
    states = run["latent"].isel(context=0, step=-1)
    noisy = unpack(torch.tensor(states.values), 4, 32, 32).permute(0, 2, 3, 1)
    # x = (1 - sigma) clean + sigma noise along the last but one step: the recorded state lies on that line
    sigma = float(run["sigma"][-1]) / float(run["sigma"][-2])
    before = unpack(torch.tensor(run["latent"].isel(context=0, step=-2).values), 4, 32, 32).permute(0, 2, 3, 1)
    expected = ((noisy - sigma * before) / (1 - sigma) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(torch.tensor(clean.values), expected, atol=1e-4)
