"""The measured times in short: quartiles over the repeats, and rows of text."""

from __future__ import annotations

import xarray as xr

from tapstudy.tables import Table, interval_text

QUARTILES = (0.25, 0.5, 0.75)
LOOP_COLUMNS = ("method", "seconds a loop", "full passes", "latency ratio", "bound", "share of the bound")
STEP_COLUMNS = ("step", "ms", "% of a full step", "share of the bound, by steps")
MEMORY_COLUMNS = ("model", "method", "history, MB", "by formula", "growth of the peak, MB")


def quartiles(table: xr.Dataset) -> xr.Dataset:
    """Return quartiles over `repeat` of everything measured, along the dim `quartile`; the rest as it is.

    Args:
        table: from `speed`.
    """
    repeated = [name for name, values in table.data_vars.items() if "repeat" in values.dims]
    found = table[repeated].quantile(QUARTILES, dim="repeat", skipna=False, keep_attrs=True)
    found = found.rename(quantile="quartile").transpose(..., "quartile")
    return table.drop_vars(repeated).drop_dims("repeat").assign(found).assign_attrs(table.attrs)


def loop_rows(table: xr.Dataset, model: str) -> list[tuple[str, ...]]:
    """List a row of `LOOP_COLUMNS` per method: medians, and [quartiles]; or its name and why it does not run."""
    one = quartiles(table).sel({"model": model})
    rows: list[tuple[str, ...]] = []
    for method in one["method"].values.tolist():
        row = one.sel({"method": method})
        if failure := str(row["failure"].values):
            rows.append((str(row["text"].values), f"does not run: {failure}"))
            continue
        rows.append((
            str(row["text"].values),
            _spread(row["loop_seconds"], ".2f"),
            f"{float(row['full_passes']):.0f}",
            _spread(row["latency_ratio"], ".2f"),
            f"{float(row['bound']):.2f}",
            _spread(100 * row["bound_share"], ".1f", " %"),
        ))  # fmt: skip
    return rows


def step_rows(table: xr.Dataset, model: str) -> list[tuple[str, ...]]:
    """Return a row of `STEP_COLUMNS` per kind of step, each skip step followed by its parts.

    The share of the bound by steps is that of a loop of nothing but plain full steps and such skip steps.
    """
    full, steps = table.attrs["tap_mask"].count("F"), table.attrs["steps"]
    by_steps = 100 * full / (full + (steps - full) * table["step_share"] / 100)
    one = quartiles(table.assign(by_steps=by_steps)).sel({"model": model})
    rows: list[tuple[str, ...]] = []
    for kind in one["kind"].values.tolist():
        skips = kind in one["skip"].values
        share = _spread(one["by_steps"].sel(kind=kind), ".1f", " %") if skips else ""
        rows.append(_step_row(kind, one.sel(kind=kind), "step", share))
        if skips:
            found = one.sel(skip=kind)
            # where all is compiled there is no assembly of its own
            parts = [part for part in one["part"].values.tolist() if found["part_seconds"].sel(part=part).any()]
            rows += [_step_row(f"- {part}", found.sel(part=part), "part") for part in parts]
    return rows


def _step_row(text: str, row: xr.Dataset, name: str, bound_share: str = "") -> tuple[str, ...]:
    return text, _spread(1e3 * row[f"{name}_seconds"], ".2f"), _spread(row[f"{name}_share"], ".2f"), bound_share


def memory_rows(found: xr.Dataset) -> list[tuple[str, ...]]:
    """Return a row of `MEMORY_COLUMNS` per model and method that was measured, from `memory`."""
    rows: list[tuple[str, ...]] = []
    for model in found["model"].values.tolist():
        for method in found["method"].values.tolist():
            one = found.sel({"model": model, "method": method})
            values = [float(one[name]) for name in one.data_vars]
            if values[0] == values[0]:  # no NaN
                rows.append((model, method, *(f"{value / 1e6:.3f}" if value == value else "" for value in values)))
    return rows


def title(table: xr.Dataset, model: str) -> str:
    """Tell which model, where, and how often."""
    one, attrs = table.sel({"model": model}), table.attrs
    return (
        f"{model} ({one['label'].item()}; {float(one['parameters']) / 1e6:.0f} M parameters, {one['dtype'].item()}, "
        f"batch {int(one['batch'])}), {attrs['steps']} steps, {attrs['device']}, threads: {attrs['threads']}, "
        f"torch {attrs['torch']}, diffusers {attrs['diffusers']}; median [quartiles] of {table.sizes['repeat']}"
    )


def page(table: xr.Dataset) -> str:
    """Return all tables in Markdown."""
    parts = []
    for model in table["model"].values.tolist():
        parts += [title(table, model), Table(LOOP_COLUMNS, loop_rows(table, model)).markdown()]
        parts.append(Table(STEP_COLUMNS, step_rows(table, model)).markdown())
    return "\n\n".join(parts) + "\n"


def _spread(values: xr.DataArray, form: str, unit: str = "") -> str:
    low, mid, high = values.values.tolist()
    return interval_text((mid, low, high), form, unit)
