"""`tapstudy explore`: a recording's predictor maps as one page for the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapstudy.commands.checks import numbers, out_file
from tapstudy.commands.errors import user_errors


def explore(
    run: Annotated[Path, typer.Argument(help="recording with scores, such as tapstudy record writes")],
    out: Annotated[Path, typer.Option("--out", "-o", help="page to write")] = Path("explorer.html"),
    beside: Annotated[Path | None, typer.Option(help="another recording to show beside it, of the same steps")] = None,
    samples: Annotated[str, typer.Option(help="samples to show, separated by commas; else the first four")] = "",
) -> None:
    """Write a page that shows which predictor every token takes and what it costs: one file, no server needed."""
    with user_errors():
        from tapstudy import open_recording
        from tapstudy.explorer.page import write_page
        from tapstudy.explorer.prepare import prepare, prepare_pair

        out = out_file(out, "--out", (".html", ".htm"))
        wanted = numbers(samples, int, "--samples") if samples else None
        if beside is None:
            page = write_page(prepare(open_recording(run), samples=wanted), out)
        else:
            first, second = prepare_pair(open_recording(run), open_recording(beside), samples=wanted)
            page = write_page(first, out, beside=second)
        typer.echo(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB): open it in a browser")
