"""Record trajectories into labelled datasets."""

from tapstudy.extras import need

need(__name__, "dask", "google_crc32c", "xarray", "zarr")
