"""`tapstudy analyze`: what a recording shows."""

from __future__ import annotations

import difflib
import json
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tapstudy.commands.checks import out_file
from tapstudy.commands.errors import user_errors
from tapstudy.tables import Table

if TYPE_CHECKING:
    import xarray as xr


class Analysis(NamedTuple):
    """Hold a function that takes a recording, and settings if `configured`, and one that summarises what it finds.

    Without the latter nothing of it means anything on average.
    """

    module: str
    function: str
    summary: str | None
    configured: bool = False


ANALYSES = {
    "proxy-correlation": Analysis("tapstudy.analysis.proxy_correlation", "proxy_correlation", "correlation_summary"),
    "choice-maps": Analysis("tapstudy.analysis.choice_maps", "choice_maps", "maps_summary"),
    "choice-statistics": Analysis("tapstudy.analysis.choice_maps", "choice_statistics", "statistics_summary"),
    "image-content": Analysis("tapstudy.analysis.image_content", "image_content", "content_summary"),
    "clean-images": Analysis("tapstudy.analysis.clean_image", "clean_images", None),
    "heterogeneity": Analysis("tapstudy.analysis.heterogeneity", "token_dynamics", "dynamics_summary"),
    "rescoring": Analysis("tapstudy.analysis.rescoring", "rescore", "rescoring_summary", configured=True),
    "stored-probes": Analysis("tapstudy.analysis.stored_probes", "stored_probes", "stored_summary", configured=True),
}


def analyze(
    recording: Annotated[Path, typer.Argument(help="folder of a recording")],
    analysis: Annotated[str, typer.Option(help=", ".join(ANALYSES))] = "proxy-correlation",
    out: Annotated[
        Path | None, typer.Option(help="netCDF file to write; by default RECORDING.ANALYSIS.SETTINGS.nc beside it")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE of TAPConfig, for rescoring and stored-probes; repeatable. What is not set is as the "
            "recording was made, its full steps too",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the file if there is one")] = False,
    scheduler: Annotated[str | None, typer.Option(help="dask scheduler whose workers compute: tcp://HOST:PORT")] = None,
) -> None:
    """Run an analysis on a recording and write what it finds as netCDF.

    It computes on the threads of this machine, or on the workers of a cluster, which must reach the recording and the
    output at the same paths.
    """
    with user_errors():
        from tapstudy import open_recording
        from tapstudy.analysis.cluster import scheduler as dask_scheduler
        from tapstudy.analysis.result import contents, open_result, summary_rows
        from tapstudy.netcdf import write_netcdf

        chosen = _find(analysis, settings or [])
        changes = _changes(settings or [])
        out = _free(out or _usual_name(recording, analysis, changes), overwrite=overwrite)
        with dask_scheduler(scheduler):
            found = _run(chosen, open_recording(recording), changes)
            write_netcdf(found, out)
        with dask_scheduler(), open_result(out) as written:
            if chosen.summary is not None:
                columns = ("variable", "what", "mean [95 % over images]", "units")
                rows = summary_rows(getattr(import_module(chosen.module), chosen.summary)(written).compute())
                Table(columns, rows, f"{analysis} of {recording}", left=4).show()
            typer.echo(f"wrote {out}: {contents(written)}")
            if "rescoring" in written.attrs:
                told = json.loads(written.attrs["rescoring"])
                typer.echo(f"full steps {told['mask']}: {told['schedule']}")


def _usual_name(recording: Path, analysis: str, changes: dict[str, Any]) -> Path:
    """Name a file beside the recording, another one for every setting."""
    folder = Path(os.path.abspath(recording.expanduser()))
    parts = [f"{name}={_text(value)}" for name, value in sorted(changes.items())]
    return folder.with_name(".".join([folder.name.removesuffix(".zarr"), analysis, *parts, "nc"]))


def _text(value: Any) -> str:
    return "+".join(map(_text, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")


def _free(out: Path, *, overwrite: bool) -> Path:
    """Return the file, if it may be written."""
    out = Path(os.path.abspath(out_file(out, "--out", (".nc",))))
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: choose another --out, or replace it with --overwrite")
    return out


def _find(name: str, settings: list[str]) -> Analysis:
    if name not in ANALYSES:
        near = difflib.get_close_matches(name, ANALYSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ANALYSES)}"
        raise ValueError(f"no analysis {name!r}; {hint}")
    chosen = ANALYSES[name]
    if settings and not chosen.configured:
        takers = ", ".join(other for other, analysis in ANALYSES.items() if analysis.configured)
        raise ValueError(f"{name} takes no --set; {takers} does")
    return chosen


def _run(chosen: Analysis, recording: xr.Dataset, changes: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    function = getattr(import_module(chosen.module), chosen.function)
    found = function(recording, *([changes] if chosen.configured else []))
    return found.to_dataset() if isinstance(found, xr.DataArray) else found


def _changes(settings: list[str]) -> dict[str, Any]:
    from tapstudy.bench.sweep.axes import parse_axes

    chosen = parse_axes(settings, option="--set")
    several = [name for name, values in chosen.items() if len(values) > 1]
    if several:
        raise ValueError(f"--set {several[0]} has several values; lists are joined by +, as in orders=0+1+2")
    return {name: values[0] for name, values in chosen.items()}
