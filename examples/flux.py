"""FLUX.1 in 6 of 28 passes: python examples/flux.py [MODEL]"""

import sys

import torch
from diffusers import FluxPipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "black-forest-labs/FLUX.1-dev"
pipe = FluxPipeline.from_pretrained(model, torch_dtype=torch.bfloat16).to("cuda")
with tapstudy.tap(pipe, interval=8) as handle:
    image = pipe("a fox in the snow", height=1024, width=1024, num_inference_steps=28, guidance_scale=3.5).images[0]
image.save("flux.png")
print(handle.summary())
