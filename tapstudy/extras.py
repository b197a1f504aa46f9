"""The core runs on torch, diffusers and numpy; what needs other packages says which extra brings them."""

from __future__ import annotations

from importlib.util import find_spec

# extra -> what is imported of the packages it brings
EXTRAS = {
    "study": (
        "accelerate", "dask", "google_crc32c", "h5netcdf", "h5py", "matplotlib", "rich", "scipy", "seaborn",
        "torchmetrics", "transformers", "typer", "xarray", "zarr",
    ),
    "notebooks": ("ipywidgets", "jupyterlab"),
    "bench": ("cache_dit",),
    "cluster": ("distributed",),
    "train": ("datasets",),
    "paper": ("torchvision",),
    "fast": ("triton",),
}  # fmt: skip


def need(what: str, *packages: str) -> None:
    """Check that packages of the extras are installed, before they are imported.

    Args:
        what: needs them, as the message puts it.
        packages: as they are imported.

    Raises:
        ModuleNotFoundError: some are not there; names the extra that brings them.

    >>> need("a cluster", "distributed")  # doctest: +SKIP
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        extras = ",".join(extra for extra, brings in EXTRAS.items() if not set(brings).isdisjoint(missing))
        raise ModuleNotFoundError(
            f"{what} needs {', '.join(missing)}: pip install 'tapstudy[{extras}]'", name=missing[0]
        )
