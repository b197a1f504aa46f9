"""Tables of text: on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class Table:
    """Rows of text below named columns; a row that is too short ends with the reason why it has no more.

    Attributes:
        left: so many columns hold text, the others numbers. None: the first one, and Markdown sets all alike.
        breaks: rows between lines on a terminal; 0: no lines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: int | None = None
    breaks: int = 0

    def markdown(self) -> str:
        """Lines without one at the end; cells that a row lacks are empty."""
        rules = [":".rjust(4, "-") if self.left is not None and i >= self.left else "---" for i in range(len(self))]
        rows = [[*row, *[""] * (len(self) - len(row))] for row in self.rows]
        return "\n".join(
            "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
            for line in (self.columns, rules, *rows)
        )

    def show(self, *, width: int = 120) -> None:
        """Print it, at least so wide, and below it why rows are too short."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as RichTable

        left = 1 if self.left is None else self.left
        found = RichTable(title=escape(self.title), title_justify="left")
        for i, name in enumerate(self.columns):
            found.add_column(name, justify="right" if i >= left else "left")
        for i, row in enumerate(self.rows):
            cells = row if len(row) == len(self) else [*row[: min(left, len(row) - 1)], "does not run"]
            found.add_row(*map(escape, cells), end_section=bool(self.breaks) and i % self.breaks == 0)
        console = Console()
        console = Console(width=max(console.width, width))
        console.print(found)
        for row in self.rows:
            if len(row) < len(self):
                console.print(f"{row[0]}: {row[-1]}", markup=False)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.columns)


def interval_text(interval: Iterable[float], form: str = ".2f", unit: str = "") -> str:
    """Write mean, low and high as "1.00 [0.50, 1.50]": the mean alone without limits, "-" without a mean."""
    mean, low, high = (float(value) for value in interval)
    if not isfinite(mean):
        return "-"
    limits = f" [{low:{form}}, {high:{form}}]" if isfinite(low) and isfinite(high) else ""
    return f"{mean:{form}}{unit}{limits}"


def percent(share: float) -> str:
    """Write a share; "-" where it is not known."""
    return "-" if share != share else f"{100 * share:.0f}%"
