"""The state of a training run, and its checkpoints on disk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

from tapstudy_training.recipes import Recipe
from tapstudy_training.tasks import Task
from tapstudy_training.time_features import attenuate, fold, unfold

# what may differ between the calls of one run
FREE: dict[str, Any] = {
    "total_steps": 0,
    "checkpoint_every": 0,
    "sample_every": 0,
    "log_every": 0,
    "half_size_steps": 0,
}


@dataclass
class TrainState:
    """What a checkpoint holds: the modules, their average, the optimizers and the step reached."""

    modules: nn.ModuleDict
    ema: EMAModel
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    @property
    def device(self) -> torch.device:
        return next(self.modules.parameters()).device

    def rates(self, recipe: Recipe) -> None:
        """Set the rates of the step at hand."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * recipe.rate_share(self.step)

    def held(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What the optimizer that learns `parameter` keeps of it."""
        owner = next((o for o in self.optimizers if parameter in o.state), None)
        return {} if owner is None else owner.state[parameter]


def start(task: Task, recipe: Recipe, *, device: str | torch.device, initial: str | Path | None = None) -> TrainState:
    """A run before its first step, with random weights or those in `initial`, the folder of a model or a pipeline."""
    torch.manual_seed(recipe.seed)
    modules = task.build(None if initial is None else Path(initial))
    if initial is None and recipe.zero_gates:
        _zero_gates(modules["transformer"])
    if initial is not None:
        unfold(modules["transformer"], smooth_sigma_of(Path(initial)))
    if recipe.smooth_sigma:
        attenuate(modules["transformer"], recipe.smooth_sigma)
    # eval mode only turns off the per-block label dropout; the models have no other.
    modules = modules.to(device).eval().requires_grad_(True)
    ema = EMAModel(modules.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    return TrainState(modules, ema, _optimizers(task, modules, recipe))


def smooth_sigma_of(folder: Path) -> float:
    """The low-pass of the clock that is folded into the weights of a pipeline's folder."""
    index = folder / "model_index.json"
    return float(json.loads(index.read_text()).get("smooth_sigma", 0.0)) if index.is_file() else 0.0


def _optimizers(task: Task, modules: nn.ModuleDict, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = task.matrices(modules) if recipe.matrix_rate else []
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in modules.parameters() if id(parameter) not in taken]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, recipe.beta2), fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def averaged(state: TrainState, task: Task, recipe: Recipe) -> nn.ModuleDict:
    """The modules with the averaged weights, stock ones in eval mode on the CPU."""
    modules = task.build()
    state.ema.copy_to(modules.parameters())
    fold(modules["transformer"], recipe.smooth_sigma)
    return modules.eval()


def save_checkpoint(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write beside the old checkpoint, then rename: a kill leaves either the old or the new one, complete.

    The last two are kept.
    """
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for (name, parameter), average in zip(state.modules.named_parameters(), state.ema.shadow_params, strict=True):
        tensors[f"model/{name}"] = parameter.detach()
        tensors[f"ema/{name}"] = average.detach()
        for key, value in state.held(parameter).items():
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
    for (name, parameter), average in zip(state.modules.named_parameters(), state.ema.shadow_params, strict=True):
        parameter.data.copy_(tensors[f"model/{name}"])
        average.copy_(tensors[f"ema/{name}"])
        owner = next(o for o in state.optimizers for group in o.param_groups for p in group["params"] if p is parameter)
        # the fused optimizer wants its step counts beside the weights, too
        owner.state[parameter] = {
            key: tensors[f"optimizer/{key}/{name}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
            if f"optimizer/{key}/{name}" in tensors
        }
    state.ema.optimization_step = progress["ema_steps"]
    state.step, state.seconds = progress["step"], progress["seconds"]
    return state


@torch.no_grad()
def _zero_gates(transformer: nn.Module) -> None:
    """Close the gates of all blocks, and let the output begin at zero."""
    for name, layer in transformer.named_modules():
        modulation = name.endswith(".linear") and "norm" in name.split(".")[-2]
        if modulation or name in ("proj_out", "proj_out_1", "proj_out_2"):
            layer.weight.zero_()
            layer.bias.zero_()
