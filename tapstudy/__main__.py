"""The command `tapstudy`, and `python -m tapstudy`."""

from __future__ import annotations

import sys

from tapstudy.extras import need


def main() -> None:
    """Run the command line; without its packages, say in one line how to get them."""
    try:
        need("the command line", "typer", "rich")
    except ModuleNotFoundError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    from tapstudy.cli import app

    app()


if __name__ == "__main__":
    main()
