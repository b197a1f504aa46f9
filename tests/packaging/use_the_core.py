"""Accelerate a tiny pipeline, import modules (the arguments), ask for every public name, and print it all as JSON.

Run by processes that see the dependencies of the core alone.
"""

import contextlib
import io
import json
import sys
from importlib import import_module

import diffusers
import torch

import tapstudy


def outcome(what, *arguments):
    try:
        what(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


found = {
    "modules": {name: outcome(import_module, name) for name in sys.argv[1:]},
    "names": {name: outcome(getattr, tapstudy, name) for name in tapstudy.__all__},
}

torch.manual_seed(0)
transformer = diffusers.DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=8, out_channels=8
)
vae = diffusers.AutoencoderKL(
    block_out_channels=(4, 4),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=2,
    latent_channels=4,
)
pipe = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
pipe.set_progress_bar_config(disable=True)

with tapstudy.tap(pipe, interval=3) as handle:
    pipe(class_labels=[1], num_inference_steps=9, output_type="np")
found["mask"] = handle.summary().contexts[0].mask
found["summary"] = str(handle.summary())
handle = tapstudy.apply_policy(pipe, tapstudy.policies.FirstBlockPolicy(threshold=0.5))
handle.remove()
digits = tapstudy.load("mnist-dit")
digits.set_progress_bar_config(disable=True)
found["digit"] = digits([3], num_inference_steps=1).images[0].size
found["text"] = outcome(tapstudy.load, "emoji-flux")
said = io.StringIO()
with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
    import_module("tapstudy.__main__").main()
found["command"] = said.getvalue()
print(json.dumps(found))
