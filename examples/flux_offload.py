"""FLUX.1 on a smaller card, weights on the CPU until they are used: python examples/flux_offload.py [MODEL]"""

import sys

import torch
from diffusers import FluxPipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "black-forest-labs/FLUX.1-dev"
pipe = FluxPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # or pipe.enable_sequential_cpu_offload(), layer by layer
with tapstudy.tap(pipe, interval=8, history_dtype=torch.bfloat16) as handle:
    image = pipe("a fox in the snow", height=1024, width=1024, num_inference_steps=28, guidance_scale=3.5).images[0]
image.save("flux_offload.png")
print(handle.summary())
