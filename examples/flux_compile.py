"""FLUX.1 with compiled blocks and a compiled skip step: python examples/flux_compile.py [MODEL]"""

import sys

import torch
from diffusers import FluxPipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "black-forest-labs/FLUX.1-dev"
pipe = FluxPipeline.from_pretrained(model, torch_dtype=torch.bfloat16).to("cuda")
pipe.transformer.compile_repeated_blocks(fullgraph=True)
policy = tapstudy.policies.TAPPolicy(tapstudy.TAPConfig(interval=8), compile=True)
with tapstudy.apply_policy(pipe, policy) as handle:
    for seed in range(2):  # the first image compiles
        noise = torch.Generator().manual_seed(seed)
        call = {"height": 1024, "width": 1024, "num_inference_steps": 28, "guidance_scale": 3.5, "generator": noise}
        pipe("a fox in the snow", **call).images[0].save(f"flux_compile_{seed}.png")
print(handle.summary())
