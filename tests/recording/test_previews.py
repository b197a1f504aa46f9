"""The image as it forms: what a step expects, against diffusers' own noise, and decoded as the pipeline does."""

import diffusers
import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.instrument.clean_forecast import forecasts
from tapstudy.instrument.decode import shrink
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.rebuild import read_configuration, recorder_arguments
from tapstudy.recording.store import SampleWriter
from tests.pipelines import text
from tests.pipelines.tiny import FACTORIES
from tests.recording.runs import CONFIG, STEPS, calls_of
from tests.table import each_row

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CALLS = calls_of([(1, 5), (2, 6)])


def record(pipe, path, calls=CALLS, **changes):
    arguments = {"config": CONFIG, "fields": ("preview", "image"), "progress": False} | changes
    return tapstudy.record(pipe, calls, path, **arguments).load()


# The forecast

KINDS = ("epsilon", "v_prediction", "sample")
SCHEDULERS = [
    (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, "flow"),
    (diffusers.FlowMatchHeunDiscreteScheduler, {"shift": 3.0}, "flow"),
    (diffusers.UniPCMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "flow"),
    (diffusers.DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "flow"),
    *((diffusers.DDIMScheduler, {"prediction_type": kind, "clip_sample": False}, kind) for kind in KINDS),
    *((diffusers.DDPMScheduler, {"prediction_type": kind, "clip_sample": False}, kind) for kind in KINDS),
    *((diffusers.CogVideoXDDIMScheduler, {"prediction_type": kind}, kind) for kind in KINDS),
    *((diffusers.DPMSolverMultistepScheduler, {"prediction_type": kind}, kind) for kind in KINDS),
    *((diffusers.UniPCMultistepScheduler, {"prediction_type": kind}, kind) for kind in KINDS),
    *((diffusers.EulerDiscreteScheduler, {"prediction_type": kind}, kind) for kind in KINDS[:2]),
    (diffusers.EulerAncestralDiscreteScheduler, {"prediction_type": "epsilon"}, "epsilon"),
]


@each_row(("made", "settings", "kind"), SCHEDULERS)
def test_a_perfect_model_expects_the_image_it_knows(made, settings, kind):
    """Noise is put on by the scheduler; the formulas are asked for the image below it."""
    scheduler, generator = made(**settings), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 3, 5, generator=generator) for _ in range(2))
    before, found = dict(vars(scheduler)), []
    scheduler.set_timesteps(8)
    with forecasts(scheduler, found.append):
        for i, t in enumerate(scheduler.timesteps):
            at = t.expand(2)
            if kind == "flow":
                level = scheduler.sigmas[i]
                noisy, output = (1 - level) * clean + level * noise, noise - clean
            else:
                noisy = scheduler.add_noise(clean, noise, at)
                # alpha and sigma of a sample, read off the noise that the scheduler puts on
                ones, zeros = torch.ones_like(clean), torch.zeros_like(clean)
                alpha, sigma = scheduler.add_noise(ones, zeros, at), scheduler.add_noise(zeros, ones, at)
                size = (alpha**2 + sigma**2).sqrt()
                velocity = (alpha * noise - sigma * clean) / size
                output = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[kind]
            scheduler.step(output, t, noisy)
    assert len(found) == len(scheduler.timesteps) >= 8
    for one in found:
        torch.testing.assert_close(one, clean, rtol=0, atol=2e-3)
    assert "step" not in vars(scheduler)
    assert vars(scheduler).keys() >= before.keys()


@each_row(
    ("made", "settings", "reason"),
    [
        (diffusers.SCMScheduler, {}, "SCMScheduler does not tell: no formula is known for its class"),
        (diffusers.ScoreSdeVeScheduler, {}, "no formula"),
        (diffusers.DDIMScheduler, {"prediction_type": "trigflow"}, "prediction type 'trigflow' has no formula"),
    ],
)
def test_schedulers_that_do_not_tell(made, settings, reason):
    with pytest.raises(ValueError, match=reason), forecasts(made(**settings), pytest.fail):
        pass


# Pictures


# of every way to lay out, pack and scale latents
NAMES = (
    "dit", "stable_diffusion_3_heun", "flux_img2img", "flux_kontext", "flux2", "qwen_image", "wan", "cogvideox", "ltx",
    "z_image",
)  # fmt: skip


def spread_latents(vae):
    """Let an autoencoder have latents of other statistics than noise, wherever its class keeps them."""
    mean, std = torch.tensor([0.8, -0.4, 0.6, -0.9]), torch.tensor([0.5, 1.6, 0.7, 1.3])
    if vae.config.get("shift_factor") is not None:
        vae.register_to_config(shift_factor=0.7)
    if vae.config.get("latents_mean") is not None:
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    if "latents_mean" in dict(vae.named_buffers()):
        vae.latents_mean, vae.latents_std = mean, std
    if "bn" in dict(vae.named_children()):  # of patches of 2 x 2 values
        vae.bn.running_mean, vae.bn.running_var = mean.repeat_interleave(4), std.square().repeat_interleave(4)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_preview_is_what_the_pipeline_decodes(name, tmp_path):
    """The last step arrives where it expects to: its preview is the final image, through the pipeline's own decoder."""
    pipe, call = FACTORIES[name]()
    spread_latents(pipe.vae)
    call = {**call, "seed": 3, "output_type": "np", "num_inference_steps": 6}
    run = record(pipe, tmp_path / "run", [call], preview_size=1000)
    final, formed = ("video", "preview_video") if "video" in run else ("image", "preview")
    assert run[formed].dtype == np.uint8
    assert run[formed].dims == ("sample", "preview_step", *(("time",) if final == "video" else ()),
                                "preview_y", "preview_x", "band")  # fmt: skip
    assert run["preview_step"].values.tolist() == run["step"].values.tolist()
    shown = run[formed].isel(preview_step=-1).values / 255
    np.testing.assert_allclose(shown, run[final], atol=0.01)
    assert np.abs(run[formed].isel(preview_step=0).values / 255 - shown).mean() > 0.01
    plain = dict(call)
    del plain["seed"]
    again = pipe(**plain, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(getattr(again, "images" if final == "image" else "frames"), run[final])
    assert "step" not in vars(pipe.scheduler)


def test_pixels_of_an_embedded_pipeline(tiny_pipe, tmp_path):
    """Straight flow with guidance: the forecast of every step, from the states before and after it."""
    run = record(tiny_pipe, tmp_path / "run", fields=("preview",), policy=TAPPolicy(CONFIG), config=None)
    states = []

    def keep(_pipe, _step, _timestep, tensors):
        states.append(tensors["latents"].clone())

    with tapstudy.apply_tap(tiny_pipe, CONFIG):
        tiny_pipe([1, 2], STEPS, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
                  callback_on_step_end=keep)  # fmt: skip
    sigmas = [*run["sigma"].values.tolist(), 0.0]
    for step in range(1, STEPS):
        before, after = states[step - 1], states[step]
        velocity = (after - before) / (sigmas[step + 1] - sigmas[step])
        expected = ((before - sigmas[step] * velocity) / 2 + 0.5).clamp(0, 1).movedim(1, -1) * 255
        np.testing.assert_allclose(run["preview"].sel(preview_step=step), expected, atol=0.51)


def test_chosen_steps_small_and_resumed(tmp_path, monkeypatch):
    pipe, call = FACTORIES["flux"]()
    calls = [{**call, "prompt": [prompt], "seed": i, "output_type": "np"} for i, prompt in enumerate(text.PROMPTS)]
    arguments = {"calls": calls, "preview_steps": (9, 2, 5), "preview_size": 12}
    finish = SampleWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "finish", lambda self: finish(self) if self.sample == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record(pipe, tmp_path / "cut", **arguments)
    assert "step" not in vars(pipe.scheduler)  # after an error, too
    whole = record(pipe, tmp_path / "whole", **arguments)
    asked = recorder_arguments(read_configuration(tmp_path / "cut"), tmp_path / "cut")
    cut = tapstudy.record(pipe, path=tmp_path / "cut", progress=False, **asked).load()
    assert whole["preview_step"].values.tolist() == [2, 5, 9]
    assert whole["preview"].shape == (2, 3, 8, 12, 3)
    np.testing.assert_array_equal(cut["preview"], whole["preview"])
    every = record(pipe, tmp_path / "every", calls, preview_size=1000)["preview"].sel(preview_step=[2, 5, 9])
    halves = every.coarsen(preview_y=2, preview_x=2).mean()
    np.testing.assert_allclose(whole["preview"], halves, atol=1.1)
    lost = next((tmp_path / "cut" / "preview" / "c" / "1").rglob("0"))
    next(path for path in [lost, *lost.rglob("*")] if path.is_file()).unlink()
    with pytest.raises(tapstudy.RecordingError, match=r"preview of sample 1 .* is missing; record again"):
        tapstudy.open_recording(tmp_path / "cut")
    with pytest.raises(tapstudy.RecordingError, match=r"\(preview, size: 12 there, 16 asked\)"):
        record(pipe, tmp_path / "cut", **arguments | {"preview_size": 16})


@pytest.mark.parametrize("component", ["transformer", "transformer_2"])
def test_transformers_that_share_the_steps(tmp_path, component):
    pipe, call = FACTORIES["wan22"]()
    call = {**call, "seed": 1, "output_type": "np"}
    run = record(pipe, tmp_path / "run", [call], transformer=component)
    assert 0 < run.sizes["step"] < 12
    assert run.sizes["preview_step"] == run.sizes["step"]
    assert run["preview_video"].max(["sample", "time", "preview_y", "preview_x", "band"]).values.min() > 0


@each_row(
    ("changes", "message"),
    [
        ({"preview_steps": (0, 8)}, "no step 8 to preview: the run has steps 0 to 7"),
        ({"preview_steps": (-1,)}, r"numbers of steps from 0 on, got \(-1,\)"),
        ({"preview_steps": (1,), "fields": ("choice",)}, "preview is not among the fields"),
        ({"preview_size": 0}, "preview_size must be at least 1 pixel"),
    ],
)
def test_previews_that_cannot_be_meant(tmp_path_factory, changes, message):
    from tests.conftest import make_tiny_pipe

    with pytest.raises(ValueError, match=message):
        record(make_tiny_pipe(), tmp_path_factory.mktemp("asked") / "run", **changes)


@each_row(
    ("shape", "small"), [((3, 300, 200), (3, 128, 85)), ((2, 3, 5, 64, 512), (2, 3, 5, 16, 128)), ((3, 9), (3, 9))]
)
def test_shrunk_to_the_longest_side(shape, small):
    values = torch.rand(shape)
    found = shrink(values, 128)
    assert found.shape == small
    torch.testing.assert_close(found.mean(), values.mean(), atol=0.02, rtol=0)
