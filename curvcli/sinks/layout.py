"""Where the words of a figure stand: broken into lines, from which its height follows."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from rich.cells import cell_len

from curvcli.report import Figure
from curvcli.sinks import tiles
from curvcli.sinks.fold import fold
from curvcli.sinks.strokes import Stroke, hidden, strokes
from curvcli.sinks.text import clean

# In points, of which 600 are 800 pixels.
WIDTH: Final = 600
HEIGHT: Final = 260
"""Of the axes; below them are their numbers."""
ROW: Final = 15
"""Of a row of cells; no more than ROWS of them keep it, further ones share their height."""
ROWS: Final = 60
KEY: Final = 92
NAMES: Final = 36
"""Characters of a row's name."""
NUMBERS: Final = 20
LEFT, RIGHT, MARGIN, GAP = 58, 20, 14, 8
SIZE, LINE = 9, 13
"""Of the letters, and from one line to the next; then those of a title."""
BOLD_SIZE, BOLD_LINE = 11, 17
ENTRY, FOLD = 14, 12
"""The height of an entry of the legend, and of each further line of one."""

CELLS, BOLD_CELLS, LABEL_CELLS = 100, 70, 84
"""What a line holds of text, of a title, of a label."""
SHORT: Final = 38
"""Cells of a label of which two stand side by side."""
LONGEST: Final = 160
"""Characters of a label; the report has all of a longer one."""


@dataclass(frozen=True)
class Block:
    """One figure as it is laid out."""

    figure: Figure
    strokes: list[Stroke]
    labels: list[str]
    title: list[str]
    above: list[str]
    below: list[str]
    caption: list[str]

    @classmethod
    def of(cls, figure: Figure) -> "Block":
        """Break the words of a figure into lines."""
        drawn, missing = strokes(figure), hidden(figure)
        caption = [clean(figure.caption, keep_newlines=True)] * bool(figure.caption)
        if missing:
            caption.append(
                f"Without a place on these axes: {missing:,} number{'s' * (missing > 1)}."
            )
        return cls(
            figure,
            drawn,
            labels=["\n".join(fold(_cut(stroke.label), LABEL_CELLS)) for stroke in drawn],
            title=fold(clean(figure.title), BOLD_CELLS),
            above=fold(clean(figure.y.title), CELLS),
            below=fold(clean(figure.x.title), CELLS) if figure.x.title else [],
            caption=[line for text in caption for line in fold(text, CELLS)],
        )

    @property
    def plot(self) -> float:
        """Give the height of the axes."""
        cells, pictures = self.figure.cells, self.figure.tiles
        if pictures is not None:
            return tiles.size(pictures, self.inner)
        return HEIGHT if cells is None else ROW * min(max(len(cells.labels), 2), ROWS)

    @property
    def inner(self) -> float:
        """Give the width of the axes."""
        return WIDTH - self.left - self.right

    @property
    def left(self) -> float:
        """Give where the axes begin: beside the names of rows, where there are some."""
        if self.figure.cells is None:
            return LEFT
        longest = max((cell_len(name) for name in self.names), default=0)
        return max(LEFT, 0.62 * SIZE * longest + GAP)

    @property
    def right(self) -> float:
        """Give how far from the edge the axes end: before the key of the colours, if there is."""
        return KEY if self.figure.cells or self.figure.tiles else RIGHT

    @property
    def names(self) -> list[str]:
        """Name the rows of cells, without the middle where that is long."""
        half = NAMES // 2
        labels = [] if self.figure.cells is None else map(clean, self.figure.cells.labels)
        return [n if len(n) <= NAMES else f"{n[: half - 1]}…{n[-half:]}" for n in labels]

    @property
    def columns(self) -> int:
        """Give the columns of the legend: two where all of its labels are short."""
        return 2 if len(self.labels) > 3 and all(cell_len(x) <= SHORT for x in self.labels) else 1

    @property
    def tops(self) -> list[float]:
        """Give where each part begins below the top, and where the last one ends."""
        # Where there are two columns, all labels are of one line.
        entries, folds = len(self.labels), sum(label.count("\n") for label in self.labels)
        parts = (
            MARGIN,
            BOLD_LINE * len(self.title),
            LINE * len(self.above) + GAP / 2,
            self.plot + (0 if self.figure.tiles else NUMBERS),
            LINE * len(self.below) + GAP,
            ENTRY * -(-entries // self.columns) + FOLD * folds + GAP,
            LINE * len(self.caption) + MARGIN,
        )
        return list(accumulate(parts))

    @property
    def height(self) -> float:
        """Give the height of all of it."""
        return self.tops[-1]


def _cut(label: str) -> str:
    """Leave the middle out of a label that would fill the figure."""
    half = LONGEST // 2
    return label if len(label) <= LONGEST else f"{label[:half]} … {label[-half:]}"
