"""Training of a class-conditional diffusion transformer with flow matching.

`train` is a plain loop: x_t = (1 - t) x + t noise, the model learns noise - x. It writes a checkpoint every
`checkpoint_every` steps and resumes from the newest one, so a killed run loses at most that many steps.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel, compute_density_for_timestep_sampling
from diffusers.utils import make_image_grid
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm.auto import tqdm

from tapstudy.models.data import ImageSet
from tapstudy.models.pipeline import LabelPipeline, flow_matching_scheduler


@dataclass(frozen=True)
class Recipe:
    """How to train. `total_steps` may change on resuming: the rate is constant, then falls linearly to 0 over the
    last `decay_share` of the run."""

    total_steps: int
    batch_size: int = 64
    learning_rate: float = 6e-4
    rate_warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    label_dropout: float = 0.1
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    checkpoint_every: int = 200
    sample_every: int = 400
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate at `step` (0-based)."""
        warm = min(1.0, (step + 1) / self.rate_warmup_steps)
        fall = min(1.0, (self.total_steps - step) / max(1.0, self.decay_share * self.total_steps))
        return self.learning_rate * warm * fall


@dataclass
class TrainState:
    """What a checkpoint holds: the model, its average, the optimizer and the step reached."""

    model: DiTTransformer2DModel
    ema: EMAModel
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def train(
    model_config: dict[str, Any],
    recipe: Recipe,
    images: ImageSet,
    *,
    folder: str | Path,
    initial: str | Path | None = None,
    compile_model: bool = True,
) -> DiTTransformer2DModel:
    """Train up to `recipe.total_steps` and return the averaged model.

    `folder` receives `checkpoint-*/`, `loss.csv` and `samples-*.png`; the newest checkpoint in it is resumed.
    `initial` is a model folder to start from when there is no checkpoint.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = _resume(folder, _start(model_config, recipe, initial), recipe)
    device = next(state.model.parameters()).device
    forward = torch.compile(state.model) if compile_model else state.model
    with (
        _loss_log(folder, state.step) as log,
        tqdm(total=recipe.total_steps, initial=state.step, desc="train") as bar,
    ):
        for x, labels, noise, t in _batches(images, recipe, state.step, state.model.config.num_embeds_ada_norm):
            started = time.perf_counter()
            x, labels, noise, t = (tensor.to(device) for tensor in (x, labels, noise, t))
            x_t = torch.lerp(x, noise, t.view(-1, 1, 1, 1))  # (B, C, H, W)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                velocity = forward(x_t, timestep=1000 * t, class_labels=labels).sample
            loss = F.mse_loss(velocity.float(), noise - x)
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.rate(state.step)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.gradient_clip)
            state.optimizer.step()
            state.ema.step(state.model.parameters())
            state.step += 1
            state.seconds += time.perf_counter() - started
            log.writerow([state.step, f"{loss.item():.6f}", f"{state.seconds:.1f}"])
            bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
            if state.step % recipe.checkpoint_every == 0 or state.step == recipe.total_steps:
                _save(folder, state, recipe)
            if state.step % recipe.sample_every == 0:
                _sample_grid(state, folder / f"samples-{state.step:06d}.png")
    return averaged(state)


def averaged(state: TrainState) -> DiTTransformer2DModel:
    """A copy of the model with the averaged weights, in eval mode."""
    model = DiTTransformer2DModel.from_config(state.model.config)
    state.ema.copy_to(model.parameters())
    return model.eval()


def _batches(
    images: ImageSet, recipe: Recipe, first_step: int, null_label: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches from `first_step` on. Each is drawn from its own seed, so a resumed run sees what it would have seen."""
    for step in range(first_step, recipe.total_steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        x, labels = images.batch(torch.randint(len(images), (recipe.batch_size,), generator=generator))
        # diffusers' own dropout would draw anew in every block: the label is dropped once, here, for all of them.
        dropped = torch.rand(recipe.batch_size, generator=generator) < recipe.label_dropout
        labels = torch.where(dropped, null_label, labels)
        noise = torch.randn(x.shape, generator=generator)
        t = compute_density_for_timestep_sampling(
            "logit_normal", recipe.batch_size, logit_mean=0.0, logit_std=1.0, generator=generator
        )
        yield x, labels, noise, t


def _start(model_config: dict[str, Any], recipe: Recipe, initial: str | Path | None) -> TrainState:
    torch.manual_seed(recipe.seed)
    if initial is None:
        model = DiTTransformer2DModel.from_config(model_config)
    else:
        model = DiTTransformer2DModel.from_pretrained(initial, use_safetensors=True)
    # eval mode only turns off the per-block label dropout; the models have no other.
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99), fused=True
    )
    ema = EMAModel(model.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    return TrainState(model, ema, optimizer)


def _save(folder: Path, state: TrainState, recipe: Recipe) -> None:
    """Write beside the old checkpoint, then rename: a kill leaves either the old or the new one, complete."""
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


def _resume(folder: Path, state: TrainState, recipe: Recipe) -> TrainState:
    checkpoints = sorted(folder.glob("checkpoint-*"))
    if not checkpoints:
        return state
    progress = json.loads((checkpoints[-1] / "progress.json").read_text())
    before = Recipe(**progress["recipe"])
    if replace(before, total_steps=0, checkpoint_every=0, sample_every=0) != replace(
        recipe, total_steps=0, checkpoint_every=0, sample_every=0
    ):
        raise ValueError(f"{checkpoints[-1]} was made by another recipe ({before}); choose another folder")
    tensors = load_file(checkpoints[-1] / "state.safetensors")
    for (name, parameter), average in zip(state.model.named_parameters(), state.ema.shadow_params, strict=True):
        parameter.data.copy_(tensors[f"model/{name}"])
        average.copy_(tensors[f"ema/{name}"])
        state.optimizer.state[parameter] = {
            key: tensors[f"optimizer/{key}/{name}"].to(parameter.device if key != "step" else "cpu")
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    state.ema.optimization_step = progress["ema_steps"]
    state.step, state.seconds = progress["step"], progress["seconds"]
    return state


class _loss_log:
    """Appends rows to `loss.csv`, dropping rows past the checkpoint that is resumed."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path, self.step = folder / "loss.csv", step

    def __enter__(self) -> Any:
        kept = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= self.step]
        self.file = self.path.open("w", newline="", buffering=1)
        writer = csv.writer(self.file)
        writer.writerow(["step", "loss", "seconds"])
        writer.writerows(kept)
        return writer

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _sample_grid(state: TrainState, path: Path) -> None:
    pipe = LabelPipeline(averaged(state), flow_matching_scheduler())
    pipe.set_progress_bar_config(disable=True)
    count = state.model.config.num_embeds_ada_norm
    generator = torch.Generator().manual_seed(0)
    labels = [label for label in range(count) for _ in range(4)]
    (images,) = pipe(labels, guidance_scale=2.0, generator=generator, return_dict=False)
    make_image_grid(images, rows=count, cols=4).save(path)
