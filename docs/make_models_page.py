"""Writes docs/models.md: `python docs/make_models_page.py`, from anywhere, in a source tree (it reads the tests)."""

from __future__ import annotations

import re
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tapstudy  # noqa: E402
from tapstudy.bench.speed.real_sizes import REAL_SIZES, RealSizeCosts, real_size_costs  # noqa: E402
from tapstudy.instrument.adapters import ADAPTERS, find_adapter  # noqa: E402
from tests.instrument.tiny_models import VARIANTS, make  # noqa: E402
from tests.pipelines.tiny import FACTORIES  # noqa: E402
from tests.pipelines.tiny_images import IMAGES  # noqa: E402
from tests.pipelines.tiny_videos import VIDEOS  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
HEADER = ("class", "stock pipelines tested", "full step", "skip step, true residual", "real size", "full pass, TFLOP",
          "skip step (latent residual)", "history, GB (bf16 residuals)")  # fmt: skip

HEAD = """# Supported models

Made by `python docs/make_models_page.py`; do not edit by hand. `tapstudy info CLASS` prints one row,
`tapstudy info FOLDER` checks a model of yours.

"""

LEGEND = """
How to read it:

* **Stock pipelines tested**: pipelines of diffusers, unchanged, with tiny random parts (`tests/pipelines`): the steps
  that were skipped, and the bit-equal image with full steps alone and after `remove()`; with those of `tiny.py` also
  two runs in a row and the true residuals, with the others the grid of a recording. PRX, SkyReels-V2, Wan VACE,
  Wan Animate, ChronoEdit, Helios (which clean prompts with `ftfy`), Krea 2, Nucleus-Image and JoyImage (whose text
  encoder is left out) are given embedded prompts, GLM-Image also the tokens of its prior. JoyImage is given a size
  that its own list lacks.
* **Full step** and **skip step, true residual** come from `tapstudy.check` on tiny random models in float32 on a CPU
  (`tests/instrument/tiny_models.py`, all variants of a class): the output of a full step under the hooks against the
  plain model, and of a skip step that is handed the true residual against a full step, relative to the largest output;
  the worse of residuals in hidden and in latent space. What is left at the skip step is rounding.
* **Real size**: computed on torch's meta device, so without weights, for one sample. Configurations are the
  defaults of the diffusers classes with a few changes (`tapstudy/bench/speed/real_sizes.py`), not read from released
  files; what vouches for them, unless they are called defaults, is the number of parameters, in 1e9: {parameters}.
  Pipelines that do not pad the prompt (Qwen-Image, Z-Image) are counted with 128 text tokens.
* **FLOPs**: a multiply-add is two FLOPs; matrix products, convolutions and attention count, element-wise work does not.
  TAP's scores are element-wise on an accelerator, so the skip step here is the model's own part and the assembly.
  A **skip step** is TAP's with the default 15 predictors on three anchors, as a share of a full pass. It includes what
  the model computes on image tokens before its blocks; text projections, text refiners and rotary tables do not run
  at a skip step, for neither the probe nor the tail reads them (`tapstudy info CLASS` names them; with a deeper probe
  they run).
* **History**: three probes in bf16 and three residuals in float32, `3 * tokens * width * (2 + 4)` bytes per context and
  sample, GB = 1e9 bytes; in brackets `history_dtype=torch.bfloat16`, `3 * tokens * width * (2 + 2)` bytes. Guidance in
  one batch keeps two samples in one context, guidance in two calls keeps one sample in each of two: twice the number
  either way. It does not grow with the depth of the model.
"""

NOTES = """
## What is special

* **AuraFlow**: `[8 register tokens, text, image]` in the second stack.
* **Bria, Bria FIBO, LongCat-Image, Ovis-Image**: as Flux. FIBO projects a layer of the text encoder for every block,
  and no projection runs at a skip step.
* **Chroma**: as Flux, but a network of its own makes the modulation of all blocks from the timestep; that one runs at
  every step. Its mask covers text and image.
* **CogView3+, CogView4**: image first. The sizes go into the timestep embedding.
* **AnyFlow**: as Wan, frames first in the latent; a call goes from one timestep to another, and the first is its time.
* **CogVideoX**: the latent is (batch, frame, channel, row, column); text and image are two streams of one block, and
  blocks return the image first. CogVideoX-1.5 cuts frames into patches too.
* **ConsisID**: as CogVideoX, but its tail is given `[text, image]`. Attention to the face, between blocks, does not
  run at a skip step, nor does what prepares it.
* **Cosmos**: learned positions are added in every block, in front of its norm: the probe has them. Text by
  cross-attention.
* **DiT**: square images only. Every block has its own embedder of timestep and label; the tail uses the first block's
  again. With a learned variance (4 channels in, 8 out) output minus input does not exist: a latent residual is then
  the output itself.
* **Flux**: 2-stream blocks, then blocks that see `[text, image]`; a probe in the second stack takes the image part.
  ControlNet adds to the image stream after each block; the residual is read at the tail, so it holds what ControlNet
  added (the ControlNet itself still runs at skip steps). Reference images (Kontext) are tokens behind the image: they
  have no residual of their own. Only `FluxPipeline` names its calls.
* **Flux2**: modulation is computed once for all blocks; between its stacks the model fuses text and image into one
  tensor, and cuts the text off before the tail. Calls that fill a key/value cache (`kv_cache_mode="extract"`) run in
  full.
* **HunyuanVideo**: `[image, text]`, image first. Image-to-video models take more channels than they return: see
  *Latent residuals*. Its pipeline names contexts, the image-to-video ones do not.
* **FramePack, Helios**: `[earlier frames, video]`. Earlier frames have no residual of their own and are not embedded at
  a skip step; the tail of FramePack is given the video alone.
* **GLM-Image**: a projection of the prior's tokens is added to those of the image and runs at every step. Calls that
  fill a key/value cache (`kv_caches` in mode `write`) run in full.
* **HiDream**: `[image, text]`; experts choose per token, inside blocks. Images that are not square are padded behind
  the image, to the largest size the model knows; padding has no residual.
* **Hunyuan-DiT**: later blocks also read what earlier ones gave; all of that is skipped together. A pooler of the text
  goes into the timestep embedding and runs at every step. Learned variance as in DiT. No scale in its modulation, only
  a shift.
* **HunyuanVideo 1.5**: image first; two texts and an image as conditioning, masked per sample.
* **JoyImage**: editing gives the images one after another in a dimension of the latent, the one being made last; the
  model puts it first. The others have no residual of their own.
* **Kandinsky 5**: channels last in the latent; the tail is given rows and columns. Sparse attention puts tokens into an
  order of its own: such calls run in full.
* **Krea 2**: text and image are fused in front of the blocks, `[text, image]`; the tail is given the image alone.
* **LTX-Video**: packed tokens with their sizes; given only coordinates, the tokens count as one long row. Timesteps per
  token work.
* **Lumina2**: text and image are fused *before* the blocks: `[caption, image, padding]`, with another caption length in
  every sample; only image tokens are scored and kept. Two refiners of the noisy image run at every step, since they
  make the tokens, hence the large skip step. The modulation scales and does not shift. Guidance is a second call
  without a name, which ends early with `cfg_trunc_ratio`. Timesteps rise.
* **Lumina-Next**: text by cross-attention, read in the blocks as it comes. Timesteps rise; learned variance as in DiT.
* **Mochi**: image first; a pooler of the text as in Hunyuan-DiT. Modulation scales and does not shift.
* **Motif-Video**: 2-stream blocks, then blocks that see `[image, text]`, of which the last may start from the noisy
  video again and read the others' output in place of the text: the residual is read at the tail, so that is one more
  block.
* **Nucleus-MoE-Image**: text enters as keys and values of the attention; experts choose their tokens, inside blocks.
* **PRX**: the same way of text, without experts.
* **PixArt, Allegro**: text by cross-attention. Learned variance as in DiT.
* **QwenImage**: packed tokens with a list of shapes. Editing puts reference images behind the image; layered models
  make several images at once, which count as frames. ControlNet as in Flux. With `true_cfg_scale` two named calls.
* **SD3**: stable diffusion 3 and 3.5 (whose first blocks attend twice). Skip-layer guidance is a third call with layers
  left out: it runs in full, in a context of its own. ControlNet as in Flux.
* **Sana, Sana-Video**: linear attention; its full pass is cheap, so a skip step is a larger share of it.
* **Wan**: text by cross-attention; guidance in two named calls. Wan 2.2 has two transformers that share the steps: each
  keeps its own history and starts with its own warm-up. Its 5B model has one timestep per token. Image-to-video models
  take more channels than they return: see *Latent residuals*.
* **SkyReels-V2, ChronoEdit**: as Wan. Diffusion forcing (a timestep for every frame, of which each call moves some)
  runs in full.
* **Wan VACE**: the blocks that read the control video do not run at a skip step. **Wan Animate**: nor do the encoders
  of face and motion, and the attention to them between blocks; the pose is part of the tokens.
* **Z-Image**: samples come in a list, text behind the image. Samples of different sizes run in full. Two refiners
  of the noisy image run at every step, as in Lumina2. Guidance is one batch, which shrinks to half with
  `cfg_truncation`: from then on it is a new context with an empty history. Timesteps rise.

## How contexts are told apart

A context is one guidance branch, or one of several calls that a step makes with the same conditioning (windows, tiles,
perturbed guidance); each has a history of its own. In this order:

1. the name given with `handle.context("cond")`;
2. the name the pipeline gives its call with `cache_context` ({named});
3. the conditioning: the same tensor object means the same context, then equal values, but never two calls at the same
   timestep ({unnamed} have no `cache_context`). The conditioning is the argument
   {keys}.

Calls with the same name or conditioning in one step are told apart by their order, and by the latents, each of which
goes on from where it was. Where their number changes and the latents do not tell, the history starts anew with a full
step; `summary()` says so.

Steps and runs are told by the scheduler that drives the call: that of the pipeline which makes it, whichever it is, or
of the loop that calls the transformer. So pipelines may share a transformer, be cut short, or run in several threads
(whose passes take turns). For a loop without a scheduler, the timestep tells: a step has one of its own, and a run
begins where it turns back. On a bare transformer, call `handle.reset()` before a run that starts where the last one
stopped.

## Latent residuals

`residual="latent"` predicts output minus input. Where the two differ in shape (a learned variance; extra input channels
of image-to-video, inpainting or control models) the output itself is predicted instead. The latent must divide into
the token grid, otherwise every step runs in full.

## What is refused, and what runs in full

* refused, with an error: a model without an adapter (`tapstudy.register_adapter` adds one), a second policy on the same
  transformer, a transformer with a diffusers cache enabled, a probe depth beyond the last block;
* runs in full, counted in `handle.summary()`: a step without history, a change of the latent's shape, a call of the
  kinds named above, a step at which the probe was not reached;
* warned of: schedulers that draw fresh noise, too few steps to skip any, a policy that never got to skip.
"""


def pipelines() -> dict[str, list[str]]:
    """Names of the tested pipelines by transformer class."""
    found: dict[str, set[str]] = defaultdict(set)
    for build in (FACTORIES | IMAGES | VIDEOS).values():
        pipe, _ = build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module) and find_adapter(part) is not None:
                found[type(part).__name__].add(type(pipe).__name__)
    return {name: sorted(names) for name, names in found.items()}


def errors() -> dict[str, tuple[float, float]]:
    """Largest errors of full and skip steps over the tiny models of a class."""
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name in VARIANTS:
        tiny = make(name)
        report = tapstudy.check(tiny.model, tiny.inputs)
        if not report.ok:
            raise SystemExit(f"TAP does not work on the tiny model {name!r}; no page is written:\n{report}")
        full, skip = found[report.model]
        found[report.model] = (
            max(full, *(site.full_error for site in report.sites)),
            max(skip, *(site.skip_error for site in report.sites)),
        )
    return found


def row(name: str, tested: list[str], error: tuple[float, float], costs: RealSizeCosts) -> str:
    full, skip = error
    latent = "" if costs.share_latent is None else f" ({100 * costs.share_latent:.3f} %)"
    cells = (
        f"`{name}`",
        ", ".join(tested) or "none yet",
        "bit-equal" if full == 0 else f"{full:.1e}",
        f"{skip:.1e}",
        f"{costs.label}, {costs.tokens} image tokens of width {costs.width}, {REAL_SIZES[name].text} text tokens",
        f"{costs.full / 1e12:.3g}" if costs.full < 1e15 else f"{costs.full / 1e12:.0f}",
        f"{100 * costs.share:.3f} %{latent}",
        f"{costs.history / 1e9:.3f} ({costs.history_bfloat16 / 1e9:.3f})",
    )
    return f"| {' | '.join(cells)} |"


def short(name: str) -> str:
    """FluxTransformer2DModel -> Flux, HunyuanDiT2DModel -> HunyuanDiT"""
    return re.sub(r"(Transformer)?[23]DModel$", "", name)


def page() -> str:
    import diffusers

    tested, error = pipelines(), errors()
    missing = sorted(name for name in ADAPTERS if not hasattr(diffusers, name))
    if missing:
        raise SystemExit(f"diffusers {diffusers.__version__} lacks {', '.join(missing)}; no page is written")
    costs = {name: real_size_costs(name) for name in sorted(REAL_SIZES)}
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    lines += [row(name, tested.get(name, []), error[name], costs[name]) for name in sorted(ADAPTERS)]
    parameters = ", ".join(f"{short(name)} {found.parameters / 1e9:.2f}" for name, found in costs.items())
    has_name = {name: hasattr(getattr(diffusers, name), "cache_context") for name in sorted(ADAPTERS)}
    keys: dict[str, list[str]] = defaultdict(list)
    for name in sorted(ADAPTERS):
        keys[ADAPTERS[name].key].append(short(name))
    notes = NOTES.format(
        named=", ".join(short(name) for name, has in has_name.items() if has) + "; not all of their pipelines do",
        unnamed=", ".join(short(name) for name, has in has_name.items() if not has),
        keys=", ".join(f"`{key}` ({', '.join(names)})" for key, names in keys.items()),
    )
    return HEAD + "\n".join(lines) + "\n" + LEGEND.format(parameters=parameters) + notes


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("ignore", "In CPU autocast|`FluxPosEmbed` is deprecated")
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
