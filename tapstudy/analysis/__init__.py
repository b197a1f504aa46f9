"""Dataset in, Dataset out: the study itself. Never imports diffusers."""

from tapstudy.extras import need

need(__name__, "dask", "scipy", "xarray")
