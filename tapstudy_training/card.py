"""Writes a trained model in diffusers' folder format, with the card that says what it is and how good."""

from __future__ import annotations

import copy
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.utils import make_image_grid
from torch import Tensor

from tapstudy.models.data import DATA_SETS
from tapstudy.models.embedded import load, with_transformer
from tapstudy.models.pipeline import LabelPipeline, flow_matching_scheduler
from tapstudy.models.quality import Quality
from tapstudy_training.recipes import CLASSIFIERS, EmbeddedModel

# Larger weights are cut into files of this size, which travel and are fetched one by one.
SHARD_BYTES = 15 * 2**20

CARD = """\
---
license: apache-2.0
library_name: diffusers
tags: [diffusion, flow-matching, class-conditional, {data_set}]
---
# {name}

A class-conditional diffusion transformer in pixel space: diffusers' `DiTTransformer2DModel`,
{parameters:.1f} M parameters, {size} x {size} x {channels}, patch {patch} ({tokens} tokens), width {width},
{heads} heads, {layers} layers.
Labels 0 to {last_label}; label {null_label} means "no label". Written by `tapstudy train {name}`.

{grid_text}

```python
import tapstudy

pipe = tapstudy.load("{name}")
images = pipe([3, 1, 4], guidance_scale=2.0).images
```

## Training
* Data: {data}.
* Objective: flow matching. x_t = (1 - t) x + t noise, target noise - x, t logit-normal(0, 1), `timestep = 1000 t`.
  Labels dropped to {null_label} with probability {recipe.label_dropout}, once per image, outside the model.
* Optimiser: AdamW, rate {recipe.learning_rate:g} (linear warm-up of {recipe.rate_warmup_steps} steps, constant, then
  linear to 0 over the last {decay:.0f} % of the run), weight decay {recipe.weight_decay:g}, gradients clipped at
  {recipe.gradient_clip:g}, batch {recipe.batch_size}, bf16 autocast, {compiled}average of the weights with decay
  {recipe.ema_decay:g}.
{smooth_text}* {history}
* This run: {steps:,} steps, {seen:,} images, {hours:.1f} hours on {compute}. Mean loss of the first and last 100
  steps: {first_loss:.4f}, {last_loss:.4f}; every step is in `loss.csv`, drawn in `loss.png`.
* Stored in {stored}; loaded in float32 unless asked otherwise.

## Quality
{quality_table}

Judged by the embedded `{judge}` (test accuracy {classifier_accuracy:.2f} %): share of samples classified as
their label, and Frechet distance between its {features} features of the samples and of the 10,000 test images (lower
is better, and more samples give lower values). {sampling_steps} Euler steps, matrix products in bf16. {stop_text}

## Limits
{limits}
"""


@dataclass(frozen=True)
class Provenance:
    """What the card tells beside recipe and measures."""

    data: str
    compute: str
    history: str = "Started from random weights."


SMOOTH = """\
* Smooth in time: the timestep features were multiplied by exp(-(omega sigma)^2 / 2), sigma = {sigma:g}
  of the 1000 training times, while it learned; the factors are folded into the weights.
"""

STOP = """\

Guidance acts down to the noise level {stop:g} (`guidance_stop`, kept with the model; T. Kynkaanniemi et al.,
arXiv 2404.07724). {chosen}
"""

CHOSEN = """\
Guidance at all levels, the rows from 0 on, draws the samples of a class together and the classes
apart. The level was chosen on samples from other noise."""


def export(pipe: Any, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Any:
    """Save an embedded model's pipeline, weights in `dtype` and in files of at most 15 MiB; returns it as it will be
    loaded."""
    stored = with_transformer(pipe, copy.deepcopy(pipe.transformer).to(dtype))
    if hasattr(stored, "text_encoder"):
        stored.register_modules(text_encoder=copy.deepcopy(stored.text_encoder).to(dtype))
    stored.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    return load(folder)


def write_card(
    folder: str | Path,
    spec: EmbeddedModel,
    *,
    model: DiTTransformer2DModel,
    provenance: Provenance,
    qualities: Sequence[tuple[str, Quality]],
    samples: Tensor,
    loss_log: str | Path,
) -> None:
    """`README.md`, `samples.png` (ten columns, one per label), `loss.csv` and `loss.png` beside the weights.

    Args:
        spec: what was trained and how.
        qualities: measures with the name of what was measured; the first is this model's.
        samples: (n, bands, H, W) in [-1, 1], labels going round.
        loss_log: the run's `loss.csv`.
    """
    folder, config, recipe = Path(folder), model.config, spec.recipe
    losses, hours = write_losses(folder, loss_log)
    classes = config.num_embeds_ada_norm
    pictures = LabelPipeline(model, flow_matching_scheduler()).image_processor.postprocess(samples[: 10 * classes])
    make_image_grid(pictures, rows=10, cols=classes).save(folder / "samples.png")
    best = qualities[0][1]
    side = config.sample_size // config.patch_size
    table = ["| what | guidance | images | label accuracy | Frechet distance |", "|---|---|---|---|---|"]
    table += [
        f"| {label} | {_guidance(quality)} | {quality.count:,} | "
        f"{100 * quality.label_accuracy:.1f} % | {quality.frechet_distance:.3f} |"
        for label, quality in qualities
    ]
    text = CARD.format(
        name=spec.name,
        data_set=spec.data_set,
        judge=spec.judge,
        stored=spec.stored,
        limits=f"{spec.limits} {DATA_SETS[spec.data_set].credit}",
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        size=config.sample_size,
        channels=config.in_channels,
        patch=config.patch_size,
        tokens=side * side,
        width=config.num_attention_heads * config.attention_head_dim,
        heads=config.num_attention_heads,
        layers=config.num_layers,
        last_label=classes - 1,
        null_label=classes,
        grid_text="![samples, one column per label, guidance 2](samples.png)",
        data=provenance.data,
        recipe=recipe,
        decay=100 * recipe.decay_share,
        compiled="`torch.compile`, " if spec.compile else "",
        smooth_text=SMOOTH.format(sigma=recipe.smooth_sigma) if recipe.smooth_sigma else "",
        history=provenance.history,
        steps=len(losses),
        seen=len(losses) * recipe.batch_size,
        hours=hours,
        compute=provenance.compute,
        first_loss=sum(losses[:100]) / len(losses[:100]),
        last_loss=sum(losses[-100:]) / len(losses[-100:]),
        quality_table="\n".join(table),
        classifier_accuracy=100 * best.classifier_accuracy,
        features=4 * CLASSIFIERS[spec.data_set].width,
        sampling_steps=best.steps,
        stop_text=STOP.format(
            stop=best.guidance_stop, chosen=f"It is that of `{spec.initial}`." if spec.kept_blocks else CHOSEN
        )
        if best.guidance_stop
        else "",
    )
    (folder / "README.md").write_text(text)


def write_losses(folder: Path, loss_log: str | Path) -> tuple[list[float], float]:
    """Put a run's `loss.csv` and its picture beside the weights; returns the losses and the hours they took."""
    from tapstudy.plots.loss_curve import plot_loss
    from tapstudy.plots.style import save

    with Path(loss_log).open(newline="") as file:
        rows = [(int(row["step"]), float(row["loss"]), float(row["seconds"])) for row in csv.DictReader(file)]
    (folder / "loss.csv").write_text(
        "step,loss,seconds\n" + "".join(f"{step},{loss:.6f},{seconds:.1f}\n" for step, loss, seconds in rows)
    )
    losses = [loss for _, loss, _ in rows]
    for path in save(plot_loss(losses), folder, "loss"):
        if path.suffix == ".svg":
            path.unlink()
    return losses, rows[-1][2] / 3600


def _guidance(quality: Quality) -> str:
    if not quality.guidance_scale:
        return "-"
    return f"{quality.guidance_scale:g}, noise levels {quality.guidance_stop:g} to 1"
