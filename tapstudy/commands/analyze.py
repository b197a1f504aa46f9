"""`tapstudy analyze`: what a recording shows."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tapstudy.commands.errors import user_errors

if TYPE_CHECKING:
    import xarray as xr


class Analysis(NamedTuple):
    """A function that takes a recording, and a TAPConfig if `configured`."""

    module: str
    function: str
    configured: bool = False


ANALYSES = {
    "proxy-correlation": Analysis("tapstudy.analysis.proxy_correlation", "proxy_correlation"),
    "choice-maps": Analysis("tapstudy.analysis.choice_maps", "choice_maps"),
    "choice-statistics": Analysis("tapstudy.analysis.choice_maps", "choice_statistics"),
    "image-content": Analysis("tapstudy.analysis.image_content", "image_content"),
    "clean-images": Analysis("tapstudy.analysis.clean_image", "clean_images"),
    "heterogeneity": Analysis("tapstudy.analysis.heterogeneity", "token_dynamics"),
    "rescoring": Analysis("tapstudy.analysis.rescoring", "rescore", configured=True),
    "stored-probes": Analysis("tapstudy.analysis.stored_probes", "stored_probes", configured=True),
}


def analyze(
    recording: Annotated[Path, typer.Argument(help="folder of a recording")],
    analysis: Annotated[str, typer.Option(help=", ".join(ANALYSES))] = "proxy-correlation",
    out: Annotated[Path | None, typer.Option(help="netCDF file to write; by default RECORDING.ANALYSIS.nc")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of TAPConfig, for rescoring and stored-probes; repeatable"),
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="dask scheduler whose workers compute: tcp://HOST:PORT")] = None,
) -> None:
    """Run an analysis on a recording and write what it finds as netCDF.

    It computes on the threads of this machine, or on the workers of a cluster, which must reach the recording and the
    output at the same paths.
    """
    with user_errors():
        from rich.console import Console
        from rich.table import Table

        from tapstudy import open_recording
        from tapstudy.analysis.cluster import scheduler as dask_scheduler
        from tapstudy.analysis.result import open_result, summary_rows
        from tapstudy.netcdf import write_netcdf

        out = out or recording.with_name(f"{recording.stem}.{analysis}.nc")
        with dask_scheduler(scheduler):
            found = _run(analysis, open_recording(recording.resolve()), settings or [])
            write_netcdf(found, out)
        table = Table(title=f"{analysis} of {recording}")
        for name in ("variable", "dimensions", "mean [95 % over images]", "units"):
            table.add_column(name)
        with dask_scheduler(), open_result(out) as written:
            for row in summary_rows(written):
                table.add_row(*row)
        console = Console()
        Console(width=max(console.width, 120)).print(table)
        console.print(f"wrote {out}")


def _run(name: str, recording: xr.Dataset, settings: list[str]) -> xr.Dataset:
    import xarray as xr

    if name not in ANALYSES:
        near = difflib.get_close_matches(name, ANALYSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ANALYSES)}"
        raise ValueError(f"no analysis {name!r}; {hint}")
    chosen = ANALYSES[name]
    if settings and not chosen.configured:
        takers = ", ".join(other for other, analysis in ANALYSES.items() if analysis.configured)
        raise ValueError(f"{name} takes no --set; {takers} does")
    function = getattr(import_module(chosen.module), chosen.function)
    found = function(recording, *([_config(settings)] if chosen.configured else []))
    return found.to_dataset() if isinstance(found, xr.DataArray) else found


def _config(settings: list[str]) -> Any:
    from tapstudy import TAPConfig
    from tapstudy.bench.axes import parse_axes

    chosen = parse_axes(settings)
    several = [name for name, values in chosen.items() if len(values) > 1]
    if several:
        raise ValueError(f"--set {several[0]} has several values; lists are joined by +, as in orders=0+1+2")
    return TAPConfig.of({name: values[0] for name, values in chosen.items()})
