"""How every method of a comparison is named and drawn, the same in all figures."""

from __future__ import annotations

from dataclasses import dataclass

from tapstudy.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION


@dataclass(frozen=True)
class Look:
    """Markers differ as well as colours, so that print in grey can be read."""

    label: str
    colour: str
    marker: str
    line: str = "-"
    width: float = 1.1


LOOKS = {
    "reference": Look("no acceleration", BLACK, "*", ":"),
    "fewer": Look("fewer plain steps", BLACK, "s", "--"),
    "order0": Look("order 0 (FORA)", "0.55", "v"),
    "order1": Look("Taylor order 1", BLUE, "^"),
    "order2": Look("Taylor order 2", SKY, "D"),
    "best-fixed": Look("best fixed predictor (held out)", GREEN, "P"),
    "random": Look("random choice", PURPLE, "X", "--"),
    "shuffled": Look("TAP, losses shuffled over tokens", PURPLE, "d"),
    "step": Look("TAP, one choice per step", ORANGE, "h"),
    "tap": Look("TAP", VERMILION, "o", "-", 2.0),
    "oracle": Look("oracle per token (cost of TAP)", "0.3", "_", ":"),
}


def look_of(method: str) -> Look:
    """The look of a method; of an unknown one, grey and under its own name."""
    return LOOKS.get(method, Look(method, "0.7", "."))
