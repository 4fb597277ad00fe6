"""Figures as one SVG document, the same bytes from the same numbers; matplotlib draws.

Text stays text, which can be searched, read aloud and shown in any script. It is measured in DejaVu
Sans, wider than most fonts that take its place, so that it does not collide where that is missing.
"""

import warnings
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

from curvcli.report import Figure
from curvcli.sinks import cells, layout, tiles
from curvcli.sinks.layout import Block
from curvcli.sinks.strokes import Stroke
from curvcli.sinks.text import clean, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

DECADES: Final = 2.5
"""A logarithmic axis that spans less has numbers between the powers of ten."""

STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "curv",
    "text.parse_math": False,  # a $ in a tensor's name is a $
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": layout.SIZE,
    "legend.fontsize": layout.SIZE,
    "legend.labelspacing": (layout.ENTRY - layout.SIZE) / layout.SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "text.color": "#222222",
    "savefig.facecolor": "white",
}


def svg(figures: Sequence[Figure]) -> str:
    """Draw figures below each other, on white, 800 pixels wide."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(), warnings.catch_warnings():
        # DejaVu may lack a sign that the viewer has, and some curves have no point at all.
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()  # the user's matplotlibrc is for the user's own figures
        matplotlib.rcParams.update(STYLE)
        blocks = [Block.of(figure) for figure in figures]
        height = sum(block.height for block in blocks)
        canvas = Canvas(figsize=(layout.WIDTH / 72, height / 72))
        top = height
        for block in blocks:
            _draw(block, canvas, top, height)
            top -= block.height
        unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        title = "; ".join(clean(figure.title) for figure in figures)
        buffer = StringIO()
        canvas.savefig(buffer, format="svg", metadata={**unsaid, "Title": title})
    text = buffer.getvalue()
    # Without its prolog, which names a file elsewhere, it can stand in a page too.
    return text[text.index("<svg") :]


def _draw(block: Block, canvas: "Canvas", top: float, height: float) -> None:
    """Draw a figure, its top that far above the foot of a canvas of this height."""
    width, left, inner = layout.WIDTH, layout.LEFT, block.inner
    title, above, plot, below, legend, caption, _ = (top - y for y in block.tops)

    def write(lines: list[str], x: float, y: float, step: float, **look: Any) -> None:
        for i, line in enumerate(lines):
            canvas.text(x / width, (y - i * step) / height, line, va="top", **look)

    write(block.title, left, title, layout.BOLD_LINE, weight="bold", size=layout.BOLD_SIZE)
    write(block.above, left, above, layout.LINE)
    box = (block.left, plot - block.plot, inner, block.plot)
    axes = canvas.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    write(block.below, block.left + inner / 2, below, layout.LINE, ha="center")
    write(block.caption, left, caption, layout.LINE, color="#444444")
    if block.figure.cells is not None:
        cells.draw(axes, block.figure.cells, block.names)
        return
    if block.figure.tiles is not None:
        tiles.draw(axes, block.figure.tiles, inner)
        return
    axes.set_xscale(block.figure.x.scale)
    axes.set_yscale(block.figure.y.scale)
    for stroke in block.strokes:
        _stroke(axes, stroke)
    _number(axes.xaxis)
    _number(axes.yaxis)
    axes.yaxis.set_offset_position("right")  # the title of the axis is on the left
    _legend(axes, block, (left / width, legend / height))


def _stroke(axes: "Axes", stroke: Stroke) -> None:
    across = {"level": axes.get_yaxis_transform, "tick": axes.get_xaxis_transform}
    place: dict[str, Any] = {}
    if stroke.across:
        place["transform"] = across[stroke.across]()
    axes.plot(stroke.x, stroke.y, **stroke.look, **place)
    if stroke.band:
        shade = {"color": stroke.look["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(stroke.x, *stroke.band, **shade)


def _number(axis: "Axis") -> None:
    """Write the numbers of a logarithmic axis as tables do."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter

    if axis.get_scale() != "log":
        return
    low, high = sorted(axis.get_view_interval())
    if high < low * 10**DECADES:
        narrow = high < 4 * low
        axis.set_major_locator(AutoLocator() if narrow else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: number(float(v), "real")))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: "Axes", block: Block, corner: tuple[float, float]) -> None:
    legend = axes.legend(
        axes.lines,
        ["-"] * len(block.labels),  # a label that starts with _ would be left out
        loc="upper left", bbox_to_anchor=corner, bbox_transform=axes.figure.transFigure,
        ncols=block.columns, frameon=False, borderpad=0, borderaxespad=0, handlelength=3.2,
    )  # fmt: skip
    for text, label in zip(legend.get_texts(), block.labels, strict=True):
        text.set_text(label)
