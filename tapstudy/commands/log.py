"""What the package logs, on the terminal of a command."""

from __future__ import annotations

import logging
import sys


class Terminal(logging.Handler):
    """Write records to stderr, above the bars of what is under way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def show_log() -> None:
    """Show what commands tell of their work, from level INFO on, for the rest of the process."""
    logger = logging.getLogger("tapstudy")
    if not any(isinstance(handler, Terminal) for handler in logger.handlers):
        logger.addHandler(Terminal())
        logger.setLevel(logging.INFO)
