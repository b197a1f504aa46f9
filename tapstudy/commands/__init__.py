"""One file per command of the command line."""

from tapstudy.extras import need

need(__name__, "typer", "rich")
