"""`tapstudy roughness`: how much of a model's change from step to step is its clock alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import at_least, numbers, out_file, seeds_of_noise, usual_guidance
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import Asked, takes_subject
from tapstudy.tables import Table, interval_text


@takes_subject
def roughness(
    of: Annotated[str, typer.Argument(metavar="MODEL", help="the same as --model")] = "",
    *,
    subject: Asked,
    seed: Annotated[int, typer.Option(help="of the noise; image i uses seed + i")] = 0,
    steps: Annotated[str, typer.Option(help="sampling steps, separated by commas")] = "20,28,50",
    guidance: Annotated[float | None, typer.Option(help="guidance scale; the model's usual one")] = None,
    interval: Annotated[int, typer.Option(min=1, help="N of the schedule S(N, 3) of the forecasts")] = 8,
    smooth_time: Annotated[float, typer.Option(help="sigma of a low-pass of the clock; see docs/clock.md")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="netCDF file to write")] = None,
    figure: Annotated[Path | None, typer.Option(help="image file to write")] = None,
) -> None:
    """Move the timestep with the latent held fixed, and say how much of a step's second difference is the clock's."""
    with user_errors():
        from tapstudy import smooth_time as smooth
        from tapstudy import time_roughness
        from tapstudy.bench.conditions import Call, arguments_of
        from tapstudy.netcdf import write_netcdf

        out = out if out is None else out_file(out, "--out", (".nc",))
        figure = figure if figure is None else out_file(figure, "--figure", (".png", ".svg", ".pdf"))
        at_least(0, guidance=guidance)
        if of and subject.model not in (of, Asked.model):
            raise ValueError(f"{of} and --model {subject.model} are two models: give one of them")
        _, pipe, asked = replace(subject, model=of or subject.model).load(repeats=True)
        if len(asked) > 1 and any(isinstance(one, Call) for one in asked):
            raise ValueError(
                f"roughness runs one call, and {len(asked)} prompts with arguments of their own need as many: give a "
                "file with one row, or prompts alone, and run it once for each"
            )
        scale = usual_guidance(pipe) if guidance is None else guidance
        call = arguments_of(asked) | {"seed": list(seeds_of_noise([seed + i for i in range(len(asked))], "--seed"))}
        call |= {} if scale is None else {"guidance_scale": scale}
        with smooth(pipe, smooth_time):
            found = time_roughness(pipe, call, steps=numbers(steps, int, "--steps"), interval=interval)
        if out is not None:
            write_netcdf(found, out)
        if figure is not None:
            from tapstudy.analysis.caption import caption
            from tapstudy.plots.style import small_print, style
            from tapstudy.plots.time_roughness import plot_time_roughness

            figure.parent.mkdir(parents=True, exist_ok=True)
            with style():
                drawn = plot_time_roughness(found)
                images = caption(found[["seed", "label"]], of or subject.model)
                small_print(drawn, images, "" if scale is None else f"guidance {scale:g}")
                drawn.savefig(figure, bbox_inches="tight")
        _tell(found)
        for path in (out, figure):
            if path is not None:
                typer.echo(f"wrote {path}")


def _tell(found: Any) -> None:
    low_pass = found.attrs["smooth_time"]
    under = f", low-pass of sigma {low_pass:g}" if low_pass else ""
    columns = ["steps", *(f"clock, {name}" for name in found["quantity"].values)]
    columns += [*(f"error, order {order}" for order in found["order"].values), "suggested order", "suggested sigma"]
    rows = []
    for steps in found["steps"].values:
        one = found.sel(steps=steps)
        rows.append([
            str(steps),
            *(_percent(one["clock_share"].sel(quantity=name).values) for name in found["quantity"].values),
            *(f"{error:.3f}" for error in one["forecast_error"].mean("sample").values),
            str(int(one["suggested_order"])),
            f"{float(one['suggested_sigma']):g}",
        ])  # fmt: skip
    Table(columns, rows, f"the clock, {found.sizes['sample']} images{under}").show(width=140)
    typer.echo(
        f"Cost: {found.attrs['full_passes']} full passes. Clock: what trembles when only the timestep "
        "moves, of a step's second difference; mean [95 % over images]. "
        f"Errors: of Taylor forecasts of the residual, S({found.attrs['interval']}, 3), along the exact trajectory."
    )


def _percent(values: Any) -> str:
    """Return the mean over images, with its interval where there are two."""
    from tapstudy.analysis.stats import mean_interval

    if len(values) < 2:
        return f"{100 * values[0]:.0f} %"
    return interval_text((100 * value for value in mean_interval(values)), ".0f", " %")
