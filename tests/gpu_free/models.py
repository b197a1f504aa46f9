"""Models of real size on a fake GPU: their widths and numbers of tokens, with few blocks."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import nn

from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.real_sizes import REAL_SIZES
from tapstudy.bench.speed.subjects import EulerLoop
from tests.gpu_free.fake_cuda import Trace

FEW = {
    "DiTTransformer2DModel": {"num_layers": 2, "out_channels": 4},
    "FluxTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
    "HunyuanVideoTransformer3DModel": {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1},
    "QwenImageTransformer2DModel": {"num_layers": 2},
    "SD3Transformer2DModel": {"num_layers": 2},
    "WanTransformer3DModel": {"num_layers": 2},
}
MODELS = sorted(FEW)


def real(trace: Trace, name: str, **config: Any) -> EulerLoop:
    """Return a loop over a released model at its usual resolution, in bf16."""
    size = REAL_SIZES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model: nn.Module = getattr(diffusers, name)(**{**size.config, **FEW[name], **config}).eval()
    finally:
        torch.set_default_dtype(before)
    nn.Module.to(model, torch.bfloat16)
    on_host = torch.empty(0, dtype=torch.bfloat16)  # arguments are made where the weights are
    with patch.object(model, "parameters", lambda: iter([on_host])):
        host = example_inputs(model, size.grid, text=size.text, batch=1)
    scale = 1 if name.startswith(("Flux", "Qwen")) else 1000
    return EulerLoop(model, trace.on(host), time_scale=scale)
