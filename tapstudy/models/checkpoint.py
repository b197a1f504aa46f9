"""The state of a training run, and its checkpoints on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from tapstudy.models.recipes import Recipe

# what may differ between the calls of one run
FREE: dict[str, Any] = {"total_steps": 0, "checkpoint_every": 0, "sample_every": 0, "log_every": 0}


@dataclass
class TrainState:
    """What a checkpoint holds: the model, its average, the optimizer and the step reached."""

    model: DiTTransformer2DModel
    ema: EMAModel
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def start(
    model_config: Mapping[str, Any], recipe: Recipe, *, device: str | torch.device, initial: str | Path | None = None
) -> TrainState:
    """A run before its first step, with random weights or those in `initial`, the folder of a model or a pipeline."""
    torch.manual_seed(recipe.seed)
    if initial is None:
        model = DiTTransformer2DModel.from_config(dict(model_config))
        if recipe.zero_gates:
            _zero_gates(model)
    else:
        inside = Path(initial) / "transformer"
        folder = inside if inside.is_dir() else Path(initial)
        model = DiTTransformer2DModel.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    # eval mode only turns off the per-block label dropout; the models have no other.
    model = model.to(device).eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99), fused=True
    )
    ema = EMAModel(model.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    return TrainState(model, ema, optimizer)


def averaged(state: TrainState) -> DiTTransformer2DModel:
    """A copy of the model with the averaged weights, in eval mode, on the CPU."""
    model = DiTTransformer2DModel.from_config(state.model.config)
    state.ema.copy_to(model.parameters())
    return model.eval()


def save_checkpoint(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write beside the old checkpoint, then rename: a kill leaves either the old or the new one, complete.

    The last two are kept.
    """
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for (name, parameter), average in zip(state.model.named_parameters(), state.ema.shadow_params, strict=True):
        tensors[f"model/{name}"] = parameter.detach()
        tensors[f"ema/{name}"] = average.detach()
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value.detach()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "state.safetensors")
    progress = {
        "step": state.step,
        "seconds": state.seconds,
        "ema_steps": state.ema.optimization_step,
        "recipe": asdict(recipe),
    }
    (partial / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
    target = folder / f"checkpoint-{state.step:06d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in sorted(folder.glob("checkpoint-*"))[:-2]:
        shutil.rmtree(old)


def resume(folder: Path, state: TrainState, recipe: Recipe) -> TrainState:
    """The newest checkpoint in `folder`, or `state` as it is when there is none.

    Raises ValueError when the checkpoint was made by another recipe.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"))
    if not checkpoints:
        return state
    progress = json.loads((checkpoints[-1] / "progress.json").read_text())
    before = Recipe(**progress["recipe"])
    if replace(before, **FREE) != replace(recipe, **FREE):
        raise ValueError(f"{checkpoints[-1]} was made by another recipe ({before}); choose another folder")
    tensors = load_file(checkpoints[-1] / "state.safetensors")
    for (name, parameter), average in zip(state.model.named_parameters(), state.ema.shadow_params, strict=True):
        parameter.data.copy_(tensors[f"model/{name}"])
        average.copy_(tensors[f"ema/{name}"])
        # the fused optimizer wants its step counts beside the weights, too
        state.optimizer.state[parameter] = {
            key: tensors[f"optimizer/{key}/{name}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
        }
    state.ema.optimization_step = progress["ema_steps"]
    state.step, state.seconds = progress["step"], progress["seconds"]
    return state


@torch.no_grad()
def _zero_gates(model: DiTTransformer2DModel) -> None:
    layers = [block.norm1.linear for block in model.transformer_blocks]
    for layer in (*layers, model.proj_out_1, model.proj_out_2):
        layer.weight.zero_()
        layer.bias.zero_()
