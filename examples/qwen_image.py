"""Qwen-Image with true guidance, whose branches have histories of their own: python examples/qwen_image.py [MODEL]"""

import sys

import torch
from diffusers import QwenImagePipeline

import tapstudy

model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen-Image"
pipe = QwenImagePipeline.from_pretrained(model, torch_dtype=torch.bfloat16).to("cuda")
call = {"negative_prompt": " ", "true_cfg_scale": 4.0, "height": 1328, "width": 1328, "num_inference_steps": 50}
with tapstudy.tap(pipe, interval=4) as handle:
    image = pipe("a fox in the snow", **call).images[0]
image.save("qwen_image.png")
print(handle.summary())
