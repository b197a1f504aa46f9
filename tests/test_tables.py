"""What tables write in their cells."""

from math import inf, nan

from tapstudy.tables import interval_text
from tests.table import each_row


@each_row(
    ("interval", "form", "unit", "expected"),
    [
        ((1, 0.5, 1.504), ".2f", "", "1.00 [0.50, 1.50]"),
        ((-0.25, -1, 2), "+.1f", "", "-0.2 [-1.0, +2.0]"),
        ((12.6, 9, 14), ".0f", " %", "13 % [9, 14]"),
        ((1, nan, nan), ".2f", "", "1.00"),
        ((nan, nan, nan), ".2f", "", "-"),
        ((inf, nan, nan), ".2f", "", "-"),
    ],
)
def test_intervals_as_text(interval, form, unit, expected):
    assert interval_text(interval, form, unit) == expected
