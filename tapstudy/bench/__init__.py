"""Speed, FLOPs, and how far accelerated images are from the reference."""

from tapstudy.extras import need

need(__name__, "h5netcdf", "h5py", "torchmetrics", "xarray", "zarr")
