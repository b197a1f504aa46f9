"""Stable Diffusion 3.5, two prompts at a time: python examples/stable_diffusion_35.py [MODEL]"""

import sys

import torch
from diffusers import StableDiffusion3Pipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "stabilityai/stable-diffusion-3.5-large"
pipe = StableDiffusion3Pipeline.from_pretrained(model, torch_dtype=torch.bfloat16).to("cuda")
prompts = ["a fox in the snow", "two small boats at dawn"]
with tapstudy.tap(pipe, interval=6) as handle:
    images = pipe(prompts, height=1024, width=1024, num_inference_steps=28, guidance_scale=3.5).images
for i, image in enumerate(images):
    image.save(f"stable_diffusion_35_{i}.png")
print(handle.summary())
