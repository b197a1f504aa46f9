"""The scripts of `examples/` as they are, on pipelines with tiny parts in folders, on the CPU."""

import inspect
import runpy
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

from tests.pipelines import tiny

EXAMPLES = Path(__file__).parents[2] / "examples"
# script -> whose tiny parts, what it writes, and its mask over 12 steps of every context
SCRIPTS = {
    "flux": ("flux", ["flux.png"], 1, "FFF.......F."),
    "flux_offload": ("flux", ["flux_offload.png"], 1, "FFF.......F."),
    "flux_compile": ("flux", ["flux_compile_0.png", "flux_compile_1.png"], 1, "FFF.......F."),
    "qwen_image": ("qwen_image", ["qwen_image.png"], 2, "FFF...F...F."),
    "stable_diffusion_35": (
        "stable_diffusion_3", ["stable_diffusion_35_0.png", "stable_diffusion_35_1.png"], 1, "FFF.....F..."
    ),
    "wan": ("wan", ["wan.gif"], 2, "FFF....F...."),
    "hunyuan_video": ("hunyuan_video", ["hunyuan_video.gif"], 1, "FFF.....F..."),
}  # fmt: skip
ROWS = [(name, *row) for name, row in SCRIPTS.items()]


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)


@pytest.fixture
def small_machine(monkeypatch):
    """No GPU, no compiler; a call has few steps and few pixels. Tells what calls asked for."""
    asked = []
    to, offload, compiled = (
        diffusers.DiffusionPipeline.to, diffusers.DiffusionPipeline.enable_model_cpu_offload, torch.compile
    )  # fmt: skip
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", lambda pipe, device, **how: to(pipe, "cpu", **how))
    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "enable_model_cpu_offload", lambda pipe, **_: offload(pipe, device="cpu")
    )
    monkeypatch.setattr(torch, "compile", lambda model, *, options=None, **how: compiled(model, backend="eager", **how))

    def shrink(kind, name):
        def call(pipe, prompt, **settings):
            inspect.signature(kind.__call__).bind(pipe, prompt, **settings)
            texts = {"prompt", "negative_prompt", "output_type"}
            small = {key: value for key, value in getattr(tiny, name)()[1].items() if key not in texts}
            asked.append({key: value for key, value in settings.items() if key in small})
            pipe.set_progress_bar_config(disable=True)
            return original(pipe, prompt, **settings | small)

        original = kind.__call__
        monkeypatch.setattr(kind, "__call__", call)

    yield shrink, asked
    torch.compiler.reset()


# diffusers' newer name, dtype, is not known to older releases
@pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("script", "name", "written", "contexts", "mask"), ROWS, ids=list(SCRIPTS))
def test_example(script, name, written, contexts, mask, small_machine, tmp_path, monkeypatch, capsys):
    shrink, asked = small_machine
    pipe, _ = getattr(tiny, name)()
    pipe.save_pretrained(tmp_path / "model")
    shrink(type(pipe), name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "model")])
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")

    told = capsys.readouterr().out
    assert told.count(f"mask     {mask}\n") == contexts, told
    assert all(call["height"] >= 320 and call["num_inference_steps"] >= 28 for call in asked)
    for file in written:
        with Image.open(tmp_path / file) as image:
            assert image.size == ((64, 32) if "num_frames" in asked[0] else (24, 16))
            assert getattr(image, "n_frames", 1) == (5 if "num_frames" in asked[0] else 1)
