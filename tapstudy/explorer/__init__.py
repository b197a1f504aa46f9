"""Look at a recording token by token: a page for the browser, and for a frame of a notebook."""

from tapstudy.extras import need

need(__name__, "matplotlib", "xarray")
