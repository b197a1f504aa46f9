"""HunyuanVideo, its history on the CPU and the weights offloaded: python examples/hunyuan_video.py [MODEL]"""

import sys

import torch
from diffusers import HunyuanVideoPipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "hunyuanvideo-community/HunyuanVideo"
pipe = HunyuanVideoPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
pipe.vae.enable_tiling()
pipe.enable_model_cpu_offload()
with tapstudy.tap(pipe, interval=6, history_dtype=torch.bfloat16, history_device="cpu") as handle:
    call = {"height": 320, "width": 512, "num_frames": 61, "num_inference_steps": 50}
    video = pipe("a fox in the snow", **call, output_type="pil").frames[0]
video[0].save("hunyuan_video.gif", save_all=True, append_images=video[1:], duration=1000 // 15, loop=0)
print(handle.summary())
