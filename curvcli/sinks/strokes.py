"""What of a figure is drawn, and how: the gravest curves by name, the others as one crowd."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal

from curvcli.report import Axis, Figure, Level, Line
from curvcli.sinks.curves import NAMED, gravest_first, label
from curvcli.sinks.text import clean, number

# The colours are of Okabe and Ito's set, and of Tol's, that colour-blind people tell apart
# (jfly.uni-koeln.de/color, personal.sron.nl/~pault). A curve with something wrong has a dash, too.
GRAVE: Final[dict[str | None, tuple[str, str]]] = {
    "fail": ("#d55e00", "--"),
    "undecided": ("#aa4499", "-."),
    "warn": ("#e69f00", ":"),
}
COLORS: Final = (
    "#0072b2",
    "#009e73",
    "#56b4e9",
    "#332288",
    "#000000",
    "#117733",
    "#88ccee",
    "#882255",
)
GREY: Final = "#b4b4b4"
DARK: Final = "#333333"
MARKERS: Final = "osD^vPXh"
"""One for each curve that has a name; those that failed share their colour."""
MARKED: Final = 40
"""Curves of more points are smooth enough without marks."""
DASHES: Final = tuple((0, (7, 3, *(1, 3) * dots)) for dots in range(4))
"""Of levels: a long dash, and more and more dots after it."""
EXTREME: Final = 1e-300, 1e300
"""Beyond these, the margins of an axis are no floats any more."""

Across = Literal["", "level", "tick"]


@dataclass(frozen=True)
class Stroke:
    """What one entry of the legend explains; NaN lifts the pen.

    Where it goes `across`, the other coordinate is a fraction of the axes.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: dict[str, Any]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    across: Across = ""


def strokes(figure: Figure) -> list[Stroke]:
    """List what is drawn, in the order of the legend."""
    lines = gravest_first(figure.lines)
    # The crowd is two entries at most.
    named = lines if len(lines) <= NAMED else lines[: NAMED - 2]
    crowd = lines[len(named) :]
    failed = [line for line in crowd if line.status == "fail"]
    others = [line for line in crowd if line.status != "fail"]
    return [
        *_named(named, figure),
        *_crowd(failed, figure, "more that FAIL", GRAVE["fail"][0], "--"),
        *_crowd(others, figure, "others", GREY, "-"),
        *_levels(figure),
        *_ticks(figure),
    ]


def hidden(figure: Figure) -> int:
    """Count the numbers that have no place on their axis, such as zero on a logarithmic one."""
    on_x = [x for line in figure.lines for x in line.x] + [tick.value for tick in figure.ticks]
    on_y = [y for line in figure.lines for y in line.y] + [level.value for level in figure.levels]
    return sum(
        value is not None and not math.isnan(value) and math.isnan(place)
        for axis, values in ((figure.x, on_x), (figure.y, on_y))
        for value, place in zip(values, _places(values, axis), strict=True)
    )


def _named(lines: Iterable[Line], figure: Figure) -> Iterator[Stroke]:
    colors = iter(COLORS)
    for line, marker in zip(lines, MARKERS, strict=False):
        color, dash = GRAVE[line.status] if line.status in GRAVE else (next(colors), "-")
        look = {"color": color, "linestyle": dash, "linewidth": 1.4, "markersize": 3.5}
        look["marker"] = marker if len(line.x) <= MARKED else ""
        x, y = _places(line.x, figure.x), _places(line.y, figure.y)
        yield Stroke(label(line), x, y, look, _band(line, figure))


def _crowd(
    lines: Sequence[Line], figure: Figure, word: str, color: str, dash: str
) -> Iterator[Stroke]:
    if not lines:
        return
    x: list[float] = []
    y: list[float] = []
    for line in lines:
        x += [*_places(line.x, figure.x), math.nan]
        y += [*_places(line.y, figure.y), math.nan]
    look = {"color": color, "linestyle": dash, "linewidth": 0.7, "zorder": 1.5}
    yield Stroke(f"{len(lines):,} {word}", x, y, look)


def _levels(figure: Figure) -> Iterator[Stroke]:
    for level, dash in zip(figure.levels, cycle(DASHES), strict=False):
        (y,) = _places([level.value], figure.y)
        look = {"color": DARK, "linestyle": dash, "linewidth": 1.1}
        yield Stroke(_valued(level), [0, 1], [y, y], look, across="level")


def _ticks(figure: Figure) -> Iterator[Stroke]:
    """Gather the ticks of one label."""
    named: dict[str, list[Level]] = {}
    for tick in figure.ticks:
        named.setdefault(tick.label, []).append(tick)
    for name, same in named.items():
        x = _places([tick.value for tick in same], figure.x)
        look = {"color": DARK, "linestyle": "", "marker": "|", "markersize": 14, "clip_on": False}
        said = clean(name) if len(same) > 1 else _valued(same[0])
        yield Stroke(said, x, [0.0] * len(x), look, across="tick")


def _valued(level: Level) -> str:
    return f"{clean(level.label)}: {number(level.value, 'real')}"


def _band(line: Line, figure: Figure) -> tuple[list[float], list[float]] | None:
    """Place the ends of the band; a low end below a logarithmic axis is at its foot."""
    if line.band is None:
        return None
    low, high = line.band
    foot = min((y for y in _places(line.y, figure.y) if math.isfinite(y)), default=math.nan)
    below = figure.y.scale == "log"
    raised = [foot if below and v is not None and v < EXTREME[0] else v for v in low]
    return _places(raised, figure.y), _places(high, figure.y)


def _places(values: Iterable[float | None], axis: Axis) -> list[float]:
    """Give the numbers that the axis has, NaN for the others."""
    small, large = EXTREME
    least = small if axis.scale == "log" else -large
    return [float(v) if v is not None and least <= v <= large else math.nan for v in values]
