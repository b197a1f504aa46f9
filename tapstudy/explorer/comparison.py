"""A comparison as one page: the images of every method, how they differ from the reference, and what they cost."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from tapstudy.analysis.comparison_table import comparison_table

LONGEST = 320  # pixels along the longer side of an image on the page
GAIN = 4  # of differences
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .3rem .6rem; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #222 } tr + tr td { border-top: 1px solid #ddd } .name { text-align: left }
.mask { font: 12px ui-monospace, monospace; text-align: left } .scroll { overflow-x: auto }
figure { margin: 0; display: inline-block } figcaption { font-size: 12px; color: #555; text-align: center }
img { display: block; image-rendering: auto } .small img { image-rendering: pixelated }
.diff, body.differences .picture { display: none } body.differences .diff { display: block }
body.differences .reference .picture { display: block } label { user-select: none }
.prompt { max-width: 20rem; white-space: normal; text-align: left; vertical-align: bottom; font-weight: normal }
"""


def write_comparison(table: xr.Dataset, path: str | Path, *, samples: int = 16) -> Path:
    """Write the page of what `tapstudy.compare` returned: one file, no server needed.

    Args:
        samples: so many of the first images are shown; the numbers are of all.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(comparison_page(table, samples=samples), encoding="utf-8")
    return path


def comparison_page(table: xr.Dataset, *, samples: int = 16) -> str:
    """Return the page as HTML text."""
    shown = table.isel(sample=slice(samples))
    title = f"{table.attrs['model']}: {table.sizes['sample']} images, {table.attrs['steps']} steps"
    small = max(table.sizes["x"], table.sizes["y"]) < LONGEST / 2
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><body{' class=small' if small else ''}>"
        f"<h1>{escape(title)}</h1><p>{_told(table)}</p>{_numbers(table)}{_left_out(table)}"
        '<p><label><input type="checkbox" onchange="document.body.classList.toggle(\'differences\')"> '
        f"show differences from the reference, {GAIN} times as strong (grey: none)</label></p>"
        f"{_images(shown)}</body></html>"
    )


def _told(table: xr.Dataset) -> str:
    return escape(
        f"Guidance {table.attrs['guidance']}, weights {table.attrs['weights']}, seeds "
        f"{', '.join(str(seed) for seed in dict.fromkeys(table['seed'].values.tolist()))}. PSNR and SSIM to the "
        "reference on images in [0, 1], 95 % by bootstrap over images. Ratios: the reference's over own; FLOPs of the "
        "transformer, wall time as the machine was loaded."
    )


def _left_out(table: xr.Dataset) -> str:
    found = json.loads(table.attrs.get("left_out", "{}"))
    return "".join(f"<p>Left out: {escape(name)} ({escape(reason)})</p>" for name, reason in found.items())


def _numbers(table: xr.Dataset) -> str:
    heads, rows = comparison_table(table)
    kinds = ["", ' class="name"', "", ' class="mask"', *[""] * (len(heads) - 4)]
    lines = "".join(
        f'<tr title="{escape(str(setting), quote=True)}">'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for setting, row in zip(table["setting"].values, rows, strict=True)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"<td>{text}</td>" for text in texts)


def _images(table: xr.Dataset) -> str:
    head = "".join(f'<th class="prompt">{escape(str(label))}</th>' for label in table["label"].values)
    rows = [f'<tr><th class="name">method</th>{head}</tr>']
    values = _unit(table["image"])
    for i in range(table.sizes["run"]):
        name, interval = str(table["method"].values[i]), int(table["interval"].values[i])
        cells = []
        for j in range(table.sizes["sample"]):
            psnr = float(table["psnr"].values[i, j])
            told = "" if i == 0 else f"<figcaption>{'equal' if np.isinf(psnr) else f'{psnr:.1f} dB'}</figcaption>"
            difference = "" if i == 0 else _picture(0.5 + GAIN * (values[i, j] - values[0, j]), "diff")
            cells.append(f"<figure>{_picture(values[i, j], 'picture')}{difference}{told}</figure>")
        kind = " class=reference" if i == 0 else ""
        title = f"{name}, N = {interval}" if interval else name
        rows.append(f'<tr{kind}><td class="name">{escape(title)}</td>{_cells(cells)}</tr>')
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _unit(images: xr.DataArray) -> NDArray[np.float64]:
    """Return (run, sample, y, x, band) in [0, 1]; of videos three frames side by side."""
    if "frame" in images.dims:
        count = images.sizes["frame"]
        images = images.isel(frame=sorted({0, count // 2, count - 1}))
        images = images.transpose("run", "sample", "y", "frame", "x", "band")
        values = images.values.reshape(*images.shape[:3], -1, images.shape[-1])
    else:
        values = images.transpose("run", "sample", "y", "x", "band").values
    return np.asarray(values / (255 if values.dtype == np.uint8 else 1), dtype=np.float64)


def _picture(values: NDArray[Any], kind: str) -> str:
    pixels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    scale = LONGEST / max(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    width = image.width if scale < 2 else 4 * image.width if image.width < 40 else 2 * image.width
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{kind}" width="{width}" src="data:image/png;base64,{data}" alt="">'
