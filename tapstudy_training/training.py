"""Training of a conditional diffusion transformer with flow matching.

`train` is a plain loop: x_t = (1 - t) x + t noise, the model learns noise - x. It writes a checkpoint every
`checkpoint_every` steps and resumes from the newest one, so a killed run loses at most that many steps.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from tapstudy.models.precision import bf16_products
from tapstudy_training.checkpoint import TrainState, averaged, resume, save_checkpoint, start
from tapstudy_training.recipes import Recipe
from tapstudy_training.tasks import Task


@dataclass(frozen=True)
class Trained:
    """The averaged modules, the step they have reached, whether that is the last one, and the images per second of
    this call without its first steps (None: too few steps to tell)."""

    modules: nn.ModuleDict
    step: int
    finished: bool
    images_per_second: float | None


def train(
    task: Task,
    recipe: Recipe,
    *,
    folder: str | Path,
    initial: str | Path | None = None,
    compile_model: bool = True,
    device: str | torch.device | None = None,
    minutes: float | None = None,
) -> Trained:
    """Train up to `recipe.total_steps`, or for `minutes`, whichever comes first.

    `folder` receives `checkpoint-*/`, `loss.csv` and `samples-*.png`; the newest checkpoint in it is resumed.
    `initial` is a model folder to start from when there is no checkpoint. `device` None: a GPU where there is one.
    When the time is up, or the next step would end after that, a checkpoint is written (at least one step is made).

    Raises ValueError on a checkpoint of another recipe or a loss that is not finite.
    """
    limit = _Limit(minutes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state = resume(folder, start(task, recipe, device=device, initial=initial), recipe)
    velocity = torch.compile(task.velocity) if compile_model else task.velocity
    pending: list[torch.Tensor] = []
    flushed: list[tuple[int, float]] = []
    with (
        _plain_attention(device),
        _LossLog(folder, state.step) as log,
        tqdm(total=recipe.total_steps, initial=state.step, desc="train", mininterval=2) as bar,
    ):
        since = time.perf_counter()
        while state.step < recipe.total_steps:
            x, condition, noise, t = task.batch(recipe, state.step).to(device)
            x_t = torch.lerp(x, noise, t.view(-1, 1, 1, 1))  # (B, C, H, W)
            with bf16_products(device.type, enabled=recipe.precision == "bf16"):
                found = velocity(state.modules, x_t, t, condition)
            loss = F.mse_loss(found.float(), noise - x)
            state.rates(recipe)
            state.modules.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(state.modules.parameters(), recipe.gradient_clip)
            for optimizer in state.optimizers:
                optimizer.step()
            state.ema.step(state.modules.parameters())
            state.step += 1
            pending.append(loss.detach())
            bar.update()

            last = state.step == recipe.total_steps or limit.leaves_no_step()
            saves = last or state.step % recipe.checkpoint_every == 0
            draws = state.step % recipe.sample_every == 0
            if saves or draws or len(pending) >= recipe.log_every:
                losses = torch.stack(pending).tolist()  # the only wait for the device
                state.seconds += time.perf_counter() - since
                log.write(state.step, losses, state.seconds)
                flushed.append((state.step, state.seconds))
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                pending.clear()
                if saves:
                    save_checkpoint(folder, state, recipe)
                if draws:
                    _sample_grid(state, task, recipe, folder / f"samples-{state.step:06d}.png")
                since = time.perf_counter()
            if last:
                break
    return Trained(
        averaged(state, task, recipe), state.step, state.step >= recipe.total_steps, _throughput(flushed, recipe)
    )


class _Limit:
    """Minutes for some steps. One more takes as long as the longest so far, with whatever it was that it waited for,
    wrote and drew; the first does not count, as it compiles."""

    def __init__(self, minutes: float | None) -> None:
        self._before = time.perf_counter()
        self._ends = math.inf if minutes is None else self._before + 60 * minutes
        self._longest: float | None = None

    def leaves_no_step(self) -> bool:
        """Tell, after a step, whether the time is up before another one would be over."""
        now = time.perf_counter()
        self._longest = 0.0 if self._longest is None else max(self._longest, now - self._before)
        self._before = now
        return now + self._longest >= self._ends


@contextmanager
def _plain_attention(device: torch.device) -> Iterator[None]:
    """On a CPU, attention as two matrix products in bf16 around a softmax: faster than the fused kernel there."""
    if device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of all devices, in spite of its name
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def read_losses(folder: str | Path) -> list[float]:
    """The loss of every step so far, from the run's `loss.csv`."""
    with (Path(folder) / "loss.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def _throughput(flushed: Sequence[tuple[int, float]], recipe: Recipe) -> float | None:
    """Images per second after the first wait for the device, which holds the compilation."""
    if len(flushed) < 2:
        return None
    (first, begun), (last, ended) = flushed[0], flushed[-1]
    return (last - first) * recipe.batch_size / (ended - begun)


class _LossLog:
    """Appends rows to `loss.csv`, dropping rows past the checkpoint that is resumed."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path, self.step = folder / "loss.csv", step

    def __enter__(self) -> _LossLog:
        kept = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= self.step]
        self.file = self.path.open("w", newline="", buffering=1)
        self.writer = csv.writer(self.file)
        self.writer.writerow(["step", "loss", "seconds"])
        self.writer.writerows(kept)
        return self

    def write(self, step: int, losses: Sequence[float], seconds: float) -> None:
        """The losses of the steps up to `step`. Raises ValueError before anything else is made of a broken one."""
        first = step - len(losses) + 1
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of step {first + i} is {loss}: train in another folder with a lower rate "
                    f"(the checkpoints in {self.path.parent} are from before)"
                )
            self.writer.writerow([first + i, f"{loss:.6f}", f"{seconds:.1f}"])

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _sample_grid(state: TrainState, task: Task, recipe: Recipe, path: Path) -> None:
    pipe = task.pipeline(averaged(state, task, recipe)).to(state.device)
    pipe.set_progress_bar_config(disable=True)
    images = task.sample_grid(pipe)
    make_image_grid(images, rows=len(images) // task.columns, cols=task.columns).save(path)
