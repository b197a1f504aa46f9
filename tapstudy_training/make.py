"""Makes an embedded model: trains it, measures it, writes its folder with the card. `tapstudy train` calls these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import DATA_SETS, LabelledImages
from tapstudy.models.machine import Machine
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.models.quality import Judge, Quality, measure_quality
from tapstudy_training.captioned import CaptionedImages
from tapstudy_training.card import Provenance, export, write_card
from tapstudy_training.classifier import train_classifier
from tapstudy_training.recipes import MODELS, ClassifierRecipe, EmbeddedModel
from tapstudy_training.speed import Speed, known_peak, training_flops
from tapstudy_training.tasks import Task, loaded_part, task_of
from tapstudy_training.training import Trained, read_losses, train


def train_model(
    spec: EmbeddedModel,
    images: LabelledImages | CaptionedImages,
    machine: Machine,
    *,
    work: Path,
    initial: Path | None = None,
    minutes: float | None = None,
    export_to: Path | None = None,
) -> tuple[Trained, str]:
    """Train or go on training by the model's recipe, in the folder `work`; `minutes` as in `train`.

    Writes `loss.png` there and, with `export_to`, the averaged weights as they are now as a pipeline folder.

    Returns the model and what to tell about the run.
    """
    task = task_of(spec, images.to(machine.device) if spec.recipe.on_device else images)
    trained = train(
        task,
        spec.recipe,
        folder=work,
        initial=initial,
        compile_model=machine.compile,
        device=machine.device,
        minutes=minutes,
    )
    _draw_losses(work)
    if export_to is not None:
        export(task.pipeline(trained.modules), export_to, dtype=getattr(torch, spec.stored))
    return trained, _report(spec, task, trained, machine, work=work, images=len(images))


def measure_model(
    spec: EmbeddedModel,
    trained: Trained,
    *,
    images: LabelledImages,
    judge: Judge,
    machine: Machine,
    out: Path,
    work: Path,
    initial: Path | None = None,
    initial_count: int = 0,
    history: str = "",
) -> list[tuple[str, Quality]]:
    """Write the finished model to `out`, measure it as it will be loaded, and write its card.

    Args:
        images: the training images: they have the distance that a perfect model would have.
        initial: the weights that training started from, measured too, with `initial_count` samples (0: as many);
            not where only some of their blocks were kept.
        history: for the card, where the initial weights come from.
    """
    size, kept = 50 if torch.device(machine.device).type == "cpu" else 500, work / "quality"
    pipe = export(task_of(spec, images).pipeline(trained.modules), out, dtype=getattr(torch, spec.stored))
    pipe = pipe.to(machine.device)
    pipe.set_progress_bar_config(disable=True)
    quality, samples = measure_quality(pipe, judge, count=spec.count, batch_size=size, folder=kept)
    before: LabelPipeline | None = None
    few = spec.count
    if initial is not None and not spec.kept_blocks:  # a deeper model that lost blocks is no model of its own
        start = loaded_part(type(pipe.transformer), initial, "transformer").eval()
        before = LabelPipeline(start, pipe.scheduler).to(machine.device)
        few = min(initial_count or few, few)
    qualities = [("this model", quality)]
    # with blocks of another model comes its level of guidance: there is nothing to choose it by
    stops = (spec.guidance_stop,) if spec.kept_blocks else (spec.guidance_stop, 0.0)
    qualities += against_before(pipe, before, judge, real=images, count=few, stops=stops, batch_size=size, folder=kept)
    qualities = list(dict.fromkeys(qualities))  # with as many samples as its initial weights, the first is there twice
    write_card(
        out,
        spec,
        model=pipe.transformer.cpu(),
        provenance=Provenance(
            f"{_described(spec.data_set, images)}, scaled to [-1, 1]"
            + (", half of them mirrored at random" if spec.recipe.flip else ""),
            str(machine),
            history or ("Started from the weights in another folder." if initial else "Started from random weights."),
        ),
        qualities=qualities,
        samples=samples,
        loss_log=work / "loss.csv",
    )
    return qualities


def against_before(
    pipe: LabelPipeline,
    before: LabelPipeline | None,
    judge: Judge,
    *,
    real: LabelledImages,
    count: int,
    stops: Sequence[float],
    batch_size: int = 50,
    folder: Path | None = None,
) -> list[tuple[str, Quality]]:
    """A model beside what it was trained on from, if anything, with guidance down to each of some noise levels.

    The distance depends on the number of samples, so all have `count` of them, and so have the real images of the last
    row, as many of every class: what a perfect model would have.
    """
    rows = []
    for stop in dict.fromkeys(stops):
        for name, other in (("this model", pipe), ("its initial weights", before)):
            if other is None:
                continue
            alike = LabelPipeline(other.transformer, other.scheduler, guidance_stop=stop)
            alike.set_progress_bar_config(disable=True)
            rows.append((name, measure_quality(alike, judge, count=count, batch_size=batch_size, folder=folder)[0]))
    classes = pipe.transformer.config.num_embeds_ada_norm
    each = [(real.labels == label).nonzero()[: -(-count // classes), 0] for label in range(classes)]
    chosen = torch.stack(each, dim=1).flatten()[:count]  # labels going round, as the samples' do
    return [*rows, ("training images", judge(*real.batch(chosen)))]


def make_classifier(
    data_set: str,
    recipe: ClassifierRecipe,
    *,
    train_images: LabelledImages,
    test: LabelledImages,
    out: Path,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Classifier, float]:
    """Train the judge of a data set, write it with its card to `out`; returns it with its test accuracy."""
    model = train_classifier(train_images, recipe, seed=seed, device=device)
    pixels, labels = test.batch(torch.arange(len(test)))
    accuracy = float((classify(model.to(device), pixels)[0] == labels).float().mean())
    model.cpu().save(out)
    judged = next(spec.name for spec in MODELS.values() if spec.data_set == data_set)
    layers = {"plain": "six 3x3 convolutions", "residual": "eight 3x3 convolutions, four of them in residual pairs"}
    (out / "README.md").write_text(
        f"# {data_set}-classifier\n\nJudges the samples of `{judged}`: {layers[recipe.architecture]}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters. Written by `tapstudy train {data_set}-classifier "
        f"--epochs {recipe.epochs} --seed {seed}` on {_described(data_set, train_images)}. "
        f"{DATA_SETS[data_set].credit} Accuracy on the {len(test):,} test images: {100 * accuracy:.2f} %.\n"
    )
    return model, accuracy


def _described(data_set: str, images: LabelledImages) -> str:
    facts = DATA_SETS[data_set].train
    return f"{facts} ({images.note})" if images.note else facts


def _draw_losses(work: Path) -> None:
    from tapstudy.plots.loss_curve import plot_loss
    from tapstudy.plots.style import save

    for path in save(plot_loss(read_losses(work)), work, "loss"):
        if path.suffix == ".svg":
            path.unlink()


def _report(spec: EmbeddedModel, task: Task, trained: Trained, machine: Machine, *, work: Path, images: int) -> str:
    recipe = spec.recipe
    seen, last = trained.step * recipe.batch_size, read_losses(work)[-100:]
    lines = [
        f"step {trained.step:,} of {recipe.total_steps:,}: {seen:,} images ({seen / images:.1f} epochs), "
        f"mean loss of the last {len(last)} steps {sum(last) / len(last):.4f}"
    ]
    if trained.images_per_second is not None:
        peak = machine.peak or known_peak(machine.device)
        lines.append(str(Speed(trained.images_per_second, training_flops(task, spec.recipe, trained.step), peak)))
        if not trained.finished:
            rate = 60 * trained.images_per_second / recipe.batch_size
            left = (recipe.total_steps - trained.step) / rate
            lines.append(f"at this speed the rest takes {left:.1f} minutes; a minute is {rate:,.0f} steps (--steps)")
    if not trained.finished:
        lines.append("time is up: the same command goes on from here")
    return "\n".join(lines)
