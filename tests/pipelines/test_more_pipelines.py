"""TAP on the pipelines that no other test runs over, once each."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from packaging.version import Version

import tapstudy
from tests.pipelines import tiny
from tests.pipelines.tiny_images import IMAGES
from tests.pipelines.tiny_videos import VIDEOS

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = [
    pytest.mark.skipif(
        Version(diffusers.__version__) < Version("0.42"), reason="older releases of diffusers lack some pipelines"
    ),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),  # HeliosScheduler
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),  # PRXPipeline
]

CONFIG = tapstudy.TAPConfig(interval=3, warmup_steps=2)
MASK = "FF..F."  # S(3, 2)

# contexts, and the frames, rows and columns of tokens
BATCHED = ("default",)
NAMED = ("cond", "uncond")
GUIDER = ("pred_cond", "pred_uncond")
UNNAMED = ("default", "context-1")
EXPECTED: dict[str, tuple[tuple[str, ...], tuple[int, int, int]]] = {
    "aura_flow": (BATCHED, (1, 4, 6)),
    "bria": (BATCHED, (1, 8, 12)),
    "bria_fibo": (BATCHED, (1, 4, 6)),
    "chroma": (UNNAMED, (1, 4, 6)),
    "cogview3plus": (BATCHED, (1, 4, 6)),
    "cogview4": (NAMED, (1, 4, 8)),
    "longcat_image": (NAMED, (1, 4, 6)),
    "ovis_image": (NAMED, (1, 4, 6)),
    # brought to the area of the default size
    "hidream_image": (BATCHED, (1, 3, 4)),
    "prx": (BATCHED, (1, 4, 6)),
    "hunyuan_dit": (BATCHED, (1, 4, 6)),
    "lumina_next": (BATCHED, (1, 4, 6)),
    "glm_image": (UNNAMED, (1, 4, 8)),
    "krea2": (UNNAMED, (1, 4, 6)),
    "nucleus_image": (UNNAMED, (1, 4, 6)),
    "joyimage_edit": (UNNAMED, (1, 4, 6)),
    "mochi": (("cond_uncond",), (2, 2, 4)),
    "allegro": (BATCHED, (2, 2, 4)),
    "easyanimate": (BATCHED, (2, 2, 4)),
    "skyreels_v2": (NAMED, (2, 2, 4)),
    "wan_vace": (NAMED, (2, 2, 4)),
    "chronoedit": (UNNAMED, (2, 2, 4)),
    "sana_video": (BATCHED, (2, 2, 4)),
    "hunyuan_video15": (GUIDER, (2, 2, 3)),
    "motif_video": (GUIDER, (2, 2, 4)),
    "anyflow": (BATCHED, (2, 2, 4)),
    "kandinsky5": (UNNAMED, (2, 2, 4)),
    "helios": (NAMED, (2, 2, 4)),
    "wan_animate": (NAMED, (3, 2, 4)),
    "framepack": (UNNAMED, (2, 2, 4)),
}
MORE = IMAGES | VIDEOS


def sample(pipe: diffusers.DiffusionPipeline, call: tiny.Call) -> torch.Tensor:
    """Run the pipeline from a fixed seed, also of torch itself: JoyImage encodes an image without a generator."""
    torch.manual_seed(0)
    return tiny.sample(pipe, call)


def test_every_pipeline_has_a_row() -> None:
    assert list(EXPECTED) == list(MORE)


# of every way to call a transformer, and to lay out its tokens; the others are more rows of the table
SOME = {
    "aura_flow", "chroma", "cogview4", "hidream_image", "glm_image", "krea2", "joyimage_edit", "mochi",
    "hunyuan_video15", "kandinsky5", "helios", "wan_animate", "framepack",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SOME else [pytest.mark.slow]) for name in EXPECTED]
)
def test_tap_removal_and_recording(name: str, tmp_path: Path) -> None:
    contexts, (frames, rows, columns) = EXPECTED[name]
    pipe, call = MORE[name]()
    call = call | {"num_inference_steps": len(MASK)}
    reference = sample(pipe, call)
    assert torch.isfinite(reference).all()

    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        accelerated = sample(pipe, call)
        found = handle.summary().contexts
    assert torch.isfinite(accelerated).all()
    assert not torch.equal(accelerated, reference)
    assert {entry.context: entry.mask for entry in found} == dict.fromkeys(contexts, MASK)
    assert not any(entry.fail_opens for entry in found)
    tokens = frames * rows * columns
    chosen = {sum(entry.choices.values()) for entry in found}
    assert len(chosen) == 1  # guidance in one batch has two samples in its context
    assert chosen <= {tokens * MASK.count(".") * samples for samples in (1, 2)}

    fields = ("proxy_loss", "true_error", "choice")
    calls = [call | {"seed": 5}]
    run = tapstudy.record(pipe, calls, tmp_path / "run.zarr", fields=fields, config=CONFIG, progress=False).load()
    assert run.sizes["token"] == tokens
    assert [int(run[axis].max()) + 1 for axis in ("row", "col")] == [rows, columns]
    assert ("frame" in run.coords) == (frames > 1)
    assert frames == 1 or int(run["frame"].max()) + 1 == frames
    skipped = [step for step, kind in enumerate(MASK) if kind == "."]
    assert bool((run["true_error"].isel(step=skipped) > 0).any())
    assert torch.equal(sample(pipe, call), reference)
