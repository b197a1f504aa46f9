"""The commands of `tapstudy train`: make the embedded models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapstudy.commands.errors import user_errors
from tapstudy_training.recipes import CLASSIFIERS, MODELS, EmbeddedModel

if TYPE_CHECKING:
    from tapstudy.models.machine import Machine
    from tapstudy_training.emoji_quality import EmojiQuality

TIME_IS_UP = "trained; time is up: the same command measures it and writes its card"

app = typer.Typer(no_args_is_help=True, help="Train the embedded models.")

Data = Annotated[Path | None, typer.Option(help="folder with the data set's .npz files; fetched when absent")]
Work = Annotated[Path, typer.Option(help="folder for checkpoints, log and grids; resumed")]
Out = Annotated[Path, typer.Option(help="folder for the finished model")]
Initial = Annotated[Path | None, typer.Option(help="model folder to start from; the recipe says which by default")]
History = Annotated[str, typer.Option(help="for the card: where the initial weights come from")]
Steps = Annotated[int, typer.Option(min=1, help="optimiser steps")]
HalfSize = Annotated[int, typer.Option(min=0, help="first steps at half the image size")]
Batch = Annotated[int, typer.Option(min=1, help="images a step")]
Rate = Annotated[float, typer.Option(help="peak rate")]
Sigma = Annotated[
    float, typer.Option(min=0, help="low-pass of the clock, in training times, that it learns with and keeps; 0: none")
]
Every = Annotated[int, typer.Option(min=1, help="steps")]
Count = Annotated[int, typer.Option(min=200, help="samples for the quality measures")]
InitialCount = Annotated[int, typer.Option(min=0, help="samples for those of the initial weights; 0: as many")]
Stop = Annotated[float, typer.Option(help="noise level that guidance ends at when the model samples, kept with it")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="with torch.compile")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one")]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="time for reading the images, compiling and training, which ends before a step that would take longer "
        "(but makes one); the same command goes on. The last checkpoint, --export and the quality measures of a "
        "finished model, where they begin in time, come on top",
    ),
]
Export = Annotated[
    Path | None, typer.Option(help="also write the averaged weights as they are at the end of this call")
]
Judging = Annotated[Path | None, typer.Option("--classifier", help="folder of the judge; the embedded one")]
Peak = Annotated[float | None, typer.Option(help="the device's peak, for the utilisation; known for H200, H100, A100")]


def _device(name: str | None) -> str:
    """A device that is there; TF32 for what is left in float32 on a GPU."""
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(f"--device {device}: no GPU is visible to torch; choose cpu")
        torch.set_float32_matmul_precision("high")
    return device


def _machine(device: str | None, compile_model: bool, peak_tflops: float | None) -> Machine:
    from tapstudy.models.machine import Machine

    return Machine(_device(device), compile_model, None if peak_tflops is None else 1e12 * peak_tflops)


def _left(minutes: float | None, started: float) -> float | None:
    """Minutes that are left of so many since `started`, by the monotonic clock; None: no limit."""
    return None if minutes is None else max(0.0, minutes - (time.monotonic() - started) / 60)


def classifier_command(data_set: str) -> Callable[..., None]:
    """The command that trains the judge of a data set."""
    recipe = CLASSIFIERS[data_set]

    def command(
        data: Data = None,
        out: Annotated[Path, typer.Option(help="folder to write")] = Path(f"data/models/{data_set}-classifier"),
        epochs: Annotated[int, typer.Option(min=1)] = recipe.epochs,
        device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
        seed: int = 0,
    ) -> None:
        """Train the judge of label accuracy and of the Frechet distance."""
        with user_errors():
            from tapstudy.models.data import load_images
            from tapstudy_training.captioned import load_emoji, renderings
            from tapstudy_training.make import make_classifier

            if data_set == "emoji":
                emoji = load_emoji(_emoji_folder(data))
                train, test = renderings(emoji, each=4, seed=0), renderings(emoji, each=1, seed=1)
            else:
                train, test = (load_images(data_set, split, data) for split in ("train", "test"))
            _, accuracy = make_classifier(
                data_set,
                replace(recipe, epochs=epochs),
                train_images=train,
                test=test,
                out=out,
                seed=seed,
                device=_device(device),
            )
            typer.echo(f"test accuracy {100 * accuracy:.2f} %, written to {out}")

    return command


def model_command(spec: EmbeddedModel) -> Callable[..., None]:
    """The command that trains a model; its options are those of the recipe."""
    recipe = spec.recipe

    def command(
        data: Data = None,
        work: Work = Path(f"runs/{spec.name}"),
        out: Out = Path(f"data/models/{spec.name}"),
        initial: Initial = None,
        history: History = "",
        steps: Steps = recipe.total_steps,
        batch_size: Batch = recipe.batch_size,
        learning_rate: Rate = recipe.learning_rate,
        smooth_sigma: Sigma = recipe.smooth_sigma,
        checkpoint_every: Every = recipe.checkpoint_every,
        sample_every: Every = recipe.sample_every,
        count: Count = spec.count,
        guidance_stop: Stop = spec.guidance_stop,
        initial_count: InitialCount = 0,
        compile_model: Compile = spec.compile,
        device: Device = None,
        minutes: Minutes = None,
        export: Export = None,
        classifier: Judging = None,
        peak_tflops: Peak = None,
        seed: int = 0,
    ) -> None:
        """Train the embedded model; the same command goes on after a kill. Then measure it and write its card."""
        with user_errors():
            from tapstudy.models.data import load_images
            from tapstudy.models.embedded import load_classifier, model_folder
            from tapstudy.models.quality import Judge
            from tapstudy_training.make import measure_model, train_model

            started = time.monotonic()
            chosen = replace(
                spec,
                count=count,
                guidance_stop=guidance_stop,
                recipe=replace(
                    recipe,
                    total_steps=steps,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    smooth_sigma=smooth_sigma,
                    checkpoint_every=checkpoint_every,
                    sample_every=sample_every,
                    seed=seed,
                ),
            )
            machine = _machine(device, compile_model, peak_tflops)
            judging = load_classifier(spec.name, folder=classifier)
            for option, samples in (("--count", count), ("--initial-count", initial_count or count)):
                if samples <= judging.head.in_features:
                    raise ValueError(
                        f"{option} {samples} is too few: the Frechet distance needs more samples than the judge has "
                        f"features, {judging.head.in_features}"
                    )
            images, test = (load_images(spec.data_set, split, data) for split in ("train", "test"))
            if initial is None and spec.initial and smooth_sigma:
                initial = model_folder(spec.initial)
                kept = f", blocks {' and '.join(map(str, spec.kept_blocks))} alone" if spec.kept_blocks else ""
                history = history or f"Started from the weights of the embedded `{spec.initial}`{kept}."
            left = _left(minutes, started)
            trained, report = train_model(
                chosen, images, machine, work=work, initial=initial, minutes=left, export_to=export
            )
            typer.echo(report)
            if not trained.finished:
                return
            if _left(minutes, started) == 0:
                typer.echo(TIME_IS_UP)
                return
            qualities = measure_model(
                chosen,
                trained,
                images=images,
                judge=Judge(judging.to(machine.device), test),
                machine=machine,
                out=out,
                work=work,
                initial=initial,
                initial_count=initial_count,
                history=history,
            )
            for name, found in qualities:
                how = (
                    f", guidance {found.guidance_scale:g} down to {found.guidance_stop:g}"
                    if found.guidance_scale
                    else ""
                )
                typer.echo(
                    f"{name}{how}: label accuracy {100 * found.label_accuracy:.1f} %, "
                    f"Frechet distance {found.frechet_distance:.3f}"
                )
            typer.echo(f"written to {out}")

    return command


def text_model_command(spec: EmbeddedModel) -> Callable[..., None]:
    """The command that trains a text-to-image model; its options are those of the recipe."""
    recipe = spec.recipe

    def command(
        data: Data = None,
        work: Work = Path(f"runs/{spec.name}"),
        out: Out = Path(f"data/models/{spec.name}"),
        initial: Initial = None,
        history: History = "",
        steps: Steps = recipe.total_steps,
        half_size_steps: HalfSize = recipe.half_size_steps,
        batch_size: Batch = recipe.batch_size,
        learning_rate: Rate = recipe.learning_rate,
        smooth_sigma: Sigma = recipe.smooth_sigma,
        checkpoint_every: Every = recipe.checkpoint_every,
        sample_every: Every = recipe.sample_every,
        count: Annotated[int, typer.Option(min=1, help="samples of the quality measures")] = spec.count,
        compile_model: Compile = spec.compile,
        device: Device = None,
        minutes: Minutes = None,
        measure: Annotated[bool, typer.Option(help="measure and write the model even if it is unfinished")] = False,
        classifier: Judging = None,
        peak_tflops: Peak = None,
        seed: int = 0,
    ) -> None:
        """Train the embedded model; the same command goes on after a kill. Then measure it and write its card."""
        with user_errors():
            from tapstudy.models.embedded import load_classifier
            from tapstudy_training.captioned import load_emoji
            from tapstudy_training.emoji_card import measure_emoji_model
            from tapstudy_training.make import train_model

            started = time.monotonic()
            chosen = replace(
                spec,
                count=count,
                recipe=replace(
                    recipe,
                    total_steps=steps,
                    half_size_steps=half_size_steps,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    smooth_sigma=smooth_sigma,
                    checkpoint_every=checkpoint_every,
                    sample_every=sample_every,
                    seed=seed,
                ),
            )
            machine = _machine(device, compile_model, peak_tflops)
            images, judge = load_emoji(_emoji_folder(data)), load_classifier(spec.name, folder=classifier)
            left = _left(minutes, started)
            trained, report = train_model(chosen, images, machine, work=work, initial=initial, minutes=left)
            typer.echo(report)
            if not (trained.finished or measure):
                return
            if not measure and _left(minutes, started) == 0:
                typer.echo(TIME_IS_UP)
                return
            rows = measure_emoji_model(
                chosen,
                trained,
                images=images,
                judge=judge,
                compute=str(machine),
                out=out,
                work=work,
                history=history or f"Started from {'other' if initial else 'random'} weights.",
            )
            _tell_qualities(rows, out)

    return command


def emoji_quality(
    data: Data = None,
    model: Annotated[Path, typer.Option(help="folder of the model, with its card")] = Path("data/models/emoji-flux"),
    work: Annotated[Path, typer.Option(help="folder that keeps the samples; resumed")] = Path("runs/emoji-quality"),
    count: Annotated[int, typer.Option(min=1, help="captions of training; as many held-out ones, if there are")] = 500,
    classifier: Judging = None,
) -> None:
    """Measure a finished text-to-image model of emoji again, and replace the table of qualities in its card."""
    with user_errors():
        from tapstudy.models.embedded import load, load_classifier
        from tapstudy_training.captioned import load_emoji
        from tapstudy_training.emoji_card import check_card, emoji_qualities, write_qualities

        check_card(model / "README.md")
        images = load_emoji(_emoji_folder(data))
        pipe, judge = load(model), load_classifier("emoji-flux", folder=classifier)
        pipe.set_progress_bar_config(disable=True)
        rows = emoji_qualities(pipe, images=images, judge=judge, count=count, work=work)
        write_qualities(model / "README.md", rows)
        _tell_qualities(rows, model)


def _tell_qualities(rows: list[tuple[str, EmojiQuality]], out: Path) -> None:
    for name, found in rows:
        typer.echo(
            f"{name}: emoji among the judge's first 20 {100 * found.among_20:.1f} %, background "
            f"{100 * found.background:.1f} %"
        )
    typer.echo(f"written to {out}")


def _say_what_makes(name: str) -> Callable[[], None]:
    """The command of a model without a recipe of its own: an error that says which command makes it."""

    def command() -> None:
        with user_errors():
            from tapstudy.models.embedded import MADE_BY

            raise ValueError(f"{name} has no recipe of its own: make it with `{MADE_BY[name]}` (docs/training.md)")

    return command


def _emoji_folder(data: Path | None) -> Path:
    if data is None:
        raise ValueError(
            "--data is missing: the images are no hub's; `npm install --prefix DIR emoji-datasource-google@16.0.0 "
            "emoji-datasource-twitter@16.0.0` fetches them, then --data DIR"
        )
    return data


for _name in CLASSIFIERS:
    app.command(f"{_name}-classifier")(classifier_command(_name))
for _spec in MODELS.values():
    app.command(_spec.name)((model_command if _spec.text_encoder is None else text_model_command)(_spec))
app.command("emoji-quality")(emoji_quality)
_anything = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("mnist-dit-rough", hidden=True, context_settings=_anything)(_say_what_makes("mnist-dit-rough"))
