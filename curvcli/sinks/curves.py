"""The curves of a figure from the gravest on, and their numbers as a compact table for people."""

import math
from collections.abc import Iterable
from typing import Final

from curvcli.report import Axis, Figure, Line, Points, Status
from curvcli.sinks.page import Field, Page
from curvcli.sinks.text import clean, number

NAMED: Final = 8
"""How many curves a reader tells apart; of more, the others are one crowd."""
MOST_ROWS: Final = 24
"""More places than these are for a drawing."""
GRAVITY: Final[tuple[Status, ...]] = ("fail", "undecided", "warn")


def gravest_first(lines: Iterable[Line]) -> list[Line]:
    """Sort curves: those that failed, then those whose lowest point is the highest.

    Curves that are not judged stay in their order.
    """
    return sorted(lines, key=lambda line: (_rank(line), -_lowest(line) if line.status else 0.0))


def label(line: Line) -> str:
    """Name a curve, and say in a word where something is wrong with it."""
    return clean(line.label) + (f" {line.status.upper()}" if line.status in GRAVITY else "")


def show(page: Page, figure: Figure, indent: int) -> bool:
    """Announce a figure; add the gravest of its curves as columns, where they share the x.

    Tells whether there was something to add.
    """
    page.say(
        f"{clean(figure.title)} (--out FILE.svg draws it)", ("figure: ", "dim"), indent, indent
    )
    lines = gravest_first(figure.lines)
    if (
        figure.in_rows
        or not lines
        or any(line.x != lines[0].x for line in lines)
        or len(lines[0].x) > MOST_ROWS
    ):
        return False
    fields = [_field(clean(figure.x.title), figure.x, lines[0].x)]
    fields += [_field(label(line), figure.y, line.y) for line in lines[:NAMED]]
    while len(fields) > 2 and not page.holds(fields, indent):
        fields.pop()
    page.table(fields, indent)
    left = len(lines) - len(fields[1:])
    if left:
        page.say(
            f"{left} more line{'s' * (left > 1)}", ("in svg and json: ", "dim"), indent, indent
        )
    return True


def _field(title: str, axis: Axis, values: Points) -> Field:
    cells = [number(v, "relative" if axis.scale == "log" else "real") for v in values]
    return Field(title, cells, numeric=True, named=True)


def _rank(line: Line) -> int:
    return GRAVITY.index(line.status) if line.status in GRAVITY else len(GRAVITY)


def _lowest(line: Line) -> float:
    return min((v for v in line.y if v is not None and math.isfinite(v)), default=-math.inf)
