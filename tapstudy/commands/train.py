"""`tapstudy train`: make the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tapstudy.commands.errors import user_errors

app = typer.Typer(no_args_is_help=True, help="Train the embedded models.")

MNIST_DIT: dict[str, Any] = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "num_layers": 10,
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": 28,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}

Data = Annotated[Path | None, typer.Option(help="folder with mnist_train.npz and mnist_test.npz; fetched when absent")]


@app.command("mnist-classifier")
def mnist_classifier(
    data: Data = None,
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("data/models/mnist-classifier"),
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
) -> None:
    """Train the judge of label accuracy (five minutes on two cores)."""
    with user_errors():
        import torch

        from tapstudy.models.classifier import classify, train_classifier
        from tapstudy.models.data import load_images

        train, test = (load_images("mnist", split, data) for split in ("train", "test"))
        model = train_classifier(train, epochs=epochs, seed=seed)
        images, labels = test.batch(torch.arange(len(test)))
        accuracy = float((classify(model, images)[0] == labels).float().mean())
        model.save(out)
        (out / "README.md").write_text(
            "# mnist-classifier\n\nJudges the samples of `mnist-dit`: six 3x3 convolutions, "
            f"{sum(p.numel() for p in model.parameters()):,} parameters. Written by `tapstudy train mnist-classifier "
            f"--epochs {epochs} --seed {seed}` on the MNIST training images (CC BY-SA 3.0). Accuracy on the "
            f"{len(test):,} test images: {100 * accuracy:.2f} %.\n"
        )
        typer.echo(f"test accuracy {100 * accuracy:.2f} %, written to {out}")


@app.command("mnist-dit")
def mnist_dit(
    data: Data = None,
    work: Annotated[Path, typer.Option(help="folder for checkpoints, log and grids; resumed")] = Path("runs/mnist-dit"),
    out: Annotated[Path, typer.Option(help="folder for the finished model")] = Path("data/models/mnist-dit"),
    initial: Annotated[Path | None, typer.Option(help="model folder to start from")] = None,
    history: Annotated[str, typer.Option(help="for the card: where the initial weights come from")] = "",
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps")] = 6000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[float, typer.Option(help="peak rate")] = 6e-4,
    checkpoint_every: Annotated[int, typer.Option(min=1)] = 200,
    sample_every: Annotated[int, typer.Option(min=1)] = 400,
    count: Annotated[int, typer.Option(min=200, help="samples for the quality measures")] = 1000,
    initial_count: Annotated[int, typer.Option(min=0, help="samples for those of the initial weights; 0: as many")] = 0,
    guidance_stop: Annotated[
        float, typer.Option(help="noise level that guidance ends at when the model samples, kept with it")
    ] = 0.75,
    compile_model: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
    seed: int = 0,
) -> None:
    """Train the embedded model; the same command goes on after a kill. Then measure it and write its card."""
    with user_errors():
        import os
        import platform

        import torch
        from diffusers import DiTTransformer2DModel

        from tapstudy.models.card import Provenance, export, write_card
        from tapstudy.models.data import load_images
        from tapstudy.models.embedded import load_classifier
        from tapstudy.models.pipeline import LabelPipeline
        from tapstudy.models.quality import Judge, against_before, measure_quality
        from tapstudy.models.training import Recipe, train

        classifier = load_classifier()
        recipe = Recipe(
            total_steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            checkpoint_every=checkpoint_every,
            sample_every=sample_every,
            seed=seed,
        )
        images, test = (load_images("mnist", split, data) for split in ("train", "test"))
        model = train(MNIST_DIT, recipe, images, folder=work, initial=initial, compile_model=compile_model)
        pipe = export(model, out, guidance_stop=guidance_stop)
        pipe.set_progress_bar_config(disable=True)
        judge = Judge(classifier, test)
        quality, samples = measure_quality(pipe, judge, count=count, folder=work / "quality")
        qualities = [("this model", quality)]
        if initial is not None:
            start = DiTTransformer2DModel.from_pretrained(initial, use_safetensors=True)
            before = LabelPipeline(start.eval(), pipe.scheduler)
            few = min(initial_count or count, count)
            qualities += against_before(pipe, before, judge, images, count=few, folder=work / "quality")
        device = (
            torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"{os.cpu_count()} {platform.machine()} cores"
        )
        write_card(
            out,
            "mnist-dit",
            model=pipe.transformer,
            recipe=recipe,
            provenance=Provenance(
                "the 60,000 MNIST training images, scaled to [-1, 1]",
                device,
                history
                or ("Started from the weights in another folder." if initial else "Started from random weights."),
            ),
            qualities=qualities,
            samples=samples,
            loss_log=work / "loss.csv",
        )
        for name, found in qualities:
            how = f", guidance {found.guidance_scale:g} down to {found.guidance_stop:g}" if found.guidance_scale else ""
            typer.echo(
                f"{name}{how}: label accuracy {100 * found.label_accuracy:.1f} %, "
                f"Frechet distance {found.frechet_distance:.3f}"
            )
        typer.echo(f"written to {out}")
