"""Models on a fake GPU: of real widths and numbers of tokens, with few blocks; and one that is hardly a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor, nn

from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.real_sizes import REAL_SIZES
from tapstudy.bench.speed.subjects import EulerLoop
from tapstudy.instrument import layouts
from tapstudy.instrument.adapters import Adapter
from tests.gpu_free.fake_cuda import Trace
from tests.instrument.tiny import Tiny

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


WIDTH, ROWS, COLUMNS = 16, 4, 6


class Block(nn.Module):
    """Something to probe, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.attn1(hidden_states)


class Bare(nn.Module):
    """What a policy needs of a transformer, and no work beside."""

    config = SimpleNamespace(patch_size=1)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm_out = nn.LayerNorm(WIDTH)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool = True
    ) -> tuple[Tensor]:
        tokens = hidden_states.flatten(2).mT  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens)
        return (self.norm_out(tokens).mT.reshape(hidden_states.shape),)


BARE = Adapter(("blocks",), layouts.image)


def bare() -> Tiny:
    """Return it with its inputs, for where `BARE` is among the adapters."""
    inputs = {
        "hidden_states": torch.randn(2, WIDTH, ROWS, COLUMNS),
        "timestep": torch.ones(2),
        "encoder_hidden_states": torch.randn(2, 5, 3),
    }
    return Tiny(Bare(), inputs, ROWS * COLUMNS)
