"""Wan 2.1, text to video: python examples/wan.py [MODEL]"""

import sys

import torch
from diffusers import AutoencoderKLWan, WanPipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
pipe = WanPipeline.from_pretrained(model, vae=vae, torch_dtype=torch.bfloat16).to("cuda")
call = {"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50, "guidance_scale": 5.0}
with tapstudy.tap(pipe, interval=5) as handle:
    video = pipe("a fox in the snow", **call, output_type="pil").frames[0]
video[0].save("wan.gif", save_all=True, append_images=video[1:], duration=1000 // 16, loop=0)
print(handle.summary())
