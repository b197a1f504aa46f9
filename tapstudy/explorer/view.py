"""The map explorer in a notebook: sliders that redraw a figure, and the page in a frame."""

from __future__ import annotations

import html
from io import BytesIO
from typing import Any

import xarray as xr

from tapstudy.explorer.page import page
from tapstudy.plots.explorer_style import horizon_label, layers_of
from tapstudy.plots.explorer_view import plot_explorer

try:
    import ipywidgets as widgets
    from IPython.display import HTML
except ImportError as error:
    raise ImportError("the notebook view needs ipywidgets: pip install 'tapstudy[notebooks]'") from error


class ExplorerView(widgets.VBox):
    """Sliders for step, sample, context, opacity and token; a menu of layers; the figure; every predictor's forecast.

    Args:
        data: as `prepare` makes it.
    """

    def __init__(self, data: xr.Dataset) -> None:
        self.data = data
        frames, rows, columns = data.attrs["grid"]
        names = [str(name or n) for n, name in zip(data["number"].values, data["name"].values, strict=True)]
        contexts = [str(name) for name in data["context"].values]
        skipped = (data["is_full"].isel(sample=0, context=0).values == 0).nonzero()[0]
        self.sample = widgets.SelectionSlider(options=[*zip(names, range(len(names)), strict=True)])
        self.context = widgets.SelectionSlider(options=[*zip(contexts, range(len(contexts)), strict=True)])
        self.step = widgets.IntSlider(int(skipped[0]) if len(skipped) else 0, 0, data.sizes["step"] - 1)
        self.layer = widgets.Dropdown(options=[(layer.title, layer) for layer in layers_of(data)])
        self.opacity = widgets.FloatSlider(0.9, min=0, max=1, step=0.05)
        self.row = widgets.IntSlider(rows // 2, 0, rows - 1)
        self.column = widgets.IntSlider(columns // 2, 0, columns - 1)
        self.frame = widgets.IntSlider(0, 0, frames - 1)
        self.play = widgets.Play(min=0, max=self.step.max, interval=500)
        self.image = widgets.Image(format="png", layout={"max_width": "940px", "width": "100%"})
        self.table = widgets.HTML()
        self.controls = {
            name: getattr(self, name)
            for name in ("step", "sample", "context", "layer", "opacity", "row", "column", "frame")
        }
        for name, control in self.controls.items():
            control.description = {"row": "token row", "column": "token column"}.get(name, name)
            control.style.description_width = "90px"
            control.layout.width = "370px"
            control.observe(self._redraw, names="value")
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self.frame.layout.display = None if frames > 1 else "none"
        left = widgets.VBox([widgets.HBox([self.step, self.play]), self.sample, self.context])
        right = widgets.VBox([self.layer, self.opacity, self.row, self.column, self.frame])
        super().__init__(
            [
                widgets.Box([left, right], layout={"flex_flow": "row wrap"}),
                widgets.Box([self.image, self.table], layout={"flex_flow": "row wrap"}),
            ]
        )
        self._redraw()

    def _redraw(self, _: Any = None) -> None:
        _, rows, columns = self.data.attrs["grid"]
        one = self.data.isel(sample=self.sample.value, context=self.context.value)
        one = one.isel(token=slice(self.frame.value * rows * columns, (self.frame.value + 1) * rows * columns))
        token = self.row.value * columns + self.column.value
        figure = plot_explorer(
            one, step=self.step.value, token=token, layer=self.layer.value, opacity=self.opacity.value
        )
        drawn = BytesIO()
        figure.savefig(drawn, format="png")
        self.image.value = drawn.getvalue()
        self.table.value = forecast_table(one.isel(step=self.step.value, token=token))


def forecast_table(here: xr.Dataset) -> str:
    """Every predictor at one token and step, as HTML.

    Args:
        here: one sample, context, step and token of what `prepare` makes.
    """
    chosen, best = int(here["choice"]), int(here["best"])
    cells = "<th>order</th><th>horizon</th><th>proxy loss</th><th>true error</th><th></th>"
    rows = [f"<tr>{cells}</tr>"]
    for p in range(here.sizes["predictor"]):
        one = here.isel(predictor=p)
        marks = [text for text, mark in (("chosen", p == chosen), ("best", p == best)) if mark]
        values = [f"{int(one['order'])}", horizon_label(float(one["shift"]))]
        values += [f"{float(one[name]):.3g}" for name in ("proxy_loss", "true_error")]
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in [*values, ", ".join(marks)])
        rows.append(f"<tr{' style=font-weight:bold' if marks else ''}>{cells}</tr>")
    return (
        "<style>.tap-forecasts td, .tap-forecasts th {padding: 0 10px; text-align: right; line-height: 1.45}</style>"
        f"All predictors' forecasts for this token<table class='tap-forecasts'>{''.join(rows)}</table>"
    )


def embed(data: xr.Dataset, *, height: int = 1200) -> HTML:
    """The page of a prepared dataset in a frame of the notebook, with hover and click.

    Args:
        height: of the frame, in pixels.
    """
    frame = f'<iframe srcdoc="{html.escape(page(data))}" style="width: 100%; height: {height}px; border: 0"></iframe>'
    return HTML(f"<div>{frame}</div>")
