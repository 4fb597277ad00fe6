"""The cells of a figure, each in the colour of its number, with the key beside them."""

import math
from typing import TYPE_CHECKING, Any, Final

from curvcli.report import Axis, Cells, Format
from curvcli.sinks.text import clean, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

MOST: Final = 14
"""Numbers at the foot of the columns, and names of rows beside them, that can be read."""
DECADES: Final = 2.5
"""Below so many, the powers of ten are too few numbers for the key."""


def draw(axes: "Axes", cells: Cells, names: list[str]) -> None:
    """Draw them with the first row above; a number that is none, or has no logarithm, is grey."""
    import numpy
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    log = cells.key.scale == "log"
    values = numpy.array(
        [[math.nan if v is None or (log and v <= 0) else v for v in row] for row in cells.values]
    ).reshape(len(cells.labels), len(cells.x))
    known = values[numpy.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    norm: Any = LogNorm(low, high) if log else Normalize(low, high)
    # One that grows in lightness all the way, for eyes and printers that see no hue.
    colors = colormaps["viridis"].with_extremes(bad="#d9d9d9")
    shown = numpy.ma.masked_invalid(values)
    drawn = axes.pcolormesh(shown, cmap=colors, norm=norm, edgecolors="white", linewidth=0.5)
    axes.grid(visible=False)
    axes.invert_yaxis()
    rows = range(0, len(names), -(-len(names) // 60) or 1)
    axes.set_yticks([i + 0.5 for i in rows], [names[i] for i in rows])
    columns = range(0, len(cells.x), -(-len(cells.x) // MOST) or 1)
    axes.set_xticks([i + 0.5 for i in columns], [_place(cells.x[i]) for i in columns])
    axes.tick_params(length=0)
    key(axes, drawn, cells.key)


def key(axes: "Axes", drawn: "ScalarMappable", title: Axis) -> None:
    """Say beside the axes what the colours stand for."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator

    # Powers of ten alone may leave a key of few decades without a number.
    low, high = drawn.get_clim()
    ticks: Any = None if title.scale == "log" else AutoLocator()
    if title.scale == "log" and high < low * 10**DECADES:
        ticks = AutoLocator() if high < 4 * low else LogLocator(subs=(1, 2, 5))
    form: Format = "real" if isinstance(ticks, AutoLocator) else "relative"
    bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((1.02, 0, 0.025, 1)), ticks=ticks)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(float(v), form)))
    bar.ax.minorticks_off()
    bar.set_label(clean(title.title))
    bar.outline.set_visible(False)


def _place(x: float | None) -> str:
    return "" if x is None else f"{x:.15g}"
