"""Dataset in, Axes or Figure out. One figure per file; nothing is computed here."""

from tapstudy.extras import need

need(__name__, "matplotlib", "seaborn", "xarray")
