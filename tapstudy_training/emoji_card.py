"""Measures a text-to-image model of emoji and writes its folder with the card that says what it is and how good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid

from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import DATA_SETS
from tapstudy.models.quality import weights_digest
from tapstudy_training.captioned import BACKGROUNDS, CaptionedImages, renderings
from tapstudy_training.card import SMOOTH, export, write_losses
from tapstudy_training.emoji_quality import (
    EmojiQuality,
    judge_pictures,
    real_pictures,
    sample_pictures,
    wanted_pictures,
)
from tapstudy_training.recipes import EmbeddedModel
from tapstudy_training.tasks import TextTask, task_of
from tapstudy_training.training import Trained

GUIDANCE = 3.0
TABLE = re.compile(r"(?<=^## Quality\n)(?:\|.*\n)+", re.MULTILINE)

CARD = """\
---
license: apache-2.0
library_name: diffusers
tags: [diffusion, flow-matching, text-to-image, emoji]
---
# {name}

A text-to-image diffusion transformer in pixel space: diffusers' `FluxTransformer2DModel`, {parameters:.1f} M
parameters, {size} x {size} x 3, patches of {patch} x {patch} ({tokens} tokens), width {width}, {double} double and
{single} single blocks; the text goes through a `T5EncoderModel` of {encoder:.1f} M parameters, trained with it, over a
vocabulary of {words:,} whole words. Written by `tapstudy train {name}`.

![rows 1 and 2: captions of training; rows 3 and 4: held-out combinations of role and skin tone](samples.png)

```python
import tapstudy

pipe = tapstudy.load("{name}")
image = pipe("red apple on a teal background", guidance_scale=3.0).images[0]
```

A caption is `NAME [TONE skin tone] [noto or twemoji] [small POSITION] on a BACKGROUND background`. Names are the
Unicode ones in lower case; tones are light, medium-light, medium, medium-dark, dark; positions top left, top right,
bottom left, bottom right; backgrounds {backgrounds}. A word that is none of the vocabulary counts as one unknown word.

## Training
* Data: {data}
* Held out: one skin tone of each of 78 roles, in both styles; other tones of these roles and these tones of other roles
  are in the training set.
* Objective: flow matching. x_t = (1 - t) x + t noise, target noise - x, t logit-normal with mean 0 at half size and
  {recipe.time_mean:g} at full size, deviation 1, one time in each part of a batch; `timestep = 1000 t`. Captions left
  empty with probability {recipe.label_dropout}; the style is left out of three captions in ten, the background of one.
{smooth_text}* Optimisers: Muon at {recipe.matrix_rate:g} for the matrices of attention and feed-forward
  layers, AdamW at {recipe.learning_rate:g} for the rest (linear warm-up of {recipe.rate_warmup_steps} steps, constant,
  then linear to 0 over the last {decay:.0f} % of {recipe.total_steps:,} steps), weight decay {recipe.weight_decay:g},
  gradients clipped at {recipe.gradient_clip:g}, batch {recipe.batch_size}, bf16 autocast, `torch.compile`, average of
  the weights with decay {recipe.ema_decay:g}. The first {recipe.half_size_steps:,} steps at half the size.
* {history}
* {progress}: {seen:,} images, {hours:.1f} hours on {compute}{rate}. Mean loss of the first and
  last 100 steps: {first_loss:.4f}, {last_loss:.4f}; every step is in `loss.csv`, drawn in `loss.png`. Losses at half
  and at full size do not compare.
* Stored in {stored}; loaded in float32 unless asked otherwise.

## Quality
{table}

Each picture has its own caption, noise and background; guidance {guidance:g}, 50 Euler steps, matrix products in bf16.
The embedded `emoji-classifier` looks at pictures half as large and knows all {classes:,} names with their tones, the
held-out ones too; on real emoji on other backgrounds it is right {judge:.1f} % of the time. First guess and first
twenty count the emoji with its skin tone; name and tone are of the first guess. Background: the named colour nearest to
the border's median. Nearest: median distance to the nearest training picture on the same background, root mean square
over pixels in [0, 1]; for real held-out emoji the same says how far a new picture is from what was seen.

## Limits
{limits}
"""


def measure_emoji_model(
    spec: EmbeddedModel,
    trained: Trained,
    *,
    images: CaptionedImages,
    judge: Classifier,
    compute: str,
    out: Path,
    work: Path,
    history: str = "Started from random weights.",
) -> list[tuple[str, EmojiQuality]]:
    """Write a model to `out`, finished or not, measure it as it will be loaded, and write its card.

    Returns rows of (what was measured, its quality): `spec.count` samples of captions that were trained on, the
    held-out combinations, each once, and the real emoji of both.
    """
    task = task_of(spec, images)
    assert isinstance(task, TextTask)
    pipe = export(task.pipeline(trained.modules), out, dtype=getattr(torch, spec.stored))
    pipe.set_progress_bar_config(disable=True)
    rows = emoji_qualities(pipe, images=images, judge=judge, count=spec.count, work=work)
    grid = task.sample_grid(pipe)
    make_image_grid(grid, rows=len(grid) // task.columns, cols=task.columns).save(out / "samples.png")
    losses, hours = write_losses(out, work / "loss.csv")
    (out / "README.md").write_text(_card(spec, pipe, rows, images, judge, losses, hours, compute, history))
    return rows


def emoji_qualities(
    pipe: Any, *, images: CaptionedImages, judge: Classifier, count: int, work: Path
) -> list[tuple[str, EmojiQuality]]:
    """List what the judge sees in samples of `count` captions of training and of as many held-out ones, if there are.

    Rows of (what was measured, its quality), each model's followed by the real emoji of the same captions. `work` keeps
    the samples, for a killed run to go on.
    """
    rows = []
    kept = work / "quality" / weights_digest(pipe.transformer, pipe.text_encoder)
    for name, held_out in (("training captions", False), ("held-out combinations", True)):
        many = sum(one.held_out for one in images.emoji) if held_out else count
        wanted = wanted_pictures(images, min(many, count), held_out=held_out)
        if not wanted:
            continue
        made = sample_pictures(pipe, images, wanted, guidance_scale=GUIDANCE, folder=kept / str(held_out))
        rows.append((f"this model, {name}", judge_pictures(made, images, wanted, judge)))
        rows.append((f"real emoji, {name}", judge_pictures(real_pictures(images, wanted), images, wanted, judge)))
    return rows


def check_card(card: Path) -> list[str]:
    """Return a card's text before and after its table of qualities.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: it has no such table, or several.
    """
    if not card.is_file():
        raise FileNotFoundError(f"no card {card}: name the folder of a model that `tapstudy train` wrote")
    parts = TABLE.split(card.read_text())
    if len(parts) != 2:
        raise ValueError(f"{card}: {len(parts) - 1} tables directly below '## Quality', and it takes one to replace")
    return parts


def write_qualities(card: Path, rows: list[tuple[str, EmojiQuality]]) -> None:
    """Replace the table of qualities in a card; raises as `check_card`."""
    before, after = check_card(card)
    card.write_text(f"{before}{quality_table(rows)}\n{after}")


def quality_table(rows: list[tuple[str, EmojiQuality]]) -> str:
    """Return the qualities as Markdown."""
    lines = ["| what | pictures | first guess | first 20 | name | tone | background | nearest |", "|---|" + "---|" * 7]
    lines += [
        f"| {name} | {found.count} | {_percent(found.first)} | {_percent(found.among_20)} | {_percent(found.name)} | "
        f"{_percent(found.tone)} | {_percent(found.background)} | {found.nearest:.3f} |"
        for name, found in rows
    ]
    return "\n".join(lines)


def _card(
    spec: EmbeddedModel,
    pipe: Any,
    rows: list[tuple[str, EmojiQuality]],
    images: CaptionedImages,
    judge: Classifier,
    losses: list[float],
    hours: float,
    compute: str,
    history: str,
) -> str:
    config, recipe = pipe.transformer.config, spec.recipe
    test = renderings(images, each=1, seed=1)
    guesses, _ = classify(judge, test.batch(torch.arange(len(test)))[0])
    return CARD.format(
        name=spec.name,
        parameters=sum(p.numel() for p in pipe.transformer.parameters()) / 1e6,
        encoder=sum(p.numel() for p in pipe.text_encoder.parameters()) / 1e6,
        words=len(pipe.tokenizer) - 3,
        size=spec.size,
        patch=pipe.patch_size,
        tokens=(spec.size // pipe.patch_size) ** 2,
        width=config.num_attention_heads * config.attention_head_dim,
        double=config.num_layers,
        single=config.num_single_layers,
        backgrounds=", ".join(BACKGROUNDS),
        data=f"{sum(not one.held_out for one in images.emoji):,} emoji of two styles, laid on plain backgrounds; one "
        "in seven half as large in a corner.",
        recipe=recipe,
        smooth_text=SMOOTH.format(sigma=recipe.smooth_sigma) if recipe.smooth_sigma else "",
        decay=100 * recipe.decay_share,
        history=history,
        progress="This run" if len(losses) >= recipe.total_steps else f"Unfinished, {len(losses):,} steps so far",
        seen=len(losses) * recipe.batch_size,
        hours=hours,
        # the log counts tenths of a second: of a few quick steps it knows no rate
        rate=f", {len(losses) * recipe.batch_size / (3600 * hours):.1f} images a second" if hours else "",
        compute=compute,
        first_loss=sum(losses[:100]) / len(losses[:100]),
        last_loss=sum(losses[-100:]) / len(losses[-100:]),
        stored=spec.stored,
        table=quality_table(rows),
        guidance=GUIDANCE,
        classes=judge.head.out_features,
        judge=100 * float((guesses == test.labels).float().mean()),
        limits=f"{spec.limits} {DATA_SETS[spec.data_set].credit}",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
