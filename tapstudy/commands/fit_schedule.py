"""`tapstudy fit-schedule`: the full steps that suit a pipeline and prompts of one's own, as a small file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapstudy.commands.checks import at_least, numbers, out_file, out_folder, seeds_of_noise, usual_guidance
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import SCHEDULER, Asked, takes_subject


@takes_subject
def fit_schedule(
    out: Annotated[Path, typer.Option(help="JSON file to write")] = Path("schedule.json"),
    *,
    subject: Asked,
    full_passes: Annotated[int, typer.Option(min=2, help="number of full steps")] = 8,
    steps: Annotated[int, typer.Option(min=3, help="sampling steps of the runs that it is for")] = 50,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; the model's usual one")] = None,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    tuning: Annotated[
        int | None, typer.Option(min=1, help="prompts to choose on, the last ones; half by default")
    ] = None,
    sigmas: Annotated[str, typer.Option(help="widths of smooth_time to try, between commas")] = "",
    work: Annotated[Path | None, typer.Option(help="folder of the results; the same command resumes")] = None,
    scheduler: Annotated[str | None, typer.Option(help=SCHEDULER)] = None,
) -> None:
    """Record some prompts in full, choose full steps and predictor on the others, and write them to a file.

    `tapstudy.tap(pipe, schedule="schedule.json")` and `tapstudy compare --schedule schedule.json` apply it. Use prompts
    that you will not judge it by.
    """
    with user_errors():
        from tapstudy.bench.fit.schedule import fit_schedule as fit

        out, work = out_file(out, "--out", (".json",)), work and out_folder(work, "--work")
        at_least(0, guidance=guidance)
        seeds_of_noise([seed], "--seed")
        if full_passes >= steps:
            raise ValueError(f"--full-passes must be below the {steps} --steps, got {full_passes}")
        widths = numbers(sigmas, float, "--sigmas") if sigmas else ()
        at_least(0, sigmas=min(widths, default=0.0))
        model, pipe, conditions = subject.load(examples=8)
        scale = usual_guidance(pipe) if guidance is None else guidance
        found = fit(
            model, conditions, full_passes, steps=steps, guidance=scale, seed=seed, tuning=tuning, sigmas=widths,
            folder=work, scheduler=scheduler,
        )  # fmt: skip
        typer.echo(f"{found}\nwrote {found.save(out)}")
